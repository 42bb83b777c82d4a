import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import golden

from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.training.losses import mean_squared_error, projection_loss, psnr_of_batch


@pytest.mark.parametrize("kind", ["cos", "l2", "sl1"])
def test_projection_losses_equal_the_published_ones(kind, parity):
    data = golden("projection_loss")
    loss = projection_loss(data["x"], data["label"], kind)
    parity(f"projection loss {kind}", loss, data[kind], 1e-5)


def test_an_unknown_projection_loss_names_the_known_ones():
    with pytest.raises(InputError, match="cos, l2 or sl1"):
        projection_loss(np.zeros((1, 2, 3)), np.zeros((1, 2, 3)), "huber")


def test_a_token_of_zeros_has_a_gradient():
    label = jnp.ones((1, 2, 3))
    gradient = jax.grad(lambda x: projection_loss(x, label, "cos").sum())(jnp.zeros((1, 2, 3)))
    assert np.isfinite(gradient).all()


def test_shapes_that_differ_are_refused_not_broadcast():
    pictures = np.zeros((2, 4, 4, 3), np.float32)
    with pytest.raises(InputError, match="expected one shape"):
        mean_squared_error(pictures[:1], pictures)
    with pytest.raises(InputError, match="expected one shape"):
        projection_loss(pictures[0, :1], pictures[0], "l2")


def test_the_batch_psnr_is_that_of_the_mean_error():
    target = np.zeros((2, 4, 4, 3), np.float32)
    prediction = target + np.array([0.1, 0.3], np.float32)[:, None, None, None]
    loss = mean_squared_error(prediction, target)
    np.testing.assert_allclose(loss, 0.05, rtol=1e-6)
    np.testing.assert_allclose(psnr_of_batch(loss), -10 * np.log10(0.05), rtol=1e-6)
