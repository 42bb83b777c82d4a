"""Points of the world that pixels see."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from efficient_lvsm_jax.geometry.cameras import Cameras


def unproject(depth: jax.Array, cameras: Cameras, *, centre: float = 0.5) -> jax.Array:
    """World points [..., Y, X, 3] of z-depths [..., Y, X] seen by cameras [...].

    Args:
      depth: along the viewing direction, in the unit of the cameras.
      cameras: of the maps' size.
      centre: where the centre of the top left pixel is; VGGT's own program takes 0.
    """
    fx, fy, cx, cy = jnp.moveaxis(jnp.asarray(cameras.fxfycxcy)[..., None, None], -3, 0)
    x = (jnp.arange(cameras.width) + centre - cx) / fx  # [..., 1, X]
    y = (jnp.arange(cameras.height)[:, None] + centre - cy) / fy  # [..., Y, 1]
    right, down, forward, origin = jnp.moveaxis(
        jnp.asarray(cameras.c2w)[..., None, None, :3, :], -1, 0
    )
    # Multiply and add, not a matmul: accelerators would lower a float32 matmul's precision.
    directions = x[..., None] * right + y[..., None] * down + forward
    return depth[..., None] * directions + origin
