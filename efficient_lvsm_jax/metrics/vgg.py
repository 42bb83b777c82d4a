"""The convolutions of VGG16 and VGG19, frozen, for distances between pictures.

`lpips.py` and `perceptual.py` say which network and which of its activations are compared.

Axes: P picture, V view, Y X pixel, C channel.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from efficient_lvsm_jax.errors import InputError

MIN_SIDE = 16  # of which four poolings leave one pixel

Distance = Callable[[dict, jax.Array, jax.Array, Any], jax.Array]


def activations(
    params: dict,
    pictures: jax.Array,
    *,
    depths: Sequence[int],
    taps: Sequence[int],
    pool: Callable,
    dtype: Any,
) -> Iterator[jax.Array]:
    """Activations after the ReLU of one convolution of every stage, first stage first.

    Walk two of these together, and no more than a stage of both pictures is kept.

    Args:
      params: conv{stage}_{layer}, both from 1, each {"kernel" [3, 3, C, C], "bias" [C]}.
      pictures: [P, Y, X, 3], as the network expects their colours.
      depths: convolutions of each stage.
      taps: which of them is asked for, from 1.
      pool: halves the sides between stages, the last row or column of odd ones left out:
        `nnx.max_pool` or `nnx.avg_pool`.
      dtype: what convolutions compute in and activations are stored in.
    """
    x = pictures.astype(dtype)
    for stage, (depth, tap) in enumerate(zip(depths, taps, strict=True), 1):
        if stage > 1:
            x = pool(x, (2, 2), strides=(2, 2))
        for layer in range(1, depth + 1):
            convolution = params[f"conv{stage}_{layer}"]
            x = _convolve(convolution["kernel"], x) + convolution["bias"].astype(dtype)
            x = jax.nn.relu(x)
            if layer == tap:
                yield x


def frozen_loss(
    distance: Distance, params: dict, predicted: jax.Array, true: jax.Array, dtype: Any
) -> jax.Array:
    """Mean over views of a distance between pictures, for the memory of one view.

    The gradient reaches `predicted` alone: parameters are frozen, and true pictures are given. It
    is computed together with the loss, view by view, and kept instead of activations: it is as
    large as the pictures. So nothing is computed twice, either. A loss under `jax.grad` is meant;
    forward mode and second derivatives are not there.

    Args:
      distance: (params, predicted [P, Y, X, 3], true [P, Y, X, 3], dtype) -> scalar, a mean over
        pictures. A function of a module, no lambda: it is compared by identity.
      predicted, true: [..., V, Y, X, 3]; views are walked one by one, leading axes together, so
        that these may be sharded.

    Raises:
      InputError: shapes that differ, other axes, or sides below 16 pixels.
    """
    shape = true.shape
    if predicted.shape != shape or len(shape) < 3 or shape[-1] != 3:
        raise InputError(
            f"predicted {predicted.shape} and true {shape} pictures: expected one shape "
            "[..., Y, X, 3]"
        )
    if min(shape[-3:-1]) < MIN_SIDE:
        raise InputError(
            f"pictures of {shape[-3]}x{shape[-2]}: both sides must be at least {MIN_SIDE} pixels "
            "for VGG's poolings"
        )
    if 0 in shape:
        raise InputError(f"no pictures to compare: {shape}")
    return _mean_over_views(distance, dtype, params, _by_view(predicted), _by_view(true))


def _by_view(pictures: jax.Array) -> jax.Array:
    """[..., V, Y, X, 3] to [V, P, Y, X, 3], float32."""
    size = pictures.shape[-3:]
    pictures = pictures.reshape(*(1,) * (4 - pictures.ndim), *pictures.shape)
    views = jnp.moveaxis(pictures.astype(jnp.float32), -4, 0)
    return views.reshape(len(views), -1, *size)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _mean_over_views(
    distance: Distance, dtype: Any, params: dict, predicted: jax.Array, true: jax.Array
) -> jax.Array:
    def of_view(pair: tuple[jax.Array, jax.Array]) -> jax.Array:
        return distance(params, *pair, dtype)

    return jax.lax.map(of_view, (predicted, true)).mean()


def _loss_and_gradient(
    distance: Distance, dtype: Any, params: dict, predicted: jax.Array, true: jax.Array
) -> tuple[jax.Array, jax.Array]:
    def of_view(pair: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        return jax.value_and_grad(distance, argnums=1)(params, *pair, dtype)

    losses, gradients = jax.lax.map(of_view, (predicted, true))
    return losses.mean(), gradients / len(losses)


def _scaled(distance: Distance, dtype: Any, gradient: jax.Array, cotangent: jax.Array) -> tuple:
    return None, gradient * cotangent, None


_mean_over_views.defvjp(_loss_and_gradient, _scaled)


@jax.custom_vjp
def _convolve(kernel: jax.Array, x: jax.Array) -> jax.Array:
    """3x3 convolution of frozen weights, of which only x has a gradient."""
    return jax.lax.conv_general_dilated(
        x,
        kernel.astype(x.dtype),
        window_strides=(1, 1),
        padding=((1, 1), (1, 1)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision="highest",  # in float32, accelerators would round to 10 bits or fewer
    )


# The same convolution with the kernel turned around. JAX's own gradient is equal, but inside a loop
# XLA computes it 6 times slower on a CPU (jax 0.10.2), for its order of the kernel's axes.
_convolve.defvjp(
    lambda kernel, x: (_convolve(kernel, x), kernel),
    lambda kernel, g: (None, _convolve(jnp.flip(kernel, (0, 1)).swapaxes(2, 3), g)),
)
