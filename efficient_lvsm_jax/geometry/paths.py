"""Flights of a camera through and around posed pictures.

All poses are camera-to-world [4, 4] in OpenCV axes (x right, y down, z forward), in the world of
the cameras given; NumPy and float64, once per film.

`camera_path` goes through the cameras. `orbit` and `spiral` stay among them, since a model that saw
a few pictures knows little of what lies outside; they end one frame before they began, so that a
film of them repeats without a pause.

Axis legend: V view  F frame of a path.
"""

from __future__ import annotations

import numpy as np
from scipy.spatial.transform import Rotation, Slerp

from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.geometry.cameras import check_cameras, nearest_camera

# Axes that differ by less than this from a common direction, root mean square, are parallel: where
# they meet would be noise.
PARALLEL = np.deg2rad(1.5)
SMALLEST_ARC = np.deg2rad(3.0)  # narrower orbits do not move
LEVEL = np.sin(np.deg2rad(3.0)) ** 2  # expected squared sine of the roll of a picture meant level
ROUND = np.deg2rad(60.0)  # inputs all around the focus leave no gap as wide as this
COMMON = 0.5  # shortest mean viewing direction with a mean camera: half a circle has 0.64


def camera_path(
    c2w: np.ndarray,
    fxfycxcy: np.ndarray,
    steps: int,
    *,
    nearest_first: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """A smooth flight through cameras: centres and intrinsics linear, rotations by slerp.

    Args:
      c2w: [V, 4, 4]. fxfycxcy: [V, 4].
      steps: frames per pair of cameras, both ends included, so a camera between two pairs
        appears twice.
      nearest_first: visit the cameras greedily, from the first always on to the nearest one left.

    Returns:
      c2w [F, 4, 4] and fxfycxcy [F, 4], float32; F = steps · (V - 1).

    Raises:
      InputError: unusable cameras, steps < 1, or a single camera.
    """
    check_cameras(c2w, fxfycxcy, "path cameras")
    c2w, fxfycxcy = np.asarray(c2w, np.float64), np.asarray(fxfycxcy, np.float64)
    if c2w.ndim != 3 or len(c2w) < 2:
        raise InputError(
            f"path cameras of shape {c2w.shape}: expected [V, 4, 4] with two cameras or more"
        )
    if steps < 1:
        raise InputError(f"steps={steps}: a path needs at least 1 frame per pair of cameras")

    order = _nearest_first(c2w) if nearest_first else list(range(len(c2w)))
    c2w, fxfycxcy = c2w[order], fxfycxcy[order]

    s = np.linspace(0.0, 1.0, steps)
    turn = Slerp(np.arange(len(order)), Rotation.from_matrix(c2w[:, :3, :3]))
    path = np.tile(np.eye(4), (steps * (len(order) - 1), 1, 1))
    path[:, :3, :3] = turn(np.add.outer(np.arange(len(order) - 1), s).ravel()).as_matrix()

    def between(values: np.ndarray) -> np.ndarray:
        """[V, C] to [F, C]."""
        start, end = values[:-1, None], values[1:, None]
        return ((1 - s[:, None]) * start + s[:, None] * end).reshape(-1, values.shape[1])

    path[:, :3, 3] = between(c2w[:, :3, 3])
    return path.astype(np.float32), between(fxfycxcy).astype(np.float32)


def orbit(c2w: np.ndarray, frames: int, *, full_circle: bool = False) -> np.ndarray:
    """A flight around the point at which the cameras look, always facing it, without roll.

    It begins at the first camera's azimuth and swings there and back over the arc of azimuths that
    the cameras cover (all of them but the widest gap), slowing down at its ends; once around if
    they leave no gap of 60° or more. Distance and elevation follow those of the cameras nearby,
    smoothly. Up is that of the cameras, taken to be level: looking down does not tilt it.

    Args:
      c2w: [V, 4, 4], V >= 2.
      frames: F, at least 1.
      full_circle: go once around even where no camera was.

    Returns:
      [F, 4, 4] float64.

    Raises:
      InputError: unusable cameras, or cameras that define no orbit: parallel axes, most looking
        away from where they meet, all in one direction from there, no common up.
    """
    c2w = _path_cameras(c2w, frames)
    advice = "; fly a spiral or through the inputs instead"
    focus = focus_of(c2w)
    if focus is None:
        raise InputError(
            f"{len(c2w)} cameras define no point to fly around: they look in parallel, or away "
            f"from where their axes meet{advice}"
        )
    down = _down(c2w, advice)
    side = np.eye(3)[np.argmin(np.abs(down))]  # any direction far from down
    right = _unit(np.cross(down, side))
    basis = np.stack([right, np.cross(right, down), -down])  # [axis, 3]: azimuth 0, 90°, up
    x, y, height = basis @ (c2w[:, :3, 3] - focus).T  # [V] each
    distance, radius = np.sqrt(x * x + y * y + height * height), np.hypot(x, y)
    azimuth, elevation = np.arctan2(y, x), np.arctan2(height, radius)

    sides = azimuth[radius > 0.05 * distance]  # straight above the focus is no azimuth
    start, arc = _covered(sides) if len(sides) else (0.0, 0.0)
    turn = 2 * np.pi * np.arange(frames) / frames
    if full_circle or 2 * np.pi - arc < ROUND:
        path_azimuth, arc = azimuth[0] + turn, 2 * np.pi
    elif arc < SMALLEST_ARC:
        raise InputError(
            f"seen from the point they look at, {len(c2w)} cameras are within "
            f"{np.rad2deg(arc):.1f}° of azimuth: too little for an orbit{advice}"
        )
    else:
        first = np.clip(2 * ((azimuth[0] - start) % (2 * np.pi)) / arc - 1, -1, 1)
        path_azimuth = start + arc / 2 * (1 + np.sin(turn + np.arcsin(first)))

    # Cameras count by how near their azimuth is: a von Mises kernel, which is periodic as they are.
    nearness = (np.cos(path_azimuth[:, None] - azimuth) - 1) / min(arc / 6, np.pi / 8) ** 2
    weights = np.exp(nearness - nearness.max(1, keepdims=True))  # [F, V]
    weights /= weights.sum(1, keepdims=True)
    path_distance, path_elevation = weights @ distance, weights @ elevation
    across = path_distance * np.cos(path_elevation)
    offsets = [np.cos(path_azimuth) * across, np.sin(path_azimuth) * across]
    offsets.append(path_distance * np.sin(path_elevation))
    return looking(focus + np.stack(offsets, axis=-1) @ basis, focus, down)


def spiral(c2w: np.ndarray, frames: int) -> np.ndarray:
    """Two small turns around the mean camera, facing the point at which the cameras look.

    Sideways, up and ahead the centres move by half the standard deviation of the cameras' centres
    along that axis of the mean camera, and never out of their range. Where the cameras' axes are
    parallel, or meet nearer than the cameras are apart, the path looks along their mean.

    Args:
      c2w: [V, 4, 4], V >= 2.
      frames: F, at least 1.

    Returns:
      [F, 4, 4] float64.

    Raises:
      InputError: unusable cameras, all in one place, or looking from all around.
    """
    c2w = _path_cameras(c2w, frames)
    advice = "; fly an orbit or through the inputs instead"
    centres = c2w[:, :3, 3]
    middle = centres.mean(0)
    down = _down(c2w, advice)
    forward = _mean_direction(c2w[:, :3, 2], "viewing directions", advice, least=COMMON)
    focus = focus_of(c2w)
    spread = np.sqrt(((centres - middle) ** 2).sum(-1).mean())
    if focus is None or (focus - middle) @ forward < spread:
        focus = middle + 1e6 * spread * forward
    axes = looking(middle[None], focus, down)[0, :3, :3]  # world from the mean camera
    offsets = (centres - middle) @ axes
    radii = np.minimum(offsets.std(0) / 2, np.minimum(offsets.max(0), -offsets.min(0)))
    turn = 4 * np.pi * np.arange(frames) / frames
    path = np.stack([np.cos(turn), np.sin(turn), np.sin(turn / 2)], axis=-1) * radii
    return looking(middle + path @ axes.T, focus, down)


def _path_cameras(c2w: np.ndarray, frames: int) -> np.ndarray:
    """Checked cameras of an orbit or a spiral, float64."""
    c2w = np.asarray(c2w, np.float64)
    check_cameras(c2w, np.ones((*c2w.shape[:-2], 4)), "path cameras")
    if c2w.ndim != 3 or len(c2w) < 2:
        raise InputError(
            f"path cameras of shape {c2w.shape}: expected [V, 4, 4] with two cameras or more"
        )
    if frames < 1:
        raise InputError(f"frames={frames}: a path needs at least 1")
    extent = np.abs(c2w[:, :3, 3] - c2w[:, :3, 3].mean(0)).max()
    if extent <= 1e-9 * np.abs(c2w[:, :3, 3]).max():
        raise InputError(
            f"{len(c2w)} path cameras, all at {np.round(c2w[0, :3, 3], 6).tolist()}: nothing says "
            "how far to move; choose input views from two or more places"
        )
    return c2w


def focus_of(c2w: np.ndarray) -> np.ndarray | None:
    """The point [3] nearest to all optical axes, in least squares.

    None if the axes are (nearly) parallel, or if it lies behind half of the cameras or more.
    """
    centres, forward = c2w[:, :3, 3], c2w[:, :3, 2]
    across = np.eye(3) - forward[:, :, None] * forward[:, None, :]  # [V, 3, 3], off the axis
    total = across.mean(0)
    # The smallest eigenvalue is the mean squared sine of the angles to the direction they share.
    if np.linalg.eigvalsh(total)[0] < np.sin(PARALLEL) ** 2:
        return None
    focus = np.linalg.solve(total, np.einsum("Vij,Vj->i", across, centres) / len(c2w))
    ahead = np.einsum("Vi,Vi->V", focus - centres, forward) > 0
    return focus if ahead.mean() > 0.5 else None


def _covered(azimuth: np.ndarray) -> tuple[float, float]:
    """Where the arc that holds all azimuths begins, and its length: all but the widest gap."""
    azimuth = np.sort(azimuth)
    gaps = np.diff(azimuth, append=azimuth[0] + 2 * np.pi)
    widest = int(np.argmax(gaps))
    return float(azimuth[(widest + 1) % len(azimuth)]), float(2 * np.pi - gaps[widest])


def looking(centres: np.ndarray, focus: np.ndarray, down: np.ndarray) -> np.ndarray:
    """Poses [F, 4, 4] at centres [F, 3] facing focus, image down as near to `down` as can be."""
    forward = _unit(focus - centres)
    right = np.cross(down, forward)
    if (np.linalg.norm(right, axis=-1) < 1e-6).any():
        raise InputError(
            "the path would look straight up or down, where no side of the picture is up; choose "
            "input views that do not"
        )
    right = _unit(right)
    c2w = np.tile(np.eye(4), (len(centres), 1, 1))
    c2w[:, :3, :3] = np.stack([right, np.cross(forward, right), forward], axis=-1)
    c2w[:, :3, 3] = centres
    return c2w


def _down(c2w: np.ndarray, advice: str) -> np.ndarray:
    """The cameras' common down [3]: their mean image down, less what comes from their pitch.

    Cameras that look down from one side have an image up that leans over to the other. Level
    pictures tell that apart: their image right is at right angles to the true up. So the mean is
    shrunk where image rights vary, by a ridge that keeps it where they are all alike.
    """
    mean, right = _mean_direction(c2w[:, :3, 1], "image down directions", advice), c2w[:, :3, 0]
    return _unit(np.linalg.solve(right.T @ right / len(right) + LEVEL * np.eye(3), mean))


def _mean_direction(
    vectors: np.ndarray, what: str, advice: str, *, least: float = 1e-3
) -> np.ndarray:
    mean = vectors.mean(0)
    if np.linalg.norm(mean) < least:
        raise InputError(
            f"the cameras' {what} differ too much (mean of length {np.linalg.norm(mean):.2g} < "
            f"{least:g}): the path has none to keep to{advice}"
        )
    return _unit(mean)


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def _nearest_first(c2w: np.ndarray) -> list[int]:
    order, left = [0], list(range(1, len(c2w)))
    while left:
        order.append(left.pop(nearest_camera(c2w[left], c2w[order[-1]])))
    return order
