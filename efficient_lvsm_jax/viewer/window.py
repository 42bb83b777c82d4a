"""From a browser's camera to the model's, and pictures as a window shows them.

A browser's world is the scene frame: centred on the inputs, whose centres lie within ±1, with the
axes of their mean camera. Its cameras have OpenCV axes, as ours, square pixels, the principal point
in the middle and a vertical field of view; pictures are stretched over the whole window, so they
are padded to its shape here.
"""

from __future__ import annotations

import dataclasses

import cv2
import numpy as np
from scipy.spatial.transform import Rotation

from efficient_lvsm_jax.geometry.cameras import SceneFrame
from efficient_lvsm_jax.geometry.paths import focus_of

SHARPEST = 640  # rows that a picture is enlarged to at most, before a browser enlarges it further
BEHIND = 24  # grey level beside a picture


@dataclasses.dataclass(frozen=True)
class Window:
    """What a browser reports of its camera.

    wxyz: [4] quaternion, position: [3], both of camera-to-world in the browser's world. fov: of the
    window upwards, radians. aspect: width over height. height: pixels.
    """

    wxyz: np.ndarray
    position: np.ndarray
    fov: float
    aspect: float
    height: int


def camera_of(
    window: Window, frame: SceneFrame, size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """World pose [4, 4] and fxfycxcy [4] of a picture of `size`, (height, width), in the window.

    The picture lies in the middle and is as large as fits.
    """
    c2w = np.eye(4)
    c2w[:3, :3] = Rotation.from_quat(np.roll(window.wxyz, -1)).as_matrix()
    c2w[:3, 3] = window.position
    height, width = size
    rows = height if window.aspect >= width / height else width / window.aspect  # of the window
    focal = rows / 2 / np.tan(window.fov / 2)
    return frame.undo(c2w), np.array([focal, focal, width / 2, height / 2])


def fov_of(fxfycxcy: np.ndarray, size: tuple[int, int], aspect: float) -> float:
    """The window's vertical field of view, radians, that shows a picture of such a lens."""
    height, width = size
    rows = height if aspect >= width / height else width / aspect
    return float(2 * np.arctan(rows / 2 / fxfycxcy[1]))


def stand(
    c2w: np.ndarray, frame: SceneFrame, others: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where a browser's camera stands, looks and has its up, for a world pose [4, 4].

    What it looks at is as far away as what all cameras [V, 4, 4] look at: orbits go around it.
    """
    pose = frame.apply(c2w).astype(np.float64)
    position, forward = pose[:3, 3], pose[:3, 2]
    focus = focus_of(frame.apply(others).astype(np.float64))
    distance = 1.0 if focus is None else float(np.clip((focus - position) @ forward, 0.3, 4))
    return position, position + distance * forward, -pose[:3, 1]


def framed(image: np.ndarray, window: Window) -> np.ndarray:
    """A picture uint8 [Y, X, 3] enlarged smoothly and padded to the shape of the window."""
    height, width = image.shape[:2]
    rows = height if window.aspect >= width / height else width / window.aspect
    scale = max(1.0, min(SHARPEST, window.height) / rows)
    inside = round(width * scale), round(height * scale)
    image = cv2.resize(image, inside, interpolation=cv2.INTER_CUBIC)
    whole = max(inside[1], round(rows * scale)), max(inside[0], round(rows * scale * window.aspect))
    top, left = ((a - b) // 2 for a, b in zip(whole, inside[::-1], strict=True))
    out = np.full((*whole, 3), BEHIND, np.uint8)
    out[top : top + inside[1], left : left + inside[0]] = image
    return out
