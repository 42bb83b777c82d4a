"""Decoding single pictures: every kind that is read, and everything that is refused."""

import struct
import sys
import types
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image, ImageFile, features

from data_pipeline.pictures import images
from data_pipeline.pictures.images import load_image
from efficient_lvsm_jax.errors import InputError


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_png_is_read_as_stored(tmp_path):
    raw = noise(12, 20)
    Image.fromarray(raw).save(tmp_path / "frame.png")
    np.testing.assert_array_equal(load_image(tmp_path / "frame.png"), raw)


def test_jpeg_is_read_close_to_what_was_saved(tmp_path):
    raw = np.full((16, 16, 3), [200, 100, 50], np.uint8)
    Image.fromarray(raw).save(tmp_path / "frame.jpg", quality=95)
    read = load_image(str(tmp_path / "frame.jpg"))
    assert read.dtype == np.uint8
    assert np.abs(read.astype(int) - raw).max() <= 4


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "1"])
def test_other_colour_modes_become_rgb(tmp_path, mode):
    grey = np.full((8, 10, 3), 255, np.uint8)
    Image.fromarray(grey).convert(mode).save(tmp_path / "frame.png")
    np.testing.assert_array_equal(load_image(tmp_path / "frame.png"), grey)


def test_sixteen_bit_grey_is_refused(tmp_path):
    Image.fromarray(np.zeros((8, 8), np.uint16)).save(tmp_path / "depth.png")
    with pytest.raises(InputError, match=r"depth\.png: 16-bit grey"):
        load_image(tmp_path / "depth.png")


def test_other_formats_are_refused(tmp_path):
    Image.fromarray(noise(8, 8)).save(tmp_path / "frame.bmp")
    (tmp_path / "frame.bmp").rename(tmp_path / "frame.png")
    with pytest.raises(InputError, match=r"frame\.png: cannot be read as JPEG, PNG"):
        load_image(tmp_path / "frame.png")


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_truncated_file_is_refused(tmp_path, suffix):
    path = tmp_path / f"frame.{suffix}"
    Image.fromarray(noise(64, 64)).save(path)
    data = path.read_bytes()
    for length in (0, 10, len(data) // 2):
        path.write_bytes(data[:length])
        with pytest.raises(InputError, match=rf"frame\.{suffix}"):
            load_image(path)


def test_missing_file_and_folder_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"nothing\.png: no such image file"):
        load_image(tmp_path / "nothing.png")
    with pytest.raises(InputError, match="cannot be read"):
        load_image(tmp_path)


def test_oversized_picture_is_refused_before_decoding(tmp_path, monkeypatch):
    path = tmp_path / "large.png"
    Image.fromarray(noise(64, 64)).save(path)
    path.write_bytes(path.read_bytes()[:60])  # the header and no pixels: decoding would fail
    monkeypatch.setattr(images, "MAX_PIXELS", 4095)
    with pytest.raises(InputError, match=r"large\.png: 64x64 pixels"):
        load_image(path)


# Kinds of files besides JPEG and PNG


@pytest.mark.parametrize(
    ("suffix", "options"),
    [
        ("webp", {"lossless": True}),
        ("tif", {}),
        ("tiff", {"compression": "tiff_lzw"}),
        ("tif", {"compression": "tiff_deflate"}),
        ("tif", {"big_tiff": True}),
    ],
)
def test_webp_and_tiff_are_read_as_stored(tmp_path, suffix, options):
    raw = noise(12, 20)
    path = tmp_path / f"frame.{suffix}"
    Image.fromarray(raw).save(path, **options)
    np.testing.assert_array_equal(load_image(path), raw)
    assert images.oriented_size(path, None) == (20, 12)
    path = path.rename(tmp_path / "named_wrongly.jpg")
    np.testing.assert_array_equal(load_image(path), raw)
    for length in (len(path.read_bytes()) // 2, 40, 12):
        path.write_bytes(path.read_bytes()[:length])
        with pytest.raises(InputError, match=r"named_wrongly\.jpg: cannot be read"):
            load_image(path)


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow has no AVIF")
def test_avif_is_read_close_to_what_was_saved(tmp_path):
    raw = np.full((16, 24, 3), [200, 100, 50], np.uint8)
    Image.fromarray(raw).save(tmp_path / "frame.avif", quality=95)
    assert np.abs(load_image(tmp_path / "frame.avif").astype(int) - raw).max() <= 4
    assert images.oriented_size(tmp_path / "frame.avif", None) == (24, 16)


def test_avif_that_pillow_lacks_is_refused_by_its_name(tmp_path, monkeypatch):
    (tmp_path / "a.avif").write_bytes(b"\0\0\0\x20ftypavif\0\0\0\0" + bytes(16))
    monkeypatch.setattr(images.features, "check", lambda name: False)
    with pytest.raises(InputError, match=r"a\.avif: this Pillow cannot read AVIF; pip install"):
        load_image(tmp_path / "a.avif")


HEIC = b"\0\0\0\x18ftyp%s\0\0\0\0mif1heic" + bytes(40)


@pytest.mark.parametrize("brand", [b"heic", b"heix", b"mif1"])
def test_heic_names_the_extra_that_reads_it(tmp_path, monkeypatch, brand):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)  # not installed
    (tmp_path / "a.heic").write_bytes(HEIC % brand)
    for read in (load_image, lambda path: images.oriented_size(path, None)):
        with pytest.raises(InputError, match=r"a\.heic: HEIC needs pillow-heif: .*jax\[heif\]"):
            read(tmp_path / "a.heic")


