"""A frame from a picture file: sizes, lens and orientation settled, decoding left for later."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np

from data_pipeline.pictures.distortion import Distortion, undistortion
from data_pipeline.pictures.images import load_alpha, oriented_size, read_oriented
from data_pipeline.pictures.jpeg import JPEG_START
from data_pipeline.scenes import Frame
from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.files.reading import read_bytes
from efficient_lvsm_jax.geometry.cameras import check_cameras
from efficient_lvsm_jax.geometry.intrinsics import check_intrinsics

MAX_STRETCH = 0.02  # by which a scaled copy's aspect ratio may differ, e.g. for rounded sides


def picture_frame(
    path: Path,
    name: str,
    c2w: np.ndarray,
    fxfycxcy: np.ndarray,
    *,
    where: str,
    stated_size: tuple[int, int] | None = None,
    distortion: Distortion | None = None,
    timestamp: int | None = None,
) -> Frame:
    """A frame whose picture is a file. Only the file's header is read here.

    Args:
      path: of the picture, which exists (`files.reading.inside` first).
      name: of the frame, unique in its scene.
      c2w: [4, 4], OpenCV axes.
      fxfycxcy: [4], pixels of a picture of `stated_size`; scaled to the actual one.
      where: what describes the frame, for messages, e.g. "scene/transforms.json, frame 3".
      stated_size: (width, height); None: the picture's own.
      distortion: of the picture's lens; the frame's picture is without.
      timestamp: see `Frame`.

    Raises:
      InputError: a file that is no picture, a size that is no scaled copy of the stated one, a
        camera that cannot be or is of another picture, or a lens that cannot be undone.
    """
    try:
        size = oriented_size(path, stated_size)
        upright = oriented_size(path, None) == size
        fxfycxcy = _scaled(np.asarray(fxfycxcy, np.float64), path, size, stated_size)
        check_cameras(c2w, fxfycxcy, "its camera")
        check_intrinsics(fxfycxcy, size, str(path))
        c2w = np.asarray(c2w, np.float64)
        if distortion is None or distortion.is_none:
            return Frame(
                name,
                c2w,
                fxfycxcy,
                *size,
                lambda: read_oriented(path, stated_size),
                _stored_jpeg(path) if upright else None,
                timestamp,
                path,
                functools.partial(load_alpha, path) if upright else None,
            )
        lens = (fxfycxcy, size, distortion, str(path))
        return Frame(
            name,
            c2w,
            undistortion(*lens).fxfycxcy,
            *size,
            lambda: undistortion(*lens).image(read_oriented(path, stated_size)),
            timestamp=timestamp,
            file=path,
        )
    except InputError as error:
        raise InputError(f"{where}: {error}") from error


def _scaled(
    fxfycxcy: np.ndarray, path: Path, size: tuple[int, int], stated_size: tuple[int, int] | None
) -> np.ndarray:
    """Intrinsics [4] of a picture of the stated size as those of its copy of `size`."""
    if stated_size is None:
        return fxfycxcy
    if min(stated_size) <= 0:
        raise InputError(f"stated size {stated_size}: must be above 0")
    scale = np.array(size) / stated_size
    if abs(scale[0] / scale[1] - 1) > MAX_STRETCH:
        raise InputError(
            f"{path}: {size[0]}x{size[1]} pixels, but the intrinsics are for "
            f"{stated_size[0]}x{stated_size[1]} (width x height), another shape"
        )
    with np.errstate(over="ignore"):  # refused as not finite
        return fxfycxcy * np.tile(scale, 2)


def _stored_jpeg(path: Path) -> Callable[[], bytes] | None:
    """What reads the file, if it is a JPEG."""
    with path.open("rb") as file:
        if file.read(len(JPEG_START)) != JPEG_START:
            return None
    return functools.partial(read_bytes, path)


def opencv_from_opengl(c2w: np.ndarray) -> np.ndarray:
    """OpenGL or Blender camera axes (x right, y up, z backward) to OpenCV's, [..., 4, 4]."""
    return np.asarray(c2w, np.float64) * [1, -1, -1, 1]


def world_from_camera(w2c: np.ndarray, name: str) -> np.ndarray:
    """The camera-to-world matrix [4, 4] float64 of a world-to-camera one, [3, 4] or [4, 4].

    Raises:
      InputError: it has no inverse, or is not finite, or not rigid.
    """
    square = np.eye(4)
    square[: len(w2c)] = w2c
    try:
        if not np.isfinite(square).all():
            raise InputError(f"{name}: world-to-camera {square.tolist()} is not finite")
        c2w = np.linalg.inv(square)
    except np.linalg.LinAlgError:
        raise InputError(f"{name}: world-to-camera {square.tolist()} has no inverse") from None
    check_cameras(c2w, np.ones(4), f"{name}: inverse of world-to-camera")
    return c2w
