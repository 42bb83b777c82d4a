"""Cameras of the rays that Depth Anything 3 predicts for every pixel of a map.

A camera turns the pixels of its picture into directions by a matrix of 3x3, which is fitted
robustly (RANSAC) and taken apart into a rotation and intrinsics. NumPy and float64. Cameras at
right angles to the reference are ill-conditioned: directions are divided by their third coordinate.

Axes: R view, y x pixel of the map, M = y·x, T draw.
"""

from __future__ import annotations

import numpy as np

from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.geometry.cameras import Cameras

LEAST_DEPTH = 1e-4  # of a direction that may be divided by it
MOST_SURE = 0.3  # of the pixels, from which draws are made
DRAWS, DRAWN = 100, 8
LIMIT = 0.2  # by which a direction may be off, in units of half a picture at focal length 1
MOST_FITTED, KEPT = 8000, 0.95
# How the matrix is taken apart: as the published program does, which is right for cameras whose
# principal point is in the middle; or rightly for all.
PARTS = ("published", "general")


def cameras_of_rays(
    rays: np.ndarray,
    confidence: np.ndarray,
    size: tuple[int, int],
    *,
    parts: str = "published",
    seed: int = 0,
    draws: np.ndarray | None = None,
) -> Cameras:
    """Cameras [R] that fit rays.

    Args:
      rays: directions and origins, [R, y, x, 6], as `Geometry.rays` of one scene.
      confidence: above 0, [R, y, x].
      size: (height, width) of the pictures in pixels.
      parts: one of PARTS.
      seed: of the draws.
      draws: [T, 8] ranks of pixels by falling confidence, instead of those drawn with the seed.

    Raises:
      InputError: arrays that are no such rays, no such parts, or a view whose rays fit no camera.
    """
    if parts not in PARTS:
        raise InputError(f"parts={parts!r}: expected one of {', '.join(PARTS)}")
    rays, confidence = np.asarray(rays, np.float64), np.asarray(confidence, np.float64)
    if rays.ndim != 4 or rays.shape[-1] != 6 or rays.shape[:-1] != confidence.shape:
        raise InputError(
            f"rays of shape {rays.shape}, confidence {confidence.shape}: expected [R, y, x, 6] and "
            "[R, y, x]"
        )
    poses, intrinsics = [], []
    random = np.random.default_rng(seed)
    count = confidence[0].size if len(rays) else 0
    if count < DRAWN:
        raise InputError(f"rays of shape {rays.shape}: expected at least {DRAWN} pixels of a view")
    if draws is None:
        sure = most_sure(count)
        draws = np.stack([random.choice(sure, DRAWN, replace=False) for _ in range(DRAWS)])
    for view, (of_view, weights) in enumerate(zip(rays, confidence, strict=True)):
        directions, origins = np.split(of_view.reshape(-1, 6), 2, axis=-1)
        seen, weights = image_of(directions, weights.ravel())
        matrix, agree = fitted(pixel_places(confidence.shape[1:]), seen, weights, draws, random)
        if agree < DRAWN or not np.isfinite(matrix).all() or not weights.sum() > 0:
            raise InputError(
                f"view {view}: its rays fit no camera ({agree} of {count} agree, expected {DRAWN} "
                "or more that meet the plane before it); take the cameras that the model predicts"
            )
        rotation, focal, principal = apart(matrix, parts)
        pose = np.eye(4)
        pose[:3, :3], pose[:3, 3] = rotation, weights @ origins / weights.sum()
        half = np.array(size[::-1]) / 2
        poses.append(pose)
        intrinsics.append(np.concatenate([focal * half, principal * half]))
    return Cameras(np.float32(poses), np.float32(intrinsics), *size)


def most_sure(count: int) -> int:
    """From how many of so many pixels draws are made."""
    return max(DRAWN, int(MOST_SURE * count))


def pixel_places(size: tuple[int, int]) -> np.ndarray:
    """Pixel centres x y 1 [M, 3] of a map, from -1 to 1."""
    y, x = ((2 * np.arange(n) + 1) / n - 1 for n in size)
    x, y = np.meshgrid(x, y)
    return np.stack([x, y, np.ones_like(x)], axis=-1).reshape(-1, 3)


def image_of(directions: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where directions [M, 3] meet the plane z = 1, [M, 2], and weights, 0 where they do not."""
    depth = directions[:, 2]
    meets = np.abs(depth) > LEAST_DEPTH
    return directions[:, :2] / np.where(meets, depth, 1)[:, None], np.where(meets, weights, 0)


def fitted(
    places: np.ndarray,
    seen: np.ndarray,
    weights: np.ndarray,
    draws: np.ndarray,
    random: np.random.Generator,
) -> tuple[np.ndarray, int]:
    """The matrix [3, 3] that takes places [M, 3] to what is seen [M, 2], and how many agree.

    Its last entry is 1.
    """
    order = np.argsort(-weights, kind="stable")
    drawn = order[draws]
    trials = _matrices(places[drawn], seen[drawn], weights[drawn])
    agree = np.stack([_agree(matrix, places, seen) for matrix in trials])
    best = agree[np.argmax(agree @ weights)]
    right = np.flatnonzero(best)
    if len(right) > MOST_FITTED:
        kept = max(int(KEPT * len(right)), MOST_FITTED)
        right = right[np.argsort(-weights[right], kind="stable")[:kept]]
        right = random.choice(right, MOST_FITTED, replace=False)
    if len(right) < DRAWN:
        return np.full((3, 3), np.nan), len(right)
    return _matrices(places[right], seen[right], weights[right]), int(best.sum())


def apart(matrix: np.ndarray, parts: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A rotation [3, 3], focal lengths [2] and a principal point [2], in halves of the picture."""
    matrix = -matrix if np.linalg.det(matrix) < 0 else matrix
    turned = matrix[:, ::-1] if parts == "published" else matrix
    rotation, triangle = np.linalg.qr(turned)
    if parts == "published":  # as a product with a lower triangle
        rotation, triangle = rotation[:, ::-1], triangle[::-1, ::-1]
    signs = np.sign(np.diag(triangle))
    rotation, triangle = rotation * signs, signs[:, None] * triangle
    triangle = triangle / triangle[2, 2]
    focal = 1 / np.diag(triangle)[:2]
    principal = triangle[2, :2] if parts == "published" else -triangle[:2, 2] * focal
    return rotation, focal, principal + 1


def _matrices(places: np.ndarray, seen: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Of [..., M, 3], [..., M, 2] and [..., M] the matrices [..., 3, 3] with the least errors."""
    none = np.zeros_like(places)
    rows = [
        np.concatenate([-places, none, seen[..., :1] * places], axis=-1),
        np.concatenate([none, -places, seen[..., 1:] * places], axis=-1),
    ]
    rows = np.concatenate([np.sqrt(weights)[..., None] * row for row in rows], axis=-2)
    last = np.linalg.svd(rows, full_matrices=rows.shape[-2] < 9)[2][..., 8, :]
    with np.errstate(divide="ignore", invalid="ignore"):
        return (last / last[..., 8:]).reshape(*last.shape[:-1], 3, 3)


def _agree(matrix: np.ndarray, places: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """Which places [M, 3] the matrix takes near to what is seen."""
    with np.errstate(divide="ignore", invalid="ignore"):
        taken = places @ matrix.T
        return np.linalg.norm(taken[:, :2] / taken[:, 2:] - seen, axis=-1) < LIMIT
