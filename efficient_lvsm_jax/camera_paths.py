"""Flights of a camera through and around posed pictures.

All poses are camera-to-world [4, 4] in OpenCV axes (x right, y down, z forward), in the world of
the cameras given; NumPy, float64 inside, run once per film.

Axis legend: V view  F frame of a path.
"""

from __future__ import annotations

import numpy as np

from efficient_lvsm_jax.cameras import check_cameras, nearest_camera
from efficient_lvsm_jax.errors import InputError


def camera_path(
    c2w: np.ndarray,
    fxfycxcy: np.ndarray,
    steps: int,
    *,
    nearest_first: bool = False,
    loop: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """A smooth flight through cameras: centres and intrinsics linear, rotations by slerp.

    Args:
      c2w: [V, 4, 4]. fxfycxcy: [V, 4].
      steps: frames per pair of cameras, both ends included, so a camera between two pairs
        appears twice.
      nearest_first: visit the cameras greedily, from the first always on to the nearest one left.
      loop: return to the first camera at the end.

    Returns:
      c2w [F, 4, 4] and fxfycxcy [F, 4], float32; F = steps · (V - 1), with loop steps · V.

    Raises:
      InputError: unusable cameras, steps < 1, or a single camera without loop.
    """
    check_cameras(c2w, fxfycxcy, "path cameras")
    c2w, fxfycxcy = np.asarray(c2w, np.float64), np.asarray(fxfycxcy, np.float64)
    if c2w.ndim != 3 or len(c2w) < (1 if loop else 2):
        raise InputError(
            f"path cameras of shape {c2w.shape}: expected [V, 4, 4] with two cameras or more "
            "(one is enough with loop)"
        )
    if steps < 1:
        raise InputError(f"steps={steps}: a path needs at least 1 frame per pair of cameras")

    order = _nearest_first(c2w) if nearest_first else list(range(len(c2w)))
    if loop:
        order.append(order[0])
    c2w, fxfycxcy = c2w[order], fxfycxcy[order]

    s = np.linspace(0.0, 1.0, steps)[:, None]  # [steps, 1]
    quaternions = _quaternions(c2w[:, :3, :3])
    rotations, centres, intrinsics = [], [], []
    for a, b in zip(range(len(order) - 1), range(1, len(order)), strict=True):
        rotations.append(_rotations(_slerp(quaternions[a], quaternions[b], s)))
        centres.append((1 - s) * c2w[a, :3, 3] + s * c2w[b, :3, 3])
        intrinsics.append((1 - s) * fxfycxcy[a] + s * fxfycxcy[b])
    path = np.tile(np.eye(4), (steps * (len(order) - 1), 1, 1))
    path[:, :3, :3] = np.concatenate(rotations)
    path[:, :3, 3] = np.concatenate(centres)
    return path.astype(np.float32), np.concatenate(intrinsics).astype(np.float32)


def _nearest_first(c2w: np.ndarray) -> list[int]:
    order, left = [0], list(range(1, len(c2w)))
    while left:
        order.append(left.pop(nearest_camera(c2w[left], c2w[order[-1]])))
    return order


def _quaternions(rotations: np.ndarray) -> np.ndarray:
    """Unit quaternions (w, x, y, z), w >= 0, of rotations [V, 3, 3] that may be slightly off.

    Bar-Itzhack (2000): the eigenvector of the largest eigenvalue is the nearest rotation's.
    """
    m = np.moveaxis(rotations, 0, -1)
    k = np.empty((len(rotations), 4, 4))  # basis x, y, z, w; eigh reads the lower triangle only
    k[:, 0, 0] = m[0, 0] - m[1, 1] - m[2, 2]
    k[:, 1, 1] = m[1, 1] - m[0, 0] - m[2, 2]
    k[:, 2, 2] = m[2, 2] - m[0, 0] - m[1, 1]
    k[:, 3, 3] = m[0, 0] + m[1, 1] + m[2, 2]
    k[:, 1, 0] = m[0, 1] + m[1, 0]
    k[:, 2, 0] = m[0, 2] + m[2, 0]
    k[:, 2, 1] = m[1, 2] + m[2, 1]
    k[:, 3, 0] = m[2, 1] - m[1, 2]
    k[:, 3, 1] = m[0, 2] - m[2, 0]
    k[:, 3, 2] = m[1, 0] - m[0, 1]
    x, y, z, w = np.linalg.eigh(k / 3, UPLO="L").eigenvectors[:, :, -1].T
    return np.where(w < 0, -1, 1)[:, None] * np.stack([w, x, y, z], axis=-1)


def _slerp(start: np.ndarray, end: np.ndarray, s: np.ndarray) -> np.ndarray:
    """Quaternions along the shorter arc from start [4] to end [4] at s [steps, 1]."""
    dot = start @ end
    if dot < 0:  # the same rotation on the nearer side
        dot, end = -dot, -end
    angle = np.arccos(min(dot, 1.0))
    if angle < 4 * np.finfo(np.float64).eps:
        return np.broadcast_to(start, (len(s), 4))
    return (np.sin((1 - s) * angle) * start + np.sin(s * angle) * end) / np.sin(angle)


def _rotations(quaternions: np.ndarray) -> np.ndarray:
    """Rotation matrices [F, 3, 3] of unit quaternions (w, x, y, z), [F, 4]."""
    w, x, y, z = quaternions.T
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ]
    return np.moveaxis(np.array(rows), -1, 0)
