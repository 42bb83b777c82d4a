"""Scores cameras, depth and points of pictures without cameras, on captures whose depth is known.

    python eval.py --geometry --weights MODEL CAPTURE ...
    python eval.py --geometry --weights MODEL --generated 48 --frames 6 [--capacity 4]
    python eval.py --geometry --predictions FOLDER CAPTURE     # a capture with cameras and depth

A causal model sees frames one after the other, others see them as a whole. Scored are: depth after
a median scale for each picture, and after one Weiszfeld scale for all; relative cameras of all
pairs, as the area under the share of angles up to 30 degrees; path and cloud of points after
alignment. The last column guesses: the mean true depth everywhere, and cameras that never move.

Axes: R frame, Y X pixel.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.formats import open_scenes
from data_pipeline.pictures.transforms import depth_through, fit
from data_pipeline.procedural.rooms import ProceduralScenes, SceneRecipe
from data_pipeline.scenes import Frame, Scene, scene_of_arrays
from efficient_lvsm_jax.commands import Parser, picture_size
from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.files.writing import json_safe, write_json
from efficient_lvsm_jax.geometry.cameras import Cameras
from efficient_lvsm_jax.geometry.points import unproject
from efficient_lvsm_jax.metrics.clouds import brought_nearest, cloud_errors, in_its_unit
from efficient_lvsm_jax.metrics.depth import depth_errors, median_scale, weiszfeld_scale
from efficient_lvsm_jax.metrics.poses import auc, pair_errors, path_errors
from efficient_lvsm_jax.models.geometry_model import GeometryModel
from efficient_lvsm_jax.sessions.forgetting import WHEN_FULL
from efficient_lvsm_jax.sessions.streaming import Stream
from efficient_lvsm_jax.sessions.unposed import check_field_of_view
from efficient_lvsm_jax.weights.load import load

LIMIT = 30  # degrees, of the area under angles
ICP_LIMIT = 0.1  # of the captures' unit, metres where they say so
MOST_POINTS = 20_000  # of a cloud; of larger ones every n-th
MAX_STRETCH = 0.02  # by which the shape of a prediction may differ from its picture's

# Names of scores, and how they are shown.
SCORES = {
    "depth_abs_rel": "depth, |error| / truth, a scale a picture",
    "depth_delta": "depth within a factor of 1.25",
    "video_abs_rel": "the same, one scale for all",
    "video_delta": "within a factor of 1.25",
    "rotation_auc": f"rotation AUC@{LIMIT}",
    "translation_auc": f"translation AUC@{LIMIT}",
    "pose_auc": f"both, AUC@{LIMIT}",
    "ate": "ATE after Sim(3)",
    "rpe_translation": "RPE, translation",
    "rpe_rotation": "RPE, rotation, degrees",
    "accuracy": "cloud, accuracy",
    "accuracy_median": "its median",
    "completeness": "cloud, completeness",
    "completeness_median": "its median",
    "normals": "cloud, normals' consistency",
}


@dataclasses.dataclass(frozen=True)
class Geometry:
    """What is known, or said, of R frames.

    Attributes:
      c2w: [R, 4, 4] in any world.
      depth: [R, Y, X] along the viewing direction, 0 where it is not known.
      points: [R, Y, X, 3] in the axes of the first camera.
    """

    c2w: np.ndarray
    depth: np.ndarray
    points: np.ndarray

    @classmethod
    def of(cls, c2w: np.ndarray, depth: np.ndarray, fxfycxcy: np.ndarray) -> Geometry:
        """With the points that cameras and depth put there."""
        own = (np.linalg.inv(np.float64(c2w[0])) @ c2w).astype(np.float32)
        cameras = Cameras(own, np.float32(fxfycxcy), *depth.shape[1:])
        return cls(c2w, depth, np.asarray(unproject(np.float32(depth), cameras)))


@dataclasses.dataclass(frozen=True)
class Clip:
    """Frames of a scene and the truth of them.

    Attributes:
      name: of the scene. frames: names of its frames.
      images: uint8 [R, Y, X, 3]. fxfycxcy: [R, 4], pixels of them.
      truth: in the unit of the scene.
    """

    name: str
    frames: tuple[str, ...]
    images: np.ndarray
    fxfycxcy: np.ndarray
    truth: Geometry


def clip_of(
    scene: Scene, frames: int = 0, size: tuple[int, int] | None = None, patch: int = 1
) -> Clip:
    """A scene's frames in the order of its film.

    Args:
      frames: so many, evenly chosen; 0: all that can be read.
      size: (height, width) that pictures are resized and cropped to; None: the largest of whole
        patches in the first.
      patch: of the model.

    Raises:
      InputError: fewer than two frames, fewer than asked for, or one without depth.
    """
    usable = [at for at in (scene.film or range(len(scene.frames))) if at not in scene.holes]
    count = frames or len(usable)
    if not 2 <= count <= len(usable):
        raise InputError(
            f"{scene.name}: {count} of {len(usable)} frames asked for; expected two or more that "
            "are there (--frames)"
        )
    chosen = [
        scene.frames[usable[at]]
        for at in np.linspace(0, len(usable) - 1, count).round().astype(int)
    ]
    first = chosen[0]
    size = size or (first.height // patch * patch, first.width // patch * patch)
    images, intrinsics, depth = [], [], []
    for frame in chosen:
        image, moved = fit(frame.image(), frame.fxfycxcy, size, patch=patch)
        images.append(image)
        intrinsics.append(moved)
        depth.append(depth_through(_depth(frame, scene.name), frame.fxfycxcy, moved, size))
    fxfycxcy = np.stack(intrinsics)
    truth = Geometry.of(np.stack([frame.c2w for frame in chosen]), np.stack(depth), fxfycxcy)
    if not (truth.depth > 0).any(axis=(1, 2)).all():
        raise InputError(f"{scene.name}: a frame of which no depth is known; leave it out")
    names = tuple(frame.name for frame in chosen)
    return Clip(scene.name, names, np.stack(images), fxfycxcy, truth)


def _depth(frame: Frame, scene: str) -> np.ndarray:
    if frame.depth is None:
        raise InputError(
            f"{scene}, frame {frame.name}: has no depth to compare with; expected a capture with "
            "depth_file_path, as elvsm walk --depth writes"
        )
    return frame.depth()


def seen_by(
    model: GeometryModel, capacity: int | None = None, when_full: str = "window"
) -> Callable[[Clip], Geometry]:
    """What a model says of clips: as a stream if it is causal, and otherwise of them as a whole.

    Args:
      capacity: frames that the stream has room for; None: all of a clip.
      when_full: what leaves then, as of `Stream`.

    Raises:
      InputError: a capacity of a model that is not causal; when it sees, a field of view of 0.
    """
    if capacity is not None and not model.config.causal:
        raise InputError(
            f"--capacity {capacity}: {model.family} sees a clip as a whole and remembers nothing; "
            "expected a causal model, or leave it out"
        )

    def see(clip: Clip) -> Geometry:
        if model.config.causal:
            room = len(clip.images) if capacity is None else capacity
            stream = Stream(model, capacity=room, when_full=when_full)
            frames = [stream.observe(image) for image in clip.images]
            c2w = np.stack([frame.cameras.c2w for frame in frames])
            fxfycxcy = np.stack([frame.cameras.fxfycxcy for frame in frames])
            depth = np.stack([frame.depth for frame in frames])
            points = None if frames[0].points is None else np.stack([x.points for x in frames])
        else:
            images = clip.images[None].astype(np.float32) / 255
            _, found = model.observe(None, images)
            c2w, fxfycxcy, depth = (
                np.asarray(x[0]) for x in (found.cameras.c2w, found.cameras.fxfycxcy, found.depth)
            )
            points = None if found.points is None else np.asarray(found.points[0])
        for name, intrinsics in zip(clip.frames, fxfycxcy, strict=True):
            what = f"{clip.name}, frame {name}: what {model.family} says of it"
            check_field_of_view(intrinsics, depth.shape[1:], what)
        if points is None:
            return Geometry.of(c2w, depth, fxfycxcy)
        return Geometry(c2w, depth, points)

    return see


def read_from(folder: Path) -> Callable[[Clip], Geometry]:
    """What a capture with cameras and depth says of clips whose frames have the same names.

    Its pictures may be smaller, but show the same; the clip's truth is then looked up at theirs.
    """
    frames = {frame.name: frame for frame in open_scenes(folder)[0].frames}

    def see(clip: Clip) -> Geometry:
        absent = [name for name in clip.frames if name not in frames]
        if absent:
            raise InputError(
                f"{folder}: says nothing of frame {absent[0]} of {clip.name}; expected a capture "
                "whose frames have the same names"
            )
        said = [frames[name] for name in clip.frames]
        depth = np.stack([_resized(_depth(frame, str(folder)), clip, folder) for frame in said])
        scale = clip.images.shape[2] / said[0].width
        fxfycxcy = np.stack([frame.fxfycxcy for frame in said]) * scale
        return Geometry.of(np.stack([frame.c2w for frame in said]), depth, fxfycxcy)

    return see


def _resized(depth: np.ndarray, clip: Clip, folder: Path) -> np.ndarray:
    """Depth [Y, X] of a picture at the size of the clip's, by the pixel that lies there."""
    size = clip.images.shape[1:3]
    scale = np.array(size) / depth.shape
    if abs(scale[0] / scale[1] - 1) > MAX_STRETCH:
        raise InputError(
            f"{folder}: depth of {depth.shape[0]}x{depth.shape[1]} for pictures of "
            f"{size[0]}x{size[1]} (height x width) of {clip.name}: expected the same shape"
        )
    unit = np.array([1.0, 1, 0, 0])
    return depth_through(depth, unit, unit * [scale[1], scale[0], 0, 0], size)


