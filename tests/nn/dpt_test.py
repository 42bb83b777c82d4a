"""Parts of a DPT head that need no weights."""

import jax.numpy as jnp
import numpy as np
import pytest
from small_vggt import recorded

from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.nn.dpt import coordinates, positions
from efficient_lvsm_jax.nn.resize import bilinear_aligned


@pytest.mark.parametrize(("size", "channels"), [((4, 5), 16), ((3, 7), 32)])
def test_positions_equal_the_published_ones(size, channels, parity):
    data, name = recorded("geometry"), f"{size[1]}x{size[0]}"
    aspect = float(data["dpt_position_aspect"])
    rows, columns = coordinates(size, aspect)
    got = np.stack(np.broadcast_arrays(columns, rows[:, None]), axis=-1)
    parity("DPT positions", got, data[f"uv_{name}"], 1e-6)
    expected = data[f"dpt_position_{channels}_{name}"]
    parity("DPT positions", positions(size, aspect, channels), expected, 1e-6)


def test_aligned_resizing_keeps_corners_and_straight_lines():
    y, x = np.mgrid[:4, :3]
    plane = jnp.asarray((2 * y + 5 * x)[..., None], jnp.float32)
    got = bilinear_aligned(plane, (7, 9))[..., 0]
    expected = 2 * np.linspace(0, 3, 7)[:, None] + 5 * np.linspace(0, 2, 9)
    np.testing.assert_allclose(got, expected, rtol=1e-6)
    np.testing.assert_array_equal(bilinear_aligned(plane, (4, 3)), plane)
    np.testing.assert_array_equal(bilinear_aligned(plane, (1, 1))[0, 0], [0])
    with pytest.raises(InputError, match="at least 1"):
        bilinear_aligned(plane, (0, 3))
