"""Posed pictures in one form, whatever format they came in.

    scenes = open_scenes("captures/walk")
    frame = scenes[0].frames[3]
    frame.c2w, frame.fxfycxcy, frame.image()

Poses are camera-to-world in OpenCV axes (x right, y down, z forward), float64; intrinsics are in
pixels of the picture that `image()` returns, pixel centres at +0.5; that picture has no lens
distortion. The world's frame and unit are those of the source.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from data_pipeline.read_options import ReadOptions
from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.geometry.cameras import check_cameras

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Frame:
    """One posed picture, decoded when asked for.

    Attributes:
      name: unique in its scene, e.g. the picture's path in the data set.
      c2w: [4, 4] float64. fxfycxcy: [4] float64, pixels.
      width, height: of the picture, pixels.
      read: decodes it, uint8 [Y, X, 3].
      encoded: the bytes of a JPEG that decodes to exactly that picture, or None if there is none
        (another file format, or the picture is undistorted, turned or blended after decoding).
      timestamp: in the source's own unit, if it has one.
      file: of the picture, where it has one of its own.
      alpha: reads how opaque each pixel was before it was blended over white, uint8 [Y, X]; returns
        None, or is None, where that is not known.
      depth: reads how far away each pixel is along the viewing direction, float32 [Y, X] in the
        world's unit, 0 where that is not known; None where the source has no depth.
    """

    name: str
    c2w: np.ndarray
    fxfycxcy: np.ndarray
    width: int
    height: int
    read: Callable[[], np.ndarray] = dataclasses.field(repr=False, compare=False)
    encoded: Callable[[], bytes] | None = dataclasses.field(default=None, repr=False, compare=False)
    timestamp: int | None = None
    file: Path | None = dataclasses.field(default=None, repr=False, compare=False)
    alpha: Callable[[], np.ndarray | None] | None = dataclasses.field(
        default=None, repr=False, compare=False
    )
    depth: Callable[[], np.ndarray] | None = dataclasses.field(
        default=None, repr=False, compare=False
    )

    def image(self) -> np.ndarray:
        """The picture, RGB uint8 [Y, X, 3].

        Raises:
          InputError: it is not there, damaged, or not of the size the frame states.
        """
        image = self.read()
        if image.shape != (self.height, self.width, 3):
            raise InputError(
                f"{self.name}: {image.shape[1]}x{image.shape[0]} pixels, expected "
                f"{self.width}x{self.height} (width x height); its intrinsics would not fit"
            )
        return image


@dataclasses.dataclass(frozen=True)
class Observations:
    """Where points of the scene were seen; M observations.

    frame: [M] index into the scene's frames. pixels: [M, 2] (x, y) in the frame's picture.
    points: [M, 3] in the world.
    """

    frame: np.ndarray
    pixels: np.ndarray
    points: np.ndarray


@dataclasses.dataclass(frozen=True)
class Cloud:
    """Coloured points: points [P, 3], colours uint8 [P, 3]."""

    points: np.ndarray
    colours: np.ndarray


@dataclasses.dataclass(frozen=True)
class Scene:
    """Posed pictures of one place, in the order in which evaluation indices count them.

    Attributes:
      name: unique in its data set.
      frames: a tuple is checked here: at least one frame, different names, usable cameras. Another
        sequence reads a frame when asked for it and checks it then.
      absent: names of listed frames whose picture is not there.
      holes: indices of frames whose picture is not there or cannot be read, as its `image()` will
        say: they keep their place where evaluation indices count frames. Other formats leave such
        frames out.
      held_out: indices of frames that were held out of training, in the split that holds them.
      observations: reads what the source knows about points, if anything.
      cloud: reads at most so many points of the world, where the source has a file of them; an
        InputError says what is wrong with that.
      notes: what its reader found odd, each in a line.
      film: indices of the frames in the order of their numbers, where names differ in one number
        alone and that is another order (`film_order`); of frames in a tuple it is found here.

    Raises:
      InputError: no frame, two of one name, or a camera that cannot be.
    """

    name: str
    frames: Sequence[Frame]
    absent: tuple[str, ...] = ()
    holes: tuple[int, ...] = ()
    held_out: tuple[int, ...] = ()
    observations: Callable[[], Observations] | None = dataclasses.field(
        default=None, repr=False, compare=False
    )
    cloud: Callable[[int], Cloud] | None = dataclasses.field(
        default=None, repr=False, compare=False
    )
    notes: tuple[str, ...] = ()
    film: tuple[int, ...] = ()

    def __post_init__(self):
        if len(self.frames) <= len(self.holes):
            raise InputError(f"{self.name}: no frame whose picture is there")
        if not isinstance(self.frames, tuple):
            return
        names = [frame.name for frame in self.frames]
        check_unique(names, f"{self.name}: frames")
        check_cameras(self.c2w, self.fxfycxcy, self.name, labels=names)
        object.__setattr__(self, "film", film_order(names))

    @property
    def usable(self) -> list[int]:
        """Indices of the frames whose picture is there."""
        return [index for index in range(len(self.frames)) if index not in self.holes]

    @property
    def c2w(self) -> np.ndarray:
        """[V, 4, 4] float64."""
        return np.stack([frame.c2w for frame in self.frames])

    @property
    def fxfycxcy(self) -> np.ndarray:
        """[V, 4] float64, pixels of each frame's own picture."""
        return np.stack([frame.fxfycxcy for frame in self.frames])


