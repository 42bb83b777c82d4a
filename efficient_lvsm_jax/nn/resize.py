"""Resizing as PyTorch does it, which `jax.image.resize` does not: bicubic, and aligned bilinear.

PyTorch's plain bicubic uses Keys' kernel with a = -0.75, repeats the border and never smooths; with
antialiasing it uses a = -0.5 and drops what lies outside. Corners are not aligned: pixel centres
are at +0.5. Rows and columns are separable, so each axis is one small matrix [target, source], made
while tracing. Overshoots are kept.

Axes: Y X rows and columns of the source, y x of the result, C channel.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from efficient_lvsm_jax.errors import InputError


def bicubic(
    image: jax.Array, size: tuple[int, int], *, factor: tuple[float, float] | None = None
) -> jax.Array:
    """Resizes [..., Y, X, C] to [..., y, x, C], float32, without smoothing.

    Args:
      image: floats.
      size: (y, x).
      factor: by how much rows and columns are said to grow, where positions in the source follow
        from that and not from the two sizes. DINOv2 needs it.

    Raises:
      InputError: a size below 1.
    """
    _check(image, size)
    factors = factor or (None, None)
    matrices = (
        None if new == old and scale is None else bicubic_matrix(old, new, scale)
        for old, new, scale in zip(image.shape[-3:-1], size, factors, strict=True)
    )
    return _apply(image, *matrices)


def bicubic_antialiased(image: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Resizes [..., Y, X, C] to [..., y, x, C], float32, with the kernel widened when shrinking.

    Raises:
      InputError: a size below 1.
    """
    _check(image, size)
    matrices = (
        None if new == old else bicubic_antialiased_matrix(old, new)
        for old, new in zip(image.shape[-3:-1], size, strict=True)
    )
    return _apply(image, *matrices)


def bilinear_aligned(image: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Resizes [..., Y, X, C] to [..., y, x, C], float32, with the corners' centres kept in place.

    Raises:
      InputError: a size below 1.
    """
    _check(image, size)
    sizes = zip(image.shape[-3:-1], size, strict=True)
    return _apply(image, *(None if new == old else _aligned_matrix(old, new) for old, new in sizes))


def bicubic_matrix(source: int, target: int, factor: float | None = None) -> np.ndarray:
    """Weights [target, source] of plain bicubic resizing along one axis, float64."""
    step = source / target if factor is None else 1 / factor
    position = (np.arange(target) + 0.5) * step - 0.5
    first = np.floor(position).astype(int)
    matrix = np.zeros((target, source))
    for tap in (-1, 0, 1, 2):
        weight = _keys(position - first - tap, -0.75)
        np.add.at(matrix, (np.arange(target), np.clip(first + tap, 0, source - 1)), weight)
    return matrix


def bicubic_antialiased_matrix(source: int, target: int) -> np.ndarray:
    """Weights [target, source] of antialiased bicubic resizing along one axis, float64."""
    step = source / target
    width = max(step, 1.0)
    centre = (np.arange(target)[:, None] + 0.5) * step
    pixel = np.arange(source)
    inside = (pixel >= np.floor(centre - 2 * width + 0.5)) & (
        pixel < np.floor(centre + 2 * width + 0.5)
    )
    matrix = np.where(inside, _keys((pixel - centre + 0.5) / width, -0.5), 0)
    return matrix / matrix.sum(axis=1, keepdims=True)


def _aligned_matrix(source: int, target: int) -> np.ndarray:
    """Weights [target, source] of linear interpolation between aligned ends, float64."""
    position = np.arange(target) * ((source - 1) / max(target - 1, 1))
    return np.maximum(0, 1 - np.abs(position[:, None] - np.arange(source)))


def _keys(distance: np.ndarray, a: float) -> np.ndarray:
    """Keys' cubic convolution kernel."""
    d = np.abs(distance)
    near = (a + 2) * d**3 - (a + 3) * d**2 + 1
    far = a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a
    return np.where(d <= 1, near, np.where(d < 2, far, 0))


def _check(image: jax.Array, size: tuple[int, int]) -> None:
    if min(*size, *image.shape[-3:-1]) < 1:
        raise InputError(f"resizing {image.shape[-3:-1]} to {size}: every size must be at least 1")


def _apply(image: jax.Array, rows: np.ndarray | None, columns: np.ndarray | None) -> jax.Array:
    """Matrices over rows and columns; None leaves an axis as it is."""
    image = jnp.asarray(image, jnp.float32)
    # Accelerators would otherwise round pixels to 8 or 10 bits.
    if rows is not None:
        rows = jnp.asarray(rows, jnp.float32)
        image = jnp.einsum("yY,...YXC->...yXC", rows, image, precision="highest")
    if columns is not None:
        columns = jnp.asarray(columns, jnp.float32)
        image = jnp.einsum("xX,...yXC->...yxC", columns, image, precision="highest")
    return image
