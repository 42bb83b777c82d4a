"""JPEGs as cameras write them: junk between their parts is no damage, a picture cut off is."""

import io

import numpy as np
import pytest
from PIL import Image

from data_pipeline.pictures.images import decode_image, decode_jpeg_into
from data_pipeline.pictures.jpeg import jpeg_warning
from efficient_lvsm_jax.errors import InputError

RNG = np.random.default_rng(0)
SMALL = Image.fromarray(RNG.integers(0, 256, (15, 20, 3), np.uint8))
PICTURE = SMALL.resize((160, 120), Image.Resampling.BICUBIC)
JUNK = bytes(RNG.integers(0, 255, 200, np.uint8))
WITH_MARKERS = JUNK[:50] + b"\xff\xc4\x12\xff\xe1zz\xff\x9c" + JUNK[50:]
EXIF = b"\xff\xe1\x00\x16Exif\0\0" + b"\x99" * 14
ICC = b"\xff\xe2\x00\x12ICC_PROFILE\0\x05\x02zz"
SHORT = b"\xff\xe1\x00\x08Exif\0\0" + JUNK[:20]  # a segment longer than it says


def encode(**options):
    buffer = io.BytesIO()
    PICTURE.save(buffer, "JPEG", quality=90, **options)
    return buffer.getvalue()


PLAIN, PROGRESSIVE = encode(), encode(progressive=True)
RESTARTS = encode(restart_marker_blocks=5)
GREY = io.BytesIO()
PICTURE.convert("L").save(GREY, "JPEG")
KINDS = {
    "plain": PLAIN,
    "progressive": PROGRESSIVE,
    "restarts": RESTARTS,
    "grey": GREY.getvalue(),
}


def scan(data):
    return data.index(b"\xff\xda")


def restart(data, number):
    found = [i for i in range(len(data) - 1) if data[i] == 0xFF and 0xD0 <= data[i + 1] <= 0xD7]
    return found[number]


def senseless_scan(data):
    """SOS parameters of zeros, as some phones write them."""
    end = scan(data) + 2 + int.from_bytes(data[scan(data) + 2 : scan(data) + 4], "big")
    return data[: end - 3] + b"\0\0\0" + data[end:]


def inserted(data, at, junk):
    return data[:at] + junk + data[at:]


JUNKS = {
    "behind the picture": lambda data: inserted(data, -2, JUNK),
    "with markers in it": lambda data: inserted(data, -2, WITH_MARKERS),
    "behind the end": lambda data: data + WITH_MARKERS,
    "before the scan": lambda data: inserted(data, scan(data), JUNK),
    "before the tables": lambda data: inserted(data, 20, JUNK),
    "broken EXIF": lambda data: inserted(data, 2, EXIF),
    "broken ICC": lambda data: inserted(data, 2, ICC),
    "a segment too short": lambda data: inserted(data, 2, SHORT),
    "several": lambda data: inserted(inserted(data, -2, WITH_MARKERS), 2, ICC + SHORT),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("junk", JUNKS)
def test_junk_between_parts_changes_no_pixel(kind, junk):
    data = JUNKS[junk](KINDS[kind])
    expected = decode_image(KINDS[kind], "clean.jpg")
    np.testing.assert_array_equal(decode_image(data, "junk.jpg"), expected)
    out = np.empty_like(expected)
    decode_jpeg_into(data, out, "junk.jpg")
    np.testing.assert_array_equal(out, expected)
    if junk not in ("with markers in it", "several"):
        with Image.open(io.BytesIO(data)) as image:
            np.testing.assert_array_equal(np.asarray(image.convert("RGB")), expected)


def test_junk_before_a_restart_marker_and_senseless_scans_change_no_pixel():
    expected = decode_image(RESTARTS, "clean.jpg")
    for number in (0, 3, 7):
        data = inserted(RESTARTS, restart(RESTARTS, number), JUNK)
        np.testing.assert_array_equal(decode_image(data, "junk.jpg"), expected)
        np.testing.assert_array_equal(decode_image(senseless_scan(data), "junk.jpg"), expected)


def test_warnings_are_told():
    assert jpeg_warning(PLAIN) == ""
    assert "extraneous bytes" in jpeg_warning(inserted(PLAIN, -2, JUNK))
    assert "Invalid SOS parameters" in jpeg_warning(senseless_scan(PLAIN))
    assert "bad ICC" in jpeg_warning(inserted(PLAIN, 2, ICC))


SPOILED = {
    **KINDS,
    "ICC": inserted(PLAIN, 2, ICC),
    "ICC, progressive": inserted(PROGRESSIVE, 2, ICC),
    "ICC, restarts": inserted(RESTARTS, 2, ICC),
    "senseless scan": senseless_scan(PLAIN),
    "senseless scan, restarts": senseless_scan(RESTARTS),
    "junk before a restart": inserted(RESTARTS, restart(RESTARTS, 0), JUNK),
}


@pytest.mark.parametrize("kind", SPOILED)
@pytest.mark.parametrize("ending", [b"", b"\xff\xd9", JUNK[:20], JUNK[:20] + b"\xff\xd9"])
def test_a_file_that_ends_before_its_picture_is_refused_whatever_else_it_has(kind, ending):
    # The decoder fills up with grey, and tells no more than its first warning.
    data = SPOILED[kind]
    for share in (0.5, 0.7, 0.9):
        cut = int(len(data) * share)
        with pytest.raises(InputError, match=r"cut\.jpg: cannot be read .*(end|RST|Huffman)"):
            decode_image(data[:cut] + ending, "cut.jpg")


def test_a_cut_at_any_byte_or_restart_marker_is_seen():
    data = senseless_scan(PLAIN)
    for cut in range(scan(data) + 20, len(data) - 40, 7):
        with pytest.raises(InputError, match=r"cut\.jpg"):
            decode_image(data[:cut] + b"\xff\xd9", "cut.jpg")
    data = senseless_scan(RESTARTS)
    for number in range(1, 8):
        for more in (0, 2):
            cut = restart(data, number) + more
            with pytest.raises(InputError, match=r"cut\.jpg"):
                decode_image(data[:cut] + b"\xff\xd9", "cut.jpg")


def test_a_file_without_end_marker_is_refused():
    for data in (PLAIN, inserted(PLAIN, 2, ICC), senseless_scan(RESTARTS), PROGRESSIVE):
        for ending in (b"", JUNK):
            with pytest.raises(InputError, match=r"cut\.jpg: .*ends before its picture"):
                decode_image(data[:-2] + ending, "cut.jpg")
