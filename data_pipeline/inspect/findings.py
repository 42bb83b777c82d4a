"""What there is to know about a scene before it is used: views, motion, poses, and cautions.

The model is trained on RealEstate10K, so scenes are compared with that. Where the numbers are from:

  TRAINING_SIZE       its frames, as the prepared sets and pixelSplat's chunks store them
  TRAINING_VIEW       a focal length of 0.87 of the height, usual in that set, is a vertical field
                      of view of 2 · atan(0.5 / 0.87) = 60°; the centre square that the model is
                      given has it both ways
  TRAINING_DISTANCES  between the outermost views of an example, in the published recipe
                      (`views.draw_window`)

The limits of the cautions are our judgement, not measured.
"""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

from data_pipeline.inspect.pose_checks import check_poses
from data_pipeline.pictures.images import decode_image, exif_orientation
from data_pipeline.pictures.jpeg import JPEG_START, jpeg_warning
from data_pipeline.scenes import Frame, Scene
from efficient_lvsm_jax.files.reading import read_bytes
from efficient_lvsm_jax.geometry.epipolar import PoseCheck

VERDICTS = ("usable", "usable with care", "not usable")
TRAINING_SIZE = (640, 360)
TRAINING_VIEW = 60.0  # degrees, both ways, of the centre square
TRAINING_DISTANCES = (25, 192)  # frames
VIEW_TOLERANCE = 15.0  # degrees by which the field of view may differ
CENTRE_TOLERANCE = 0.05  # of the side, by which a principal point may be off
FOCAL_TOLERANCE = 0.01  # by which focal lengths may differ within a scene
ONE_FRAME, ONE_CENTRE = "single frame", "one centre"  # of which no scene can be made
OTHER_ORDER = "not the order of the film"
SQUARE_TOLERANCE = 0.15  # by which the focal lengths of a picture may differ
SAME_DIRECTION = 0.3  # length of the mean viewing direction, below which cameras look all around
SAMPLE = 50  # pictures whose files are looked at


@dataclasses.dataclass(frozen=True)
class Caution:
    """Not an error, but something to know. kind: short, the same for all scenes that have it."""

    kind: str
    message: str


@dataclasses.dataclass(frozen=True)
class Inspection:
    """What was found in a scene.

    Attributes:
      scene: its name. frames: usable ones. absent: names of those that are not there.
      sizes: (width, height, frames), most frequent first.
      horizontal_view, vertical_view: field of view of the picture, degrees; smallest, median,
        largest. square_view: of the centre square that the model is given, median.
      angles: between viewing directions of neighbouring frames, degrees; smallest, median,
        largest. distances: of their centres, in the source's unit. None for a single frame.
      extent: of the camera centres along the world's axes, in the source's unit.
      poses: how well they fit the pictures.
      cautions: what differs from the training data, or is likely wrong.
      verdict: a line that begins with one of VERDICTS and says why.
    """

    scene: str
    frames: int
    absent: tuple[str, ...]
    sizes: tuple[tuple[int, int, int], ...]
    horizontal_view: tuple[float, float, float]
    vertical_view: tuple[float, float, float]
    square_view: float
    angles: tuple[float, float, float] | None
    distances: tuple[float, float, float] | None
    extent: tuple[float, float, float]
    poses: PoseCheck
    cautions: tuple[Caution, ...]
    verdict: str

    @property
    def is_usable(self) -> bool:
        """Whether it is, with care or without."""
        return self.verdict.startswith(VERDICTS[0])


def inspect_scene(scene: Scene, *, pairs: int = 8) -> Inspection:
    """Looks at a scene.

    Args:
      pairs: of pictures that are matched where the source has no observations.

    Raises:
      InputError: a picture that is looked at cannot be read.
    """
    frames = [scene.frames[index] for index in scene.usable]
    c2w = np.stack([frame.c2w for frame in frames])
    fxfycxcy = np.stack([frame.fxfycxcy for frame in frames])
    sizes = np.array([(frame.width, frame.height) for frame in frames])
    views = np.degrees(
        np.arctan(fxfycxcy[:, 2:] / fxfycxcy[:, :2])
        + np.arctan((sizes - fxfycxcy[:, 2:]) / fxfycxcy[:, :2])
    )
    short = sizes.argmin(1)
    rows = np.arange(len(frames))
    square = 2 * np.degrees(np.arctan(0.5 * sizes[rows, short] / fxfycxcy[rows, short]))
    forward, centres = c2w[:, :3, 2], c2w[:, :3, 3]
    angles = np.degrees(np.arccos(np.clip((forward[:-1] * forward[1:]).sum(-1), -1, 1)))
    distances = np.linalg.norm(np.diff(centres, axis=0), axis=-1)
    poses = check_poses(scene, pairs=pairs)
    counted = Counter(map(tuple, sizes.tolist())).most_common()
    cautions = (
        *_picture_cautions(sizes, fxfycxcy, square),
        *_pose_cautions(c2w, square),
        *(Caution("source", note) for note in scene.notes),
        *_absence_cautions(scene),
        *_order_cautions(scene),
        *_length_cautions(frames),
        *_file_cautions(frames),
        *_check_cautions(poses),
    )
    return Inspection(
        scene=scene.name,
        frames=len(frames),
        absent=scene.absent,
        sizes=tuple((*size, count) for size, count in counted),
        horizontal_view=_spread(views[:, 0]),
        vertical_view=_spread(views[:, 1]),
        square_view=float(np.median(square)),
        angles=_spread(angles) if len(frames) > 1 else None,
        distances=_spread(distances) if len(frames) > 1 else None,
        extent=tuple(np.ptp(centres, axis=0).tolist()),
        poses=poses,
        cautions=cautions,
        verdict=_verdict(poses, cautions),
    )


