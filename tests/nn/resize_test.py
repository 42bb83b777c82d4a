import jax
import numpy as np
import pytest
from conftest import channels_last, golden

from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.nn.resize import bicubic, bicubic_antialiased

DATA = golden("resize")


@pytest.mark.parametrize("case", ["up", "down", "mixed", "same"])
@pytest.mark.parametrize("resize", [bicubic, bicubic_antialiased])
def test_resizing_equals_pytorch(resize, case, parity):
    size = tuple(DATA[f"size_{case}"].tolist())
    name = resize.__name__.removesuffix("ed")
    expected = channels_last(DATA[f"{name}_{case}"])
    parity("bicubic resizing", resize(channels_last(DATA["x"]), size), expected, 1e-5)


def test_a_grid_of_24_becomes_32_as_in_pytorch(parity):
    got = bicubic(channels_last(DATA["grid24"]), (32, 32))
    parity("bicubic resizing", got, channels_last(DATA["bicubic_24_to_32"]), 1e-5)


@pytest.mark.parametrize("side", [32, 64])
def test_position_tables_are_resized_as_timm_does(side, parity):
    got = bicubic_antialiased(channels_last(DATA["table37"]), (side, side))
    expected = channels_last(DATA[f"bicubic_antialias_37_to_{side}"])
    parity("bicubic resizing", got, expected, 1e-5)


@pytest.mark.parametrize(
    ("side", "size", "name"), [(32, (24, 24), "32_to_24"), (37, (5, 7), "37_to_5x7")]
)
def test_a_factor_says_where_samples_are_taken(side, size, name, parity):
    factor = tuple((new + 0.1) / side for new in size)
    got = bicubic(channels_last(DATA[f"table{side}"]), size, factor=factor)
    expected = channels_last(DATA[f"bicubic_factor_{name}"])
    parity("bicubic resizing", got, expected, 1e-5)


def test_antialiased_resizing_equals_that_of_jax():
    image = np.random.default_rng(0).random((9, 14, 2), np.float32)
    for size in ((4, 5), (20, 31)):
        expected = jax.image.resize(image, (*size, 2), "cubic")
        np.testing.assert_allclose(bicubic_antialiased(image, size), expected, atol=1e-5)


@pytest.mark.parametrize("resize", [bicubic, bicubic_antialiased])
def test_an_even_picture_stays_even(resize):
    image = np.full((2, 7, 5, 3), 0.7, np.float32)
    np.testing.assert_allclose(resize(image, (3, 11)), 0.7, atol=1e-6)


@pytest.mark.parametrize("resize", [bicubic, bicubic_antialiased])
def test_an_empty_size_is_refused(resize):
    with pytest.raises(InputError, match=r"\(0, 5\).*at least 1"):
        resize(np.zeros((4, 4, 3)), (0, 5))
