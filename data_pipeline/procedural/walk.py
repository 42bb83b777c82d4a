"""A walk through a furnished room: a capture of any length, shape and lens, drawn by code.

The room's surfaces have textures that features can be found in, so that everything which wants a
real capture has one: its poses can be checked, its lens undone, its cameras flown through. NumPy
and float64 alone, and of its functions mostly those that every machine rounds alike.

Axis legend: F frame  R ray.
World: right-handed, z up, floor at z = 0, unit one metre. Cameras: OpenCV camera-to-world
(x right, y down, z forward), pixel centres at +0.5, intrinsics in pixels.
"""

from __future__ import annotations

import functools
import math
from pathlib import Path

import numpy as np

from data_pipeline.captures.export import CaptureWriter
from data_pipeline.pictures.distortion import FISHEYE, PERSPECTIVE, Distortion
from data_pipeline.procedural.furnished_room import LEVELS, Place, furnished_room
from data_pipeline.procedural.textures import TEXEL
from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.geometry.paths import looking
from efficient_lvsm_jax.media.progress import counted

PINHOLE = Distortion(PERSPECTIVE, (0.0, 0.0, 0.0, 0.0))
LENSES = {
    "pinhole": PINHOLE,
    "opencv": Distortion(PERSPECTIVE, (0.08, -0.06, 0.0015, -0.001)),
    "fisheye": Distortion(FISHEYE, (0.04, -0.01, 0.003, -0.001)),
}
FOCAL = {PERSPECTIVE: 0.95, FISHEYE: 0.6}  # over the picture's shorter side

LAMP = np.array([0.5, -0.3, 2.4])
AMBIENT = 0.6
SAMPLES = 2  # rays per pixel along each image axis
MAX_SIDE = 2048  # pixels; their rays take a gigabyte
RAYS_AT_ONCE = 1 << 16  # some 50 MB of arrays


def write_walk(
    folder: str | Path,
    *,
    frames: int = 90,
    size: tuple[int, int] = (270, 480),
    lens: Distortion = PINHOLE,
    exposure: float = 0.0,
    seed: int = 0,
    depth: bool = False,
    progress: bool = False,
) -> None:
    """Writes a walk as a nerfstudio capture; same arguments, same pictures.

    Args:
      folder: must not exist.
      size: height and width in pixels, 8 to 2048.
      lens: that the pictures are taken with.
      exposure: stops by which the brightness strays from frame to frame, either way.
      seed: of the room and of the walk, 0 <= seed < 2**32.
      depth: also write the depth of every pixel, in metres.
      progress: say on standard error how far it is.

    Raises:
      InputError: depth of a lens that bends, since readers undo the lens of pictures alone; or
        arguments that make no walk, a folder that exists or cannot be written.
    """
    if not (
        frames >= 1
        and 8 <= min(size) <= max(size) <= MAX_SIDE
        and 0 <= exposure <= 4
        and 0 <= seed < 2**32
    ):
        raise InputError(
            f"a walk of frames={frames}, size={size[0]}x{size[1]}, exposure={exposure}, "
            f"seed={seed}: expected at least 1 frame, sides of 8 to {MAX_SIDE} pixels, 0 to 4 "
            "stops, a seed from 0 to 2**32 - 1"
        )
    if depth and not lens.is_none:
        raise InputError(
            "depth of a walk through a lens that bends: readers undo the lens of pictures alone; "
            "leave out --depth or --lens"
        )
    focal = FOCAL[lens.model] * min(size)
    fxfycxcy = np.array([focal, focal, size[1] / 2, size[0] / 2])
    with CaptureWriter(folder, lens=lens) as capture:
        place, c2w = furnished_room(seed), walk(frames, seed)
        what = f"drawing {folder}"
        for frame in counted(range(frames), what, frames, "frames", shown=progress):
            stops = exposure * math.sin(0.9 * frame + seed) * math.cos(0.23 * frame)
            image = draw(place, c2w[frame], fxfycxcy, size, lens, gain=2 ** (stops / 2.2))
            distances = draw_depth(place, c2w[frame], fxfycxcy, size) if depth else None
            capture.add(image, c2w[frame], fxfycxcy, distances)


