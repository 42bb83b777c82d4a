"""Parts of a DPT head that need no weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from small_vggt import recorded

from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.nn.dpt import DPT, coordinates, dpt_kept, positions, read_in_parts
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


@pytest.mark.parametrize("remat", [False, True])
def test_large_pictures_are_read_frame_by_frame_to_the_same(remat):
    rng = np.random.default_rng(0)
    kernel = jnp.asarray(rng.normal(size=(6, 5)), jnp.float32)
    taps = jnp.asarray(rng.normal(size=(4, 2, 3, 7, 6)), jnp.float32)  # two scenes, three frames
    at_once = []

    def total(kernel, size):
        def read(taps):
            at_once.append(taps.shape[1])
            return jnp.tanh(taps.sum(0) @ kernel), None

        maps, nothing = read_in_parts(read, taps, size, remat=remat)
        assert nothing is None
        return (maps * jnp.arange(6.0).reshape(2, 3, 1, 1)).sum(), maps

    together, large = (
        jax.value_and_grad(total, has_aux=True)(kernel, size) for size in ((8, 8), (5180, 518))
    )
    assert at_once[0] == 6 and {*at_once[1:]} == {2}
    for got, expected in zip(jax.tree.leaves(large), jax.tree.leaves(together), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-5)


@pytest.mark.parametrize("outputs", [0, 4])
def test_bytes_that_a_head_keeps_are_those_of_its_trace(outputs):
    sizes = 64, (16, 32, 64, 64), 16, outputs
    size, patch = (84, 112), 14
    graph, params = nnx.split(DPT(*sizes))

    def kept(params, taps):
        def read(params, taps):
            return nnx.merge(graph, params)(taps, size, patch)

        return jax.vjp(read, params, taps)[1]

    taps = jax.ShapeDtypeStruct((4, 1, 6 * 8, 64), jnp.float32)
    found = jax.tree.leaves(jax.eval_shape(kept, params, taps))
    of_pictures = sum(
        x.size * x.dtype.itemsize for x in found if x.ndim > 2 and x.shape[0] == 1 < x.shape[1]
    )
    assert dpt_kept(*sizes, size, patch) == pytest.approx(of_pictures, rel=0.02)
