"""What surfaces of a drawn place look like: bricks, boards, tiles, books, pictures to hang.

A texture is float64 [H, W, 3], sRGB values from 0 to 1, TEXEL metres to a texel, row 0 on top. It
is made of random numbers by sums, products and comparisons alone, which every machine computes
alike. Every one has detail of a metre down to a centimetre: a picture from anywhere shows some.
"""

from __future__ import annotations

import colorsys
import dataclasses

import numpy as np

TEXEL = 0.006  # metres


@dataclasses.dataclass(frozen=True)
class Material:
    """A surface laid in rows of cells.

    Attributes:
      colour: mean hue, saturation and value of the cells; `spread` is by how much they stray.
      cell: height and width, metres.
      shift: of each row against the one above, in cells.
      gap: width of the joints, metres; `joint` is their value, in grey.
      second: the mean colour of every other cell, if that is another.
      grain: height and width of bumps, metres, and how strong they are.
    """

    colour: tuple[float, float, float]
    spread: tuple[float, float, float]
    cell: tuple[float, float]
    shift: float = 0.0
    gap: float = 0.012
    joint: float = 0.15
    second: tuple[float, float, float] | None = None
    grain: tuple[tuple[float, float, float], ...] = ((0.6, 0.6, 0.2), (0.05, 0.05, 0.2))


BRICKS = Material(
    colour=(0.04, 0.5, 0.62), spread=(0.02, 0.1, 0.16), cell=(0.08, 0.24), shift=0.5, joint=0.75
)
STONES = Material(
    colour=(0.1, 0.12, 0.68), spread=(0.05, 0.08, 0.14), cell=(0.19, 0.41), shift=0.37, joint=0.4
)
BOARDS = Material(
    colour=(0.08, 0.45, 0.58),
    spread=(0.015, 0.1, 0.14),
    cell=(0.13, 1.3),
    shift=0.37,
    gap=0.008,
    grain=((0.012, 0.3, 0.22), (0.04, 0.9, 0.2), (0.012, 0.04, 0.1)),
)
TILES = Material(
    colour=(0.11, 0.15, 0.85), second=(0.45, 0.35, 0.4), spread=(0.02, 0.05, 0.06), cell=(0.3, 0.3)
)
PAPER = Material(
    colour=(0.14, 0.3, 0.82),
    second=(0.55, 0.3, 0.62),
    spread=(0, 0.02, 0.02),
    cell=(0.22, 0.11),
    shift=0.5,
    gap=0,
)
PLASTER = Material(colour=(0.12, 0.1, 0.85), spread=(0, 0, 0.01), cell=(9, 9), gap=0)
CRATE = Material(
    colour=(0.1, 0.5, 0.66),
    spread=(0.02, 0.12, 0.16),
    cell=(0.11, 3.0),
    grain=((0.012, 0.2, 0.2), (0.1, 0.3, 0.2)),
)
BOOKS = Material(colour=(0.5, 0.55, 0.55), spread=(0.5, 0.3, 0.3), cell=(0.31, 0.05), shift=0.4)
CLOTH = Material(
    colour=(0.97, 0.6, 0.6),
    second=(0.13, 0.45, 0.85),
    spread=(0.02, 0.1, 0.08),
    cell=(0.09, 0.09),
    gap=0,
)


def paint(rng: np.random.Generator, material: Material, size: tuple[float, float]) -> np.ndarray:
    """A surface of that material, [H, W, 3]; `size` is its height and width in metres."""
    shape = tuple(max(4, round(side / TEXEL)) for side in size)
    y, x = ((np.arange(side) + 0.5) * TEXEL for side in shape)
    high, wide = material.cell
    row = np.floor(y / high).astype(int)
    across = x / wide + (row * material.shift)[:, None]
    column = np.floor(across).astype(int)

    counts = row.max() + 1, column.max() + 1
    base = np.empty((*counts, 3))
    base[:] = material.colour
    if material.second is not None:
        base[np.indices(counts).sum(0) % 2 == 1] = material.second
    base += rng.uniform(-1, 1, base.shape) * material.spread
    base[..., 1:] = np.clip(base[..., 1:], 0, 1)
    colours = np.array([colorsys.hsv_to_rgb(h % 1, s, v) for h, s, v in base.reshape(-1, 3)])
    texture = colours.reshape(*counts, 3)[row[:, None], column]

    left, top = (across - column) * wide, y - row * high
    near = np.minimum(left, wide - left) < material.gap / 2
    near |= (np.minimum(top, high - top) < material.gap / 2)[:, None]
    texture[near] = material.joint
    bright = 1.0
    for *bump, strength in material.grain:
        bright = bright * (1 + strength * _bumps(rng, shape, bump))
    return np.clip(texture * bright[..., None], 0, 1)


def framed_picture(rng: np.random.Generator, size: tuple[float, float]) -> np.ndarray:
    """A painting in a frame, [H, W, 3]; `size` is its height and width in metres."""
    texture = paint(rng, dataclasses.replace(PLASTER, colour=(rng.random(), 0.4, 0.7)), size)
    height, width = texture.shape[:2]
    y, x = np.arange(height)[:, None], np.arange(width)
    for _ in range(24):
        colour = colorsys.hsv_to_rgb(rng.random(), rng.uniform(0.1, 0.6), rng.uniform(0.2, 0.9))
        at, reach = rng.random(2) * (height, width), rng.uniform(0.05, 0.25) * min(height, width)
        down, right = y - at[0], x - at[1]
        kind = rng.integers(3)
        if kind == 0:
            inside = down**2 + right**2 < reach**2
        elif kind == 1:
            inside = (abs(down) < reach) & (abs(right) < reach * rng.uniform(0.3, 2))
        else:
            inside = abs(down * rng.uniform(-1, 1) + right * rng.uniform(-1, 1)) < reach / 5
        bright = 1 + 0.25 * _bumps(rng, (height, width), (0.03, 0.03))[inside]
        texture[inside] = colour * bright[:, None]
    edge = np.minimum(np.minimum(y, height - 1 - y), np.minimum(x, width - 1 - x)) * TEXEL
    texture[edge < 0.06] = 0.9
    texture[edge < 0.035] = colorsys.hsv_to_rgb(0.1, 0.6, rng.uniform(0.15, 0.5))
    return np.clip(texture, 0, 1)


def _bumps(
    rng: np.random.Generator, shape: tuple[int, int], size: tuple[float, float]
) -> np.ndarray:
    """Smooth noise [H, W] between -1 and 1, of bumps of `size`, height and width in metres."""
    places = [np.arange(side) * TEXEL / each for side, each in zip(shape, size, strict=True)]
    noise = rng.uniform(-1, 1, [int(place[-1]) + 2 for place in places])
    for place in places:  # along the rows, then, turned, along the columns
        first = place.astype(int)
        part = place - first
        part = (part * part * (3 - 2 * part))[:, None]
        noise = (noise[first] * (1 - part) + noise[first + 1] * part).T
    return noise
