"""Intrinsics that cannot be in pixels of their picture are told by what they look like."""

import json

import numpy as np
import pytest
from capture_writers import colmap, nerfstudio, prepared
from five_cameras import HEIGHT, WIDTH, assert_reads_as, five_cameras

from data_pipeline.formats import open_scenes
from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.geometry.intrinsics import check_intrinsics, check_view, other_size

GOOD = np.array([500.0, 510, 320, 240])


@pytest.mark.parametrize("fxfycxcy", [GOOD, [160, 160, 300, 250], [9000, 9000, 320, 240]])
@pytest.mark.parametrize("shift", [(0, 0), (330, 0), (-330, 100), (0, 290), (-300, -230)])
def test_pixels_of_the_picture_and_of_crops_pass(fxfycxcy, shift):
    check_intrinsics(np.add(fxfycxcy, [0, 0, *shift]), (640, 480), "a")


@pytest.mark.parametrize(
    ("fxfycxcy", "message"),
    [
        (GOOD / [640, 480, 640, 480], "look divided by its width and height; expected pixels"),
        (GOOD / 640, "look divided by its width and height"),
        ([1.1, 1.1, 0.5, 0.5], "look divided"),
        (GOOD * 2, "look like those of a picture 2 times as large"),
        (GOOD * 4, "a picture 4 times as large"),
        (GOOD * [640, 480, 640, 480], "multiplied by its width and height once too often"),
        ([500, 510, 0.5, 0.5], "cx and cy look divided by the width and height"),
        ([500, 510, 0, -0.3], "or counted from the middle"),
        (GOOD * [640, 480, 1, 1], "multiplied by its width and height once too often"),
        ([500, 510, 1220, 240], "principal point is outside of the picture"),
        (GOOD - [0, 0, 0, 600], "principal point is outside of the picture"),
        (GOOD * [0.02, 0.02, 1, 1], "a field of view of 1[67].* degrees"),
        ([1e-320, 500, 320, 240], "a field of view of 180.0 degrees"),
        ([1e308, 1e308, 1e308, 1e308], "times as large"),
    ],
)
def test_others_are_refused_by_what_they_look_like(fxfycxcy, message):
    with pytest.raises(InputError, match=rf"a: fx fy cx cy .* 640x480 pixels.*{message}"):
        check_intrinsics(np.asarray(fxfycxcy, np.float64), (640, 480), "a")


def test_formats_refuse_them(tmp_path):
    truth = five_cameras(same_intrinsics=True)
    for name, factor in (("divided", 1 / np.array([WIDTH, HEIGHT] * 2)), ("times", 4)):
        wrong = five_cameras(same_intrinsics=True)
        wrong.fxfycxcy[:] *= factor
        written = [
            colmap.write(tmp_path / name / "c", wrong, points=0),
            nerfstudio.write(tmp_path / name / "n", wrong),
            prepared.write(tmp_path / name / "p", wrong),
        ]
        for folder in written:
            with pytest.raises(InputError, match=f"{name}"):
                open_scenes(folder)[0]
    folder = nerfstudio.write(tmp_path / "copy", truth, scale=4)  # scaled: of a stated size
    assert_reads_as(open_scenes(folder)[0], truth)
    path = folder / "transforms.json"
    description = json.loads(path.read_text())
    del description["w"], description["h"]
    path.write_text(json.dumps(description))
    (folder / "images_4").rename(folder / "images")  # nothing says that these are copies
    with pytest.raises(InputError, match=r"4.* times as large; scale them .* or state the size"):
        open_scenes(folder)[0]


SIZE = (48, 64)
USUAL = [55.0, 55.0, 32.0, 24.0]


@pytest.mark.parametrize(
    "fxfycxcy",
    [USUAL, [16.0, 16, 32, 24], [500.0, 500, 30, 20], [55.0, 55, 0.5, 47.5]],
    ids=["usual", "wide", "long", "corner"],
)
def test_views_of_this_picture_pass(fxfycxcy):
    check_view(np.array(fxfycxcy), SIZE, "camera")


@pytest.mark.parametrize(
    ("fxfycxcy", "message"),
    [
        (np.array(USUAL) / [64, 48, 64, 48], "divided by its width and height"),
        (np.array(USUAL) / 64, "divided by its width and height"),
        (np.array(USUAL) * 2, "a picture 2 times as large"),
        ([55.0, 55, -1, 24], "the principal point lies outside"),
        ([55.0, 55, 32, 48], "the principal point lies outside"),
        ([800.0, 55, 32, 24], "4.6 degrees across"),
        ([55.0, 600, 32, 24], "4.6 degrees upwards"),
        ([8.0, 30, 32, 24], "151.9 degrees across"),
    ],
)
def test_views_that_are_no_use_to_a_model_are_refused(fxfycxcy, message):
    with pytest.raises(InputError, match=message):
        check_view(np.asarray(fxfycxcy, np.float64), SIZE, "camera")


def test_the_camera_of_several_is_named():
    with pytest.raises(InputError, match=r"inputs\[1\]: fx fy"):
        check_view(np.array([USUAL, np.multiply(USUAL, 3)]), SIZE, "inputs")


def test_a_principal_point_in_the_middle_of_another_size_is_doubted():
    assert other_size(np.array(USUAL), SIZE) == ""
    assert other_size(np.array([55.0, 55, 20, 24]), SIZE) == ""  # a crop from one side
    assert "a picture of 32x24, not of 64x48" in other_size(np.array(USUAL) / 2, SIZE)
