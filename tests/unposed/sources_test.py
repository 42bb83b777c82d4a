"""Pictures without cameras: in which order, which way up, with which focal length, and refusals."""

import json

import numpy as np
import pytest
from capture_writers import nerfstudio
from five_cameras import five_cameras
from PIL import Image

from data_pipeline.unposed.sources import open_photos, same_name
from efficient_lvsm_jax.errors import InputError

EXIF, ORIENTATION, FOCAL = 0x8769, 0x0112, 0xA405
LENS, WIDTH, DENSITY, UNIT = 0x920A, 0xA002, 0xA20E, 0xA210


def picture(seed=0, height=32, width=48):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def photo(path, *, orientation=1, focal=None, seed=0, told=()):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    if focal is not None:
        exif.get_ifd(EXIF)[FOCAL] = focal
    exif.get_ifd(EXIF).update(told)
    Image.fromarray(picture(seed)).save(path, exif=exif, quality=98)


def test_photos_stand_upright_and_say_their_focal_length(tmp_path):
    photo(tmp_path / "a.jpg", focal=26)
    photo(tmp_path / "b.jpg", orientation=6, focal=26, seed=1)
    Image.fromarray(picture(2)).save(tmp_path / "c.png")
    (tmp_path / "notes.txt").write_text("no picture")
    photos = open_photos(tmp_path)
    a, b, c = photos
    assert photos.count == 3 and not photos.film
    assert [each.name for each in (a, b, c)] == ["a.jpg", "b.jpg.png", "c.png"]
    assert a.stored == (tmp_path / "a.jpg").read_bytes() and b.stored is c.stored is None
    assert a.image.shape == (32, 48, 3) and b.image.shape == (48, 32, 3)
    diagonal = np.hypot(32, 48) / np.hypot(24, 36)
    assert a.focal == b.focal == pytest.approx(26 * diagonal) and c.focal is None
    assert same_name("images/b.jpg.png") == same_name("b.JPG") == "b"
    assert [each.name for each in open_photos(tmp_path, every=2)] == ["a.jpg", "c.png"]


def test_a_sensor_s_density_says_the_focal_length_where_its_equivalent_is_not_told(tmp_path):
    # A sensor 36 mm wide of 4800 pixels, of which the file has every hundredth.
    sensor = {LENS: 24.0, WIDTH: 4800, DENSITY: 4800 / 36 * 25.4, UNIT: 2}
    for number, (told, focal) in enumerate(
        (
            (sensor, 24 / 36 * 48),
            (sensor | {UNIT: 3, DENSITY: 4800 / 3.6}, 24 / 36 * 48),
            (sensor | {FOCAL: 0}, 24 / 36 * 48),
            (sensor | {FOCAL: 26}, 26 * np.hypot(32, 48) / np.hypot(24, 36)),
            (sensor | {UNIT: 7}, None),
            (sensor | {WIDTH: 0}, None),
            (sensor | {DENSITY: 1e-3}, None),
            ({LENS: 24.0}, None),
        )
    ):
        photo(tmp_path / f"{number}.jpg", told=told, seed=number)
        photo(tmp_path / "other.jpg", seed=99)
        *_, found, _ = open_photos(tmp_path)
        assert found.focal == (focal and pytest.approx(focal, rel=1e-4)), told


def test_of_a_capture_only_the_files_of_the_pictures_count(tmp_path):
    truth = five_cameras(same_intrinsics=True)
    capture = nerfstudio.write(tmp_path / "capture", truth)
    file = capture / "transforms.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"k1": 0.1, "k2": 0.05}))
    photos = open_photos(capture)
    assert [each.name for each in photos] == [*nerfstudio.NAMES]
    for each, image in zip(photos, truth.image, strict=True):
        np.testing.assert_array_equal(each.image, image)  # with all of its distortion


def test_pictures_of_one_colour_are_left_out_and_one_is_not_enough(tmp_path, caplog):
    for name, image in (("a", picture()), ("b", picture(1)), ("night", 0 * picture())):
        Image.fromarray(image).save(tmp_path / f"{name}.png")
    assert [each.name for each in open_photos(tmp_path)] == ["a.png", "b.png"]
    assert "night.png is of one colour" in caplog.text
    (tmp_path / "b.png").unlink()
    with pytest.raises(InputError, match=r"1 of 2 pictures to go by: expected two or more"):
        list(open_photos(tmp_path))
    (tmp_path / "night.png").unlink()
    with pytest.raises(InputError, match=r"1 picture to go by: expected two or more"):
        open_photos(tmp_path)
    with pytest.raises(InputError, match=r"a.png: a single picture"):
        open_photos(tmp_path / "a.png")


def test_what_no_pictures_can_be_taken_of_is_refused(tmp_path):
    for name in "ab":
        Image.fromarray(picture(height=1, width=1000)).save(tmp_path / f"{name}.png")
    with pytest.raises(InputError, match=r"a.png of .*: 1000x1 pixels .*sides of 16 or more"):
        list(open_photos(tmp_path))
    for options, words in (
        ({"every": 0}, "--every 0: expected 1"),
        ({"every": 2, "count": 2}, "give one of them"),
        ({"count": 2}, "is about videos"),
    ):
        with pytest.raises(InputError, match=words):
            open_photos(tmp_path, **options)
    with pytest.raises(InputError, match="no such file or folder"):
        open_photos(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no pictures there; expected a folder of photos"):
        open_photos(tmp_path / "empty")
