"""A picture of a scene's cameras: every one as a small pyramid, from above and from the side."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from PIL import Image

from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.geometry.cameras import SceneFrame
from efficient_lvsm_jax.media.drawing import FAINT, INK, canvas, dot, finish, line, nice_step, text

WIDTH, HEIGHT, MARGIN = 1600, 860, 64  # pixels
# The first camera is dark blue, the last yellow: ordered in brightness too, so it survives grey.
COLOURS = np.array(
    [(48, 18, 110), (40, 82, 160), (22, 135, 146), (52, 178, 106), (160, 203, 50), (246, 205, 30)]
)
POINTS = (176, 182, 190)
PYRAMID = 0.07  # height of a camera's pyramid, of the drawing's extent
LABELS, LABEL_DISTANCE = 12, 20  # at most so many cameras are labelled, so many pixels apart


@dataclasses.dataclass(frozen=True)
class _Panel:
    """A drawing area. axes: which of right, down, forward goes right and which goes up.

    Down counts as negative up. box: left, top, right, bottom, pixels.
    """

    title: str
    across: int
    up: int
    box: tuple[int, int, int, int]


def draw_cameras(
    c2w: np.ndarray,
    fxfycxcy: np.ndarray,
    sizes: np.ndarray,
    title: str,
    *,
    points: np.ndarray | None = None,
    labels: Sequence[int] | None = None,
) -> Image.Image:
    """Cameras from above and from the side, in the world's unit, coloured by their order.

    Up in the picture is the cameras' mean up, or the world's axes where they have none.

    Args:
      c2w: [V, 4, 4]. fxfycxcy: [V, 4]. sizes: [V, 2] (width, height); pixels.
      title: the line above.
      points: [M, 3] of the scene, drawn as faint dots as far as they are near the cameras.
      labels: what number each camera is called by, its index by default.
    """
    turn = _scene_axes(c2w)
    origin = np.median(c2w[:, :3, 3], axis=0)
    centres = (c2w[:, :3, 3] - origin) @ turn.T
    points = np.zeros((0, 3)) if points is None else (points - origin) @ turn.T
    extent = np.ptp(centres, axis=0).max()
    if extent <= 1e-9 * np.abs(c2w[:, :3, 3]).max():
        extent = 1.0  # all at one place, but for rounding
    near = (np.abs(points - centres.mean(0)) < 2.5 * extent).all(-1)
    points = points[near]
    shown = np.concatenate([centres, *([_middle(points)] if len(points) else [])])
    extent = max(extent, 0.6 * np.ptp(shown, axis=0).max())
    pyramids = _pyramids(c2w, fxfycxcy, sizes, PYRAMID * extent, origin, turn)  # [V, 5, 3]
    shown = np.concatenate([shown, pyramids.reshape(-1, 3)])

    image, draw = canvas(WIDTH, HEIGHT)
    text(draw, (MARGIN, 22), title, 24)
    half = WIDTH // 2
    panels = (
        _Panel("from above", 0, 2, (MARGIN + 20, 110, half - 20, HEIGHT - 150)),
        _Panel("from the side", 2, 1, (half + MARGIN + 20, 110, WIDTH - 24, HEIGHT - 150)),
    )
    scale = min(_fitting(panel, shown) for panel in panels)
    numbers = list(range(len(c2w))) if labels is None else list(labels)
    for panel in panels:
        _draw_panel(draw, panel, scale, shown, pyramids, points, numbers)
    _draw_legend(draw, numbers, has_points=len(points) > 0)
    return finish(image)


def _scene_axes(c2w: np.ndarray) -> np.ndarray:
    """Rows: the cameras' mean right, down and forward in the world, or the world's own axes."""
    try:
        return SceneFrame.from_cameras(c2w).frame_from_world[:3, :3]
    except InputError:
        return np.eye(3)


def _pyramids(c2w, fxfycxcy, sizes, height, origin, turn) -> np.ndarray:
    """Tip and the four corners of each camera's pyramid, [V, 5, 3]."""
    corners = np.array([[0, 0], [1, 0], [1, 1], [0, 1]]) * np.asarray(sizes)[:, None]  # [V, 4, 2]
    rays = (corners - fxfycxcy[:, None, 2:]) / fxfycxcy[:, None, :2]
    rays = np.concatenate([rays, np.ones_like(rays[..., :1])], axis=-1) * height
    world = np.einsum("Vij,Vcj->Vci", c2w[:, :3, :3], rays) + c2w[:, None, :3, 3]
    return (np.concatenate([c2w[:, None, :3, 3], world], axis=1) - origin) @ turn.T


def _middle(points: np.ndarray) -> np.ndarray:
    """Two corners of a box that holds most of the points."""
    return np.percentile(points, [4, 96], axis=0)


def _flat(panel: _Panel, points: np.ndarray) -> np.ndarray:
    """The panel's own coordinates (across, up) of points [..., 3]."""
    up = points[..., panel.up] * (-1 if panel.up == 1 else 1)  # index 1 is down
    return np.stack([points[..., panel.across], up], axis=-1)


