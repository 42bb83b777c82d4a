"""Cameras of one frame of the world in another: by the first of them, or by their places.

NumPy and float64: it runs once per scene.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from efficient_lvsm_jax.errors import InputError

LEAST_DISTANCE = 0.1  # that cameras are divided by, as Depth Anything 3 was trained
MANY = 10  # from so many cameras on, some of them may be wrong
DRAWS, SEED = 10, 42
LEAST_CAMERAS = 3
NO_EXTENT = 1e-9  # of a place, relative to how far it is from the origin


@dataclasses.dataclass(frozen=True)
class Similarity:
    """A point p becomes scale · rotation p + translation. rotation: [3, 3], translation: [3]."""

    rotation: np.ndarray
    translation: np.ndarray
    scale: float

    def apply(self, c2w: np.ndarray) -> np.ndarray:
        """Poses [..., 4, 4] in the other frame, float64."""
        moved = np.array(c2w, np.float64)
        moved[..., :3, :3] = self.rotation @ moved[..., :3, :3]
        moved[..., :3, 3] = self.points(moved[..., :3, 3])
        return moved

    def points(self, points: np.ndarray) -> np.ndarray:
        """Points [..., 3] in the other frame."""
        return self.scale * np.asarray(points, np.float64) @ self.rotation.T + self.translation


def as_trained(c2w: np.ndarray) -> tuple[np.ndarray, float]:
    """Known cameras [R, 4, 4] as Depth Anything 3 is given them, and what they were divided by.

    The first is the identity; the lower median distance from it, its own 0 among them, becomes 1,
    unless it is less than LEAST_DISTANCE, as that of two cameras always is.
    """
    c2w = np.asarray(c2w, np.float64)
    moved = np.linalg.inv(c2w[0]) @ c2w
    distances = np.sort(np.linalg.norm(moved[:, :3, 3], axis=-1))
    unit = max(LEAST_DISTANCE, distances[(len(distances) - 1) // 2])
    moved[:, :3, 3] /= unit
    return moved, float(unit)


def similarity(source: np.ndarray, target: np.ndarray) -> Similarity:
    """What moves places [R, 3] nearest to others, in the least squares (Umeyama, 1991).

    Raises:
      InputError: fewer than three places, or all on a line: the turn around it is not known.
    """
    source, target = np.asarray(source, np.float64), np.asarray(target, np.float64)
    if source.shape != target.shape or source.ndim != 2 or source.shape[1] != 3:
        raise InputError(
            f"alignment of places {source.shape} with {target.shape}: expected twice [R, 3]"
        )
    for places in (source, target):
        spread = np.linalg.svd(places - places.mean(axis=0), compute_uv=False)
        if len(places) < LEAST_CAMERAS or spread[1] <= NO_EXTENT * max(1e-300, spread[0]):
            raise InputError(
                f"alignment of {len(places)} camera(s) at {np.round(places, 4).tolist()}: expected "
                "three or more that are not on a line; see `ratio_of_distances`"
            )
    return nearest_similarity(source, target)


def nearest_similarity(source: np.ndarray, target: np.ndarray) -> Similarity:
    """As `similarity`, of any places: what they do not fix of the turn is left as it comes.

    Places that are all one keep their unit.
    """
    source, target = np.asarray(source, np.float64), np.asarray(target, np.float64)
    from_source, from_target = source - source.mean(axis=0), target - target.mean(axis=0)
    left, sizes, right = np.linalg.svd(from_target.T @ from_source / len(source))
    signs = np.array([1, 1, np.sign(np.linalg.det(left) * np.linalg.det(right))])
    rotation = left * signs @ right
    extent = np.square(from_source).sum(axis=-1).mean()
    scale = (sizes * signs).sum() / extent if extent else 1.0
    translation = target.mean(axis=0) - scale * rotation @ source.mean(axis=0)
    return Similarity(rotation, translation, float(scale))


def similarity_of_cameras(source: np.ndarray, target: np.ndarray) -> Similarity:
    """What moves cameras [R, 4, 4] nearest to others: turns by turns, then places by places.

    Two cameras are enough, and they may be on a line, as those of a walk ahead are.

    Raises:
      InputError: not as many cameras of both, or all of one of them in one place.
    """
    source, target = np.asarray(source, np.float64), np.asarray(target, np.float64)
    if source.shape != target.shape or source.shape[1:] != (4, 4) or len(source) < 2:
        raise InputError(
            f"alignment of cameras {source.shape} with {target.shape}: expected twice [R, 4, 4] of "
            "two cameras or more"
        )
    left, _, right = np.linalg.svd(np.einsum("Rij,Rkj->ik", target[:, :3, :3], source[:, :3, :3]))
    rotation = left * np.array([1, 1, np.sign(np.linalg.det(left) * np.linalg.det(right))]) @ right
    places = source[:, :3, 3], target[:, :3, 3]
    ratio_of_distances(*reversed(places))  # those of the target must not be in one place either
    scale = ratio_of_distances(*places)
    translation = places[1].mean(axis=0) - scale * rotation @ places[0].mean(axis=0)
    return Similarity(rotation, translation, scale)


def robust_similarity(source: np.ndarray, target: np.ndarray) -> Similarity:
    """As `similarity`; of ten places or more some may be wrong, and are left out (RANSAC).

    As Depth Anything 3's program does it: a place is right if it comes nearer than the median, over
    all, of how far the nearest of the others is after the first fit.
    """
    fitted = similarity(source, target)
    count = len(source)
    if count < MANY:
        return fitted
    apart = np.linalg.norm(fitted.points(source)[:, None] - target, axis=-1)
    limit = np.median(apart.min(axis=1))
    draw = np.random.default_rng(SEED)
    best, found = (0, -np.inf), None
    for _ in range(DRAWS):
        drawn = draw.choice(count, max(LEAST_CAMERAS, -(-count // 2)), replace=False)
        try:
            one = similarity(source[drawn], target[drawn])
        except InputError:
            continue
        errors = np.linalg.norm(one.points(source) - target, axis=-1)
        right = errors <= limit
        score = right.sum(), -errors[right].mean() if right.any() else -np.inf
        if score > best:
            best, found = score, right
    if found is None or found.sum() < LEAST_CAMERAS:
        return fitted
    return similarity(np.asarray(source)[found], np.asarray(target)[found])


def ratio_of_distances(source: np.ndarray, target: np.ndarray) -> float:
    """How much larger the second places are than the first, both [R, 3], of two or more.

    Raises:
      InputError: all of the first are in one place.
    """
    extents = [
        np.linalg.norm(places - np.mean(places, axis=0), axis=-1).mean()
        for places in (np.asarray(source, np.float64), np.asarray(target, np.float64))
    ]
    if extents[0] <= NO_EXTENT * max(1e-300, np.abs(source).max()):
        raise InputError(
            f"alignment of {len(source)} camera(s), all at {np.round(source[0], 6).tolist()}: "
            "their scale is not known; give cameras at two or more places"
        )
    return float(extents[1] / extents[0])
