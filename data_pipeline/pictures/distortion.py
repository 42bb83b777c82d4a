"""Lens distortion: from a picture of a real lens to the pinhole picture the model expects.

The pinhole picture has the size of the distorted one and shows the largest part of the scene for
which every pixel is known; so its focal lengths differ. Known is what the lens maps one to one: a
polynomial that folds back before the corner, or a view of 180 degrees and more, is used up to
there. OpenCV does the work; its pixel centres are at whole numbers, ours at +0.5.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence

import cv2
import numpy as np

from efficient_lvsm_jax.errors import InputError

PERSPECTIVE, FISHEYE = "perspective", "fisheye"
OUTSIDE = 0.01  # of the long side, by which OpenCV's pinhole picture may reach beyond the lens's
MAX_RESIDUAL = 1.0  # pixels; where undoing a lens is further off, it has not been undone
MARGIN = 1.02  # by which a picture is narrower than found, as looking has steps
MIN_ZOOM, MAX_ZOOM = 0.5, 4.0  # focal lengths of a pinhole picture, times the lens's
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
        """Where distorted pixels (x, y) [M, 2] are in the pinhole picture; NaN: not known."""
        matrix, new_matrix, distortion = self._lens
        points = np.ascontiguousarray(pixels, np.float64).reshape(-1, 1, 2) - 0.5
        if not len(points):
            return np.zeros((0, 2))
        undistort = cv2.fisheye if distortion.model == FISHEYE else cv2
        coefficients = np.array(distortion.coefficients)
        rays = undistort.undistortPoints(points, matrix, coefficients).reshape(-1, 2)
        back = _distorted(rays, matrix, distortion)
        with np.errstate(over="ignore", invalid="ignore"):  # far outside, so not known
            known = np.linalg.norm(back - points.reshape(-1, 2), axis=-1) < MAX_RESIDUAL
            moved = rays * np.diag(new_matrix)[:2] + new_matrix[:2, 2] + 0.5
        return np.where(known[:, None], moved, np.nan)


def corner_shift(fxfycxcy: np.ndarray, size: tuple[int, int], distortion: Distortion) -> float:
    """Pixels by which the lens moves the corners of a pinhole picture of its intrinsics."""
    corners = np.array([[0, 0], [1, 0], [0, 1], [1, 1]]) * np.array(size, np.float64)
    matrix = np.array([[fxfycxcy[0], 0, fxfycxcy[2]], [0, fxfycxcy[1], fxfycxcy[3]], [0, 0, 1.0]])
    shown = _distorted((corners - fxfycxcy[2:]) / fxfycxcy[:2], matrix, distortion)
    return float(np.linalg.norm(shown - corners, axis=-1).max())


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
    # OpenCV returns numbers, without a word, where a lens has no pinhole picture of its whole view.
    if not _is_known(matrix, new_matrix, size, distortion, outside=OUTSIDE * max(size)):
        new_matrix = _widest(matrix, size, distortion)
    maps = make_maps(matrix, coefficients, np.eye(3), new_matrix, size, cv2.CV_16SC2)
    new = np.array([new_matrix[0, 0], new_matrix[1, 1], *(new_matrix[:2, 2] + 0.5)])
    return Undistortion(new, (matrix, new_matrix, distortion), maps)


def _widest(matrix: np.ndarray, size: tuple[int, int], distortion: Distortion) -> np.ndarray:
    """The pinhole picture of the same principal point that shows most and is known everywhere.

    What a narrower one shows is part of what a wider one shows, so it is found by halving.
    """

    def scaled(zoom: float) -> np.ndarray:
        return matrix * [[zoom, 1, 1], [1, zoom, 1], [1, 1, 1]]

    def fits(zoom: float) -> bool:
        return _is_known(matrix, scaled(zoom), size, distortion, outside=0.5)

    if fits(MIN_ZOOM):
        return scaled(MIN_ZOOM)
    wrong, right = MIN_ZOOM, MAX_ZOOM
    if not fits(right):
        raise ValueError(
            "it folds back or leaves the picture close to its centre; calibrate again, or "
            "undistort the pictures to a smaller view first"
        )
    for _ in range(12):
        middle = math.sqrt(wrong * right)
        wrong, right = (wrong, middle) if fits(middle) else (middle, right)
    return scaled(right * MARGIN)


def _is_known(
    matrix: np.ndarray,
    new_matrix: np.ndarray,
    size: tuple[int, int],
    distortion: Distortion,
    *,
    outside: float,
) -> bool:
    """Whether a pinhole picture shows only what the lens maps one to one, from inside its picture.

    From the axis to the border of the pinhole picture, all around, the distance from the principal
    point must grow and directions must keep their order. `outside`: pixels by which the border may
    lie outside of the lens's picture.
    """
    focal, centre = np.diag(new_matrix)[:2], new_matrix[:2, 2]
    if not np.isfinite(new_matrix).all() or not (focal > 0).all():
        return False
    ratio = focal / np.diag(matrix)[:2]
    if ratio.min() < 1 / MAX_ZOOM or ratio.max() > MAX_ZOOM:
        return False
    steps = np.linspace(0, 1, 33)
    sides = [np.stack([steps, 0 * steps], 1), np.stack([1 + 0 * steps, steps], 1)]
    around = np.concatenate([*sides, *(1 - side for side in sides)]) * size - 0.5  # [N, 2]
    rays = (around - centre) / focal
    shown = _distorted((steps[1:, None, None] * rays).reshape(-1, 2), matrix, distortion)
    shown = shown.reshape(len(steps) - 1, -1, 2)  # [steps, N, 2]
    if not np.isfinite(shown).all():
        return False
    from_centre = (shown - matrix[:2, 2]) / np.diag(matrix)[:2]
    grows = np.diff(np.linalg.norm(from_centre, axis=-1), axis=0) > 0
    turn, expected = _cross(from_centre), _cross(rays[None])
    keeps_order = turn * np.sign(expected) >= 0
    border = shown[-1]
    off = np.maximum(-0.5 - border, border + 0.5 - size).max()
    return bool(grows.all() and keeps_order.all() and off <= outside)


def _cross(points: np.ndarray) -> np.ndarray:
    """Of each point [..., N, 2] and its next, [..., N - 1]: positive for a turn of one sense."""
    first, second = points[..., :-1, :], points[..., 1:, :]
    return first[..., 0] * second[..., 1] - first[..., 1] * second[..., 0]


def _distorted(rays: np.ndarray, matrix: np.ndarray, distortion: Distortion) -> np.ndarray:
    """Where the lens shows rays (x, y) [M, 2] of the plane z = 1, in OpenCV's pixels."""
    coefficients = np.array(distortion.coefficients)
    if distortion.model == FISHEYE:
        points = np.ascontiguousarray(rays).reshape(-1, 1, 2)
        return cv2.fisheye.distortPoints(points, matrix, coefficients).reshape(-1, 2)
    points = np.hstack([rays, np.ones((len(rays), 1))])
    zero = np.zeros(3)
    return cv2.projectPoints(points, zero, zero, matrix, coefficients)[0].reshape(-1, 2)
