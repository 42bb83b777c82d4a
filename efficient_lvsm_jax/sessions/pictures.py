"""What people have, as views of a session: photo files, PIL images, frames of a capture, arrays."""

from __future__ import annotations

import functools
import os
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from data_pipeline.scenes import Frame
from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.geometry.cameras import Views, check_cameras
from efficient_lvsm_jax.geometry.intrinsics import check_view, other_size
from efficient_lvsm_jax.media.levels import to_bytes
from efficient_lvsm_jax.models.model import Model

UPRIGHT = 1  # EXIF's
Picture = np.ndarray | Image.Image | str | os.PathLike | Frame


def view_of(
    image: Picture,
    c2w: np.ndarray | None,
    fxfycxcy: np.ndarray | None,
    model: Model,
    size: tuple[int, int] | None,
) -> Views:
    """One view of a session: image [Y, X, 3] float32, c2w [4, 4] and fxfycxcy [4] float64.

    Args:
      image, c2w, fxfycxcy: as `Session.add` takes them.
      model: for which it is.
      size: (height, width) that it must have; None is an array's own, of a photo `size_for`.

    Raises:
      InputError: as `Session.add`.
    """
    patch = model.config.patch
    if isinstance(image, (str, os.PathLike, Image.Image, Frame)):
        image, c2w, fxfycxcy = _photo(image, c2w, fxfycxcy)
        check_cameras(c2w, fxfycxcy, "camera")
        image, fxfycxcy = _fitted(image, fxfycxcy, size or size_for(model, image.shape[:2]), patch)
    image = np.asarray(image)
    if image.ndim != 3 or image.shape[2] != 3:
        raise InputError(f"image of shape {image.shape}: expected [H, W, 3] (RGB)")
    found = checked_size(image.shape[:2], patch, "image")
    if size is not None and found != size:
        raise InputError(
            f"image of {found[0]}x{found[1]} in a session of {size[0]}x{size[1]} images (height x "
            "width): give a PIL image, which is resized and its fxfycxcy scaled along, or start "
            "another session"
        )
    if image.dtype == np.uint8:
        image = image.astype(np.float32) / 255
    elif not np.issubdtype(image.dtype, np.floating):
        raise InputError(f"image of {image.dtype}: expected uint8, or floats in [0, 1]")
    if not (image.min() >= 0 and image.max() <= 1):
        raise InputError(
            f"image values from {image.min():g} to {image.max():g}: expected finite values in "
            "[0, 1]; divide 8-bit values by 255"
        )
    if c2w is None or fxfycxcy is None:
        raise InputError("image without camera: give c2w [4, 4] and fxfycxcy [4]")
    c2w, fxfycxcy = np.asarray(c2w, np.float64), np.asarray(fxfycxcy, np.float64)
    check_cameras(c2w, fxfycxcy, "camera")
    if c2w.ndim != 2:
        raise InputError(f"c2w of shape {c2w.shape}: expected one camera, [4, 4]")
    check_view(fxfycxcy, found, "camera")
    if doubt := other_size(fxfycxcy, found):
        warnings.warn(f"camera: {doubt}", stacklevel=4)
    return Views(image.astype(np.float32), c2w, fxfycxcy)


def camera_of(
    frame: Frame, fxfycxcy: np.ndarray | None, size: tuple[int, int], patch: int
) -> tuple[np.ndarray, np.ndarray]:
    """c2w [4, 4] of a frame, and fxfycxcy [4] as those of its picture fitted to `size`.

    Raises:
      InputError: `fxfycxcy` are given, too.
    """
    from data_pipeline.pictures.transforms import fit_intrinsics

    if fxfycxcy is not None:
        raise InputError(f"{frame.name}: a frame has intrinsics; give no other ones")
    return frame.c2w, fit_intrinsics(frame.fxfycxcy, (frame.height, frame.width), size, patch=patch)


def size_for(model: Model, shape: tuple[int, int]) -> tuple[int, int]:
    """The size for a model of a photo of `shape`, both (height, width)."""
    from data_pipeline.pictures.transforms import fitting_size

    return fitting_size(*shape[::-1], model.trained_tokens, patch=model.config.patch)


def checked_size(size: int | Sequence[int], patch: int, what: str) -> tuple[int, int]:
    """(height, width) of a size or a square's side; InputError unless multiples of the patch."""
    size = (size, size) if isinstance(size, (int, np.integer)) else tuple(size)
    if len(size) != 2 or any(side < patch or side % patch for side in size):
        fitting = "x".join(str(max(side // patch, 1) * patch) for side in size)
        raise InputError(
            f"{what} of {'x'.join(map(str, size))} (height x width): both sides must be "
            f"multiples of the patch size {patch}; resize or crop to {fitting} and scale "
            "fxfycxcy along"
        )
    return size


def doubt_of_poses(views: Sequence[Views]) -> str:
    """That cameras do not fit their pictures, or an empty text; of views in world units."""
    from efficient_lvsm_jax.geometry.epipolar import epipolar_check  # needs OpenCV

    found = epipolar_check(
        [functools.partial(to_bytes, view.image) for view in views],
        np.stack([view.c2w for view in views]),
        np.stack([view.fxfycxcy for view in views]),
    )
    if found.verdict not in ("bad", "suspicious"):
        return ""
    return (
        f"the cameras do not fit the pictures ({found.count} matches in {found.pairs} pairs): "
        f"{found.reason}"
    )


def _photo(
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
                stacklevel=5,
            )
    fxfycxcy = np.asarray(fxfycxcy, np.float64)
    if fxfycxcy.shape == (4,):  # otherwise refused as a camera
        check_view(fxfycxcy, image.shape[:2], name)
    return image, np.asarray(c2w, np.float64), fxfycxcy


def _fitted(
    image: np.ndarray, fxfycxcy: np.ndarray, size: Sequence[int], patch: int
) -> tuple[np.ndarray, np.ndarray]:
    """A photo [Y, X, 3] of any size as the model takes it: float32 [*size, 3], fxfycxcy [4]."""
    from data_pipeline.pictures.transforms import fit

    image, fxfycxcy = fit(image, fxfycxcy, tuple(size), patch=patch)
    return image.astype(np.float32) / 255, fxfycxcy