def walk(frames: int, seed: int) -> np.ndarray:
    """Poses [F, 4, 4] of somebody who walks around the middle of the room and looks about."""
    rng = np.random.default_rng([seed, 1])
    start, sweep = rng.uniform(0, 2 * math.pi), rng.uniform(2.4, 3.0) * rng.choice([-1, 1])
    phase = rng.uniform(0, 2 * math.pi, 6)

    def sway(which: int, turns: float, part: float) -> float:
        return math.sin(2 * math.pi * turns * part + phase[which])

    centres, focus, down = np.empty((3, frames, 3))
    for frame in range(frames):
        part = frame / max(1, frames - 1)
        angle, radius = start + sweep * part, 2.1 + 0.25 * sway(0, 0.8, part)
        step = 0.02 * sway(1, 9, part)
        centres[frame] = (
            radius * math.cos(angle),
            radius * math.sin(angle),
            1.35 + 0.3 * sway(2, 1.3, part) + step,
        )
        aside = 0.5 * sway(3, 1.1, part)
        focus[frame] = (
            -aside * math.sin(angle),
            aside * math.cos(angle),
            0.7 + 0.25 * sway(4, 1.7, part),
        )
        down[frame] = 0.04 * sway(5, 1.4, part), 0.03 * sway(0, 2.1, part), -1
    return looking(centres, focus, down)


def draw(
    place: Place,
    c2w: np.ndarray,
    fxfycxcy: np.ndarray,
    size: tuple[int, int],
    lens: Distortion = PINHOLE,
    *,
    gain: float = 1.0,
) -> np.ndarray:
    """The picture uint8 [Y, X, 3] that a camera in the room takes.

    Args:
      c2w: [4, 4], its centre inside the room and outside of all furniture.
      fxfycxcy: [4], pixels of a picture of `size` (height, width).
      gain: factor of its brightness.

    Raises:
      InputError: the camera is outside of the room.
    """
    c2w = _inside(place, c2w)
    height, width = size
    rays = pixel_rays(tuple(float(x) for x in fxfycxcy), size, lens)
    colours = np.empty((rays.shape[1], 3))
    # A ray is this much wider for every metre that it goes.
    widening = 1 / (SAMPLES * float(fxfycxcy[0]))
    for first in range(0, rays.shape[1], RAYS_AT_ONCE):
        direction = _turned(c2w, rays[:, first : first + RAYS_AT_ONCE])
        colours[first : first + RAYS_AT_ONCE] = _seen(place, c2w[:3, 3], direction, widening)
    colours *= gain
    colours = colours.reshape(height, SAMPLES, width, SAMPLES, 3)
    mean = colours.sum((1, 3)) / SAMPLES**2
    return np.round(np.clip(mean, 0, 255)).astype(np.uint8)


def draw_depth(
    place: Place,
    c2w: np.ndarray,
    fxfycxcy: np.ndarray,
    size: tuple[int, int],
    lens: Distortion = PINHOLE,
) -> np.ndarray:
    """Depth float64 [Y, X] along the viewing direction at pixel centres, metres; as `draw`."""
    c2w = _inside(place, c2w)
    rays = pixel_rays(tuple(float(x) for x in fxfycxcy), size, lens, samples=1)
    depth = np.empty(rays.shape[1])
    for first in range(0, rays.shape[1], RAYS_AT_ONCE):
        here = rays[:, first : first + RAYS_AT_ONCE]
        reached, _ = _met(place, c2w[:3, 3], _turned(c2w, here))
        depth[first : first + RAYS_AT_ONCE] = reached * here[2]
    return depth.reshape(size)


