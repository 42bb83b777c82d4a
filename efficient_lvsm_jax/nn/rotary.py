"""Rotary positions by angles of every channel: pairs of channels of queries and keys are turned.

`nn.positions` is for tokens that also know their cameras, and turns values as well.

Axes: I image, H head, T token, K head dim, F frequency.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from efficient_lvsm_jax.nn.positions import BASE

Rotation = tuple[jax.Array, jax.Array]


def rotate(x: jax.Array, rotation: Rotation, groups: int = 1) -> jax.Array:
    """Turns channels of x [I, H, T, K] in pairs, in float32, returned in its dtype.

    Args:
      x: queries or keys.
      rotation: the cosine and sine of every token's angles, each [T, K].
      groups: K is cut into so many, and in each a channel turns against the one half a group on.
    """
    cosine, sine = rotation
    wide = x.astype(jnp.float32)
    low, high = jnp.split(wide.reshape(*x.shape[:-1], groups, -1), 2, axis=-1)
    turned = jnp.concatenate([-high, low], axis=-1).reshape(x.shape)
    return (wide * cosine + turned * sine).astype(x.dtype)


def patch_rotation(rows: int, columns: int, head_dim: int, prefix: int) -> Rotation:
    """Cosine and sine [T, K] for patches row by row after `prefix` tokens, for two groups.

    The first half of a head turns with the patch's row, the other with its column, both counted
    from 1; tokens of the prefix are at 0 and not turned (arXiv:2104.09864, in two dimensions).
    """
    count = head_dim // 4
    at = jnp.stack([jnp.repeat(jnp.arange(rows), columns), jnp.tile(jnp.arange(columns), rows)]) + 1
    angles = at.T[..., None] * BASE ** -(jnp.arange(count) / count)  # [N, 2, F]
    angles = jnp.concatenate([angles, angles], axis=-1).reshape(-1, head_dim)
    angles = jnp.pad(angles, ((prefix, 0), (0, 0)))
    return jnp.cos(angles), jnp.sin(angles)
