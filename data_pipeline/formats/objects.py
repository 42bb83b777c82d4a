"""Renders of one object: NNN.png with the camera in NNN.npy, as Zero-1-to-3 wrote them.

    object/000.png, object/000.npy, object/001.png, …

A camera is a matrix [3, 4], world to camera in Blender's axes (x right, y up, z backward).
Intrinsics are not stored: the principal point is in the middle and `ReadOptions.vertical_fov` gives
the focal length. A metadata.json tells about the object, nothing about cameras; it is not read.
"""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np

from data_pipeline.formats.npy_arrays import read_numbers
from data_pipeline.pictures.frames import picture_frame, world_from_camera
from data_pipeline.pictures.images import oriented_size
from data_pipeline.read_options import ReadOptions
from data_pipeline.scenes import Frame, Scene, scene_of
from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.files.reading import inside, listing

NAME = "objects"
LOOKS_FOR = "renders 000.png with cameras 000.npy"
CAMERA, PICTURE = re.compile(r"([0-9]{3,9})\.npy"), re.compile(r"([0-9]{3,9})\.png")


def detect(path: Path) -> bool:
    """Whether path is a folder with a numbered camera and the picture to it."""
    names = [entry.name for entry in listing(path)]
    return not _numbers(names, CAMERA).isdisjoint(_numbers(names, PICTURE))


def read_scene(path: Path, options: ReadOptions) -> Scene:
    """The renders of one object, in the order of their numbers.

    Raises:
      InputError: no folder, a picture without camera, or either unusable; the message says which.
    """
    if options.split:
        raise InputError(f"{path}: split {options.split!r}, but renders have none; leave it empty")
    if not path.is_dir():
        raise InputError(f"{path}: expected a folder with {LOOKS_FOR}")
    names = [entry.name for entry in listing(path)]
    cameras, pictures = _numbers(names, CAMERA), _numbers(names, PICTURE)
    if not cameras & pictures:
        raise InputError(f"{path}: expected {LOOKS_FOR}")
    without = sorted(pictures - cameras)
    if without:
        raise InputError(
            f"{path}: {without[0]}.png has no camera {without[0]}.npy; copy it there, or take the "
            "picture away"
        )
    in_order = sorted(cameras, key=lambda digits: (int(digits), digits))
    frames = [_frame(path, number, options) for number in in_order if number in pictures]
    absent = [f"{number}.png" for number in in_order if number not in pictures]
    return scene_of(path.resolve().name, frames, absent, options)


def _numbers(names: list[str], pattern: re.Pattern[str]) -> set[str]:
    return {match[1] for name in names if (match := pattern.fullmatch(name))}


def _frame(folder: Path, number: str, options: ReadOptions) -> Frame:
    camera = inside(folder, f"{number}.npy", str(folder))
    picture = inside(folder, f"{number}.png", str(folder))
    w2c = read_numbers(camera, (3, 4))
    w2c[1:] *= -1  # rows of the camera's axes: Blender's y and z to OpenCV's
    c2w = world_from_camera(w2c, str(camera))
    width, height = oriented_size(picture, None)
    focal = 0.5 * height / math.tan(0.5 * math.radians(options.vertical_fov))
    fxfycxcy = np.array([focal, focal, width / 2, height / 2])
    return picture_frame(picture, picture.name, c2w, fxfycxcy, where=str(folder))