class Scenes(Sequence):
    """Random access to the scenes of a data set; each is read when asked for.

    Attributes:
      format: name of its format, a key of `formats.FORMATS`.
      path: of the data set.
      names: of the scenes, in order, all different.
    """

    def __init__(self, format: str, path: Path, names: Sequence[str], read: Callable[[int], Scene]):
        self.format, self.path, self.names = format, path, tuple(names)
        if not self.names:
            raise InputError(f"{path}: no scene in it ({format})")
        check_unique(self.names, f"{path}: scenes")
        self._read = read

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Scene:
        if not -len(self) <= index < len(self):
            raise IndexError(f"scene {index} of {len(self)}")
        return self._read(int(index) % len(self))

    def find(self, text: str) -> int:
        """The number of a scene by its name, or by that number; InputError if there is none."""
        if text in self.names:
            return self.names.index(text)
        if text.isdecimal() and int(text) < len(self):
            return int(text)
        raise InputError(
            f"{self.path}: no scene named {text!r}; its scenes are counted 0 to {len(self) - 1}"
        )

    def __repr__(self) -> str:
        return f"Scenes({self.format!r}, {str(self.path)!r}, {len(self)} scenes)"


def scene_of(
    name: str,
    frames: Sequence[Frame],
    absent: Sequence[str],
    options: ReadOptions,
    *,
    holes: Sequence[int] = (),
    observations: Callable[[], Observations] | None = None,
    cloud: Callable[[int], Cloud] | None = None,
    notes: Sequence[str] = (),
) -> Scene:
    """A scene, with one line about its absent frames, or an InputError if reading is strict.

    Args:
      name, frames, holes, observations, cloud, notes: see `Scene`.
      absent: names of the listed frames whose picture is not there and that are not in `frames`.
      options: says whether reading is strict.
    """
    frames = tuple(frames)
    absent = (*absent, *(frames[hole].name for hole in holes))
    if absent:
        listed = len(frames) + len(absent) - len(holes)
        shown = ", ".join(absent[:3]) + (", …" if len(absent) > 3 else "")
        line = f"{name}: {len(absent)} of {listed} listed frames are absent or unreadable: {shown}"
        if options.strict:
            raise InputError(f"{line} (refused because reading is strict)")
        log.warning("%s; going on with the other %d", line, listed - len(absent))
    for note in notes:
        log.warning("%s: %s", name, note)
    return Scene(
        name,
        frames,
        absent,
        tuple(holes),
        observations=observations,
        cloud=cloud,
        notes=tuple(notes),
    )


def scene_of_arrays(
    name: str,
    image: np.ndarray,
    c2w: np.ndarray,
    fxfycxcy: np.ndarray,
    depth: np.ndarray | None = None,
) -> Scene:
    """A scene in memory: image uint8 [V, Y, X, 3], c2w [V, 4, 4], fxfycxcy [V, 4], and perhaps
    depth float32 [V, Y, X]."""
    height, width = image.shape[1:3]
    poses, intrinsics = np.asarray(c2w, np.float64), np.asarray(fxfycxcy, np.float64)
    return Scene(
        name,
        tuple(
            Frame(
                f"{view:05d}",
                poses[view],
                intrinsics[view],
                width,
                height,
                functools.partial(image.__getitem__, view),
                depth=None if depth is None else functools.partial(depth.__getitem__, view),
            )
            for view in range(len(image))
        ),
    )


def film_order(names: Sequence[str]) -> tuple[int, ...]:
    """Indices of 0.jpg, 1.jpg, 10.jpg, 2.jpg by number: (0, 1, 3, 2).

    Empty where that is the order already, or where more than one number differs, so that nothing
    says which of them counts. A number behind a point is a fraction, as in 0.25 and 0.5, unless one
    of them ends with a 0: those count 9, 10, 11.
    """
    parts = [re.split("([0-9]+)", name) for name in names]
    if len({len(each) for each in parts}) != 1:
        return ()
    differing = [column for column in zip(*parts, strict=True) if len(set(column)) > 1]
    if len(set(differing)) != 1 or not all(each.isdecimal() for each in differing[0]):
        return ()
    column = list(zip(*parts, strict=True)).index(differing[0])
    if (
        column > 1
        and parts[0][column - 1] == "."
        and not any(len(each) > 1 and each.endswith("0") for each in differing[0])
    ):
        return ()
    numbers = [(len(digits.lstrip("0")), digits.lstrip("0")) for digits in differing[0]]
    order = tuple(sorted(range(len(numbers)), key=numbers.__getitem__))
    return () if order == tuple(range(len(order))) else order


def check_unique(names: Sequence[str], what: str) -> None:
    """Raises an InputError that shows the first name that occurs twice."""
    name, count = Counter(names).most_common(1)[0]
    if count > 1:
        raise InputError(f"{what}: {count} are named {name!r}; names must differ")
