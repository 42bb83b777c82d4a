"""Training losses (published program, §3 and §4). All are computed in float32.

Axes: B scene or sample, T view, Y X pixel, C channel, N token, D feature.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from efficient_lvsm_jax.errors import InputError

COSINE_EPSILON = 1e-8
PROJECTION_KINDS = ("cos", "l2", "sl1")


def mean_squared_error(prediction: jax.Array, target: jax.Array) -> jax.Array:
    """Mean over everything of the squared difference of two arrays of one shape.

    Raises:
      InputError: the shapes differ; nothing is broadcast.
    """
    _check_shapes("prediction", prediction, "target", target)
    return jnp.mean(jnp.square(prediction.astype(jnp.float32) - target.astype(jnp.float32)))


def psnr_of_batch(mean_squared: jax.Array) -> jax.Array:
    """The PSNR that training logs, in dB: that of the batch's mean squared error, not a mean."""
    return -10 * jnp.log10(mean_squared)


def projection_loss(projected: jax.Array, label: jax.Array, kind: str) -> jax.Array:
    """How far projected tokens are from a teacher's features, per sample.

    Args:
      projected, label: [B, N, D].
      kind: "cos", minus the mean over tokens of the cosine; "l2", mean squared difference; "sl1",
        smooth L1 with β = 1. The last two are means over tokens and channels.

    Returns:
      [B].

    Raises:
      InputError: an unknown kind, or shapes that differ.
    """
    _check_shapes("projected tokens", projected, "label", label)
    projected, label = projected.astype(jnp.float32), label.astype(jnp.float32)
    if kind == "cos":
        # The bound is inside the root: a token of zeros then has a gradient, not NaN.
        lengths = [
            jnp.sqrt(jnp.maximum(jnp.square(x).sum(axis=-1), COSINE_EPSILON**2))
            for x in (projected, label)
        ]
        return -jnp.mean((projected * label).sum(axis=-1) / (lengths[0] * lengths[1]), axis=-1)
    difference = jnp.abs(projected - label)
    if kind == "l2":
        return jnp.mean(jnp.square(difference), axis=(-2, -1))
    if kind == "sl1":
        smooth = jnp.where(difference < 1, 0.5 * jnp.square(difference), difference - 0.5)
        return jnp.mean(smooth, axis=(-2, -1))
    raise InputError(f"projection loss {kind!r}: expected cos, l2 or sl1")


def _check_shapes(name: str, x: jax.Array, other_name: str, other: jax.Array) -> None:
    if x.shape != other.shape:
        raise InputError(f"{name} {x.shape} and {other_name} {other.shape}: expected one shape")
