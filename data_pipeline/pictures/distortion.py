"""Lens distortion: from a picture of a real lens to the pinhole picture the model expects.

The pinhole picture has the size of the distorted one and shows the largest part of the scene for
which every pixel is known; so its focal lengths differ. OpenCV does the work; its pixel centres are
at whole numbers, ours at +0.5.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import cv2
import numpy as np

from efficient_lvsm_jax.errors import InputError

PERSPECTIVE, FISHEYE = "perspective", "fisheye"
MAX_COEFFICIENT = 1e3  # far beyond any lens; larger ones are damage


@dataclasses.dataclass(frozen=True)
class Distortion:
    """A lens in OpenCV's model.

    model: "perspective", coefficients k1 k2 p1 p2 [k3 [k4 k5 k6]], or "fisheye", k1 k2 k3 k4.
    """

    model: str
    coefficients: tuple[float, ...]

    def __post_init__(self):
        if self.model not in (PERSPECTIVE, FISHEYE):
            raise InputError(f"distortion model {self.model!r}: expected {PERSPECTIVE}, {FISHEYE}")
        counts = (4,) if self.model == FISHEYE else (4, 5, 8)
        values = np.asarray(self.coefficients, np.float64)
        if len(values) not in counts or not (np.abs(values) <= MAX_COEFFICIENT).all():
            raise InputError(
                f"distortion {self.model} {list(self.coefficients)}: expected "
                f"{' or '.join(map(str, counts))} finite coefficients"
            )

    @property
    def is_none(self) -> bool:
        """Whether the picture is a pinhole picture already."""
        return self.model == PERSPECTIVE and not any(self.coefficients)


def perspective(k: Sequence[float], p: Sequence[float] = (0.0, 0.0)) -> Distortion:
    """The perspective model from radial coefficients k1 to k6, as many as known, and p1, p2."""
    k = [*k] + [0.0] * (2 - len(k))
    rest = k[2:] if any(k[2:]) else []
    rest += [0.0] * ((4 if len(rest) > 1 else len(rest)) - len(rest))
    return Distortion(PERSPECTIVE, tuple(float(x) for x in (*k[:2], *p, *rest)))


@dataclasses.dataclass(frozen=True)
class Undistortion:
    """How to undistort the pictures of one lens; made by `undistortion`.

    fxfycxcy: [4] of the pinhole picture.
    """

    fxfycxcy: np.ndarray
    _lens: tuple[np.ndarray, np.ndarray, Distortion]
    _maps: tuple[np.ndarray, np.ndarray]

    def image(self, image: np.ndarray) -> np.ndarray:
        """The pinhole picture of uint8 [Y, X, 3], bilinear."""
        return cv2.remap(image, *self._maps, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)

    def pixels(self, pixels: np.ndarray) -> np.ndarray:
        """Where distorted pixels (x, y) [M, 2] are in the pinhole picture."""
        matrix, new_matrix, distortion = self._lens
        points = np.ascontiguousarray(pixels, np.float64).reshape(-1, 1, 2) - 0.5
        if not len(points):
            return np.zeros((0, 2))
        undistort = cv2.fisheye if distortion.model == FISHEYE else cv2
        coefficients = np.array(distortion.coefficients)
        moved = undistort.undistortPoints(points, matrix, coefficients, P=new_matrix)
        return moved.reshape(-1, 2) + 0.5


def undistortion(
    fxfycxcy: np.ndarray, size: tuple[int, int], distortion: Distortion, name: str
) -> Undistortion:
    """How to undistort pictures of `size` (width, height) with these intrinsics.

    Args:
      fxfycxcy: [4], pixels of the distorted picture.
      name: what has this lens, for messages.

    Raises:
      InputError: intrinsics and coefficients that no lens has, so that no picture remains.
    """
    try:
        return _undistortion(tuple(float(x) for x in fxfycxcy), size, distortion)
    except (cv2.error, ValueError, FloatingPointError) as error:
        raise InputError(
            f"{name}: its lens cannot be undone ({distortion.model} "
            f"{list(distortion.coefficients)}, intrinsics {list(map(float, fxfycxcy))}: "
            f"{' '.join(str(error).split())[:200]})"
        ) from error


@functools.lru_cache(maxsize=4)  # the pictures of a capture mostly share their lens
def _undistortion(
    fxfycxcy: tuple[float, ...], size: tuple[int, int], distortion: Distortion
) -> Undistortion:
    fx, fy, cx, cy = fxfycxcy
    matrix = np.array([[fx, 0, cx - 0.5], [0, fy, cy - 0.5], [0, 0, 1]])
    coefficients = np.array(distortion.coefficients)
    if distortion.model == FISHEYE:
        new_matrix = cv2.fisheye.estimateNewCameraMatrixForUndistortRectify(
            matrix, coefficients, size, np.eye(3), balance=0.0
        )
        make_maps = cv2.fisheye.initUndistortRectifyMap
    else:
        new_matrix, _ = cv2.getOptimalNewCameraMatrix(matrix, coefficients, size, alpha=0)
        make_maps = cv2.initUndistortRectifyMap
    if not np.isfinite(new_matrix).all() or min(new_matrix[0, 0], new_matrix[1, 1]) <= 0:
        raise ValueError("no focal length fits")
    maps = make_maps(matrix, coefficients, np.eye(3), new_matrix, size, cv2.CV_16SC2)
    new = np.array([new_matrix[0, 0], new_matrix[1, 1], *(new_matrix[:2, 2] + 0.5)])
    return Undistortion(new, (matrix, new_matrix, distortion), maps)
