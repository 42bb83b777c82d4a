"""Cameras: rays and Plücker coordinates for the model, scene frames, checks and camera paths.

Conventions, everywhere in this project: poses are camera-to-world matrices `c2w` = [R | o] in
OpenCV axes (x right, y down, z forward); intrinsics are `fxfycxcy` in pixels of the image they
belong to; the centre of the top left pixel is at (0.5, 0.5).

Rays are JAX and float32, they run inside the model. Everything on poses is NumPy and float64, it
runs once per scene.

Axis legend: B scene  V view  Y X pixels  F frame of a path. `...` is any leading axes.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from efficient_lvsm_jax.errors import InputError

RAY_DTYPES = ("float32", "bf16_parity")
RIGID_TOLERANCE = 1e-3  # largest |RᵀR - I| of a camera that still counts as rigid


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("c2w", "fxfycxcy"),
    meta_fields=("height", "width"),
)
@dataclasses.dataclass(frozen=True)
class Cameras:
    """Posed pinhole cameras that share one image size.

    c2w: [..., 4, 4] float32. fxfycxcy: [..., 4] float32, pixels. height, width: pixels, static.
    """

    c2w: jax.Array
    fxfycxcy: jax.Array
    height: int
    width: int


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("image", "c2w", "fxfycxcy"),
    meta_fields=(),
)
@dataclasses.dataclass(frozen=True)
class Views:
    """Posed pictures.

    image: [..., Y, X, 3] float32 in [0, 1]. c2w: [..., 4, 4] float32. fxfycxcy: [..., 4] float32,
    pixels of `image`.
    """

    image: jax.Array
    c2w: jax.Array
    fxfycxcy: jax.Array

    @property
    def cameras(self) -> Cameras:
        """The cameras that took the pictures."""
        height, width = self.image.shape[-3:-1]
        return Cameras(self.c2w, self.fxfycxcy, height, width)


def rays(cameras: Cameras, ray_dtype: str = "float32") -> tuple[jax.Array, jax.Array]:
    """World-space rays through all pixel centres.

    Args:
      cameras: leading axes `...`.
      ray_dtype: "float32" is geometrically right. "bf16_parity" rounds as the published program
        does under bfloat16 autocast: camera directions and rotations before the rotation, world
        directions after it. That moves a ray by up to half a pixel at 256 px; trained weights saw
        it.

    Returns:
      origins [..., 3] and unit directions [..., Y, X, 3], both float32.
    """
    if ray_dtype not in RAY_DTYPES:
        raise InputError(f"ray_dtype={ray_dtype!r}: expected one of {', '.join(RAY_DTYPES)}")
    rounded = _round_to_bfloat16 if ray_dtype == "bf16_parity" else lambda x: x

    c2w = jnp.asarray(cameras.c2w, jnp.float32)
    fx, fy, cx, cy = jnp.split(jnp.asarray(cameras.fxfycxcy, jnp.float32), 4, axis=-1)
    x = (jnp.arange(cameras.width, dtype=jnp.float32) + 0.5 - cx) / fx  # [..., X]
    y = (jnp.arange(cameras.height, dtype=jnp.float32) + 0.5 - cy) / fy  # [..., Y]
    x, y = rounded(x)[..., None, :, None], rounded(y)[..., :, None, None]
    right, down, forward = jnp.moveaxis(rounded(c2w[..., :3, :3]), -1, 0)[..., None, None, :]

    # Multiply and add, not a matmul: accelerators would lower a float32 matmul's precision.
    directions = rounded(x * right + y * down + forward)  # [..., Y, X, 3]
    norm = jnp.sqrt(jnp.sum(directions * directions, axis=-1, keepdims=True))
    return c2w[..., :3, 3], directions / norm


def plucker(origins: jax.Array, directions: jax.Array) -> jax.Array:
    """Plücker coordinates of rays, moment first: (o × d, d).

    origins [..., 3] and directions [..., Y, X, 3] give [..., Y, X, 6].
    """
    moments = jnp.cross(origins[..., None, None, :], directions)
    return jnp.concatenate([moments, directions], axis=-1)


def _round_to_bfloat16(x: jax.Array) -> jax.Array:
    # Not x.astype(bfloat16).astype(float32): XLA may drop such a pair of casts.
    return jax.lax.reduce_precision(x, exponent_bits=8, mantissa_bits=7)


@dataclasses.dataclass(frozen=True)
class SceneFrame:
    """The frame in which the model sees a scene: a rigid motion, then a scaling of the centres.

    frame_from_world: [4, 4] float64, rigid. scale: camera centres are multiplied by it, so
    a world point p becomes scale · (frame_from_world p).
    """

    frame_from_world: np.ndarray
    scale: float

    @classmethod
    def from_cameras(cls, c2w: np.ndarray, *, scale_factor: float = 1.35) -> SceneFrame:
        """The published normalisation of the cameras c2w [V, 4, 4].

        The origin is the mean centre, z the mean viewing direction, y close to the mean image
        down direction, and the largest |coordinate| of a centre becomes 1 / scale_factor.

        Raises InputError if the cameras are unusable or do not define a frame: fewer than two,
        all in one place (no scale), or viewing directions that cancel out.
        """
        c2w = _float64(c2w, "cameras")
        if c2w.ndim != 3 or len(c2w) < 1:
            raise InputError(f"cameras of shape {c2w.shape}: expected [V, 4, 4] with V >= 1")
        _check_poses(c2w, "cameras")

        centres = c2w[:, :3, 3]
        forward = _unit(c2w[:, :3, 2].mean(0), "viewing directions")
        right = _unit(np.cross(c2w[:, :3, 1].mean(0), forward), "image axes")
        down = _unit(np.cross(forward, right), "image axes")
        rotation = np.stack([right, down, forward])  # frame from world
        frame_from_world = np.eye(4)
        frame_from_world[:3, :3] = rotation
        frame_from_world[:3, 3] = -rotation @ centres.mean(0)

        extent = np.abs((centres - centres.mean(0)) @ rotation.T).max()
        if extent <= 1e-9 * np.abs(centres).max():  # not zero: rounding leaves a trace
            raise InputError(
                f"{len(c2w)} camera(s), all at {np.round(centres[0], 6).tolist()}: the scale of "
                "the scene is undefined; give cameras at two or more places, or a SceneFrame"
            )
        return cls(frame_from_world, float(1 / (scale_factor * extent)))

    @classmethod
    def identity(cls) -> SceneFrame:
        """World coordinates as they are."""
        return cls(np.eye(4), 1.0)

    def apply(self, c2w: np.ndarray) -> np.ndarray:
        """World poses [..., 4, 4] as poses in this frame, [..., 4, 4] float32."""
        poses = self.frame_from_world @ np.asarray(c2w, np.float64)
        poses[..., :3, 3] *= self.scale
        return poses.astype(np.float32)


def normalise_poses(c2w: np.ndarray) -> np.ndarray:
    """Poses [V, 4, 4] in the scene frame of all of them, float32.

    For training and scoring as published: all selected views together, targets included. So
    a target changes the frame. Errors as `SceneFrame.from_cameras`.
    """
    return SceneFrame.from_cameras(c2w).apply(c2w)


def _unit(vector: np.ndarray, what: str) -> np.ndarray:
    norm = np.linalg.norm(vector)
    if norm < 1e-6:
        raise InputError(
            f"the cameras' {what} cancel out (mean of length {norm:.1e}): they define no common "
            "orientation; leave some out, or give a SceneFrame"
        )
    return vector / norm


def nearest_camera(c2w_inputs: np.ndarray, c2w_target: np.ndarray) -> int:
    """Index of the camera in c2w_inputs [V, 4, 4] with the centre nearest to that of c2w_target."""
    offsets = np.asarray(c2w_inputs)[:, :3, 3] - np.asarray(c2w_target)[:3, 3]
    return int(np.argmin(np.linalg.norm(offsets, axis=-1)))


def check_cameras(
    c2w: np.ndarray,
    fxfycxcy: np.ndarray,
    name: str = "cameras",
    *,
    labels: Sequence[str] | None = None,
) -> None:
    """Raises InputError unless all cameras are usable; the message says which one and why.

    Args:
      c2w: [..., 4, 4], finite and rigid: |RᵀR - I| <= 1e-3, det R > 0, last row 0 0 0 1.
      fxfycxcy: [..., 4], finite, focal lengths above 0. Leading axes as c2w.
      name: what to call them in the message, for instance the file they came from.
      labels: what to call each of cameras [V, 4, 4], instead of its index.
    """
    c2w, fxfycxcy = _float64(c2w, name), _float64(fxfycxcy, name)
    _check_poses(c2w, name, labels)
    if fxfycxcy.shape != (*c2w.shape[:-2], 4):
        raise InputError(
            f"{name}: fxfycxcy of shape {fxfycxcy.shape}: "
            f"expected {(*c2w.shape[:-2], 4)} to go with c2w {c2w.shape}"
        )
    for camera in _where(~np.isfinite(fxfycxcy).all(-1)):
        raise InputError(
            f"{_label(name, camera, labels)}: fxfycxcy {fxfycxcy[camera].tolist()} is not finite"
        )
    for camera in _where((fxfycxcy[..., :2] <= 0).any(-1)):
        raise InputError(
            f"{_label(name, camera, labels)}: focal lengths fx, fy = "
            f"{fxfycxcy[camera][:2].tolist()}: must be above 0, in pixels"
        )


def _check_poses(c2w: np.ndarray, name: str, labels: Sequence[str] | None = None) -> None:
    if c2w.shape[-2:] != (4, 4):
        raise InputError(f"{name}: c2w of shape {c2w.shape}: expected [..., 4, 4]")
    for camera in _where(~np.isfinite(c2w).all((-2, -1))):
        raise InputError(
            f"{_label(name, camera, labels)}: c2w {c2w[camera].tolist()} is not finite"
        )
    for camera in _where((np.abs(c2w[..., 3, :] - [0, 0, 0, 1]) > 1e-6).any(-1)):
        raise InputError(
            f"{_label(name, camera, labels)}: last row of c2w is "
            f"{c2w[camera][3].tolist()}, expected [0, 0, 0, 1]; is the matrix transposed?"
        )
    rotation = c2w[..., :3, :3]
    skew = np.abs(np.swapaxes(rotation, -1, -2) @ rotation - np.eye(3)).max((-2, -1))
    for camera in _where(skew > RIGID_TOLERANCE):
        raise InputError(
            f"{_label(name, camera, labels)}: c2w is not rigid, |RᵀR - I| = {skew[camera]:.3g} > "
            f"{RIGID_TOLERANCE:g}; take scale and shear out of the rotation"
        )
    determinant = np.linalg.det(rotation)
    for camera in _where(determinant < 0):
        raise InputError(
            f"{_label(name, camera, labels)}: c2w mirrors, "
            f"det R = {determinant[camera]:.3g}; expected OpenCV axes, x right, y down, z forward"
        )


def _where(bad: np.ndarray) -> list[tuple[int, ...]]:
    """Indices of the first bad camera, or nothing."""
    return [tuple(int(i) for i in index) for index in np.argwhere(bad)[:1]]


def _label(name: str, camera: tuple[int, ...], labels: Sequence[str] | None) -> str:
    if labels is not None:
        return f"{name}, {labels[camera[0]]}"
    return f"{name}{list(camera)}" if camera else name


def _float64(values: np.ndarray, name: str) -> np.ndarray:
    try:
        return np.asarray(values, np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"{name}: expected an array of numbers: {error}") from None


def camera_path(
    c2w: np.ndarray,
    fxfycxcy: np.ndarray,
    steps: int,
    *,
    nearest_first: bool = False,
    loop: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """A smooth flight through cameras: centres and intrinsics linear, rotations by slerp.

    Args:
      c2w: [V, 4, 4]. fxfycxcy: [V, 4].
      steps: frames per pair of cameras, both ends included, so a camera between two pairs
        appears twice.
      nearest_first: visit the cameras greedily, from the first always on to the nearest one left.
      loop: return to the first camera at the end.

    Returns:
      c2w [F, 4, 4] and fxfycxcy [F, 4], float32; F = steps · (V - 1), with loop steps · V.

    Raises:
      InputError: unusable cameras, steps < 1, or a single camera without loop.
    """
    check_cameras(c2w, fxfycxcy, "path cameras")
    c2w, fxfycxcy = np.asarray(c2w, np.float64), np.asarray(fxfycxcy, np.float64)
    if c2w.ndim != 3 or len(c2w) < (1 if loop else 2):
        raise InputError(
            f"path cameras of shape {c2w.shape}: expected [V, 4, 4] with two cameras or more "
            "(one is enough with loop)"
        )
    if steps < 1:
        raise InputError(f"steps={steps}: a path needs at least 1 frame per pair of cameras")

    order = _nearest_first(c2w) if nearest_first else list(range(len(c2w)))
    if loop:
        order.append(order[0])
    c2w, fxfycxcy = c2w[order], fxfycxcy[order]

    s = np.linspace(0.0, 1.0, steps)[:, None]  # [steps, 1]
    quaternions = _quaternions(c2w[:, :3, :3])
    rotations, centres, intrinsics = [], [], []
    for a, b in zip(range(len(order) - 1), range(1, len(order)), strict=True):
        rotations.append(_rotations(_slerp(quaternions[a], quaternions[b], s)))
        centres.append((1 - s) * c2w[a, :3, 3] + s * c2w[b, :3, 3])
        intrinsics.append((1 - s) * fxfycxcy[a] + s * fxfycxcy[b])
    path = np.tile(np.eye(4), (steps * (len(order) - 1), 1, 1))
    path[:, :3, :3] = np.concatenate(rotations)
    path[:, :3, 3] = np.concatenate(centres)
    return path.astype(np.float32), np.concatenate(intrinsics).astype(np.float32)


def _nearest_first(c2w: np.ndarray) -> list[int]:
    order, left = [0], list(range(1, len(c2w)))
    while left:
        order.append(left.pop(nearest_camera(c2w[left], c2w[order[-1]])))
    return order


def _quaternions(rotations: np.ndarray) -> np.ndarray:
    """Unit quaternions (w, x, y, z), w >= 0, of rotations [V, 3, 3] that may be slightly off.

    Bar-Itzhack (2000): the eigenvector of the largest eigenvalue is the nearest rotation's.
    """
    m = np.moveaxis(rotations, 0, -1)
    k = np.empty((len(rotations), 4, 4))  # basis x, y, z, w; eigh reads the lower triangle only
    k[:, 0, 0] = m[0, 0] - m[1, 1] - m[2, 2]
    k[:, 1, 1] = m[1, 1] - m[0, 0] - m[2, 2]
    k[:, 2, 2] = m[2, 2] - m[0, 0] - m[1, 1]
    k[:, 3, 3] = m[0, 0] + m[1, 1] + m[2, 2]
    k[:, 1, 0] = m[0, 1] + m[1, 0]
    k[:, 2, 0] = m[0, 2] + m[2, 0]
    k[:, 2, 1] = m[1, 2] + m[2, 1]
    k[:, 3, 0] = m[2, 1] - m[1, 2]
    k[:, 3, 1] = m[0, 2] - m[2, 0]
    k[:, 3, 2] = m[1, 0] - m[0, 1]
    x, y, z, w = np.linalg.eigh(k / 3, UPLO="L").eigenvectors[:, :, -1].T
    return np.where(w < 0, -1, 1)[:, None] * np.stack([w, x, y, z], axis=-1)


def _slerp(start: np.ndarray, end: np.ndarray, s: np.ndarray) -> np.ndarray:
    """Quaternions along the shorter arc from start [4] to end [4] at s [steps, 1]."""
    dot = start @ end
    if dot < 0:  # the same rotation on the nearer side
        dot, end = -dot, -end
    angle = np.arccos(min(dot, 1.0))
    if angle < 4 * np.finfo(np.float64).eps:
        return np.broadcast_to(start, (len(s), 4))
    return (np.sin((1 - s) * angle) * start + np.sin(s * angle) * end) / np.sin(angle)


def _rotations(quaternions: np.ndarray) -> np.ndarray:
    """Rotation matrices [F, 3, 3] of unit quaternions (w, x, y, z), [F, 4]."""
    w, x, y, z = quaternions.T
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ]
    return np.moveaxis(np.array(rows), -1, 0)
