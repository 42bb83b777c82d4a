"""Pictures without cameras, at the sizes that networks of 14-pixel patches were trained on.

Both ways that VGGT's and StreamVGGT's programs have: that of demonstrations (`fit_width`,
`fit_padded`, `same_size`), and that of their depth benchmarks (`fit_long_side`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageOps

from efficient_lvsm_jax.errors import InputError

SIDE, PATCH = 518, 14  # pixels
WHITE = 255
BICUBIC, LANCZOS = Image.Resampling.BICUBIC, Image.Resampling.LANCZOS


def fit_width(image: Image.Image) -> np.ndarray:
    """A picture 518 pixels wide, of at most its middle 518 rows: uint8 [Y, 518, 3].

    Its height is rounded to a multiple of 14, half to even, so it is stretched a little. What is
    transparent becomes white.

    Raises:
      InputError: so wide a picture that no row of patches is left.
    """
    image = _opaque(image)
    pixels = np.asarray(image.resize((SIDE, _other_side(image, *image.size)), BICUBIC))
    top = max(0, (len(pixels) - SIDE) // 2)
    return pixels[top : top + SIDE]


def fit_padded(image: Image.Image) -> np.ndarray:
    """A picture whose long side is 518 pixels, in the middle of white: uint8 [518, 518, 3].

    Rounding, transparency and errors as of `fit_width`.
    """
    image = _opaque(image)
    width, height = image.size
    if width >= height:
        size = SIDE, _other_side(image, width, height)
    else:
        size = _other_side(image, height, width), SIDE
    return _centred(np.asarray(image.resize(size, BICUBIC)), (SIDE, SIDE))


def same_size(pictures: Sequence[np.ndarray]) -> np.ndarray:
    """Pictures uint8 [Y, X, 3] of different sizes in the middle of white, [R, Y, X, 3]."""
    height, width = (max(picture.shape[axis] for picture in pictures) for axis in (0, 1))
    return np.stack([_centred(picture, (height, width)) for picture in pictures])


def fit_long_side(image: Image.Image, side: int = SIDE, patch: int = PATCH) -> np.ndarray:
    """A picture whose long side is `side` pixels and then, by a second resize, whole patches.

    As depth benchmarks were run, with 518, the way up that its EXIF says: uint8 [Y, X, 3].

    Raises:
      InputError: so narrow a picture that no patch is left.
    """
    image = ImageOps.exif_transpose(_opaque(image))
    longest = max(image.size)
    size = tuple(round(each * side / longest) for each in image.size)
    whole = tuple(each // 2 * 2 // patch * patch for each in size)
    if min(whole) < patch:
        raise InputError(_too_narrow(image, side, patch))
    image = image.resize(size, LANCZOS if longest > side else BICUBIC)
    return np.asarray(image.resize(whole, LANCZOS))


def _other_side(image: Image.Image, fitted: int, other: int) -> int:
    """What `other` becomes where `fitted` becomes 518, in whole patches."""
    side = round(other * (SIDE / fitted) / PATCH) * PATCH
    if side < PATCH:
        raise InputError(_too_narrow(image, SIDE))
    return side


def _too_narrow(image: Image.Image, side: int, patch: int = PATCH) -> str:
    return (
        f"picture of {image.height}x{image.width} (height x width): with its long side at {side} "
        f"pixels the other is less than a patch of {patch}; crop it"
    )


def _opaque(image: Image.Image) -> Image.Image:
    if image.mode == "RGBA":
        image = Image.alpha_composite(Image.new("RGBA", image.size, (WHITE,) * 4), image)
    return image.convert("RGB")


def _centred(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Pixels with white around; where that is uneven, one more below and right."""
    around = [(new - old) for new, old in zip(size, pixels.shape, strict=False)]
    margins = [(extra // 2, extra - extra // 2) for extra in around]
    return np.pad(pixels, (*margins, (0, 0)), constant_values=WHITE)
