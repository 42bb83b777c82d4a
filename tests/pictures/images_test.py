"""Decoding single pictures: every kind that is read, and everything that is refused."""

import numpy as np
import pytest
from PIL import Image

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
    with pytest.raises(InputError, match=r"frame\.png: cannot be read as JPEG or PNG"):
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
