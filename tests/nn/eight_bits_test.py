import jax
import jax.numpy as jnp
import numpy as np
import pytest

from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.nn import eight_bits

X = np.random.default_rng(0).standard_normal((64, 24)).astype(np.float32)
W = np.random.default_rng(1).standard_normal((10, 24)).astype(np.float32)


@pytest.mark.parametrize("through", [jax.jit, lambda function: function])
def test_scales_are_divided_and_not_multiplied_by_a_reciprocal(through):
    _, scale = through(eight_bits.fp8_codes)(X)
    np.testing.assert_array_equal(scale, np.abs(X).max(axis=-1) / np.float32(448))


def test_quotients_in_the_middle_of_two_codes_are_divided_too():
    x = np.random.default_rng(2).standard_normal((2048, 64)).astype(np.float16).astype(np.float32)
    codes, scale = jax.jit(eight_bits.fp8_codes)(x)
    expected = (x / np.asarray(scale)[:, None]).astype(eight_bits.FP8)
    np.testing.assert_array_equal(np.float32(codes), np.float32(expected))
    codes, scale = jax.jit(eight_bits.integer_codes, static_argnums=1)(x, 8)
    np.testing.assert_array_equal(codes, np.rint(x / np.asarray(scale)[:, None]))


def test_the_gradient_of_a_layer_is_that_of_its_rounded_operands():
    def total(x, weight):
        return eight_bits.linear(x, weight, of_inputs=eight_bits.fake_fp8).sum()

    of_x, of_weight = jax.jit(jax.grad(total, (0, 1)))(X, W)
    rounded = eight_bits.fake_fp8(X), eight_bits.fake_fp8(W)
    np.testing.assert_allclose(of_x, np.broadcast_to(rounded[1].sum(0), X.shape), rtol=1e-6)
    np.testing.assert_allclose(of_weight, np.broadcast_to(rounded[0].sum(0), W.shape), rtol=1e-5)


def test_an_integer_is_never_further_than_half_a_step():
    for bits in (4, 8):
        step = np.abs(X).max(axis=-1, keepdims=True) / (2 ** (bits - 1) - 1)
        assert (np.abs(eight_bits.fake_integers(X, bits) - X) <= 0.5001 * step).all()


def test_groups_have_scales_of_their_own_if_they_divide_the_inputs():
    by_group = eight_bits.fake_integers(X, 4, 8).reshape(64, 3, 8)
    np.testing.assert_array_equal(by_group, eight_bits.fake_integers(X.reshape(64, 3, 8), 4))
    np.testing.assert_array_equal(eight_bits.fake_integers(X, 4, 7), eight_bits.fake_integers(X, 4))


def test_smoothing_leaves_the_product_as_it_is():
    smooth = eight_bits.smoothing(jnp.asarray(X), jnp.asarray(W))
    smoothed = eight_bits.linear(X, W, of_weight=None, smooth=smooth)
    np.testing.assert_allclose(smoothed, X @ W.T, atol=1e-5)


def test_integers_of_one_bit_are_refused():
    with pytest.raises(InputError, match="integers of 1 bits: expected 2 to 16"):
        eight_bits.fake_integers(X, 1)
