"""Decoding one picture safely: what a file of unknown origin holds, as RGB bytes.

JPEG and PNG; WebP, TIFF and AVIF where they hold one picture; of HEIC, with pillow-heif, the main
one. They are told apart by their content. Of 16-bit colour the upper 8 bits count.

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
from typing import IO

import numpy as np
from PIL import Image, features

from data_pipeline.pictures.jpeg import JPEG_START, decode_jpeg, jpeg_size
from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.files.reading import read_bytes

# Of files that are read, in any case; of several files of one name the first counts.
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".avif", ".heic", ".heif")
KINDS = "JPEG, PNG, WebP, TIFF, AVIF or HEIC"
MODES = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "YCbCr")  # Pillow's
MAX_PIXELS = 64_000_000  # larger pictures are refused before decoding
PNG_START = b"\x89PNG\r\n\x1a\n"
# That pixels depend on, and how they are to be shown.
PNG_PARTS = (b"IHDR", b"PLTE", b"tRNS", b"eXIf", b"IDAT", b"IEND")
HEAD_BYTES = 64  # in which a file says what it is
HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
ORIENTATION = 0x0112  # the EXIF tag
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
    """(width, height) in pixels, from the header of a picture.

    Args:
      data: the file's content; its beginning is enough for a PNG.
      name: what to call it in messages.

    Raises:
      InputError: no picture of a kind that is read, a damaged header, or more than 64 million
        pixels.
    """
    with _decoding(name):
        if data[:3] == JPEG_START:
            size = jpeg_size(data)
        else:
            with _opened(io.BytesIO(data), name) as image:
                size = image.size
    _check_pixels(*size, name)
    return size


def decode_image(data: bytes, name: str) -> np.ndarray:
    """A picture as RGB, uint8 [Y, X, 3]; grey becomes RGB, alpha is blended over white.

    Raises:
      InputError: as `image_size`, and for damaged or truncated data, several pictures in a file,
        16-bit grey and other modes that are not 8-bit grey or RGB.
    """
    width, height = image_size(data, name)
    with _decoding(name):
        if data[:3] == JPEG_START:
            out = np.empty((height, width, 3), np.uint8)
            decode_jpeg(data, out)
            return out
        with _opened(io.BytesIO(data), name) as image:
            return rgb(image, name)


def rgb(image: Image.Image, name: str) -> np.ndarray:
    """A PIL image as RGB, uint8 [Y, X, 3]; grey becomes RGB, alpha is blended over white.

    Raises:
      InputError: 16-bit grey and other modes that are not 8-bit grey or RGB.
    """
    if image.mode not in MODES:
        what = "16-bit grey picture" if image.mode[0] in "IF" else "picture"
        raise InputError(f"{name}: {what} (mode {image.mode}); save it as 8-bit RGB or grey")
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
        decode_jpeg(data, out)


def load_image(path: str | os.PathLike[str]) -> np.ndarray:
    """Reads a picture file as RGB, uint8 [Y, X, 3]. Errors as `decode_image`."""
    path = Path(path)
    if not path.exists():
        raise InputError(f"{path}: no such image file")
    return decode_image(read_bytes(path), str(path))


def load_upright(path: str | os.PathLike[str]) -> np.ndarray:
    """As `load_image`, turned as its EXIF orientation says: for pictures without intrinsics."""
    image, turn = load_image(path), UPRIGHT.get(exif_orientation(Path(path)))
    return image if turn is None else np.asarray(Image.fromarray(image).transpose(turn))


def load_alpha(path: Path) -> np.ndarray | None:
    """How opaque each pixel of a picture file is, uint8 [Y, X]; None if it has no alpha.

    Raises:
      InputError: as `decode_image`.
    """
    data = read_bytes(path)
    image_size(data, str(path))
    with _decoding(str(path)), _opened(io.BytesIO(data), str(path)) as image:
        if not image.has_transparency_data:
            return None
        return np.asarray(image.convert("RGBA").getchannel("A"))


def read_oriented(path: Path, stated_size: tuple[int, int] | None) -> np.ndarray:
    """As `load_image`, turned upright where its intrinsics are those of the upright picture.

    Args:
      path: of the picture.
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
            with path.open("rb") as file, _opened(file, str(path), pixels=False) as image:
                stored = image.size
        except FileNotFoundError:
            raise InputError(f"{path}: no such image file") from None
    _check_pixels(*stored, str(path))
    return stored if _turn(path, stored, stated_size) is None else stored[::-1]


