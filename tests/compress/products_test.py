"""Products of eight-bit numbers, of two kinds of layers and of a model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import random_views

import efficient_lvsm_jax as elvsm
from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.nn import eight_bits
from efficient_lvsm_jax.weights.scaled import in_eight_bits

ROUNDINGS = {
    "fp8": eight_bits.fake_fp8,
    "int8": lambda x: eight_bits.fake_integers(x, 8),
}


@pytest.mark.parametrize("bits", ROUNDINGS)
def test_a_product_is_that_of_rounded_rows_and_columns(bits):
    rng = np.random.default_rng(3)
    rows, stack = rng.standard_normal((5, 24)), rng.standard_normal((2, 24, 3, 4))
    rows, stack = rows.astype(np.float32), stack.astype(np.float32)
    kernel = eight_bits.to_kernel(stack, 1, bits)
    assert kernel.codes.nbytes == stack.nbytes / 4 and kernel.scale.shape == (2, 12)
    rounding = ROUNDINGS[bits]
    np.testing.assert_allclose(
        eight_bits.multiply(rows, kernel[1]),
        rounding(rows) @ rounding(stack[1].reshape(24, 12).T).T,
        atol=2e-5,
    )


def test_a_gpu_is_given_rows_of_fp8_and_asked_for_what_the_model_computes_in():
    rows = jax.ShapeDtypeStruct((32, 64), jnp.bfloat16)
    kernel = jax.eval_shape(lambda x: eight_bits.to_kernel(x, 1, "fp8")[0], jnp.ones((1, 64, 48)))
    traced = jax.jit(eight_bits.multiply).trace(rows, kernel)
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
    (product,) = (line for line in text.splitlines() if "dot_general" in line)
    assert "contracting_dims = [1] x [1]" in product
    types = "(tensor<32x64xf8E4M3FN>, tensor<48x64xf8E4M3FN>) -> tensor<32x48xbf16>"
    assert product.endswith(types), product


@pytest.mark.parametrize("bits", ROUNDINGS)
def test_a_model_multiplies_in_eight_bits_and_renders_nearly_the_same(small_model, bits):
    views, cameras = random_views(2, seed=1), random_views(1, seed=2).cameras
    model = in_eight_bits(small_model, bits)
    expected = np.asarray(small_model.decode(small_model.encode(views), cameras))
    got = np.asarray(model.decode(model.encode(views), cameras))
    error = np.abs(got - expected).max()
    assert 1e-6 < error < 0.05, error
    kernels = {
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, leaf in jax.tree_util.tree_leaves_with_path(model.params)
        if leaf.dtype in (np.int8, np.uint8)
    }
    assert {name.partition("/")[0] for name in kernels} == {"encoder", "decoder"}
    assert len(kernels) == 11
    assert isinstance(small_model.params["encoder"]["mlp"]["up"]["kernel"], jax.Array)


def test_what_the_device_cannot_multiply_is_said():
    with pytest.raises(InputError, match="products='fp8': cpu does not multiply FP8"):
        elvsm.load("rooms", products="fp8")
    with pytest.raises(InputError, match="bits 'int4': expected one of fp8, int8"):
        elvsm.load("rooms", products="int4")
