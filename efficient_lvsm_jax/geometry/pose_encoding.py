"""Cameras as networks predict them: nine numbers, and back to c2w and fxfycxcy.

An encoding is a translation (3), a rotation as a quaternion x y z w of any length (4), and the
vertical and horizontal fields of view in radians (2). The principal point is the middle of the
picture. VGGT encodes the motion from the world to the camera, Depth Anything 3 (`c2w`) that from
the camera to the world.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from efficient_lvsm_jax.geometry.cameras import Cameras

# Where the world is, unturned, seen over a radian both ways.
USUAL_CAMERA = (0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0)
LEAST_TANGENT = 1e-6  # of half a field of view of Depth Anything 3, as published


def decode(encoding: jax.Array, size: tuple[int, int], *, c2w: bool = False) -> Cameras:
    """Cameras [...] of encodings [..., 9].

    Args:
      encoding: a field of view of 0 gives an infinite focal length, as nothing else would be right.
        With `c2w` one of 0, or above π, gives a focal length of a million halves of the picture.
      size: (height, width) of the pictures in pixels.
      c2w: whose encodings they are, see above.
    """
    encoding = jnp.asarray(encoding, jnp.float32)
    translation, quaternion, fov = jnp.split(encoding, [3, 7], axis=-1)
    rotation, tangent = _rotation(quaternion), jnp.tan(fov / 2)
    if c2w:
        centre, tangent = translation, jnp.maximum(tangent, LEAST_TANGENT)
    else:
        # Multiply and add, not a matmul: accelerators would lower a float32 matmul's precision.
        centre = -(rotation * translation[..., None]).sum(axis=-2)
        rotation = jnp.swapaxes(rotation, -1, -2)
    pose = jnp.concatenate([rotation, centre[..., None]], axis=-1)
    last = jnp.broadcast_to(jnp.array([0.0, 0.0, 0.0, 1.0]), (*pose.shape[:-2], 1, 4))
    height, width = size
    fy, fx = jnp.moveaxis(jnp.array([height / 2, width / 2]) / tangent, -1, 0)
    middle = (jnp.full_like(fx, width / 2), jnp.full_like(fx, height / 2))
    fxfycxcy = jnp.stack([fx, fy, *middle], axis=-1)
    return Cameras(jnp.concatenate([pose, last], axis=-2), fxfycxcy, height, width)


def encode(cameras: Cameras, *, c2w: bool = False) -> jax.Array:
    """Encodings [..., 9] of cameras [...], their quaternions of length 1 with w ≥ 0."""
    pose = jnp.asarray(cameras.c2w, jnp.float32)
    rotation, translation = pose[..., :3, :3], pose[..., :3, 3]
    if not c2w:
        rotation = jnp.swapaxes(rotation, -1, -2)
        translation = -(rotation * translation[..., None, :]).sum(axis=-1)
    fx, fy, *_ = jnp.moveaxis(jnp.asarray(cameras.fxfycxcy, jnp.float32), -1, 0)
    fov = 2 * jnp.arctan(jnp.stack([cameras.height / 2 / fy, cameras.width / 2 / fx], axis=-1))
    return jnp.concatenate([translation, _quaternion(rotation), fov], axis=-1)


def _rotation(quaternion: jax.Array) -> jax.Array:
    """Matrices [..., 3, 3] of quaternions x y z w of any length but 0."""
    x, y, z, w = jnp.moveaxis(quaternion, -1, 0)
    s = 2 / (quaternion * quaternion).sum(axis=-1)
    rows = (
        (1 - s * (y * y + z * z), s * (x * y - z * w), s * (x * z + y * w)),
        (s * (x * y + z * w), 1 - s * (x * x + z * z), s * (y * z - x * w)),
        (s * (x * z - y * w), s * (y * z + x * w), 1 - s * (x * x + y * y)),
    )
    return jnp.stack([jnp.stack(row, axis=-1) for row in rows], axis=-2)


def _quaternion(rotation: jax.Array) -> jax.Array:
    """Unit quaternions x y z w of matrices [..., 3, 3], with w ≥ 0.

    Each of four products of q with one of its entries can be read off the matrix; the one with the
    largest entry is the exact one.
    """
    (a, b, c), (d, e, f), (g, h, i) = (
        jnp.moveaxis(row, -1, 0) for row in jnp.moveaxis(rotation, -2, 0)
    )
    products = jnp.stack(
        [
            jnp.stack([1 + a - e - i, b + d, c + g, h - f], axis=-1),
            jnp.stack([b + d, 1 - a + e - i, f + h, c - g], axis=-1),
            jnp.stack([c + g, f + h, 1 - a - e + i, d - b], axis=-1),
            jnp.stack([h - f, c - g, d - b, 1 + a + e + i], axis=-1),
        ],
        axis=-2,
    )
    largest = jnp.argmax(jnp.diagonal(products, axis1=-2, axis2=-1), axis=-1)
    row = jnp.take_along_axis(products, largest[..., None, None], axis=-2)[..., 0, :]
    row = row / jnp.linalg.norm(row, axis=-1, keepdims=True)
    return jnp.where(row[..., 3:] < 0, -row, row)