def _fitting(panel: _Panel, shown: np.ndarray) -> float:
    """Pixels per unit with which everything shown fits the panel."""
    left, top, right, bottom = panel.box
    spread = np.maximum(np.ptp(_flat(panel, shown), axis=0), 1e-12)
    return float(0.94 * (np.array([right - left, bottom - top]) / spread).min())


def _draw_panel(draw, panel, scale, shown, pyramids, points, numbers):
    left, top, right, bottom = panel.box
    flat = _flat(panel, shown)
    middle = (flat.min(0) + flat.max(0)) / 2
    centre = np.array([(left + right) / 2, (top + bottom) / 2])

    def place(positions: np.ndarray) -> np.ndarray:
        return centre + (_flat(panel, positions) - middle) * [scale, -scale]

    _draw_grid(draw, panel, scale, middle, centre)
    for x, y in place(points):
        if left < x < right and top < y < bottom:
            dot(draw, (x, y), 1.1, POINTS)
    corners = place(pyramids)  # [V, 5, 2]
    count = len(corners)
    if count > 1:
        line(draw, corners[:, 0], FAINT, 2)
    width = 2.2 if count <= 60 else 1.3
    for index in reversed(range(count)):  # the first ones on top
        colour = _colour(index, count)
        tip, *base = corners[index]
        for corner in base:
            line(draw, [tip, corner], colour, width)
        line(draw, [*base, base[0]], colour, width)
        dot(draw, tip, 2 * width, colour)
    labelled: list[np.ndarray] = []
    for index in np.unique(np.linspace(0, count - 1, min(count, LABELS)).round().astype(int)):
        tip = corners[index, 0]
        if any(np.linalg.norm(tip - other) < LABEL_DISTANCE for other in labelled):
            continue
        labelled.append(tip)
        away = tip - corners[index, 1:].mean(0)  # behind the camera
        length = np.linalg.norm(away)
        away = away / length if length > 1 else np.array([0.0, 1.0])
        text(draw, tip + 15 * away, str(numbers[index]), 14, anchor="mm", halo=True)


def _draw_grid(draw, panel, scale, middle, centre):
    left, top, right, bottom = panel.box
    names = ("right", "up", "forward")
    text(draw, ((left + right) / 2, top - 30), panel.title, 20, anchor="mm")
    step = nice_step(110 / scale)
    low = middle + (np.array([left, bottom]) - centre) / [scale, -scale]
    high = middle + (np.array([right, top]) - centre) / [scale, -scale]
    for axis in (0, 1):
        for tick in range(math.ceil(low[axis] / step), math.floor(high[axis] / step) + 1):
            label = f"{tick * step:g}"
            if axis == 0:
                x = centre[0] + (tick * step - middle[0]) * scale
                line(draw, [(x, top), (x, bottom)], FAINT, 1)
                text(draw, (x, bottom + 14), label, 14, anchor="mm")
            else:
                y = centre[1] - (tick * step - middle[1]) * scale
                line(draw, [(left, y), (right, y)], FAINT, 1)
                text(draw, (left - 8, y), label, 14, anchor="rm")
    line(draw, [(left, top), (right, top), (right, bottom), (left, bottom), (left, top)], INK, 1)
    across, up = names[panel.across], names[panel.up]
    text(draw, ((left + right) / 2, bottom + 38), across, 16, anchor="mm")
    _arrow(draw, ((left + right) / 2 + 40, bottom + 39), (22, 0))
    text(draw, (left + 14, top - 15), up, 16, anchor="lm")
    _arrow(draw, (left + 4, top - 6), (0, -18))


def _arrow(draw, start, along):
    """From `start` (x, y) by `along`, pixels; the font has no arrows."""
    start, along = np.array(start, float), np.array(along, float)
    end, forward = start + along, along / np.linalg.norm(along)
    side = np.array([-forward[1], forward[0]])
    line(draw, [start, end], INK, 1.5)
    for sign in (-1, 1):
        line(draw, [end, end - 6 * forward + 4 * sign * side], INK, 1.5)


def _draw_legend(draw, numbers, *, has_points):
    left, right, y = WIDTH / 2 - 220, WIDTH / 2 + 220, HEIGHT - 62
    for x in range(round(left), round(right)):
        colour = _colour(x - round(left), round(right) - round(left))
        line(draw, [(x, y), (x, y + 14)], colour, 1.5)
    text(draw, (left - 10, y + 7), f"first: {numbers[0]}", 15, anchor="rm")
    text(draw, (right + 10, y + 7), f"last: {numbers[-1]}", 15, anchor="lm")
    note = (
        "Each pyramid is a camera: the dot is its centre, the base its picture. The axes are the "
        "cameras' mean right, up and forward, in the source's unit; 0 is in the cameras' middle."
    )
    if has_points:
        note += " Grey: points of the scene."
    text(draw, (WIDTH / 2, HEIGHT - 24), note, 14, anchor="mm")


def _colour(index: int, count: int) -> tuple[int, int, int]:
    at = index / max(count - 1, 1) * (len(COLOURS) - 1)
    channels = [np.interp(at, range(len(COLOURS)), COLOURS[:, channel]) for channel in range(3)]
    return tuple(round(value) for value in channels)