def exif_orientation(path: Path) -> int:
    """The EXIF orientation, 1 to 8; 1, upright, if there is none."""
    try:
        with path.open("rb") as file, _opened(file, str(path)) as image:
            orientation = image.getexif().get(ORIENTATION, 1)
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


def _opened(file: IO[bytes], name: str, *, pixels: bool = True) -> Image.Image:
    """Pillow's picture, of which only the header is read so far; without `pixels`, for good.

    Raises:
      InputError: none of the kinds that are read, a kind that needs what is not installed, or
        several pictures in a file; Pillow's own errors if it is damaged.
    """
    head = file.read(HEAD_BYTES)
    file.seek(0)
    format = _format(head)
    if not format:
        raise InputError(f"{name}: cannot be read as {KINDS}: {_found(head)}")
    if format == "PNG":
        file = _bare_png(file, pixels)
    if format == "HEIF":
        _read_heif(name)
    if format == "AVIF" and not features.check("avif"):
        raise InputError(
            f"{name}: this Pillow cannot read AVIF; pip install --upgrade pillow, or save the "
            "picture as PNG or JPEG"
        )
    image = Image.open(file, formats=[format])
    if format in ("WEBP", "TIFF", "AVIF") and (count := getattr(image, "n_frames", 1)) > 1:
        raise InputError(f"{name}: {count} pictures in one {format} file; save each by itself")
    # Pillow turns these, and nothing else, while decoding.
    if format == "TIFF" and (turn := image.getexif().get(ORIENTATION, 1)) != 1:
        raise InputError(f"{name}: TIFF of orientation {turn}; save it upright, as orientation 1")
    return image


def _bare_png(file: IO[bytes], pixels: bool) -> IO[bytes]:
    """A PNG without the parts that no pixel depends on; without `pixels`, only its header.

    Pillow refuses a file for a wrong checksum, or for more text than it likes, in any of them.
    """
    parts = [file.read(len(PNG_START))]
    while len(start := file.read(8)) == 8:  # length and kind; the content and a checksum follow
        length, kind = int.from_bytes(start[:4], "big") + 4, start[4:]
        if kind in PNG_PARTS:
            parts += [start, file.read(length) if pixels or kind != b"IDAT" else b""]
        else:
            file.seek(length, os.SEEK_CUR)
        if kind == b"IEND" or (kind == b"IDAT" and not pixels):
            break
    return io.BytesIO(b"".join(parts))


def _format(head: bytes) -> str:
    """Pillow's name for what a file is, by its first bytes; "" for what is not read."""
    if head[:3] == JPEG_START:
        return "JPEG"
    if head.startswith(PNG_START):
        return "PNG"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    if head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return "TIFF"
    if head[4:8] == b"ftyp":
        if head[8:12] in (b"avif", b"avis") or b"avif" in head[16:]:
            return "AVIF"
        if head[8:12] in HEIF_BRANDS:
            return "HEIF"
    return ""


def _read_heif(name: str) -> None:
    """Teaches Pillow HEIC."""
    try:
        import pillow_heif  # nothing but HEIC needs it
    except ImportError:
        raise InputError(
            f"{name}: HEIC needs pillow-heif: pip install 'efficient-lvsm-jax[heif]', or save the "
            "picture as PNG or JPEG"
        ) from None
    pillow_heif.register_heif_opener()


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
        raise InputError(f"{name}: cannot be read as {KINDS}: {reason}") from error


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