def _inside(place: Place, c2w: np.ndarray) -> np.ndarray:
    """The pose as float64, of a camera that is in the room."""
    c2w = np.asarray(c2w, np.float64)
    if not (abs(c2w[:3, 3] - place.centre[0]) < place.half[0]).all():
        raise InputError(f"camera at {c2w[:3, 3].tolist()}: outside of the room")
    return c2w


def _turned(c2w: np.ndarray, rays: np.ndarray) -> list[np.ndarray]:
    """Directions [3, R] of the camera's axes in those of the world, none of them 0."""
    x, y, z = rays
    # Written out: a matrix product is rounded as the machine's BLAS likes.
    direction = [row[0] * x + row[1] * y + row[2] * z for row in c2w[:3, :3]]
    return [np.where(each == 0, 1e-12, each) for each in direction]


@functools.lru_cache(maxsize=4)
def pixel_rays(
    fxfycxcy: tuple[float, ...], size: tuple[int, int], lens: Distortion, samples: int = SAMPLES
) -> np.ndarray:
    """Directions [3, R] in the camera's axes that `samples`² samples of every pixel see.

    In the order of [Y, samples, X, samples]; arguments as of `draw`.
    """
    at = [(np.arange(side * samples) + 0.5) / samples for side in size]
    y, x = (grid.ravel() for grid in np.meshgrid(*at, indexing="ij"))
    fx, fy, cx, cy = fxfycxcy
    x, y = (x - cx) / fx, (y - cy) / fy
    return np.stack(_straightened(x, y, lens))


def _straightened(x: np.ndarray, y: np.ndarray, lens: Distortion) -> tuple[np.ndarray, ...]:
    """Directions (x, y, z), not of unit length, that a lens shows at x, y of its picture plane."""
    u, v = x, y
    with np.errstate(over="ignore", invalid="ignore"):
        for _ in range(100):
            bent_x, bent_y = _bent(u, v, lens)
            off = max(abs(x - bent_x).max(), abs(y - bent_y).max())
            if off < 1e-12:
                break
            u, v = u + (x - bent_x), v + (y - bent_y)
    if not off < 1e-6:
        raise InputError(
            f"lens {lens.model} {list(lens.coefficients)}: shows nothing in parts of the picture; "
            "choose smaller coefficients"
        )
    if lens.model == PERSPECTIVE:
        return u, v, np.ones_like(u)
    angle = np.sqrt(u * u + v * v)
    scale = np.sin(angle) / np.maximum(angle, 1e-12)
    return u * scale, v * scale, np.cos(angle)


def _bent(u: np.ndarray, v: np.ndarray, lens: Distortion) -> tuple[np.ndarray, np.ndarray]:
    """Where a lens shows u, v: a point of the plane z = 1, or of a fisheye's angles."""
    r = u * u + v * v
    if lens.model == FISHEYE:
        k1, k2, k3, k4 = lens.coefficients
        scale = 1 + r * (k1 + r * (k2 + r * (k3 + r * k4)))
        return u * scale, v * scale
    k1, k2, p1, p2, k3, k4, k5, k6 = (*lens.coefficients, 0, 0, 0, 0)[:8]
    scale = (1 + r * (k1 + r * (k2 + r * k3))) / (1 + r * (k4 + r * (k5 + r * k6)))
    both = 2 * u * v
    return (
        u * scale + p1 * both + p2 * (r + 2 * u * u),
        v * scale + p2 * both + p1 * (r + 2 * v * v),
    )


