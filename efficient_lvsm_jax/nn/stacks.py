"""Stacks of equal layers: made with a leading axis, scanned, rematerialised by a named policy.

Axes: B scene, V input view, T target view, N patch token, D width, L layer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.nn.kernels import saves
from efficient_lvsm_jax.nn.layers import PRODUCT, normal, uniform
from efficient_lvsm_jax.nn.watching import is_watched, scan
from efficient_lvsm_jax.parallel.sharding import platform, views_are_spread

REMAT_POLICIES = {
    "none": None,
    "products": saves(PRODUCT),
    "attention": saves(),
    "full": jax.checkpoint_policies.nothing_saveable,
}
INITS = ("uniform", "depth")
# From this many tokens a view, a CPU is fastest, and leanest, with one view in hand at a time.
CPU_TOKENS_AT_ONCE = 512


def stack(layer: Callable[..., nnx.Module], layers: int, init: str, rngs: nnx.Rngs) -> nnx.Module:
    """`layers` layers as one module whose parameters have a leading axis L.

    Args:
      layer: makes one of an initializer and rngs.
      layers: L.
      init: "uniform" (PyTorch's default) or "depth": N(0, s²) with s = 0.02/√(2(i+1)) in layer i.
      rngs: to draw from.
    """
    depth_std = 0.02 / jnp.sqrt(2 * (jnp.arange(layers) + 1.0))

    def one(key: jax.Array, std: jax.Array) -> nnx.Module:
        return layer(init=normal(std) if init == "depth" else uniform(), rngs=nnx.Rngs(key))

    return jax.vmap(one)(jax.random.split(rngs.params(), layers), depth_std)


class Walk(Protocol):
    """How layers are walked: attributes of a model's configuration.

    Attributes:
      remat: what is kept for the backward pass, one of REMAT_POLICIES.
      scan_layers: whether layers are a loop in the compiled program, or written out.
    """

    remat: str
    scan_layers: bool


def walk_layers(
    how: Walk,
    step: Callable[[object, object], tuple[object, object]],
    x: object,
    stacks: object,
    *,
    layers: int,
    taps: tuple[int, ...] = (),
    tap: Callable[[object], jax.Array] = lambda x: x,
) -> tuple[object, jax.Array | None, object]:
    """`step(x, layer)` along stacks of layers.

    Args:
      how: the model's configuration.
      step: gives the next x and what else of this layer is wanted.
      x: the first one, an array or a tree of them.
      stacks: modules or arrays with a leading axis L.
      layers: L.
      taps: distinct numbers 1 … L of layers whose x is wanted; no other layer's is kept for them.
      tap: which array of a tree x that is.

    Returns:
      The last x; x after each of `taps`, stacked, or None without any; other outputs, stacked.

    Raises:
      InputError: there is no such layer, or one is asked for twice.
    """
    if len(set(taps)) < len(taps) or not set(taps) <= set(range(1, layers + 1)):
        raise InputError(
            f"taps at layers {list(taps)}: expected distinct numbers from 1 to {layers}, the "
            "layers of this model"
        )
    if how.remat != "none" and not is_watched():
        # A loop cannot share anything between its passes anyway.
        policy = REMAT_POLICIES[how.remat]
        step = jax.checkpoint(step, policy=policy, prevent_cse=not how.scan_layers)
    # One slot for each tap and one more, which every other layer overwrites.
    slots = np.full(layers, len(taps))
    slots[np.array(taps, int) - 1] = np.arange(len(taps))
    tapped = jnp.zeros((len(taps) + 1, *tap(x).shape), tap(x).dtype) if taps else None

    def one(carry: tuple, xs: tuple) -> tuple[tuple, object]:
        # Taps are written outside of what is rematerialised: nothing is kept per layer.
        x, tapped = carry
        x, outputs = step(x, xs[1])
        if tapped is not None:
            tapped = jax.lax.dynamic_update_index_in_dim(tapped, tap(x), xs[0], axis=0)
        return (x, tapped), outputs

    (x, tapped), outputs = scan(one, (x, tapped), (slots, stacks), unroll=not how.scan_layers)
    return x, None if tapped is None else tapped[:-1], outputs


def over_views(function: Callable, x: jax.Array, *beside: object, view_axes: object) -> object:
    """`function` on all views of x [B, V, N, D] at once, or on a CPU with long views one by one.

    Views never see each other in `function`, so both are the same. `beside` is what it takes
    besides, trees of arrays [B, V, …]; `view_axes` says where each output, or all arrays of one,
    have their view axis.
    """
    at_once = x.shape[2] < CPU_TOKENS_AT_ONCE or x.shape[1] == 1 or views_are_spread()
    if at_once or is_watched() or platform() != "cpu":
        return function(x, *beside)
    views = jax.tree.map(lambda y: jnp.moveaxis(y, 1, 0), (x, *beside))
    outputs = jax.lax.map(lambda view: function(*jax.tree.map(lambda y: y[:, None], view)), views)

    def joined(axis: int, output: object) -> object:
        return jax.tree.map(lambda y: jnp.moveaxis(y.squeeze(axis + 1), 0, axis), output)

    return jax.tree.map(joined, view_axes, outputs)
