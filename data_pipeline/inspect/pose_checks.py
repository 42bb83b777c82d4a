"""Do the stated poses fit what the pictures show? In pixels.

Where the source knows points of the scene, they are projected and compared with where they were
seen. Otherwise the pictures are asked (`geometry.epipolar`). Axis legend: V view  M observation.
"""

from __future__ import annotations

import numpy as np

from data_pipeline.scenes import Scene
from efficient_lvsm_jax.geometry.epipolar import PoseCheck, epipolar_check, judged


def check_poses(scene: Scene, *, pairs: int = 8) -> PoseCheck:
    """By reprojection where the scene has observations, otherwise with `pairs` pairs of pictures.

    Raises:
      InputError: observations or a picture that cannot be read.
    """
    if scene.observations is not None:
        errors = reprojection_errors(scene)
        if len(errors):
            return judged("reprojection", errors)
    frames = [scene.frames[index] for index in scene.usable]
    return epipolar_check(
        [frame.image for frame in frames],
        np.stack([frame.c2w for frame in frames]),
        np.stack([frame.fxfycxcy for frame in frames]),
        pairs=pairs,
    )


def reprojection_errors(scene: Scene) -> np.ndarray:
    """Pixels between observations and projected points, [M]; infinite for points behind a camera.

    The scene must have observations.
    """
    seen = scene.observations()
    if not len(seen.frame):
        return np.zeros(0)
    c2w, fxfycxcy = scene.c2w[seen.frame], scene.fxfycxcy[seen.frame]
    local = np.einsum("Mji,Mj->Mi", c2w[:, :3, :3], seen.points - c2w[:, :3, 3])
    front = local[:, 2] > 0
    depth = np.where(front, local[:, 2], 1)[:, None]
    pixels = local[:, :2] / depth * fxfycxcy[:, :2] + fxfycxcy[:, 2:]
    return np.where(front, np.linalg.norm(pixels - seen.pixels, axis=-1), np.inf)
