"""Training losses (stand-in until losses.py is delivered)."""

import jax.numpy as jnp


def mean_squared_error(prediction, target):
    return jnp.mean(jnp.square(prediction.astype(jnp.float32) - target.astype(jnp.float32)))


def psnr_of_batch(mse):
    return -10 * jnp.log10(mse)
