"""Captures with LLFF's poses_bounds.npy, one row for each picture.

    capture/poses_bounds.npy
    capture/images/IMG_1.JPG …    or scaled copies in images_2, images_4, images_8

A row is a matrix [3, 5] and two depth bounds, which are not needed here. The matrix has the columns
down, right, back and position of the camera, and (height, width, focal length) of the picture in
full size. The principal point is in the middle. The order of pictures' names is that of the rows.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from data_pipeline.formats import colmap
from data_pipeline.formats.json_values import MAX_SIDE, whole_number
from data_pipeline.formats.npy_arrays import read_numbers
from data_pipeline.pictures.frames import picture_frame
from data_pipeline.pictures.places import PICTURE_FOLDERS, picture_files
from data_pipeline.read_options import ReadOptions
from data_pipeline.scenes import Frame, Scene, scene_of
from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.files.reading import inside
from efficient_lvsm_jax.geometry.cameras import check_cameras

NAME = "llff"
POSES = "poses_bounds.npy"
LOOKS_FOR = POSES


def detect(path: Path) -> bool:
    """Whether path is a poses_bounds.npy or a folder with one."""
    return os.path.isfile(path / POSES) or (path.name == POSES and os.path.isfile(path))


def read_scene(path: Path, options: ReadOptions) -> Scene:
    """The capture in a folder, given as such or by its poses_bounds.npy.

    Pictures are taken from the largest folder with as many as there are poses: with any other
    number nothing says which belongs to which.

    Raises:
      InputError: no such folder, or poses or pictures that are unusable; the message says which.
    """
    if options.split:
        raise InputError(f"{path}: split {options.split!r}, but LLFF has none; leave split empty")
    poses = inside(path, POSES, str(path)) if path.is_dir() else path
    rows = read_numbers(poses, (None, 17))
    pictures = _pictures(poses.parent, len(rows))
    matrices = rows[:, :15].reshape(-1, 3, 5)
    frames = [
        _frame(matrix, picture, poses.parent, f"{poses}, row {index} ({picture.name})")
        for index, (matrix, picture) in enumerate(zip(matrices, pictures, strict=True))
    ]
    notes = colmap.lens_notes(poses.parent, poses.name, centred=True)
    return scene_of(poses.parent.resolve().name, frames, (), options, notes=notes)


def _pictures(folder: Path, count: int) -> list[Path]:
    """The pictures in the order of their names."""
    counts = []
    for name in PICTURE_FOLDERS:
        if not os.path.isdir(folder / name):
            continue
        names = [file.name for file in picture_files(folder / name)]
        if len(names) == count:
            return [inside(folder, f"{name}/{entry}", str(folder / name)) for entry in names]
        counts.append(f"{len(names)} pictures in {name}")
    raise InputError(
        f"{folder}: {count} poses in {POSES}, but {', '.join(counts) or 'no folder of pictures'}; "
        f"expected {count} pictures in one of {', '.join(PICTURE_FOLDERS)}"
    )


def _frame(matrix: np.ndarray, picture: Path, folder: Path, where: str) -> Frame:
    down, right, back, position, (height, width, focal) = matrix.T
    c2w = np.eye(4)
    c2w[:3] = np.stack([right, down, -back, position], axis=1)
    fxfycxcy = np.array([focal, focal, width / 2, height / 2])
    check_cameras(c2w, fxfycxcy, where)
    sides = {"width": width, "height": height}
    stated_size = tuple(
        whole_number(side, f"{where}: {what}", lowest=1, highest=MAX_SIDE)
        for what, side in sides.items()
    )
    name = picture.relative_to(folder).as_posix()
    return picture_frame(picture, name, c2w, fxfycxcy, where=where, stated_size=stated_size)