def trivial(clip: Clip) -> Geometry:
    """A guess without looking: the mean true depth everywhere, and no motion."""
    known = clip.truth.depth > 0
    depth = np.full_like(clip.truth.depth, clip.truth.depth[known].mean())
    return Geometry.of(np.tile(np.eye(4), (len(depth), 1, 1)), depth, clip.fxfycxcy)


def scores(seen: Geometry, truth: Geometry) -> dict[str, float]:
    """All of SCORES of a clip."""
    valid = truth.depth > 0
    by_picture = []
    for prediction, expected, known in zip(seen.depth, truth.depth, valid, strict=True):
        scale = median_scale(prediction, expected, known)
        by_picture.append(depth_errors(scale * prediction, expected, known))
    abs_rel, delta = np.average(by_picture, axis=0, weights=valid.sum((1, 2)))
    scale = weiszfeld_scale(seen.depth, truth.depth, valid)
    video = depth_errors(scale * seen.depth, truth.depth, valid)
    rotation, translation = pair_errors(seen.c2w, truth.c2w)
    clouds = [x.points[valid] for x in (seen, truth)]
    every = -(-len(clouds[0]) // MOST_POINTS)
    ours, theirs = in_its_unit(*(cloud[::every] for cloud in clouds))
    return {
        "depth_abs_rel": float(abs_rel),
        "depth_delta": float(delta),
        "video_abs_rel": video[0],
        "video_delta": video[1],
        "rotation_auc": auc(rotation, LIMIT),
        "translation_auc": auc(translation, LIMIT),
        "pose_auc": auc(np.maximum(rotation, translation), LIMIT),
        **path_errors(seen.c2w, truth.c2w),
        **cloud_errors(brought_nearest(ours, theirs, ICP_LIMIT), theirs),
    }


def score(see: Callable[[Clip], Geometry], clips: Iterator[Clip]) -> dict[str, Any]:
    """Means over clips, of what is seen and of the guess, and the scores of each."""
    rows = []
    for clip in clips:
        seen = see(clip)
        for what, values in vars(seen).items():
            if not np.isfinite(values).all():
                raise InputError(
                    f"{clip.name}: {what} of its frames as seen are not finite; are the weights as "
                    "they were trained?"
                )
        both = [scores(said, clip.truth) for said in (seen, trivial(clip))]
        rows.append({"clip": clip.name, "frames": len(clip.frames), "seen": both[0]})
        rows[-1]["guess"] = both[1]
    means = {
        who: {name: float(np.mean([row[who][name] for row in rows])) for name in SCORES}
        for who in ("seen", "guess")
    }
    return {**means, "clips": rows}


def clips(flags: argparse.Namespace, patch: int) -> Iterator[Clip]:
    """Those that the command line names."""
    if flags.generated:
        size = flags.size or (48, 48)
        recipe = SceneRecipe(size=size[0], views=flags.frames or 6)
        source = ProceduralScenes(
            flags.generated, seed=flags.seed, split="heldout", recipe=recipe, depth=True
        )
        for example in map(dict, source):
            yield clip_of(scene_of_arrays(example.pop("scene"), **example), 0, size, patch)
    for path in flags.captures:
        for scene in open_scenes(path):
            yield clip_of(scene, flags.frames or 0, flags.size, patch)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line `eval.py --geometry`."""
    parser = Parser("python eval.py", __doc__)
    parser.add_argument("--geometry", action="store_true", required=True)
    who = parser.add_mutually_exclusive_group(required=True)
    who.add_argument("--weights", metavar="MODEL", help="of geometry, as elvsm.load takes it")
    who.add_argument("--predictions", type=Path, metavar="FOLDER", help="cameras and depth said")
    parser.add_argument("captures", nargs="*", metavar="CAPTURE", help="with depth")
    parser.add_argument("--generated", type=int, metavar="N", help="score N held-out walks")
    parser.add_argument("--seed", type=int, default=0, help="of generated walks (default: 0)")
    parser.add_argument("--frames", type=int, help="of a scene, evenly chosen (default: all, or 6)")
    parser.add_argument(
        "--size", type=picture_size, metavar="HxW", help="of pictures (default: their own, or 48)"
    )
    parser.add_argument(
        "--capacity", type=int, metavar="N", help="frames a stream has room for (default: all)"
    )
    parser.add_argument(
        "--when-full", choices=WHEN_FULL[1:], default="window", help="what leaves (default: window)"
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="all scores, as JSON")
    flags = parser.parse_args(arguments)
    if not flags.captures and not flags.generated:
        parser.error("name captures with depth, or --generated N walks")
    if flags.generated and (flags.predictions or (flags.size and len({*flags.size}) > 1)):
        parser.error("generated walks are square and for models; name a CAPTURE instead")
    if flags.predictions and flags.capacity is not None:
        parser.error("--capacity is of a model's stream; predictions are compared as they are")
    patch, see = 1, None
    if flags.weights:
        model = load(flags.weights)
        if not isinstance(model, GeometryModel):
            raise InputError(f"{flags.weights}: {model!r} sees no geometry; leave out --geometry")
        patch, see = model.config.patch, seen_by(model, flags.capacity, flags.when_full)
    else:
        see = read_from(flags.predictions)
    found = score(see, clips(flags, patch)) | {"of": str(flags.weights or flags.predictions)}
    if flags.out:
        write_json(flags.out, json_safe(found))
    print(f"{len(found['clips'])} clips{'':<36}{'seen':>10}{'guess':>10}")
    for name, text in SCORES.items():
        print(f"  {text:<42}{found['seen'][name]:10.4f}{found['guess'][name]:10.4f}")
