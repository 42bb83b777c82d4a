"""What lies over the picture in a browser: the photos' cameras as frusta, and points."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Sequence

import numpy as np
import viser

from data_pipeline.scenes import Cloud
from efficient_lvsm_jax.viewer.scene import ViewedScene
from efficient_lvsm_jax.viewer.strip import GREEN, GREY

FRUSTUM = 0.02  # of the scene's extent
POINT = 0.01  # of it
NEAR = 0.2  # of it: a frustum that is nearer than that stands in the way


class Layers:
    """Of one browser and one scene.

    Attributes:
      frusta: of the scene's photos, as far as they were added.
    """

    def __init__(self, client: viser.ClientHandle):
        """Without any."""
        self.frusta: list[viser.CameraFrustumHandle] = []
        self._points: list[viser.PointCloudHandle] = []
        self._client = client
        self._lock = threading.Lock()  # of what is visible

    def add_camera(self, scene: ViewedScene) -> viser.CameraFrustumHandle:
        """The frustum of the scene's next photo."""
        photo = len(self.frusta)
        pose = scene.frame.apply(scene.photos[photo].c2w).astype(np.float64)
        height, width = scene.size
        frustum = self._client.scene.add_camera_frustum(
            f"/photos/{photo + 1}",
            fov=2 * np.arctan(height / 2 / scene.intrinsics(photo)[1]),
            aspect=width / height,
            scale=FRUSTUM,
            variant="filled",  # or a click would have to hit a line
            thickness=2.0,
            thickness_units="screen",
            color=GREY,
            wxyz=viser.transforms.SO3.from_matrix(pose[:3, :3]).wxyz,
            position=pose[:3, 3],
        )
        self.frusta.append(frustum)
        return frustum

    def add_points(self, clouds: Sequence[Cloud]) -> None:
        """Sends those of a scene's clouds that the browser has not got yet."""
        for number in range(len(self._points), len(clouds)):
            cloud = clouds[number]
            self._points.append(
                self._client.scene.add_point_cloud(
                    f"/points/{number}",
                    cloud.points,
                    cloud.colours,
                    point_size=POINT,
                    point_shading="flat",
                )
            )

    def colour(self, chosen: Collection[int]) -> None:
        """Green is a photo that is an input."""
        for photo, frustum in enumerate(self.frusta):
            frustum.color = GREEN if photo in chosen else GREY

    def apart(self, photo: int, position: np.ndarray | float) -> float:
        """How far the photo's camera is from a place in the scene frame."""
        return float(np.linalg.norm(self.frusta[photo].position - position))

    def show(self, wanted: Callable[[], tuple[bool, bool]], position: np.ndarray | float) -> None:
        """Shows cameras but those near `position`, and points, as wanted by whoever asks last."""
        with self._lock:
            cameras, points = wanted()
            layers = [(cloud, points) for cloud in self._points]
            for photo, frustum in enumerate(self.frusta):
                layers.append((frustum, cameras and self.apart(photo, position) > NEAR))
            for layer, shown in layers:
                if layer.visible != shown:
                    layer.visible = shown
