"""Preparing one frame: resize, crop, and move intrinsics along.

Small NumPy and PIL functions from example to example; no data set is needed to call or test them.
Axis legend: Y X pixels of the file, S pixels of the prepared frame.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
from PIL import Image

from data_pipeline.pictures.images import MAX_PIXELS
from data_pipeline.pictures.lanczos import resize_region
from efficient_lvsm_jax.errors import InputError


def preprocess_frame(
    image: np.ndarray,
    fxfycxcy: np.ndarray,
    size: int,
    *,
    patch: int = 8,
    square_crop: bool = True,
) -> tuple[np.ndarray, np.ndarray]:
    """As `resize_and_crop`, as the model takes it: image float32 in [0, 1], fxfycxcy float32."""
    image, fxfycxcy = resize_and_crop(image, fxfycxcy, size, patch=patch, square_crop=square_crop)
    return image.astype(np.float32) / 255, fxfycxcy.astype(np.float32)


def resize_and_crop(
    image: np.ndarray,
    fxfycxcy: np.ndarray,
    size: int,
    *,
    patch: int = 8,
    square_crop: bool = True,
) -> tuple[np.ndarray, np.ndarray]:
    """Resizes a frame to height `size`, crops its centre to a square and moves intrinsics along.

    As published: the width becomes int(size / Y · X), rounded half-even to a multiple of `patch`
    (so the picture is stretched by up to half a patch, and fx and fy scale differently); Lanczos
    on 8-bit values; crop offsets rounded down. A frame narrower than high is therefore cropped to
    its resized width, below `size`: frames of one batch must share an orientation, or go through
    `portrait_to_square` first.

    Args:
      image: uint8 [Y, X, 3], RGB.
      fxfycxcy: [4], pixels of `image`.
      size: height of the result, a multiple of `patch`.
      patch: the model's patch size.
      square_crop: False keeps the whole width.

    Returns:
      image uint8 [S, S, 3], S = size, less for portrait frames; [size, width, 3] without
      square_crop. fxfycxcy float64 [4], pixels of that image.

    Raises:
      InputError: not a uint8 RGB image, intrinsics of another shape, a size that the patch does
        not divide, or a frame so narrow or wide that nothing useful would be left.
    """
    image, width, fxfycxcy = _scaled(image, fxfycxcy, size, patch)
    resized = Image.fromarray(image).resize((width, size), Image.Resampling.LANCZOS)
    if not square_crop:
        return np.asarray(resized), fxfycxcy
    left, top, side = _square(width, size)
    cropped = resized.crop((left, top, left + side, top + side))
    return np.asarray(cropped), fxfycxcy - [0, 0, left, top]


def crop_into(
    image: np.ndarray, fxfycxcy: np.ndarray, out: np.ndarray, *, patch: int = 8
) -> np.ndarray:
    """As `resize_and_crop` of a frame that is not narrower than high, for training.

    The square is written to `out`, uint8 [size, size, 3], faster, and equal up to a level or two
    (`lanczos`).

    Returns:
      fxfycxcy float64 [4], pixels of `out`.

    Raises:
      InputError: as `resize_and_crop`; a frame narrower than high.
    """
    image, width, fxfycxcy = _scaled(image, fxfycxcy, len(out), patch)
    left, top, side = _square(width, len(out))
    if side < len(out):
        raise InputError(f"frame of {image.shape[1]}x{image.shape[0]}: narrower than high")
    resize_region(image, width, side, left, top, out)
    return fxfycxcy - [0, 0, left, top]


def depth_through(
    depth: np.ndarray, fxfycxcy: np.ndarray, moved: np.ndarray, size: tuple[int, int]
) -> np.ndarray:
    """Depth of a picture that was resized and cropped: that of the pixel each centre lay in.

    Depths are never mixed: between two surfaces there is none.

    Args:
      depth: [Y, X] of the picture as it was.
      fxfycxcy, moved: its intrinsics [4], and those it has now.
      size: (height, width) it has now.
    """
    places = []
    for axis, side in enumerate(size):
        focal, centre = 1 - axis, 3 - axis  # rows go with fy and cy
        at = (np.arange(side) + 0.5 - moved[centre]) / moved[focal]
        place = np.floor(at * fxfycxcy[focal] + fxfycxcy[centre])
        places.append(np.clip(place, 0, depth.shape[axis] - 1).astype(np.int64))
    return depth[np.ix_(*places)]


def fitting_size(width: int, height: int, tokens: int, *, patch: int = 8) -> tuple[int, int]:
    """(height, width) in multiples of `patch` that keeps the shape of a width x height picture.

    Of the sizes around the exact one, the one nearest to it in shape and in number of tokens
    (patches) together.
    """
    aspect = width / height
    exact = math.sqrt(tokens / aspect), math.sqrt(tokens * aspect)
    around = [{max(1, math.floor(side)), math.ceil(side)} for side in exact]

    def off(sides: tuple[int, int]) -> float:
        rows, columns = sides
        shape, count = columns / rows / aspect, rows * columns / tokens
        return abs(math.log(shape)) + abs(math.log(count))

    rows, columns = min(itertools.product(*around), key=off)
    return rows * patch, columns * patch


def fit(
    image: np.ndarray, fxfycxcy: np.ndarray, size: tuple[int, int], *, patch: int = 8
) -> tuple[np.ndarray, np.ndarray]:
    """Resizes a frame until it covers `size`, crops its middle and moves intrinsics along.

    Of a frame not narrower than high and a square this is the published `resize_and_crop`. In
    general the side that is not cropped gets its size, the other one that of the same scale, in
    multiples of `patch`.

    Args:
      image: uint8 [Y, X, 3], RGB.
      fxfycxcy: [4], pixels of `image`.
      size: (height, width) of the result, multiples of `patch`.
      patch: the model's patch size.

    Returns:
      image uint8 [height, width, 3], fxfycxcy float64 [4], pixels of that image.

    Raises:
      InputError: as `resize_and_crop`.
    """
    image, fxfycxcy = _checked(image, fxfycxcy)
    (scaled_height, scaled_width), (top, left) = _covering(image.shape[:2], size, patch)
    resized = Image.fromarray(image).resize((scaled_width, scaled_height), Image.Resampling.LANCZOS)
    height, width = size
    cropped = resized.crop((left, top, left + width, top + height))
    return np.asarray(cropped), fit_intrinsics(fxfycxcy, image.shape[:2], size, patch=patch)


def fit_intrinsics(
    fxfycxcy: np.ndarray, source: tuple[int, int], size: tuple[int, int], *, patch: int = 8
) -> np.ndarray:
    """Intrinsics [..., 4] of pictures of `source` (height, width) as `fit` to `size` moves them."""
    scaled, (top, left) = _covering(source, size, patch)
    y_scale, x_scale = scaled[0] / source[0], scaled[1] / source[1]
    return np.asarray(fxfycxcy, np.float64) * ([x_scale, y_scale] * 2) - [0, 0, left, top]


def _covering(
    source: tuple[int, int], size: tuple[int, int], patch: int
) -> tuple[tuple[int, int], tuple[int, int]]:
    """(height, width) to resize a picture of `source` to, and (top, left) of the crop to `size`."""
    if min(size) < patch or size[0] % patch or size[1] % patch:
        raise InputError(
            f"image size {size[0]}x{size[1]} (height x width) is not in multiples of patch size "
            f"{patch}"
        )
    (source_height, source_width), (height, width) = source, size
    if source_width * height >= source_height * width:
        along = int(height / source_height * source_width)
        scaled = height, max(round(along / patch) * patch, width)  # round() is half-even
    else:
        along = int(width / source_width * source_height)
        scaled = max(round(along / patch) * patch, height), width
    if scaled[0] * scaled[1] > MAX_PIXELS:
        raise _too_extreme(source, scaled)
    return scaled, ((scaled[0] - height) // 2, (scaled[1] - width) // 2)


def _scaled(
    image: np.ndarray, fxfycxcy: np.ndarray, size: int, patch: int
) -> tuple[np.ndarray, int, np.ndarray]:
    """The checked frame, the width to resize it to, and its intrinsics at that size."""
    image, fxfycxcy = _checked(image, fxfycxcy)
    if size < patch or size % patch:
        raise InputError(
            f"image size {size} is not a multiple of patch size {patch}; "
            f"the nearest that fits is {max(round(size / patch), 1) * patch}"
        )
    height, width = image.shape[:2]
    new_width = round(int(size / height * width) / patch) * patch  # round() is half-even
    if not 0 < new_width * size <= MAX_PIXELS:
        raise _too_extreme((height, width), (size, new_width))
    x_scale, y_scale = new_width / width, size / height
    return image, new_width, fxfycxcy * [x_scale, y_scale, x_scale, y_scale]


def _checked(image: np.ndarray, fxfycxcy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    image, fxfycxcy = np.asarray(image), np.asarray(fxfycxcy, np.float64)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise InputError(
            f"frame of shape {image.shape}, {image.dtype}: expected uint8 [Y, X, 3], RGB"
        )
    if fxfycxcy.shape != (4,):
        raise InputError(f"fxfycxcy of shape {fxfycxcy.shape}: expected [4] (fx, fy, cx, cy)")
    return image, fxfycxcy


def _too_extreme(source: tuple[int, int], scaled: tuple[int, int]) -> InputError:
    return InputError(
        f"frame of {source[1]}x{source[0]} (width x height) would become {scaled[1]}x{scaled[0]}; "
        "crop it to a less extreme shape"
    )


def _square(width: int, height: int) -> tuple[int, int, int]:
    """Left, top and side of the centre square."""
    side = min(width, height)
    return (width - side) // 2, (height - side) // 2, side


def portrait_to_square(image: np.ndarray, fxfycxcy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The centre square of a frame narrower than high, its intrinsics moved along; others as is.

    `resize_and_crop` then makes it [size, size, 3] as well. The published preparation does not do
    this; it is for using portrait captures, not for scores that are to be compared.
    """
    height, width = image.shape[:2]
    if width >= height:
        return image, fxfycxcy
    top = (height - width) // 2
    return image[top : top + width], np.asarray(fxfycxcy, np.float64) - [0, 0, 0, top]
