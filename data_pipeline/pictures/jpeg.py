"""JPEGs as cameras really write them: what the decoder warns of is no damage by itself.

Drones and phones leave bytes between the parts of a file: junk behind the picture's data, before a
restart marker or another segment, senseless parameters of a scan, a broken colour profile. The
pixels are all there. What is refused is a picture that is not: a file that ends before it, with or
without an end marker put behind, or whose data do not decode.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import simplejpeg

JPEG_START = b"\xff\xd8\xff"
# Of the decoder's messages, those that mean pixels that are not in the file.
LOST = ("premature end of data", "instead of rst", "bad huffman", "arithmetic")
START_OF_SCAN, END_OF_IMAGE, JFIF, ADOBE = 0xDA, 0xD9, 0xE0, 0xEE
END = b"\xff\xd9"
TABLES = (0xDB, 0xDD, *range(0xC0, 0xD0))  # quantisation, restarts; frames and Huffman
RESTARTS = range(0xD0, 0xD8)
NO_SEGMENTS = (0x00, 0x01, 0xFF, *RESTARTS)  # within data, or between segments
_noise = np.random.default_rng(0).integers(0, 255, 64, np.uint8).tobytes()  # no 0xff
# What a decoder takes for more of the picture, whichever restart marker it waits for.
_MORE = b"".join(_noise + bytes([0xFF, restart]) for restart in RESTARTS) + _noise


def jpeg_size(data: bytes) -> tuple[int, int]:
    """(width, height), from the header; ValueError if there is none."""
    height, width, *_ = simplejpeg.decode_jpeg_header(data, strict=False)
    return width, height


def decode_jpeg(data: bytes, out: np.ndarray) -> None:
    """Decodes a JPEG as RGB into `out`, uint8 [Y, X, 3], contiguous, of its very size.

    Raises:
      ValueError: the picture is not complete, or the data are damaged.
    """
    try:
        simplejpeg.decode_jpeg(data, buffer=out)
    except ValueError as error:
        if _is_lost(error):
            raise
        _decode_in_spite_of_warnings(data, out)


def jpeg_warning(data: bytes) -> str:
    """What a decoder warns of in a JPEG that can be read; "" if nothing."""
    try:
        simplejpeg.decode_jpeg(data, min_height=1, min_width=1, min_factor=8)  # in little time
    except ValueError as error:
        return str(error)
    return ""


def _is_lost(error: ValueError) -> bool:
    return any(part in str(error).lower() for part in LOST)


def _decode_in_spite_of_warnings(data: bytes, out: np.ndarray) -> None:
    """Decodes twice, the second time with more data behind each scan.

    The decoder tells its first warning alone and fills up with grey whatever is missing. But a
    picture that is complete does not change by more data, and leaves nothing of what was in the
    buffer before.
    """
    head, scans = _split(data)
    more = np.full_like(out, 255)
    out[:] = 0
    simplejpeg.decode_jpeg(head + scans, buffer=out, strict=False)
    simplejpeg.decode_jpeg(head + _with_more_data(scans), buffer=more, strict=False)
    if not np.array_equal(out, more):
        raise ValueError("it ends before its picture does; copy or download the file again")


def _split(data: bytes) -> tuple[bytes, bytes]:
    """What decoding needs of the header; the scans and an end marker; nothing of the junk."""
    head, first, end = [data[:2]], 0, None
    for marker, start, stop in _segments(data, 2):
        if first and end is None:
            end = start
        if marker == START_OF_SCAN:
            first, end = first or start, None
        elif not first and (marker in TABLES or marker in (JFIF, ADOBE)):
            head.append(data[start:stop])
    if not first:
        raise ValueError("no picture in it")
    if end is None or END not in data[end:]:
        raise ValueError("it ends before its picture does: no end marker; copy the file again")
    return b"".join(head), data[first:end] + END


def _with_more_data(scans: bytes) -> bytes:
    """The scans with more data before whatever ends each."""
    parts, copied, in_scan = [], 0, False
    for marker, start, _ in _segments(scans, 0):
        if in_scan:
            data = scans[copied:start]
            parts += [data.rstrip(b"\xff"), _MORE]  # markers may begin with several 0xff
            copied = start
        in_scan = marker == START_OF_SCAN
    return b"".join([*parts, scans[copied:], _MORE * in_scan])


def _segments(data: bytes, at: int) -> Iterator[tuple[int, int, int]]:
    """(marker, start, end) of the segments that begin at or after `at`, as decoders find them."""
    while 0 <= (at := data.find(b"\xff", at)) < len(data) - 1:
        marker = data[at + 1]
        if marker in NO_SEGMENTS:
            at += 1
            continue
        length = int.from_bytes(data[at + 2 : at + 4], "big")
        yield marker, at, at + 2 + length
        if marker == END_OF_IMAGE:
            return
        at += 2 + length
