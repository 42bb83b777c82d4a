"""Depth beside pictures, as nerfstudio keeps it: a file for each frame, its `depth_file_path`.

A file is an .npy of numbers, or a 16-bit grey PNG; both hold thousandths of the world's unit
(millimetres, where that is a metre), along the viewing direction, 0 where depth is not known. It is
of the whole picture, in the same pixels or in fewer: then a pixel has the nearest of them.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from data_pipeline.formats.npy_arrays import read_numbers
from efficient_lvsm_jax.errors import InputError

FIELD = "depth_file_path"
UNIT = 1e-3  # of a stored number, in the world's unit
SUFFIXES = (".npy", ".png")
MOST_STRETCH = 1.1  # of fewer pixels, whose numbers may be multiples of a network's patch


def write_depth(path: Path, depth: np.ndarray, size: tuple[int, int]) -> None:
    """Writes depth [y, x] of a picture of `size` (height, width) as an .npy, its folder as well.

    Raises:
      InputError: more pixels or another shape than the picture's, negative or not finite.
    """
    depth = np.asarray(depth, np.float64)
    _check(depth, size, f"depth of {path.stem}")
    path.parent.mkdir(exist_ok=True)
    np.save(path, (depth / UNIT).astype(np.float32))


def read_depth(path: Path, size: tuple[int, int], where: str) -> np.ndarray:
    """Depth float32 [Y, X] in the world's unit of a picture of `size` (height, width).

    Raises:
      InputError: not there, no such file, more pixels or another shape than the picture's, negative
        or not finite.
    """
    try:
        if path.suffix.lower() == ".npy":
            stored = read_numbers(path, (None, None))
        elif path.suffix.lower() == ".png":
            stored = _grey(path)
        else:
            raise InputError(f"{path}: expected depth as one of {', '.join(SUFFIXES)}")
        _check(stored, size, str(path))
    except InputError as error:
        raise InputError(f"{where}: {FIELD}: {error}") from None
    return (UNIT * nearest(stored, size)).astype(np.float32)


def nearest(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Values [y, x] of a whole picture at so many rows and columns: of each, the nearest."""
    rows, columns = (
        (np.arange(wanted) + 0.5) * there / wanted
        for wanted, there in zip(size, values.shape, strict=True)
    )
    return values[rows.astype(int)[:, None], columns.astype(int)]


def _grey(path: Path) -> np.ndarray:
    try:
        with Image.open(path, formats=["PNG"]) as image:
            if image.mode not in ("I;16", "I"):
                raise InputError(f"{path}: pixels of mode {image.mode}, expected 16-bit grey")
            return np.asarray(image, np.float64)
    except InputError:
        raise
    except Exception as error:  # damaged files make PIL raise nearly anything
        raise InputError(f"{path}: cannot be read as a PNG ({error})") from error


def _check(depth: np.ndarray, size: tuple[int, int], name: str) -> None:
    height, width = size
    stretch = 0.0
    if depth.ndim == 2 and depth.size and depth.shape[0] <= height and depth.shape[1] <= width:
        stretch = depth.shape[0] * width / (depth.shape[1] * height)
    if not 1 / MOST_STRETCH <= stretch <= MOST_STRETCH:
        raise InputError(
            f"{name}: shape {list(depth.shape)} of a picture of {height}x{width} (height x width): "
            "expected a number for each pixel, or the same shape with fewer"
        )
    if not np.isfinite(depth).all() or depth.min() < 0:
        raise InputError(
            f"{name}: depth from {depth.min():g} to {depth.max():g}: expected finite numbers above "
            "0, or 0 where it is not known"
        )
