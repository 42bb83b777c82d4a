"""The perceptual loss of the published training: L1 between activations of VGG19 (§4).

    vgg19 = load_vgg19("")              # weights/imagenet-vgg-verydeep-19.mat, or a named file
    loss = perceptual_loss(vgg19, predicted, true)

Pictures of training, [B, T, Y, X, 3] in [0, 1], go through MatConvNet's VGG19 with average in place
of max pools. Means of absolute differences of the pixels and of five activations are weighted and
added up.

Axes: P picture, Y X pixel, C channel.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from efficient_lvsm_jax.metrics import vgg

DEPTHS = (2, 2, 4, 4, 2)  # nothing after the last tap is computed
TAPS = (2, 2, 2, 2, 2)
PUBLISHED_WIDTHS = (64, 128, 256, 512, 512)
PIXEL_MEAN = (123.68, 116.779, 103.939)
WEIGHTS = (1 / 2.6, 1 / 4.8, 1 / 3.7, 1 / 5.6, 10 / 1.5)  # of the taps; that of the pixels is 1


def perceptual_loss(
    params: dict, predicted: jax.Array, true: jax.Array, *, dtype: Any = jnp.float32
) -> jax.Array:
    """How far predicted pictures are from true ones: a float32 scalar, a mean over all of them.

    Its gradient reaches `predicted` alone, and is finite everywhere; see `vgg.frozen_loss`.

    Args:
      params: of VGG19, as `weights.vgg19.load_vgg19` returns them; any widths.
      predicted, true: [..., V, Y, X, 3], floats in [0, 1]. Memory is that of one view; leading
        axes may be sharded.
      dtype: of the convolutions. The published training took bfloat16. Differences are taken,
        and summed, in float32.

    Raises:
      InputError: shapes that differ, other axes, or sides below 16 pixels.
    """
    return vgg.frozen_loss(_distance, params, predicted, true, dtype)


def activations(params: dict, pictures: jax.Array, dtype: Any = jnp.float32) -> list[jax.Array]:
    """The five activations of pictures [P, Y, X, 3] in [0, 1], [P, Y / 2^k, X / 2^k, C]."""
    return list(_activations(params, _preprocessed(pictures), dtype))


def _distance(params: dict, predicted: jax.Array, true: jax.Array, dtype: Any) -> jax.Array:
    predicted, true = _preprocessed(predicted), _preprocessed(true)
    total = _mean_absolute(predicted, true)
    pairs = zip(*(_activations(params, x, dtype) for x in (predicted, true)), strict=True)
    for weight, pair in zip(WEIGHTS, pairs, strict=True):
        total += weight * _mean_absolute(*pair)
    return total / 255


def _activations(params: dict, preprocessed: jax.Array, dtype: Any):
    return vgg.activations(
        params, preprocessed, depths=DEPTHS, taps=TAPS, pool=nnx.avg_pool, dtype=dtype
    )


def _preprocessed(pictures: jax.Array) -> jax.Array:
    return pictures.astype(jnp.float32) * 255 - jnp.array(PIXEL_MEAN)


def _mean_absolute(x: jax.Array, y: jax.Array) -> jax.Array:
    difference = x.astype(jnp.float32) - y.astype(jnp.float32)
    # As jnp.abs, but equal values pull in no direction, as in PyTorch; there jnp.abs has gradient 1
    return jnp.mean(difference * jax.lax.stop_gradient(jnp.sign(difference)))