def _verdict(poses: PoseCheck, cautions: Sequence[Caution]) -> str:
    usable, with_care, not_usable = VERDICTS
    if poses.verdict == "bad":
        return f"{not_usable}: {poses.reason}"
    if missing := [caution for caution in cautions if caution.kind in (ONE_FRAME, ONE_CENTRE)]:
        return f"{not_usable}: {missing[0].message}"
    kinds = [caution.kind for caution in cautions]
    kinds += ["poses not checked"] * (poses.verdict == "unknown")
    return f"{with_care}: {', '.join(kinds)}" if kinds else usable


def _spread(values: np.ndarray) -> tuple[float, float, float]:
    return tuple(float(x) for x in (values.min(), np.median(values), values.max()))


def _picture_cautions(
    sizes: np.ndarray, fxfycxcy: np.ndarray, square: np.ndarray
) -> Iterator[Caution]:
    view = np.median(square)
    if view < TRAINING_VIEW - VIEW_TOLERANCE:
        yield Caution(
            "narrow view",
            f"the centre square shows {view:.0f}°, training pictures about {TRAINING_VIEW:.0f}°: "
            "expect softer results. Nothing widens a picture; photograph with a wider lens, or "
            "train on pictures like these",
        )
    if view > TRAINING_VIEW + VIEW_TOLERANCE:
        yield Caution(
            "wide view",
            f"the centre square shows {view:.0f}°, training pictures about {TRAINING_VIEW:.0f}°: "
            "expect distortion towards the borders. Crop the pictures and subtract the offsets "
            "from cx and cy",
        )
    portrait = int((sizes[:, 0] < sizes[:, 1]).sum())
    if portrait:
        yield Caution(
            "portrait",
            f"{portrait} of {len(sizes)} pictures are higher than wide. Films keep their shape, "
            "preparing, training and evaluation use the square in their middle; the published "
            "evaluation would make smaller squares of them, so scores on them compare with nothing",
        )
    if len(np.unique(sizes, axis=0)) > 1:
        yield Caution(
            "mixed resolutions",
            f"pictures of {len(np.unique(sizes, axis=0))} sizes. Each is scaled by itself, which "
            "works; check that no resized copies slipped in",
        )
    focal = fxfycxcy[:, :2] / sizes.max(1, keepdims=True)
    spread = np.ptp(focal, axis=0).max() / np.median(focal)
    if spread > FOCAL_TOLERANCE:
        yield Caution(
            "mixed intrinsics",
            f"focal lengths differ by {spread:.1%} between pictures. That is fine if the lens was "
            "zoomed or several were used; if not, calibrate again with one shared camera",
        )
    ratio = fxfycxcy[:, 0] / fxfycxcy[:, 1]
    if np.abs(np.log(ratio)).max() > np.log1p(SQUARE_TOLERANCE):
        yield Caution(
            "pixels not square",
            f"fx is {ratio[np.abs(np.log(ratio)).argmax()]:.2f} times fy: right for pictures that "
            "were stretched; if these were not, one of the two belongs to another side",
        )
    off = np.abs(fxfycxcy[:, 2:] / sizes - 0.5).max()
    if off > CENTRE_TOLERANCE:
        yield Caution(
            "principal point off centre",
            f"by up to {off:.0%} of the side; training had it in the middle. The rays account for "
            "it, but if the pictures were not cropped, the calibration or the stated size is wrong",
        )


