"""Do the stated poses fit what the pictures show? In pixels.

Where the source knows points of the scene, they are projected and compared with where they were
seen. Otherwise, or where these do not fit, the pictures are asked (`geometry.epipolar`): points may
be wrong, too. Axis legend: V view  M observation.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from data_pipeline.scenes import Observations, Scene
from efficient_lvsm_jax.geometry.epipolar import GOOD_PIXELS, PoseCheck, epipolar_check, judged

ROUNDS = 3  # of fitting, after each of which observations far off lose their say
MIN_POINTS = 8  # to fit
FAR = 1e6  # pixels; points further off say nothing


def check_poses(scene: Scene, *, pairs: int = 8) -> PoseCheck:
    """By reprojection where the scene has observations that fit, otherwise by pictures.

    Args:
      pairs: of pictures that are matched.

    Raises:
      InputError: observations or a picture that cannot be read.
    """
    points, explained = None, ""
    if scene.observations is not None and len((seen := scene.observations()).frame):
        projected = _projected(scene, seen)
        points = judged("reprojection", np.linalg.norm(projected - seen.pixels, axis=-1))
        if points.verdict == "good":
            return points
        explained = _affine_map(projected, seen.pixels)
    frames = [scene.frames[index] for index in scene.usable]
    pictures = epipolar_check(
        [frame.image for frame in frames],
        np.stack([frame.c2w for frame in frames]),
        np.stack([frame.fxfycxcy for frame in frames]),
        pairs=pairs,
    )
    if points is None:
        return pictures
    if explained:
        explained = f"the source's 2D points belong to pictures of another size ({explained})"
    if pictures.verdict == "good":
        off = "" if points.median is None else f" by {points.median:.2f} px"
        reason = f"poses fit the pictures, though points are off{off}"
        return dataclasses.replace(
            pictures, reason=f"{reason}; {explained or 'the points of the source are wrong'}"
        )
    if pictures.names_mistake:
        return dataclasses.replace(points, reason=pictures.reason)
    return dataclasses.replace(points, reason=" or ".join(filter(None, (points.reason, explained))))


def _projected(scene: Scene, seen: Observations) -> np.ndarray:
    """Pixels of the points in the frames that saw them, [M, 2]; infinite behind a camera."""
    c2w, fxfycxcy = scene.c2w[seen.frame], scene.fxfycxcy[seen.frame]
    local = np.einsum("Mji,Mj->Mi", c2w[:, :3, :3], seen.points - c2w[:, :3, 3])
    front = local[:, 2:] > 0
    pixels = local[:, :2] / np.where(front, local[:, 2:], 1) * fxfycxcy[:, :2] + fxfycxcy[:, 2:]
    return np.where(front, pixels, np.inf)


def _affine_map(projected: np.ndarray, seen: np.ndarray) -> str:
    """The map of x and of y, as text, that brings points to where they were seen; "" if none."""
    kept = (np.abs(projected) < FAR).all(-1)
    projected, seen = projected[kept], seen[kept]
    errors = np.linalg.norm(projected - seen, axis=-1)
    inliers, before = kept[kept], np.median(errors) if len(seen) else 0.0
    for _ in range(ROUNDS):
        if inliers.sum() < MIN_POINTS or not np.ptp(projected[inliers], axis=0).all():
            return ""
        maps = [np.polyfit(projected[inliers, axis], seen[inliers, axis], 1) for axis in (0, 1)]
        mapped = np.stack([np.polyval(maps[axis], projected[:, axis]) for axis in (0, 1)], 1)
        errors = np.linalg.norm(mapped - seen, axis=-1)
        inliers = errors <= 3 * np.median(errors) + 1e-9
    if np.median(errors) > min(GOOD_PIXELS, before / 3):
        return ""
    return ", ".join(
        f"{name} = {scale:.3f} {name} {shift:+.1f}"
        for name, (scale, shift) in zip("xy", maps, strict=True)
    )
