"""Which of some views the world of Depth Anything 3 is told in.

Axes: B scene, R view, D channel.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

# The view nearest to the middle in three respects, as published by default; that of the widest
# range of similarities; the one in the middle of the list; the first.
STRATEGIES = ("saddle_balanced", "saddle_sim_range", "middle", "first")
NO_RANGE = 1e-8


def reference_view(tokens: jax.Array, strategy: str) -> jax.Array:
    """Index [B] of the reference among views; of equals the first.

    Args:
      tokens: one of every view, [B, R, D] float32.
      strategy: one of STRATEGIES.
    """
    batch, views = tokens.shape[:2]
    if strategy in ("middle", "first"):
        return jnp.full(batch, views // 2 if strategy == "middle" else 0)
    length = jnp.linalg.norm(tokens, axis=-1)
    units = tokens / length[..., None]
    # Multiply and add, not a matmul: accelerators would lower a float32 matmul's precision.
    alike = (units[:, :, None] * units[:, None]).sum(axis=-1)
    # Not 1 - 1: where views are all alike, rounding would say which of the nearest two is first.
    alike = jnp.where(jnp.eye(views, dtype=bool), 0.0, alike)
    if strategy == "saddle_sim_range":
        return jnp.argmax(alike.max(axis=-1) - alike.min(axis=-1), axis=-1)
    measures = jnp.stack([alike.sum(axis=-1) / (views - 1), length, units.var(axis=-1)])
    low, high = measures.min(axis=-1, keepdims=True), measures.max(axis=-1, keepdims=True)
    scaled = (measures - low) / (high - low + NO_RANGE)
    return jnp.argmin(jnp.abs(scaled - 0.5).sum(axis=0), axis=-1)


def order_from(reference: jax.Array, views: int) -> jax.Array:
    """Order [B, R] of so many views that has the reference [B] first and keeps that of others."""
    place = jnp.arange(views)
    return jnp.argsort(jnp.where(place == reference[:, None], -1, place), axis=-1, stable=True)


def reordered(x: jax.Array, order: jax.Array) -> jax.Array:
    """x [B, R, …] with its views in `order` [B, R]."""
    return jnp.take_along_axis(x, order.reshape(*order.shape, *[1] * (x.ndim - 2)), axis=1)
