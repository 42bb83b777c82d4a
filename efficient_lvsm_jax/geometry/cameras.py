"""Cameras: rays and Plücker coordinates for the model, scene frames and checks.

Conventions, everywhere in this project: poses are camera-to-world matrices `c2w` = [R | o] in
OpenCV axes (x right, y down, z forward); intrinsics are `fxfycxcy` in pixels of the image they
belong to; the centre of the top left pixel is at (0.5, 0.5).

Rays are JAX and float32, they run inside the model. Everything on poses is NumPy and float64, it
runs once per scene.

Axis legend: B scene  V view  Y X pixels. `...` is any leading axes.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from efficient_lvsm_jax.errors import InputError

RAY_DTYPES = ("float32", "bf16_parity")
_LAST_ROW, _IDENTITY = np.array([0.0, 0.0, 0.0, 1.0]), np.eye(3)
MAX_COORDINATE = 1e12  # of a camera centre; the frame of a scene is computed from squares
RIGID_TOLERANCE = 1e-3  # largest |RᵀR - I| of a camera that still counts as rigid


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cameras:
    """Posed pinhole cameras that share one image size.

    c2w: [..., 4, 4] float32. fxfycxcy: [..., 4] float32, pixels. height, width: pixels, static.
    """

    c2w: jax.Array
    fxfycxcy: jax.Array
    height: int = dataclasses.field(metadata={"static": True})
    width: int = dataclasses.field(metadata={"static": True})


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Views:
    """Posed pictures.

    image: [..., Y, X, 3] float32 in [0, 1]. c2w: [..., 4, 4] float32. fxfycxcy: [..., 4] float32,
    pixels of `image`. On its way to the model a picture may be uint8, and a pose float64.
    """

    image: jax.Array
    c2w: jax.Array
    fxfycxcy: jax.Array

    @property
    def cameras(self) -> Cameras:
        """The cameras that took the pictures."""
        height, width = self.image.shape[-3:-1]
        return Cameras(self.c2w, self.fxfycxcy, height, width)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Batch:
    """Scenes to train on: views [B, V, …] the model is given, and those [B, T, …] it is to render.

    The poses of a scene's inputs and targets are in one frame. A clip, for a model of geometry, has
    no targets, but may have depth and queries.

    Attributes:
      inputs, targets: the views; targets are None for a clip.
      depth: of the inputs along the viewing direction, [B, V, Y, X] float32 in the unit of the
        poses, 0 where it is not known.
      queries: pixels x y of the first input that are to be tracked, [B, Q, 2] float32.
    """

    inputs: Views
    targets: Views | None
    depth: jax.Array | None = None
    queries: jax.Array | None = None


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


def projections(cameras: Cameras) -> tuple[jax.Array, jax.Array]:
    """From points of the world to a camera's picture, and back, as matrices [..., 4, 4] float32.

    P = K·[world to camera]: the intrinsics are in units of the picture's sides, from its middle, so
    a point in view goes to (x·z, y·z, z, 1) with x and y within ±½. The inverse is analytic.
    """
    c2w = jnp.asarray(cameras.c2w, jnp.float32)
    fx, fy, cx, cy = jnp.moveaxis(jnp.asarray(cameras.fxfycxcy, jnp.float32)[..., None], -2, 0)
    fx, cx = fx / cameras.width, cx / cameras.width - 0.5
    fy, cy = fy / cameras.height, cy / cameras.height - 0.5
    # Multiply and add, not a matmul, as in `rays`.
    axes, centre = jnp.swapaxes(c2w[..., :3, :3], -1, -2), c2w[..., None, :3, 3]
    shift = -(axes * centre).sum(axis=-1, keepdims=True)
    right, down, forward = jnp.moveaxis(jnp.concatenate([axes, shift], axis=-1), -2, 0)
    rows = fx * right + cx * forward, fy * down + cy * forward, forward, c2w[..., 3, :]
    right, down, forward, origin = jnp.moveaxis(c2w, -1, 0)
    columns = right / fx, down / fy, forward - cx / fx * right - cy / fy * down, origin
    return jnp.stack(rows, axis=-2), jnp.stack(columns, axis=-1)


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
    def from_cameras(
        cls, c2w: np.ndarray, *, scale_factor: float = 1.35, checked: bool = False
    ) -> SceneFrame:
        """The published normalisation of the cameras c2w [V, 4, 4].

        The origin is the mean centre, z the mean viewing direction, y close to the mean image
        down direction, and the largest `|coordinate|` of a centre becomes 1 / scale_factor.
        checked: all have passed `check_cameras`, and are not checked again.

        Raises InputError if the cameras are unusable or do not define a frame: fewer than two,
        all in one place (no scale), or viewing directions that cancel out.
        """
        c2w = _float64(c2w, "cameras")
        if c2w.ndim != 3 or len(c2w) < 1:
            raise InputError(f"cameras of shape {c2w.shape}: expected [V, 4, 4] with V >= 1")
        if not checked:
            _check_poses(c2w, "cameras")

        centres = c2w[:, :3, 3]
        forward = _unit(c2w[:, :3, 2].mean(0), "viewing directions")
        right = _unit(_cross(c2w[:, :3, 1].mean(0), forward), "image axes")
        down = _unit(_cross(forward, right), "image axes")
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

    def undo(self, c2w: np.ndarray) -> np.ndarray:
        """Poses [..., 4, 4] in this frame as world poses, [..., 4, 4] float64."""
        poses = np.array(c2w, np.float64)
        poses[..., :3, 3] /= self.scale
        return np.linalg.inv(self.frame_from_world) @ poses


def normalise_poses(c2w: np.ndarray, *, checked: bool = False) -> np.ndarray:
    """Poses [V, 4, 4] in the scene frame of all of them, float32.

    For training and scoring as published: all selected views together, targets included. So
    a target changes the frame. Errors as `SceneFrame.from_cameras`.
    """
    return SceneFrame.from_cameras(c2w, checked=checked).apply(c2w)


def _cross(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """u × v of two vectors [3]; np.cross takes ten times as long, once for every scene read."""
    (a, b, c), (d, e, f) = u.tolist(), v.tolist()
    return np.array([b * f - c * e, c * d - a * f, a * e - b * d])


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


def spread(c2w: np.ndarray, count: int) -> list[int]:
    """Indices of `count` cameras of [V, 4, 4] spread over all, ascending.

    The first, then always the one farthest from those taken, as `camera_distances` measures; the
    lowest of equals.
    """
    places = _places(c2w)
    taken = [0]
    distance = np.full(len(places), np.inf)  # to the nearest one taken
    while len(taken) < count:
        distance = np.minimum(distance, np.linalg.norm(places - places[taken[-1]], axis=-1))
        distance[taken] = -1  # never again, even if others stand in the same place
        taken.append(int(np.argmax(distance)))
    return sorted(taken)


def camera_distances(c2w: np.ndarray) -> np.ndarray:
    """How far cameras [V, 4, 4] are apart, in place and in where they look: [V, V] float64.

    `distance² = (distance of centres / extent)² + |difference of viewing directions|²`, where the
    extent is the root mean square distance of all centres from their mean. Without an extent the
    directions count alone. Unit and axes of the world change nothing.
    """
    places = _places(c2w)
    return np.linalg.norm(places[:, None] - places, axis=-1)


def _places(c2w: np.ndarray) -> np.ndarray:
    """Cameras [V, 4, 4] as points [V, 6] that are as far apart as `camera_distances` says."""
    c2w = np.asarray(c2w, np.float64)
    centres = c2w[:, :3, 3]
    offsets = centres - centres.mean(0)
    extent = np.sqrt((offsets**2).sum(-1).mean())
    if extent <= 1e-9 * np.abs(centres).max():  # not zero: rounding leaves a trace
        offsets, extent = np.zeros_like(offsets), 1.0
    return np.concatenate([offsets / extent, c2w[:, :3, 2]], axis=-1)


def check_cameras(
    c2w: np.ndarray,
    fxfycxcy: np.ndarray,
    name: str = "cameras",
    *,
    labels: Sequence[str] | None = None,
) -> None:
    """Raises InputError unless all cameras are usable; the message says which one and why.

    Args:
      c2w: [..., 4, 4], finite and rigid: `|RᵀR - I|` <= 1e-3, det R > 0, last row 0 0 0 1.
      fxfycxcy: [..., 4], finite, focal lengths above 0. Leading axes as c2w.
      name: what to call them in the message, for instance the file they came from.
      labels: what to call each of cameras [V, 4, 4], instead of its index.
    """
    c2w, fxfycxcy = _float64(c2w, name), _float64(fxfycxcy, name)
    if c2w.shape == (4, 4) and fxfycxcy.shape == (4,) and _is_usable(c2w, fxfycxcy):
        return
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
    for camera in _where((np.abs(c2w[..., 3, :] - _LAST_ROW) > 1e-6).any(-1)):
        raise InputError(
            f"{_label(name, camera, labels)}: last row of c2w is "
            f"{c2w[camera][3].tolist()}, expected [0, 0, 0, 1]; is the matrix transposed?"
        )
    for camera in _where(~(np.abs(c2w[..., :3, 3]) <= MAX_COORDINATE).all(-1)):
        raise InputError(
            f"{_label(name, camera, labels)}: camera centre {c2w[camera][:3, 3].tolist()} is "
            f"farther than {MAX_COORDINATE:g} from the origin; choose another unit"
        )
    rotation, skew = c2w[..., :3, :3], _skew(c2w)
    for camera in _where(~(skew <= RIGID_TOLERANCE)):
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


def _is_usable(c2w: np.ndarray, fxfycxcy: np.ndarray) -> bool:
    """Whether one camera [4, 4] and [4] passes every check.

    In plain floats: training reads thousands of frames a second, and NumPy takes ten times as long
    for arrays this small.
    """
    (a, b, c, x), (d, e, f, y), (g, h, i, z), last = c2w.tolist()
    fx, fy, cx, cy = fxfycxcy.tolist()
    dots = (a * b + d * e + g * h, a * c + d * f + g * i, b * c + e * f + h * i)
    norms = (a * a + d * d + g * g - 1, b * b + e * e + h * h - 1, c * c + f * f + i * i - 1)
    determinant = a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g)
    return (
        all(abs(term) <= RIGID_TOLERANCE for term in (*dots, *norms))  # False for NaN
        and determinant > 0
        and last == [0, 0, 0, 1]
        and fx > 0
        and fy > 0
        and max(abs(x), abs(y), abs(z)) <= MAX_COORDINATE
        and math.isfinite(fx + fy + cx + cy)
    )


def _skew(c2w: np.ndarray) -> np.ndarray:
    """The largest |RᵀR - I| of each pose; inf or NaN where it overflows."""
    rotation = c2w[..., :3, :3]
    with np.errstate(over="ignore", invalid="ignore"):
        return np.abs(np.swapaxes(rotation, -1, -2) @ rotation - _IDENTITY).max((-2, -1))


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
