"""A network whose linear maps are rounded to FP8 in every product, as Lite3R trains it.

Activations are rounded token by token and weights output by output; what P maps, by head as well.
Convolutions, patches among them, norms and attention itself are not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from efficient_lvsm_jax.models.vggt import VGGT
from efficient_lvsm_jax.nn.blocks import Linear
from efficient_lvsm_jax.nn.eight_bits import fake_fp8
from efficient_lvsm_jax.nn.sparse_linear import SparseLinear

CONVOLUTIONS = ("patches", "map")  # which are written as linear maps here: of DINOv2, of heads


def in_eight_bits(network: VGGT) -> VGGT:
    """The network, whose modules are changed, with its linear maps rounded; but not its tracker."""
    for path, module in nnx.iter_modules(network):
        if type(module) in (Linear, SparseLinear) and path[-1] not in CONVOLUTIONS:
            module.product = _rounded_product
    return network


def _rounded_product(axes: str, x: jax.Array, kernel: jax.Array) -> jax.Array:
    """An einsum of rounded operands."""
    operands, output = axes.split("->")
    inputs, weight = operands.split(",")
    summed = [axis for axis in inputs if axis in weight and axis not in output]
    x = _rounded(x, [inputs.index(axis) for axis in summed])
    return jnp.einsum(axes, x, _rounded(kernel, [weight.index(axis) for axis in summed]))


def _rounded(x: jax.Array, summed: Sequence[int]) -> jax.Array:
    """x rounded by rows, which are along the axes that a product sums over."""
    last = range(-len(summed), 0)
    moved = jnp.moveaxis(x, summed, last)
    rows = moved.reshape(*moved.shape[: -len(summed)], math.prod(moved.shape[-len(summed) :]))
    return jnp.moveaxis(fake_fp8(rows).reshape(moved.shape), last, summed)
