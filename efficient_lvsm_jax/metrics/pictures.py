"""Image metrics as the published evaluation computes them (published program, §7).

Axes: B scene, V view, Y X pixel, C channel. Pictures are floats in [0, 1], one score per view.
A NaN in a picture makes its score NaN.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from efficient_lvsm_jax.errors import InputError

SSIM_WINDOW = 11
RANGE_SLACK = 1e-3  # by which rounding may leave [0, 1]
# The published SSIM uses sample covariances, 121/120 of dm_pix's population covariances. In the
# ratio that is the same as dividing the constant (k2)² by 121/120.
SSIM_K2 = 0.03 * (120 / 121) ** 0.5


def psnr(prediction: jax.Array, target: jax.Array, *, mask: jax.Array | None = None) -> jax.Array:
    """Peak signal-to-noise ratio in dB of pictures [..., Y, X, C], clamped to [0, 1] first.

    Args:
      prediction, target: the pictures.
      mask: bool [..., Y, X], the pixels that count; at least one of each picture.

    Returns:
      [...], float32; infinite for equal pictures.
    """
    prediction, target = _checked(prediction, target)
    error = jnp.square(jnp.clip(prediction, 0, 1) - jnp.clip(target, 0, 1))
    return -10 * jnp.log10(_mean(error, mask))


def ssim(prediction: jax.Array, target: jax.Array, *, mask: jax.Array | None = None) -> jax.Array:
    """Structural similarity of pictures [..., Y, X, C]: Gaussian window σ 1.5, valid region only.

    Args:
      prediction, target: the pictures.
      mask: bool [..., Y, X]: only windows centred on these pixels count; at least one of each.

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
    import dm_pix  # here, so that whoever renders needs jax, flax and numpy alone

    a, b = (x.reshape(-1, height, width, channels) for x in (prediction, target))
    scores = dm_pix.ssim(
        a,
        b,
        filter_size=SSIM_WINDOW,
        filter_sigma=1.5,
        k1=0.01,
        k2=SSIM_K2,
        precision="highest",
        return_map=mask is not None,
    )
    if mask is None:
        return scores.reshape(lead)
    edge = SSIM_WINDOW // 2
    scores = scores.reshape(*lead, height - 2 * edge, width - 2 * edge, channels)
    return _mean(scores, mask[..., edge:-edge, edge:-edge])


def check_range(picture: np.ndarray, name: str) -> None:
    """Raises InputError unless floats are in [0, 1], but for rounding; not for use inside jit.

    Args:
      picture: [..., Y, X, C].
      name: of what it is, for the message, which also says what the range looks like.
    """
    low, high = float(np.min(picture)), float(np.max(picture))
    if -RANGE_SLACK <= low and high <= 1 + RANGE_SLACK:
        return
    looks_like = "no range of pictures"
    if not (np.isfinite(low) and np.isfinite(high)):
        looks_like = "not finite"
    elif high > 2:
        looks_like = "like 8-bit values: divide by 255"
    elif low < -0.05 and low >= -1 - RANGE_SLACK and high <= 1 + RANGE_SLACK:
        looks_like = "like [-1, 1]: use (x + 1) / 2"
    raise InputError(f"{name}: values from {low:.4g} to {high:.4g}, {looks_like}; expected [0, 1]")


def _mean(values: jax.Array, mask: jax.Array | None) -> jax.Array:
    """Mean over pixels and channels of [..., Y, X, C], of the pixels in the mask [..., Y, X]."""
    if mask is None:
        return values.mean(axis=(-3, -2, -1))
    kept = jnp.where(mask[..., None], values, 0).mean(axis=-1)
    return kept.sum(axis=(-2, -1)) / mask.sum(axis=(-2, -1))


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