def _seen(place: Place, centre: np.ndarray, direction: list[np.ndarray], widening: float):
    """Colours [R, 3], 0 to 255, of what rays from a centre [3] meet.

    Args:
      direction: x, y and z of each ray, [R].
      widening: how wide a ray is one length of its direction away, metres.
    """
    reached, box = _met(place, centre, direction)
    point = [o + reached * d for o, d in zip(centre, direction, strict=True)]

    # In the axes of the box: on which of its sides the point lies, and where there.
    cosine, sine = place.turn[box].T
    x, y, z = (p - c for p, c in zip(point, place.centre[box].T, strict=True))
    local = np.stack([cosine * x + sine * y, cosine * y - sine * x, z])
    half = place.half[box].T
    axis = (abs(local) / half).argmax(0)
    rays = np.arange(len(box))
    minus = local[axis, rays] < 0
    across, down = np.where(axis == 0, 1, 0), np.where(axis == 2, 1, 2)
    u = local[across, rays] + half[across, rays]
    v = half[down, rays] - local[down, rays]

    # Out of the box, or into the room.
    sign = np.where(minus == (box == 0), 1.0, -1.0)
    normal = [
        sign * np.where(axis == 0, cosine, np.where(axis == 1, -sine, 0.0)),
        sign * np.where(axis == 0, sine, np.where(axis == 1, cosine, 0.0)),
        sign * (axis == 2),
    ]
    to_lamp = [lamp - p for lamp, p in zip(LAMP, point, strict=True)]
    square = _dot(to_lamp, to_lamp)
    facing = np.maximum(_dot(to_lamp, normal), 0) / np.sqrt(square)
    bright = AMBIENT + (1.5 - AMBIENT) * facing / (1 + square / 9)
    slant = abs(_dot(direction, normal)) / np.sqrt(_dot(direction, direction))
    wide = reached * widening / np.sqrt(np.maximum(slant, 0.05))
    return bright[:, None] * _texture(place, 6 * box + 2 * axis + minus, u, v, wide)


def _met(place: Place, centre: np.ndarray, direction: list[np.ndarray]):
    """How far every ray goes, in lengths of its direction, and which box it meets, [R] each."""
    reached, box = None, np.zeros(len(direction[0]), np.int64)
    for number, (middle, half, turn) in enumerate(
        zip(place.centre, place.half, place.turn, strict=True)
    ):
        cosine, sine = turn
        (ox, oy, oz), (dx, dy, dz) = centre - middle, direction
        inverse = 1 / (cosine * dx + sine * dy), 1 / (cosine * dy - sine * dx), 1 / dz
        start = cosine * ox + sine * oy, cosine * oy - sine * ox, oz
        middles = [-o * i for o, i in zip(start, inverse, strict=True)]
        reach = [h * abs(i) for h, i in zip(half, inverse, strict=True)]
        leave = np.minimum(middles[0] + reach[0], middles[1] + reach[1])
        leave = np.minimum(leave, middles[2] + reach[2])
        if number == 0:
            reached = leave
            continue
        enter = np.maximum(middles[0] - reach[0], middles[1] - reach[1])
        enter = np.maximum(enter, middles[2] - reach[2])
        hit = (enter < leave) & (enter > 0) & (enter < reached)
        reached, box = np.where(hit, enter, reached), np.where(hit, number, box)
    return reached, box


def _texture(place: Place, surface: np.ndarray, u: np.ndarray, v: np.ndarray, wide: np.ndarray):
    """Colours [R, 3], 0 to 255, at u, v metres from a surface's upper left corner, bilinear."""
    level = sum((wide > TEXEL * 2**k).astype(np.int64) for k in range(LEVELS - 1))
    first, height, width = place.where[surface, level].T
    texel = TEXEL * 2.0**level
    x = np.clip(u / texel - 0.5, 0, width - 1)
    y = np.clip(v / texel - 0.5, 0, height - 1)
    left, top = x.astype(np.int64), y.astype(np.int64)
    right, low = np.minimum(left + 1, width - 1), np.minimum(top + 1, height - 1)
    part_x, part_y = (x - left)[:, None], (y - top)[:, None]
    top, low = first + top * width, first + low * width
    upper = place.texels[top + left] * (1 - part_x) + place.texels[top + right] * part_x
    lower = place.texels[low + left] * (1 - part_x) + place.texels[low + right] * part_x
    return upper * (1 - part_y) + lower * part_y


def _dot(a, b) -> np.ndarray:
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]
