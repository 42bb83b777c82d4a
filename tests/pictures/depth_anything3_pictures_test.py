"""Pictures and intrinsics become what Depth Anything 3's program makes them."""

import re

import numpy as np
import pytest
from PIL import Image
from small_depth_anything3 import recorded

from data_pipeline.pictures.depth_anything3 import fit, same_size
from efficient_lvsm_jax.errors import InputError

CASES = (
    "90x160_upper_bound_resize_112",
    "90x160_upper_bound_crop_112",
    "110x75_lower_bound_resize_84",
    "110x75_lower_bound_crop_84",
    "40x50_upper_bound_resize_98",
    "600x1000_upper_bound_resize_504",
    "480x640_upper_bound_resize_504",
)


def picture(height, width):
    y, x, c = np.meshgrid(np.arange(height), np.arange(width), np.arange(3), indexing="ij")
    return Image.fromarray(((3 * x + 5 * y + 40 * c + x * y // 16) % 256).astype(np.uint8))


def fxfycxcy(matrix):
    return np.array([matrix[0, 0], matrix[1, 1], matrix[0, 2], matrix[1, 2]])


def nearly_equal(got, expected):
    """Ties of the area filter may round otherwise: few pixels, by a level for each resize."""
    apart = np.abs(got.astype(int) - expected)
    assert apart.max() <= 2
    assert np.count_nonzero(apart) <= 0.006 * apart.size


@pytest.mark.parametrize("case", CASES)
def test_pictures_and_intrinsics(case):
    data = recorded("preprocess")
    height, width, method, side = re.fullmatch(r"(\d+)x(\d+)_(\w+)_(\d+)", case).groups()
    known = fxfycxcy(data[f"{case}_intrinsics_in"])
    pixels, known = fit(picture(int(height), int(width)), known, side=int(side), method=method)
    np.testing.assert_array_equal(pixels.shape[:2], data[f"{case}_shape"])
    expected = fxfycxcy(data[f"{case}_intrinsics_out"])
    np.testing.assert_allclose(known, expected, rtol=1e-6)
    got = np.moveaxis(pixels, -1, 0)
    if case in data:
        nearly_equal(got, data[case])
        return
    nearly_equal(got[:, ::7, ::7], data[f"{case}_sub7"])
    for axis, sums in ((2, "row_sums"), (1, "column_sums")):
        np.testing.assert_allclose(got.sum(axis, dtype=int), data[f"{case}_{sums}"], atol=20)


def test_pictures_of_different_sizes_together():
    data = recorded("preprocess")
    fitted = [
        fit(picture(*size), fxfycxcy(known), side=112)
        for size, known in zip(data["mixed_sizes_hw"], data["mixed_intrinsics_in"], strict=True)
    ]
    pixels, known = same_size(*zip(*fitted, strict=True))
    nearly_equal(np.moveaxis(pixels, -1, 1), data["mixed"])
    expected = [fxfycxcy(matrix) for matrix in data["mixed_intrinsics_out"]]
    np.testing.assert_allclose(known, expected, rtol=1e-6)
    alone, none = same_size([picture for picture, _ in fitted])
    np.testing.assert_array_equal(alone, pixels)
    assert none is None


def test_a_whole_picture_stays_as_it_is():
    image = picture(28, 42)
    pixels, none = fit(image, side=42)
    np.testing.assert_array_equal(pixels, image)
    assert none is None


def test_alpha_is_dropped():
    image = picture(28, 42)
    clear = image.copy()
    clear.putalpha(0)
    np.testing.assert_array_equal(fit(clear, side=42)[0], image)


def test_what_has_no_patch_is_refused():
    with pytest.raises(InputError, match=r"1x1000 \(height x width\).*crop it"):
        fit(Image.new("RGB", (1000, 1)))
    with pytest.raises(InputError, match="upper_bound_resize, upper_bound_crop"):
        fit(picture(28, 42), method="stretch")