def _pose_cautions(c2w: np.ndarray, square: np.ndarray) -> Iterator[Caution]:
    if len(c2w) < 2:
        yield Caution(
            ONE_FRAME,
            "one camera gives no parallax and no scale; add at least one more view",
        )
        return
    centres, forward = c2w[:, :3, 3], c2w[:, :3, 2]
    if np.ptp(centres, axis=0).max() <= 1e-6 * max(np.abs(centres).max(), 1e-300):
        yield Caution(
            ONE_CENTRE,
            "all cameras are at one place: nothing can be learned about depth, and the scene has "
            "no scale. Move while photographing; if you did, the translations were lost",
        )
    alone = 0
    for index in range(len(c2w)):
        others = np.delete(forward, index, axis=0) @ forward[index]
        alone += np.degrees(np.arccos(np.clip(others.max(), -1, 1))) > square[index]
    if alone:
        yield Caution(
            "no overlap",
            f"{alone} of {len(c2w)} frames look in a direction that no other frame looks in "
            "(further apart than the field of view): they help no other view; photograph in "
            "smaller turns. If the pictures do overlap, the rotations are wrong",
        )
    if np.linalg.norm(forward.mean(0)) < SAME_DIRECTION:
        yield Caution(
            "all around",
            "the cameras look in all directions, while training views of a film look much the same "
            "way: choose inputs near the views you want to render, and few at a time",
        )


def _absence_cautions(scene: Scene) -> Iterator[Caution]:
    if scene.absent:
        listed = len(scene.usable) + len(scene.absent)
        yield Caution(
            "absent frames",
            f"{len(scene.absent)} of {listed} listed frames are absent or unreadable, e.g. "
            f"{scene.absent[0]}: copy the pictures again, or go on without them (--strict refuses)",
        )


def _order_cautions(scene: Scene) -> Iterator[Caution]:
    if scene.film:
        place = next(i for i, index in enumerate(scene.film) if i != index)
        first, second = (scene.frames[i].name for i in (place, scene.film[place]))
        yield Caution(
            OTHER_ORDER,
            f"{first} comes before {second}: frames are counted by name, as evaluation indices "
            "count them, not in the order of the film. Training draws windows by number; names "
            "with leading zeros (0001.jpg) have one order",
        )
    elif disorder := _disorder([frame.name for frame in scene.frames]):
        yield Caution(
            OTHER_ORDER,
            f"{' comes before '.join(disorder)}: frames are counted by name, and as more than one "
            "number differs in the names, training draws its windows so, too; names with leading "
            "zeros (0001.jpg) have one order",
        )


def _disorder(names: Sequence[str]) -> tuple[str, ...]:
    """The first two names in the order of the alphabet that their numbers contradict, or none."""
    latest: dict[tuple[str, ...], tuple[tuple[float, ...], str]] = {}
    for name in names:
        parts = re.split(r"([0-9]+(?:\.[0-9]+)?)", name)
        texts, numbers = tuple(parts[::2]), tuple(map(float, parts[1::2]))
        before, other = latest.get(texts, ((), ""))
        if numbers < before and name > other:
            return other, name
        latest[texts] = numbers, name
    return ()


def _length_cautions(frames: Sequence[Frame]) -> Iterator[Caution]:
    shortest = TRAINING_DISTANCES[0] + 1
    if len(frames) < shortest and frames[0].timestamp is not None:
        yield Caution(
            "short film",
            f"{len(frames)} frames; training as published takes views {TRAINING_DISTANCES[0]} to "
            f"{TRAINING_DISTANCES[1]} frames apart, so it needs {shortest} or more: lower the "
            "smallest distance, or leave the film out",
        )


def _file_cautions(frames: Sequence[Frame]) -> Iterator[Caution]:
    """Of the pictures' files, a sample: rotations, and what the decoder warns of."""
    chosen = np.unique(np.linspace(0, len(frames) - 1, SAMPLE).round().astype(int))
    sample = [frames[index] for index in chosen]
    turns = [exif_orientation(frame.file) for frame in sample if frame.file]
    if turned := [turn for turn in turns if turn != 1]:
        yield Caution(
            "EXIF rotation",
            f"{len(turned)} of {len(turns)} pictures looked at say that they are to be shown "
            f"rotated or mirrored (EXIF orientation {', '.join(map(str, sorted(set(turned))))}). "
            "They are used as stored, unless the intrinsics are of the rotated shape; if they lie "
            "on their side, rotate the files for good and calibrate again",
        )
    warnings = {}
    for frame in sample:
        data = read_bytes(frame.file) if frame.file else frame.encoded and frame.encoded()
        if data and data.startswith(JPEG_START) and (warning := jpeg_warning(data)):
            decode_image(data, str(frame.file or frame.name))  # raises if there is more to it
            warnings[frame.name] = warning
    if warnings:
        names = ", ".join(list(warnings)[:3]) + (", …" if len(warnings) > 3 else "")
        yield Caution(
            "decoder warnings",
            f"{len(warnings)} of {len(sample)} pictures looked at have bytes that are no part of "
            f"them ({names}; {next(iter(warnings.values()))}). All their pixels are there and are "
            "read; other programs may refuse these files",
        )


def _check_cautions(poses: PoseCheck) -> Iterator[Caution]:
    if poses.verdict in ("suspicious", "bad"):
        yield Caution(f"{poses.verdict} poses", f"{poses.reason}; renderings would be blurred")
    elif poses.verdict == "good" and poses.reason:
        yield Caution("points of the source", poses.reason)