def test_heic_is_read_by_the_extra(tmp_path, monkeypatch):
    class Heif(ImageFile.ImageFile):
        format = "HEIF"

        def _open(self):
            self._size, self._mode = (4, 2), "RGB"

        def load(self):
            self.im = Image.new("RGB", self.size, (10, 20, 30)).im
            return Image.Image.load(self)

    extra = types.ModuleType("pillow_heif")
    extra.register_heif_opener = lambda: Image.register_open("HEIF", Heif)
    monkeypatch.setitem(sys.modules, "pillow_heif", extra)
    (tmp_path / "a.heic").write_bytes(HEIC % b"heic")
    read = load_image(tmp_path / "a.heic")
    assert read.shape == (2, 4, 3) and (read == [10, 20, 30]).all()


@pytest.mark.parametrize("suffix", ["webp", "tif", "avif"])
def test_several_pictures_in_a_file_are_refused(tmp_path, suffix):
    if not features.check("avif") and suffix == "avif":
        pytest.skip("this Pillow has no AVIF")
    first, second = (Image.fromarray(noise(16, 16, seed)) for seed in (0, 1))
    first.save(tmp_path / f"film.{suffix}", save_all=True, append_images=[second])
    with pytest.raises(InputError, match=rf"film\.{suffix}: 2 pictures in one .* file"):
        load_image(tmp_path / f"film.{suffix}")


@pytest.mark.parametrize("mode", ["CMYK", "LAB"])
def test_other_colour_spaces_are_refused(tmp_path, mode):
    Image.new(mode, (8, 8)).save(tmp_path / "print.tif")
    with pytest.raises(InputError, match=rf"print\.tif: picture \(mode {mode}\)"):
        load_image(tmp_path / "print.tif")


@pytest.mark.parametrize("suffix", ["tif", "png"])
def test_of_sixteen_bit_colour_the_upper_eight_count_and_grey_is_refused(tmp_path, suffix):
    raw = np.random.default_rng(0).integers(0, 65536, (8, 9, 3)).astype(np.uint16)
    cv2.imwrite(str(tmp_path / f"a.{suffix}"), raw)
    np.testing.assert_array_equal(load_image(tmp_path / f"a.{suffix}"), raw[..., ::-1] >> 8)
    Image.fromarray(raw[..., 0]).save(tmp_path / f"b.{suffix}")
    with pytest.raises(InputError, match=rf"b\.{suffix}: 16-bit grey"):
        load_image(tmp_path / f"b.{suffix}")


def test_a_turned_tiff_is_refused(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(noise(8, 12)).save(tmp_path / "turned.tif", exif=exif)
    with pytest.raises(InputError, match=r"turned\.tif: TIFF of orientation 6; save it upright"):
        load_image(tmp_path / "turned.tif")


def test_limits_hold_for_all_kinds(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "MAX_PIXELS", 4095)
    for suffix in ("webp", "tif", "jpg"):
        Image.fromarray(noise(64, 64)).save(tmp_path / f"large.{suffix}")
        with pytest.raises(InputError, match=rf"large\.{suffix}: 64x64 pixels"):
            load_image(tmp_path / f"large.{suffix}")
        with pytest.raises(InputError, match=rf"large\.{suffix}: 64x64 pixels"):
            images.oriented_size(tmp_path / f"large.{suffix}", None)


def chunk(kind, content, *, checksum=None):
    """A part of a PNG; without a checksum of its own, with the right one."""
    checksum = zlib.crc32(kind + content) if checksum is None else checksum
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)


@pytest.mark.parametrize(
    "part",
    [
        chunk(b"tEXt", b"a\0b", checksum=0),
        chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(3_000_000))),  # more than Pillow reads
        chunk(b"gAMA", b"1"),
    ],
    ids=["checksum", "long text", "short"],
)
@pytest.mark.parametrize("at", [33, -12], ids=["before the pixels", "behind them"])
def test_parts_of_a_png_that_no_pixel_depends_on_do_no_harm(tmp_path, part, at):
    raw = noise(12, 20)
    path = tmp_path / "frame.png"
    Image.fromarray(raw).save(path)
    data = path.read_bytes()
    path.write_bytes(data[:at] + part + data[at:])
    assert images.oriented_size(path, None) == (20, 12)
    np.testing.assert_array_equal(load_image(path), raw)
    path.write_bytes(data[:50] + bytes(2) + data[52:])  # a pixel does
    with pytest.raises(InputError, match=r"frame\.png: cannot be read"):
        load_image(path)
