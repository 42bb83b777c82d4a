import numpy as np
import pytest

from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.geometry.intrinsics import check_intrinsics, other_size

SIZE = (48, 64)
USUAL = [55.0, 55.0, 32.0, 24.0]


@pytest.mark.parametrize(
    "fxfycxcy",
    [USUAL, [16.0, 16, 32, 24], [500.0, 500, 30, 20], [55.0, 55, 0.5, 47.5]],
    ids=["usual", "wide", "long", "corner"],
)
def test_intrinsics_of_this_picture_pass(fxfycxcy):
    check_intrinsics(np.array(fxfycxcy), SIZE, "camera")


@pytest.mark.parametrize(
    ("fxfycxcy", "message"),
    [
        (np.array(USUAL) / [64, 48, 64, 48], r"divided by the picture's size.*\[55.0, 55.0, 32"),
        (np.array(USUAL) / 64, "divided by the picture's size"),
        (np.array(USUAL) / [32, 24, 32, 24], "divided by the picture's size"),  # cx, cy = 1
        (np.array(USUAL) * 2, r"64, 48 lies outside"),
        ([55.0, 55, -1, 24], "-1, 24 lies outside"),
        ([800.0, 55, 32, 24], "4.6 degrees across"),
        ([55.0, 600, 32, 24], "4.6 degrees upwards"),
        ([8.0, 30, 32, 24], "151.9 degrees across"),
    ],
)
def test_intrinsics_that_cannot_be_in_pixels_of_this_picture_are_refused(fxfycxcy, message):
    with pytest.raises(InputError, match=message):
        check_intrinsics(np.asarray(fxfycxcy, np.float64), SIZE, "camera")


def test_the_camera_of_several_is_named():
    with pytest.raises(InputError, match=r"inputs\[1\]: fxfycxcy"):
        check_intrinsics(np.array([USUAL, np.multiply(USUAL, 3)]), SIZE, "inputs")


def test_a_principal_point_in_the_middle_of_another_size_is_doubted():
    assert other_size(np.array(USUAL), SIZE) == ""
    assert other_size(np.array([55.0, 55, 20, 24]), SIZE) == ""  # a crop from one side
    assert "a picture of 32x24, not of 64x48" in other_size(np.array(USUAL) / 2, SIZE)
