"""How far a cloud of points is from the true one (StreamVGGT's evaluation, §4 there).

Clouds are [P, 3]; NumPy, float64 and scipy's trees.
"""

from __future__ import annotations

import numpy as np
from scipy.spatial import cKDTree

from efficient_lvsm_jax.geometry.alignment import Similarity, nearest_similarity

NEIGHBOURS = 30  # of a point, that its normal is of
ICP_STEPS = 30
ICP_CHANGE = 1e-6  # of the mean distance, relative, at which it ends


def in_its_unit(points: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both clouds with their median depth z at 0, the first of the second's size.

    Both are in the axes of one camera; their size is the median distance from 0 then.
    """
    moved = [x - [0, 0, np.median(x[:, 2])] for x in np.float64([points, truth])]
    sizes = [np.median(np.linalg.norm(x, axis=-1)) for x in moved]
    return moved[0] * (sizes[1] / sizes[0]), moved[1]


def brought_nearest(points: np.ndarray, truth: np.ndarray, limit: float) -> np.ndarray:
    """The cloud turned and moved to the other, from where it is (ICP, point to point).

    limit: pairs of nearest points further apart are left out.
    """
    tree, before = cKDTree(truth), np.inf
    for _ in range(ICP_STEPS):
        distance, nearest = tree.query(points, distance_upper_bound=limit)
        near = np.isfinite(distance)
        if near.sum() < 3:
            return points
        mean = distance[near].mean()
        if mean >= (1 - ICP_CHANGE) * before:
            return points
        before = mean
        pairs = points[near], truth[nearest[near]]
        turn = nearest_similarity(*pairs).rotation
        shift = pairs[1].mean(0) - turn @ pairs[0].mean(0)
        points = Similarity(turn, shift, 1.0).points(points)
    return points


def cloud_errors(points: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Distances, in the unit of the clouds, and how parallel their surfaces are.

    Returns:
      "accuracy" and "accuracy_median", from each point to the nearest true one; "completeness" and
      "completeness_median", from each true point to the nearest; "normals", the mean |cosine| of
      the normals of these pairs, over both.
    """
    there, here = cKDTree(truth).query(points), cKDTree(points).query(truth)
    ours, theirs = normals(points), normals(truth)
    parallel = [
        abs((ours * theirs[there[1]]).sum(-1)).mean(),
        abs((theirs * ours[here[1]]).sum(-1)).mean(),
    ]
    return {
        "accuracy": float(there[0].mean()),
        "accuracy_median": float(np.median(there[0])),
        "completeness": float(here[0].mean()),
        "completeness_median": float(np.median(here[0])),
        "normals": float(np.mean(parallel)),
    }


def normals(points: np.ndarray) -> np.ndarray:
    """Unit normals [P, 3], of either sign: along which a point's neighbours spread least."""
    points = np.asarray(points, np.float64)
    _, near = cKDTree(points).query(points, k=min(NEIGHBOURS, len(points)))
    around = points[near.reshape(len(points), -1)]
    around = around - around.mean(axis=1, keepdims=True)
    _, axes = np.linalg.eigh(np.swapaxes(around, 1, 2) @ around)
    return axes[:, :, 0]
