"""What people have, as views of a session: photo files, PIL images, frames of a capture."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from data_pipeline.scenes import Frame
from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.geometry.intrinsics import check_view

UPRIGHT = 1  # EXIF's
Picture = np.ndarray | Image.Image | str | os.PathLike | Frame


def is_photo(picture: Any) -> bool:
    """Whether `picture` is to be fitted to the model: any but an array."""
    return isinstance(picture, (str, os.PathLike, Image.Image, Frame))


def photo(
    picture: Picture, c2w: np.ndarray | None, fxfycxcy: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A photo as RGB, uint8 [Y, X, 3], with its camera, c2w [4, 4] and fxfycxcy [4] in its pixels.

    Args:
      picture: a file, a PIL image, or a frame, which has a camera.
      c2w, fxfycxcy: of a file or PIL image.

    Raises:
      InputError: a picture that cannot be read, no camera or two of them, or intrinsics that
        cannot be in pixels of this picture.
    """
    # Here, as decoding needs libraries that a machine which is given arrays may lack.
    from data_pipeline.pictures.images import exif_orientation, load_image, rgb

    if isinstance(picture, Frame):
        if c2w is not None or fxfycxcy is not None:
            raise InputError(f"{picture.name}: a frame has a camera; give no other one")
        name, image, c2w, fxfycxcy = picture.name, picture.image(), picture.c2w, picture.fxfycxcy
    else:
        is_image = isinstance(picture, Image.Image)
        name = "image" if is_image else str(picture)
        if c2w is None or fxfycxcy is None:
            raise InputError(f"{name}: a picture without camera; give c2w and fxfycxcy")
        image = rgb(picture, name) if is_image else load_image(picture)
        if not is_image and (turn := exif_orientation(Path(picture))) != UPRIGHT:
            warnings.warn(
                f"{name}: is to be shown rotated or mirrored (EXIF orientation {turn}), but is "
                "used as stored, as calibration programs do; if fxfycxcy are of the rotated "
                "picture, rotate the file for good first",
                stacklevel=4,
            )
    fxfycxcy = np.asarray(fxfycxcy, np.float64)
    if fxfycxcy.shape == (4,):  # otherwise refused as a camera
        check_view(fxfycxcy, image.shape[:2], name)
    return image, np.asarray(c2w, np.float64), fxfycxcy


def fitted(
    image: np.ndarray, fxfycxcy: np.ndarray, size: Sequence[int], patch: int
) -> tuple[np.ndarray, np.ndarray]:
    """A photo [Y, X, 3] of any size as the model takes it: float32 [*size, 3], fxfycxcy [4]."""
    from data_pipeline.pictures.transforms import fit

    image, fxfycxcy = fit(image, fxfycxcy, tuple(size), patch=patch)
    return image.astype(np.float32) / 255, fxfycxcy
