"""Pictures, and their intrinsics if known, at the sizes that Depth Anything 3 was trained on."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from PIL import Image

from data_pipeline.pictures.unposed import PATCH
from efficient_lvsm_jax.errors import InputError

SIDE = 504  # pixels
# Which side becomes so long, and how sides then become whole patches.
METHODS = ("upper_bound_resize", "upper_bound_crop", "lower_bound_resize", "lower_bound_crop")


def fit(
    image: Image.Image,
    fxfycxcy: np.ndarray | None = None,
    *,
    side: int = SIDE,
    method: str = METHODS[0],
    patch: int = PATCH,
) -> tuple[np.ndarray, np.ndarray | None]:
    """A picture as its program fits it. Alpha is dropped, and EXIF's orientation ignored.

    Args:
      image: of any size.
      fxfycxcy: its intrinsics, [4], pixels.
      side: pixels of the longest side ("upper_bound…") or of the shortest ("lower_bound…").
      method: one of METHODS: then both sides become whole patches by a second resize, half a patch
        rounded up ("…resize"), or by cutting off what is over on all sides alike ("…crop").
      patch: side of one.

    Returns:
      uint8 [Y, X, 3], both sides whole patches; the intrinsics of that, float64, or None.

    Raises:
      InputError: no such method, or so narrow a picture that no patch is left.
    """
    if method not in METHODS:
        raise InputError(f"method={method!r}: expected one of {', '.join(METHODS)}")
    bound, _, ending = method.rpartition("_")
    pixels = np.asarray(image.convert("RGB"))
    known = None if fxfycxcy is None else np.array(fxfycxcy, np.float64)
    bounded = max(image.size) if bound == "upper_bound" else min(image.size)
    size = tuple(round(each * (side / bounded)) for each in image.size)
    if ending == "resize":
        whole = tuple((each + patch // 2) // patch * patch for each in size)
    else:
        whole = tuple(each // patch * patch for each in size)
    if min(whole) < patch:
        raise InputError(
            f"picture of {image.height}x{image.width} (height x width): resized to "
            f"{size[1]}x{size[0]} it has less than a patch of {patch} pixels; crop it, or choose "
            f"a side above {side}"
        )
    pixels, known = _resized(pixels, known, size)
    if ending == "resize":
        return _resized(pixels, known, whole)
    return _cropped(pixels, known, whole)


def same_size(
    pictures: Sequence[np.ndarray], intrinsics: Sequence[np.ndarray] | None = None
) -> tuple[np.ndarray, np.ndarray | None]:
    """The middles of pictures [Y, X, 3], as high and wide as the smallest ones: [R, Y, X, 3].

    Args:
      pictures: uint8.
      intrinsics: theirs, each [4], or None.

    Returns:
      Pictures, and intrinsics [R, 4] or None.
    """
    size = tuple(min(picture.shape[axis] for picture in pictures) for axis in (1, 0))
    known = [None] * len(pictures) if intrinsics is None else intrinsics
    cut = [_cropped(*both, size) for both in zip(pictures, known, strict=True)]
    pixels = np.stack([picture for picture, _ in cut])
    return pixels, None if intrinsics is None else np.stack([known for _, known in cut])


def _resized(
    pixels: np.ndarray, known: np.ndarray | None, size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray | None]:
    """Pixels at (width, height), and their intrinsics."""
    old = pixels.shape[1::-1]
    if size == old:
        return pixels, known
    grows = any(new > before for new, before in zip(size, old, strict=True))
    interpolation = cv2.INTER_CUBIC if grows else cv2.INTER_AREA
    known = None if known is None else known * np.tile(np.divide(size, old), 2)
    return cv2.resize(pixels, size, interpolation=interpolation), known


def _cropped(
    pixels: np.ndarray, known: np.ndarray | None, size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray | None]:
    """The middle of pixels, (width, height), and its intrinsics."""
    width, height = size
    left, top = (pixels.shape[1] - width) // 2, (pixels.shape[0] - height) // 2
    pixels = pixels[top : top + height, left : left + width]
    return pixels, None if known is None else np.asarray(known) - [0, 0, left, top]
