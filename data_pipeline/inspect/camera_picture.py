"""A picture of a scene's cameras: every one as a small pyramid, from above and from the side."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.geometry.cameras import SceneFrame
from efficient_lvsm_jax.media.plots import FAINT, INK, new_figure, style

WIDTH, HEIGHT = 1600, 860  # pixels
PANEL_SHAPE = 1.12  # width over height
# The first camera is dark blue, the last yellow: ordered in brightness too, so it survives grey.
# The end is cut off, which paper swallows.
COLOURS = ListedColormap(matplotlib.colormaps["viridis"](np.linspace(0, 0.95, 256)))
POINTS = "#b0b6be"
PYRAMID = 0.07  # height of a camera's pyramid, of the drawing's extent
LABELS, LABEL_DISTANCE = 12, 0.03  # at most so many are labelled, apart by this part of the width
NAMES = ("right →", "up →", "forward →")  # of the axes; the middle one is down, turned over
NOTE = (
    "Each pyramid is a camera: the dot is its centre, the base its picture. The axes are the "
    "cameras' mean right, up and forward, in the source's unit; 0 is in the cameras' middle."
)


def draw_cameras(
    c2w: np.ndarray,
    fxfycxcy: np.ndarray,
    sizes: np.ndarray,
    title: str,
    *,
    points: np.ndarray | None = None,
    labels: Sequence[int] | None = None,
) -> Figure:
    """Cameras from above and from the side, in the world's unit, coloured by their order.

    Up in the picture is the cameras' mean up, or the world's axes where they have none.

    Args:
      c2w: [V, 4, 4]. fxfycxcy: [V, 4]. sizes: [V, 2] (width, height); pixels.
      title: the line above.
      points: [M, 3] of the scene, drawn as faint dots as far as they are near the cameras.
      labels: what number each camera is called by, its index by default.
    """
    turn = _scene_axes(c2w) * [[1], [-1], [1]]  # rows: right, up, forward
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

    figure = new_figure(WIDTH, HEIGHT)
    figure.suptitle(title, fontsize=16, parse_math=False)
    numbers = list(range(len(c2w))) if labels is None else list(labels)
    # Across and up of each; both have the same scale, with which everything fits.
    panels = (("from above", [0, 2]), ("from the side", [2, 1]))
    spreads = [np.ptp(shown[:, flat], axis=0) for _, flat in panels]
    width = max(max(across, up * PANEL_SHAPE) for across, up in spreads) / 0.92
    both = figure.subplots(1, 2)
    for axes, (name, flat) in zip(both, panels, strict=True):
        style(axes)
        axes.set_title(name, fontsize=13)
        axes.set_box_aspect(1 / PANEL_SHAPE)
        x, y = (shown[:, flat].min(0) + shown[:, flat].max(0)) / 2
        up = width / PANEL_SHAPE
        axes.set(xlim=(x - width / 2, x + width / 2), ylim=(y - up / 2, y + up / 2))
        axes.set(xlabel=NAMES[flat[0]], ylabel=NAMES[flat[1]])
        axes.xaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.plot(*points[:, flat].T, ".", color=POINTS, markersize=1.6)
        _draw_cameras(axes, pyramids[:, :, flat], numbers, LABEL_DISTANCE * width)
    order = ScalarMappable(Normalize(0, 1), COLOURS)
    bar = figure.colorbar(order, ax=both, location="bottom", aspect=40, shrink=0.4)
    bar.outline.set_visible(False)
    bar.set_ticks([0, 1], labels=[f"first: {numbers[0]}", f"last: {numbers[-1]}"])
    bar.set_label(NOTE + (" Grey: points of the scene." if len(points) else ""))
    return figure


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


def _draw_cameras(axes: Axes, pyramids: np.ndarray, numbers: Sequence[int], apart: float) -> None:
    """Pyramids [V, 5, 2], and labels of some whose tips are further apart than `apart`."""
    count = len(pyramids)
    axes.plot(*pyramids[:, 0].T, color=FAINT, linewidth=1.5)
    colours = COLOURS(np.arange(count) / max(count - 1, 1))[::-1]  # the first ones on top
    paths = pyramids[::-1, [0, 1, 2, 0, 3, 4, 0, 2, 3, 0, 1, 4]]
    width = 1.6 if count <= 60 else 0.9
    axes.add_collection(LineCollection(paths, colors=colours, linewidths=width), autolim=False)
    axes.scatter(*pyramids[::-1, 0].T, s=(4 * width) ** 2 / 2, color=colours, zorder=3)
    labelled: list[np.ndarray] = []
    for index in np.unique(np.linspace(0, count - 1, min(count, LABELS)).round().astype(int)):
        tip = pyramids[index, 0]
        if any(np.linalg.norm(tip - other) < apart for other in labelled):
            continue
        labelled.append(tip)
        away = tip - pyramids[index, 1:].mean(0)  # behind the camera
        length = np.linalg.norm(away)
        away = away / length if length > 0.1 * apart else np.array([0.0, 1.0])
        axes.annotate(
            str(numbers[index]), tip, 11 * away, textcoords="offset points", color=INK,
            ha="center", va="center", path_effects=[withStroke(linewidth=3, foreground="white")],
        )  # fmt: skip
