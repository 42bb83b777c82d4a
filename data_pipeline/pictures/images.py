"""Decoding one picture safely: what a JPEG or PNG of unknown origin holds, as RGB bytes.

Sizes are read from the header and checked before anything is decoded. Pixels come as stored: an
EXIF rotation is not applied here, since intrinsics belong to the stored picture (`read_oriented`
applies it where the stated size shows that they do not). Alpha is blended over white.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import simplejpeg
from PIL import Image

from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.files.reading import read_bytes

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg")  # of files that are read, in any case
MAX_PIXELS = 64_000_000  # larger pictures are refused before decoding
JPEG_START, PNG_START = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"
# What undoes each EXIF orientation.
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def image_size(data: bytes, name: str) -> tuple[int, int]:
    """(width, height) in pixels, from the header of a JPEG or PNG.

    Args:
      data: the file's content; its beginning is enough for a PNG.
      name: what to call it in messages.

    Raises:
      InputError: not a JPEG or PNG, a damaged header, or more than 64 million pixels.
    """
    with _decoding(name):
        if data[:3] == JPEG_START:
            height, width, *_ = simplejpeg.decode_jpeg_header(data)
        elif data[:8] == PNG_START:
            with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
                width, height = image.size
        else:
            raise InputError(f"{name}: cannot be read as JPEG or PNG: {_found(data)}")
    _check_pixels(width, height, name)
    return width, height


def decode_image(data: bytes, name: str) -> np.ndarray:
    """A JPEG or PNG as RGB, uint8 [Y, X, 3]; grey becomes RGB, alpha is blended over white.

    Raises:
      InputError: as `image_size`, and for damaged or truncated data and 16-bit grey.
    """
    image_size(data, name)
    with _decoding(name):
        if data[:3] == JPEG_START:
            return simplejpeg.decode_jpeg(data)
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            return rgb(image, name)


def rgb(image: Image.Image, name: str) -> np.ndarray:
    """A PIL image as RGB, uint8 [Y, X, 3]; grey becomes RGB, alpha is blended over white.

    Raises:
      InputError: 16-bit grey, or floats.
    """
    if image.mode.startswith(("I", "F")):
        raise InputError(
            f"{name}: 16-bit grey picture (mode {image.mode}); save it as 8-bit RGB or grey"
        )
    if image.has_transparency_data:
        return _over_white(np.asarray(image.convert("RGBA")))
    return np.asarray(image.convert("RGB"))


def decode_jpeg_into(data: bytes, out: np.ndarray, name: str) -> None:
    """As `decode_image` of a JPEG, into `out`, uint8 [Y, X, 3], contiguous, of its very size."""
    width, height = image_size(data, name)
    if out.shape != (height, width, 3):
        raise InputError(
            f"{name}: {width}x{height} pixels, expected {out.shape[1]}x{out.shape[0]} (width x "
            "height); its intrinsics would not fit"
        )
    with _decoding(name):
        simplejpeg.decode_jpeg(data, buffer=out)


def load_image(path: str | os.PathLike[str]) -> np.ndarray:
    """Reads a JPEG or PNG file as RGB, uint8 [Y, X, 3]. Errors as `decode_image`."""
    path = Path(path)
    if not path.exists():
        raise InputError(f"{path}: no such image file")
    return decode_image(read_bytes(path), str(path))


def load_alpha(path: Path) -> np.ndarray | None:
    """How opaque each pixel of a picture file is, uint8 [Y, X]; None if it has no alpha.

    Raises:
      InputError: as `decode_image`.
    """
    data = read_bytes(path)
    image_size(data, str(path))
    with (
        _decoding(str(path)),
        Image.open(io.BytesIO(data), formats=["JPEG", "PNG"]) as image,
    ):
        if not image.has_transparency_data:
            return None
        return np.asarray(image.convert("RGBA").getchannel("A"))


def read_oriented(path: Path, stated_size: tuple[int, int] | None) -> np.ndarray:
    """As `load_image`, turned upright where its intrinsics are those of the upright picture.

    Args:
      path: JPEG or PNG.
      stated_size: (width, height) that the intrinsics belong to, if known. If it is the stored size
        turned by 90°, and the EXIF orientation says so too, the orientation is applied.
    """
    image = load_image(path)
    turn = _turn(path, image.shape[1::-1], stated_size)
    return image if turn is None else np.asarray(Image.fromarray(image).transpose(turn))


def oriented_size(path: Path, stated_size: tuple[int, int] | None) -> tuple[int, int]:
    """(width, height) of what `read_oriented` returns, from the header alone.

    Raises:
      InputError: as `image_size`.
    """
    with _decoding(str(path)):
        try:
            with Image.open(path, formats=["JPEG", "PNG"]) as image:
                stored = image.size
        except FileNotFoundError:
            raise InputError(f"{path}: no such image file") from None
    _check_pixels(*stored, str(path))
    return stored if _turn(path, stored, stated_size) is None else stored[::-1]


def exif_orientation(path: Path) -> int:
    """The EXIF orientation, 1 to 8; 1, upright, if there is none."""
    try:
        with Image.open(path, formats=["JPEG", "PNG"]) as image:
            orientation = image.getexif().get(0x0112, 1)
    except Exception:  # of any kind, see `_decoding`
        return 1  # decoding says what is wrong with the picture
    return orientation if orientation in tuple(UPRIGHT) else 1


def _turn(
    path: Path, stored: tuple[int, int], stated: tuple[int, int] | None
) -> Image.Transpose | None:
    """The turn to apply: only one by 90° that makes the stated shape of the stored one."""
    if stated is None or (stored[0] < stored[1]) == (stated[0] < stated[1]):
        return None
    orientation = exif_orientation(path)
    return UPRIGHT[orientation] if orientation >= 5 else None


@contextlib.contextmanager
def _decoding(name: str) -> Iterator[None]:
    """Makes what the decoders raise an InputError."""
    try:
        yield
    except (InputError, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        raise InputError(
            f"{name}: {error}; more than {MAX_PIXELS:,} pixels are refused, scale the picture down"
        ) from error
    except Exception as error:
        # Damaged files make PIL raise nearly anything: SyntaxError, IndexError, AssertionError, …
        reason = str(error) or type(error).__name__
        raise InputError(f"{name}: cannot be read as JPEG or PNG: {reason}") from error


def _check_pixels(width: int, height: int, name: str) -> None:
    if width * height > MAX_PIXELS:
        raise InputError(
            f"{name}: {width}x{height} pixels; more than {MAX_PIXELS:,} are refused, "
            "scale the picture down"
        )


def _over_white(rgba: np.ndarray) -> np.ndarray:
    """uint8 [Y, X, 4] blended over white, rounded to the nearest level."""
    blended = np.empty((*rgba.shape[:2], 3), np.uint8)
    for row, out in zip(rgba, blended, strict=True):  # of all at once, 50 bytes for every pixel
        alpha = row[:, 3:].astype(np.uint32)
        out[:] = (row[:, :3] * alpha + 255 * (255 - alpha) + 127) // 255
    return blended


def _found(data: bytes) -> str:
    if not data:
        return "it is empty"
    return f"it begins with {data[:8].hex(' ')}"
