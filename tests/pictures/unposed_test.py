"""Pictures become as large as VGGT's programs make them, pixel by pixel."""

import numpy as np
import pytest
from conftest import golden
from PIL import Image

from data_pipeline.pictures.unposed import fit_long_side, fit_padded, fit_width, same_size
from efficient_lvsm_jax.errors import InputError

NAMES = ("land", "tall", "half_even", "rgba", "big")


@pytest.fixture(scope="module")
def recorded():
    return golden("stream_vggt_preprocess")


def picture(recorded, name):
    if name != "big":
        return Image.fromarray(recorded[f"raw_{name}"])
    y, x, c = np.meshgrid(*map(np.arange, (*recorded["big_size_hw"], 3)), indexing="ij")
    return Image.fromarray(((3 * x + 5 * y + 40 * c + x * y // 16) % 256).astype(np.uint8))


def compare(recorded, name, pictures):
    """With [R, 3, Y, X] as recorded in parts."""
    got = np.moveaxis(pictures, -1, 1)
    assert got.dtype == np.uint8
    np.testing.assert_array_equal(got.shape, recorded[f"{name}_shape"])
    np.testing.assert_array_equal(got[..., ::7, ::7], recorded[f"{name}_sub7"])
    assert got.sum(dtype=int) == recorded[f"{name}_sum"]
    for sums, axes in (("row_sums", (0, 1, 3)), ("column_sums", (0, 1, 2))):
        if f"{name}_{sums}" in recorded:
            np.testing.assert_array_equal(got.sum(axes, dtype=int), recorded[f"{name}_{sums}"])


@pytest.mark.parametrize("name", [*NAMES, "half_odd"])
def test_as_wide_as_demonstrations_are(recorded, name):
    compare(recorded, f"crop_{name}", fit_width(picture(recorded, name))[None])


@pytest.mark.parametrize("name", NAMES)
def test_padded_as_demonstrations_are(recorded, name):
    compare(recorded, f"pad_{name}", fit_padded(picture(recorded, name))[None])


@pytest.mark.parametrize("name", ["land", "tall", "big"])
def test_depth_benchmarks(recorded, name):
    compare(recorded, f"depth_benchmark_{name}", fit_long_side(picture(recorded, name))[None])


def test_pictures_of_different_sizes_together(recorded):
    pictures = [fit_width(picture(recorded, name)) for name in ("land", "tall", "half_even")]
    compare(recorded, "crop_mixed_land_tall_half_even", same_size(pictures))


@pytest.mark.parametrize("fit", [fit_width, fit_padded, fit_long_side])
def test_a_picture_of_no_patch_is_refused(fit):
    with pytest.raises(InputError, match=r"1x1000 \(height x width\).*crop it"):
        fit(Image.new("RGB", (1000, 1)))
