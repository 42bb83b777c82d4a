"""A furnished room whose surfaces have textures that features can be found in.

Axis legend: B box, the room first  S surface: of every box +x, -x, +y, -y, +z, -z.
World: right-handed, z up, floor at z = 0, unit one metre, the room's middle above the origin.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterator

import numpy as np

from data_pipeline.procedural import textures
from data_pipeline.procedural.textures import TEXEL, framed_picture, paint

ROOM = np.array([3.3, 3.0, 1.35])  # half extents
LEVELS = 6  # copies of a texture, for what is far away


@dataclasses.dataclass(frozen=True)
class Place:
    """A furnished room.

    Attributes:
      centre, half: [B, 3] of the boxes; the room is seen from inside.
      turn: [B, 2], cosine and sine of a box's angle about z.
      texels: [texels, 3] uint8, the textures of all surfaces, each followed by copies of a half, a
        quarter, … of its size.
      where: [S, LEVELS, 3], the first texel, height and width of each of these copies.
    """

    centre: np.ndarray
    half: np.ndarray
    turn: np.ndarray
    texels: np.ndarray
    where: np.ndarray


@functools.lru_cache(maxsize=2)
def furnished_room(seed: int) -> Place:
    """The room of a seed: a chest and boxes in the middle, furniture along walls with pictures."""
    rng = np.random.default_rng([seed, 0])
    centre, half, angle, surfaces = [(0, 0, ROOM[2])], [ROOM], [0.0], []
    walls = rng.permutation([textures.BRICKS, textures.PAPER, textures.STONES, textures.PAPER])
    x, y, z = 2 * ROOM
    for wall, width in zip(walls, (y, y, x, x), strict=True):
        surfaces.append(_hung(rng, paint(rng, wall, (z, width))))
    surfaces.append(paint(rng, textures.PLASTER, (y, x)))
    floor = textures.BOARDS if rng.random() < 0.6 else textures.TILES
    surfaces.append(paint(rng, floor, (y, x)))
    for place, extents, turn, material in _furniture(rng):
        centre.append(place)
        half.append(extents)
        angle.append(turn)
        x, y, z = 2 * np.asarray(extents)
        for size in ((z, y), (z, y), (z, x), (z, x), (y, x), (y, x)):
            surfaces.append(paint(rng, material, size))
    centre, half = np.array(centre), np.array(half)
    turn = np.array([(math.cos(a), math.sin(a)) for a in angle])
    surfaces[5] = surfaces[5] * _shadows(surfaces[5].shape[:2], centre, half, turn)[..., None]
    return Place(centre, half, turn, *_with_copies([_in_corners(each) for each in surfaces]))


def _furniture(rng: np.random.Generator) -> Iterator[tuple]:
    """(centre, half extents, angle, material) of every piece."""
    low = 0.26
    yield (0, 0, low), (0.5, 0.34, low), rng.uniform(0, 1.5), textures.CRATE
    loose = (textures.BOOKS, textures.CLOTH, textures.TILES, textures.CRATE)
    for x in (-0.24, 0.22):  # upon the chest
        extents = rng.uniform(0.1, 0.17, 3)
        yield (x, 0, 2 * low + extents[2]), extents, rng.uniform(0, 1.5), rng.choice(loose)
    start = rng.uniform(0, 2 * math.pi)
    for number in range(4):  # around it
        extents = rng.uniform((0.14, 0.14, 0.12), (0.24, 0.24, 0.34))
        turn = start + number * math.pi / 2 + rng.uniform(-0.3, 0.3)
        distance = rng.uniform(0.95, 1.15)
        spot = distance * math.cos(turn), distance * math.sin(turn), extents[2]
        yield spot, extents, rng.uniform(0, 1.5), rng.choice(loose)
    for side in (-1, 1):  # along the walls
        x, y, z = rng.uniform(0.4, 0.6), 0.18, rng.uniform(0.5, 0.9)
        yield (rng.uniform(-2, 2), side * (ROOM[1] - y), z), (x, y, z), 0.0, textures.BOOKS
        x, y, z = 0.22, rng.uniform(0.4, 0.7), rng.uniform(0.3, 0.5)
        yield (side * (ROOM[0] - x), rng.uniform(-1.5, 1.5), z), (x, y, z), 0.0, textures.CRATE


def _hung(rng: np.random.Generator, wall: np.ndarray) -> np.ndarray:
    """The wall with pictures on it and a skirting board."""
    width = wall.shape[1] * TEXEL
    for number in range(4):
        size = rng.uniform((0.4, 0.45), (0.75, 0.9))
        picture = framed_picture(rng, tuple(size))
        bottom = rng.uniform(1.15, 1.4)
        left = (number + rng.uniform(0.1, 0.3)) * width / 4
        top = wall.shape[0] - round(bottom / TEXEL) - picture.shape[0]
        left = round(left / TEXEL)
        wall[top : top + picture.shape[0], left : left + picture.shape[1]] = picture
    wall[-round(0.1 / TEXEL) :] = (0.32, 0.24, 0.18)
    return wall


def _shadows(shape: tuple[int, int], centre, half, turn) -> np.ndarray:
    """How bright the floor is around what stands on it, [H, W]."""
    bright = np.ones(shape)
    y = (ROOM[1] - (np.arange(shape[0]) + 0.5) * TEXEL)[:, None]
    x = (np.arange(shape[1]) + 0.5) * TEXEL - ROOM[0]
    for (cx, cy, _), (hx, hy, _), (cosine, sine) in zip(
        centre[1:], half[1:], turn[1:], strict=True
    ):
        u = cosine * (x - cx) + sine * (y - cy)
        v = cosine * (y - cy) - sine * (x - cx)
        away = np.maximum(abs(u) - hx, 0) ** 2 + np.maximum(abs(v) - hy, 0) ** 2
        bright *= 1 - 0.6 / (1 + away / 0.15**2)
    return bright


def _in_corners(texture: np.ndarray) -> np.ndarray:
    """The texture, darker where its surface meets others."""
    for axis in (0, 1):
        along = (np.arange(texture.shape[axis]) + 0.5) * TEXEL
        away = np.minimum(along, along[::-1])
        shade = 1 - 0.35 / (1 + (away / 0.08) ** 2)
        texture = texture * (shade[:, None, None] if axis == 0 else shade[:, None])
    return texture


def _with_copies(surfaces: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """`texels` and `where` of a place."""
    texels, where, first = [], np.empty((len(surfaces), LEVELS, 3), np.int64), 0
    for surface, texture in enumerate(surfaces):
        for level in range(LEVELS):
            height, width = texture.shape[:2]
            where[surface, level] = first, height, width
            texels.append(np.round(texture * 255).astype(np.uint8).reshape(-1, 3))
            first += height * width
            if min(height, width) > 1:
                even = texture[: height // 2 * 2, : width // 2 * 2]
                texture = (
                    even[::2, ::2] + even[1::2, ::2] + even[::2, 1::2] + even[1::2, 1::2]
                ) / 4
    return np.concatenate(texels), where
