"""Image metrics as the published evaluation computes them (published program, §7).

Axes: B scene, V view, Y X pixel, C channel. Pictures are floats in [0, 1], one score per view.
A NaN in a picture makes its score NaN.
"""

from __future__ import annotations

import dm_pix
import jax
import jax.numpy as jnp

from efficient_lvsm_jax.errors import InputError

SSIM_WINDOW = 11
# The published SSIM uses sample covariances, 121/120 of dm_pix's population covariances. In the
# ratio that is the same as dividing the constant (k2)² by 121/120.
SSIM_K2 = 0.03 * (120 / 121) ** 0.5


def psnr(prediction: jax.Array, target: jax.Array) -> jax.Array:
    """Peak signal-to-noise ratio in dB of pictures [..., Y, X, C], clamped to [0, 1] first.

    Returns:
      [...], float32; infinite for equal pictures.
    """
    prediction, target = _checked(prediction, target)
    error = jnp.square(jnp.clip(prediction, 0, 1) - jnp.clip(target, 0, 1))
    return -10 * jnp.log10(error.mean(axis=(-3, -2, -1)))


def ssim(prediction: jax.Array, target: jax.Array) -> jax.Array:
    """Structural similarity of pictures [..., Y, X, C]: Gaussian window σ 1.5, valid region only.

    Returns:
      [...], float32.

    Raises:
      InputError: a side shorter than the window of 11 pixels.
    """
    prediction, target = _checked(prediction, target)
    *lead, height, width, channels = target.shape
    if min(height, width) < SSIM_WINDOW:
        raise InputError(
            f"SSIM of {height}x{width} pictures: both sides must be at least {SSIM_WINDOW} pixels"
        )
    a, b = (x.reshape(-1, height, width, channels) for x in (prediction, target))
    scores = dm_pix.ssim(
        a, b, filter_size=SSIM_WINDOW, filter_sigma=1.5, k1=0.01, k2=SSIM_K2, precision="highest"
    )
    return scores.reshape(lead)


def _checked(prediction: jax.Array, target: jax.Array) -> tuple[jax.Array, jax.Array]:
    if prediction.shape != target.shape or target.ndim < 3:
        raise InputError(
            f"prediction {prediction.shape} and target {target.shape}: expected the same "
            "[..., Y, X, C]"
        )
    for name, picture in (("prediction", prediction), ("target", target)):
        if not jnp.issubdtype(picture.dtype, jnp.floating):
            raise InputError(f"{name} of {picture.dtype}: expected floats in [0, 1]; divide by 255")
    return jnp.asarray(prediction, jnp.float32), jnp.asarray(target, jnp.float32)
