"""Depth beside pictures, as nerfstudio keeps it: a file for each frame, its `depth_file_path`.

A file is an .npy of numbers, or a 16-bit grey PNG; both hold thousandths of the world's unit
(millimetres, where that is a metre), along the viewing direction, 0 where depth is not known.
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


def write_depth(path: Path, depth: np.ndarray, size: tuple[int, int]) -> None:
    """Writes depth [Y, X] of a picture of `size` (height, width) as an .npy, its folder as well.

    Raises:
      InputError: of another size, negative or not finite.
    """
    depth = np.asarray(depth, np.float64)
    if depth.shape != tuple(size):
        raise InputError(
            f"depth of shape {list(depth.shape)} of a picture of {size[0]}x{size[1]} (height x "
            "width): expected one number for each pixel"
        )
    _check(depth, str(path))
    path.parent.mkdir(exist_ok=True)
    np.save(path, (depth / UNIT).astype(np.float32))


def read_depth(path: Path, size: tuple[int, int], where: str) -> np.ndarray:
    """Depth float32 [Y, X] in the world's unit of a picture of `size` (height, width).

    Raises:
      InputError: not there, no such file, of another size, negative or not finite.
    """
    try:
        if path.suffix.lower() == ".npy":
            stored = read_numbers(path, size)
        elif path.suffix.lower() == ".png":
            stored = _grey(path, size)
        else:
            raise InputError(f"{path}: expected depth as one of {', '.join(SUFFIXES)}")
        _check(stored, str(path))
    except InputError as error:
        raise InputError(f"{where}: {FIELD}: {error}") from None
    return (UNIT * stored).astype(np.float32)


def _grey(path: Path, size: tuple[int, int]) -> np.ndarray:
    try:
        with Image.open(path, formats=["PNG"]) as image:
            if image.mode not in ("I;16", "I") or image.size != tuple(size)[::-1]:
                raise InputError(
                    f"{path}: {image.size[0]}x{image.size[1]} pixels of mode {image.mode}, "
                    f"expected 16-bit grey of {size[1]}x{size[0]} (width x height), as the picture"
                )
            return np.asarray(image, np.float64)
    except InputError:
        raise
    except Exception as error:  # damaged files make PIL raise nearly anything
        raise InputError(f"{path}: cannot be read as a PNG ({error})") from error


def _check(depth: np.ndarray, name: str) -> None:
    if not np.isfinite(depth).all() or depth.min(initial=0) < 0:
        raise InputError(
            f"{name}: depth from {depth.min(initial=0):g} to {depth.max(initial=0):g}: expected "
            "finite numbers above 0, or 0 where it is not known"
        )
