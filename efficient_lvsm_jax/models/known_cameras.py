"""Depth of pictures whose cameras are known, in the frame and unit of these cameras.

Axes: R view, Y X pixel.
"""

from __future__ import annotations

import dataclasses

import jax
import numpy as np

from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.geometry.alignment import (
    as_trained,
    ratio_of_distances,
    robust_similarity,
)
from efficient_lvsm_jax.geometry.cameras import Cameras
from efficient_lvsm_jax.models.geometry_model import GeometryModel
from efficient_lvsm_jax.models.scene_geometry import Geometry


def observe_known(
    model: GeometryModel, images: jax.Array | np.ndarray, cameras: Cameras
) -> Geometry:
    """What is known of a scene's pictures, its cameras being those given.

    The network predicts cameras all the same, and in a unit of its own; where they are, compared
    with those given, says how large that unit is. Of places on a line only distances are compared.

    Args:
      model: of a family that takes cameras.
      images: [R, Y, X, 3] floats in [0, 1], of two views or more.
      cameras: [R], of the pictures' size.

    Returns:
      Geometry without the axis of scenes, its cameras those given and depth in their unit; without
      rays. Encodings are those that were predicted.

    Raises:
      InputError: a single camera, or all in one place; or as `GeometryModel.observe`.
    """
    c2w = np.asarray(cameras.c2w, np.float64)
    if c2w.ndim != 3 or len(c2w) < 2:
        raise InputError(
            f"known cameras c2w of shape {c2w.shape}: expected [R, 4, 4] of two or more, whose "
            "distances say how large the world is"
        )
    trained, _ = as_trained(c2w)
    given = dataclasses.replace(
        cameras, c2w=np.float32(trained)[None], fxfycxcy=np.float32(cameras.fxfycxcy)[None]
    )
    _, geometry = model.observe(None, images[None], cameras=given)
    predicted = np.asarray(geometry.cameras.c2w[0], np.float64)
    scale = _scale(c2w[:, :3, 3], predicted[:, :3, 3])
    return Geometry(
        cameras,
        geometry.encodings[:, 0],
        geometry.depth[0] / scale,
        geometry.depth_confidence[0],
    )


def _scale(given: np.ndarray, predicted: np.ndarray) -> float:
    """How much larger the predicted world is, by the places [R, 3] of cameras."""
    try:
        return robust_similarity(given, predicted).scale
    except InputError:  # on a line
        return ratio_of_distances(given, predicted)
