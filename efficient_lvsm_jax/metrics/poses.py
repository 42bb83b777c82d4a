"""How far cameras are from the true ones: between pairs of them, and along a path.

Poses are c2w [R, 4, 4] in OpenCV axes; NumPy and float64, once per sequence. Both paths may be in
worlds of their own.
"""

from __future__ import annotations

import itertools

import numpy as np
from scipy.spatial.transform import Rotation

from efficient_lvsm_jax.geometry.alignment import nearest_similarity

NO_DIRECTION = 180.0  # degrees of error, of cameras that are said to be in one place
STILL = 1e-9  # of a distance, relative to the largest


def pair_errors(prediction: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Degrees by which every pair's relative rotation is wrong, and its direction: [R(R-1)/2] each.

    The direction is that of the second camera, as the first sees it. Pairs that are truly in one
    place have none and count as right; predicted ones in one place count as NO_DIRECTION.
    """
    pairs = np.array(list(itertools.combinations(range(len(truth)), 2))).reshape(-1, 2).T
    moved, expected = (_between(np.float64(c2w), *pairs) for c2w in (prediction, truth))
    rotation = _degrees(np.swapaxes(expected[:, :3, :3], -1, -2) @ moved[:, :3, :3])
    return rotation, _apart(moved[:, :3, 3], expected[:, :3, 3])


def auc(errors: np.ndarray, limit: int) -> float:
    """The area, of 1, under the share of errors below 1, 2, …, `limit` degrees."""
    counts, _ = np.histogram(errors, bins=np.arange(limit + 1))
    return float(np.cumsum(counts / len(errors)).mean())


def path_errors(prediction: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Root mean squares after the similarity that brings predicted places nearest to the true ones.

    Returns:
      "ate", of places, in the unit of the truth; "rpe_translation" and "rpe_rotation" (degrees), of
      the motion from each camera to the next.
    """
    prediction, truth = np.float64(prediction), np.float64(truth)
    aligned = nearest_similarity(prediction[:, :3, 3], truth[:, :3, 3]).apply(prediction)
    steps = np.arange(len(truth) - 1), np.arange(1, len(truth))
    moved, expected = _between(aligned, *steps), _between(truth, *steps)
    wrong = np.linalg.inv(expected) @ moved
    return {
        "ate": _rms(np.linalg.norm(aligned[:, :3, 3] - truth[:, :3, 3], axis=-1)),
        "rpe_translation": _rms(np.linalg.norm(wrong[:, :3, 3], axis=-1)),
        "rpe_rotation": _rms(_degrees(wrong[:, :3, :3])),
    }


def _between(c2w: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Poses of the second cameras as the first see them."""
    return np.linalg.inv(c2w[first]) @ c2w[second]


def _degrees(rotation: np.ndarray) -> np.ndarray:
    return np.degrees(Rotation.from_matrix(rotation).magnitude())


def _apart(moved: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Degrees between directions [P, 3]."""
    lengths = [np.linalg.norm(x, axis=-1) for x in (moved, expected)]
    still = [length <= STILL * max(length.max(initial=0), 1e-300) for length in lengths]
    across = np.linalg.norm(np.cross(moved, expected), axis=-1)
    angle = np.degrees(np.arctan2(across, (moved * expected).sum(-1)))
    return np.where(still[1], 0.0, np.where(still[0], NO_DIRECTION, angle))


def _rms(errors: np.ndarray) -> float:
    return float(np.sqrt(np.square(errors).mean())) if len(errors) else 0.0
