"""Curves of several runs against the training step, as one picture."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image

from efficient_lvsm_jax.media.drawing import (
    FAINT,
    INK,
    Colour,
    canvas,
    dot,
    finish,
    line,
    nice_step,
    text,
)

# Told apart with any colour vision (Okabe and Ito), without the yellow that paper swallows.
COLOURS: tuple[Colour, ...] = (
    (0, 114, 178), (213, 94, 0), (0, 158, 115), (204, 121, 167),
    (86, 180, 233), (230, 159, 0), (90, 90, 90), (120, 60, 20),
)  # fmt: skip
MOST_CURVES = len(COLOURS)
PANEL_WIDTH, PANEL_HEIGHT, LEFT, TOP, BETWEEN, LEGEND_LINE = 640, 400, 70, 90, 90, 24  # pixels
MOST_POINTS = 600  # of a curve: more than pixels say nothing
SMOOTHED = 0.06  # a bold curve is a running mean over this part of the steps' axis
MARKS = 8  # at most so many on an axis


@dataclasses.dataclass(frozen=True)
class Panel:
    """A drawing of curves.

    Attributes:
      title: with the unit.
      curves: run to (steps [N], values [N]); values that are not finite are left out.
      points: the same for what is known at a few steps, drawn as dots.
      logarithmic: the values' axis.
      along: what the other axis counts.
    """

    title: str
    curves: Mapping[str, tuple[np.ndarray, np.ndarray]]
    points: Mapping[str, tuple[np.ndarray, np.ndarray]] = dataclasses.field(default_factory=dict)
    logarithmic: bool = False
    along: str = "step"


def draw_curves(panels: Sequence[Panel], names: Sequence[str], notes: Sequence[str]) -> Image.Image:
    """Panels side by side with one legend.

    Args:
      panels: what to draw.
      names: runs in the order of their colours, at most MOST_CURVES.
      notes: lines below the legend.
    """
    width = LEFT + len(panels) * PANEL_WIDTH + (len(panels) - 1) * BETWEEN + 30
    legend = TOP + PANEL_HEIGHT + 70
    height = legend + LEGEND_LINE * (len(names) + len(notes)) + 16
    image, draw = canvas(width, height)
    colours = dict(zip(names, COLOURS, strict=False))
    for i, panel in enumerate(panels):
        left = LEFT + i * (PANEL_WIDTH + BETWEEN)
        _draw_panel(draw, panel, (left, TOP, left + PANEL_WIDTH, TOP + PANEL_HEIGHT), colours)
    for i, name in enumerate(names):
        y = legend + i * LEGEND_LINE
        line(draw, [(LEFT, y), (LEFT + 30, y)], colours[name], 3)
        text(draw, (LEFT + 40, y), _shortened(name), 15, anchor="lm")
    for i, note in enumerate(notes):
        text(draw, (LEFT, legend + (len(names) + i) * LEGEND_LINE), note, 14, anchor="lm")
    return finish(image)


def _draw_panel(draw, panel: Panel, box: tuple[int, int, int, int], colours: dict[str, Colour]):
    left, top, right, bottom = box
    text(draw, ((left + right) / 2, top - 34), panel.title, 19, anchor="mm")
    text(draw, ((left + right) / 2, bottom + 42), panel.along, 15, anchor="mm")
    curves, points = (
        {name: _drawable(*curve, panel.logarithmic) for name, curve in group.items()}
        for group in (panel.curves, panel.points)
    )
    drawn = [c for group in (curves, points) for c in group.values() if len(c[0])]
    if not drawn:
        text(draw, ((left + right) / 2, (top + bottom) / 2), "nothing to draw", 15, anchor="mm")
        return
    steps, values = (np.concatenate(parts) for parts in zip(*drawn, strict=True))
    last = max(float(steps.max()), 1.0)
    low, high = _value_range(values)

    def place(curve: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
        x = left + curve[0] / last * (right - left)
        y = bottom - (curve[1] - low) / (high - low) * (bottom - top)
        return np.stack([x, y], axis=-1)

    for value, label in _marks(low, high, panel.logarithmic):
        y = bottom - (value - low) / (high - low) * (bottom - top)
        line(draw, [(left, y), (right, y)], FAINT, 1)
        text(draw, (left - 8, y), label, 14, anchor="rm")
    apart = nice_step(last / MARKS)
    for i in range(math.floor(last / apart) + 1):
        x = left + i * apart / last * (right - left)
        line(draw, [(x, top), (x, bottom)], FAINT, 1)
        text(draw, (x, bottom + 16), _count(i * apart), 14, anchor="mm")
    for name, curve in curves.items():
        line(draw, place(_thinned(curve)), _pale(colours[name]), 1)
    for name, curve in curves.items():
        smooth = place(_thinned(_running_mean(*curve, SMOOTHED * last)))
        if len(smooth) == 1:
            dot(draw, smooth[0], 2, colours[name])
        else:
            line(draw, smooth, colours[name], 2.2)
    for name, curve in points.items():
        for at in place(curve):
            dot(draw, at, 6, (255, 255, 255))
            dot(draw, at, 4.5, colours[name])
    line(draw, [(left, top), (right, top), (right, bottom), (left, bottom), (left, top)], INK, 1)


def _drawable(
    steps: np.ndarray, values: np.ndarray, logarithmic: bool
) -> tuple[np.ndarray, np.ndarray]:
    """What can be drawn of a curve; values on the axis, the logarithm if it is logarithmic."""
    steps, values = np.asarray(steps, np.float64), np.asarray(values, np.float64)
    kept = np.isfinite(values) & ((values > 0) | (not logarithmic))
    steps, values = steps[kept], values[kept]
    return steps, np.log10(values) if logarithmic else values


def _value_range(values: np.ndarray) -> tuple[float, float]:
    low, high = float(values.min()), float(values.max())
    margin = max(0.04 * (high - low), 1e-3 * max(abs(high), 1e-6))
    return low - margin, high + margin


def _marks(low: float, high: float, logarithmic: bool) -> list[tuple[float, str]]:
    """(place on the axis, label)."""
    if not logarithmic:
        apart = nice_step((high - low) / MARKS)
        ticks = range(math.ceil(low / apart), math.floor(high / apart) + 1)
        return [(tick * apart, f"{tick * apart:.6g}") for tick in ticks]
    decades = range(math.floor(low), math.ceil(high) + 1)
    for factors in (range(1, 10), (1, 2, 3, 5, 7), (1, 2, 5), (1,)):
        places = [(math.log10(f) + d, f"{f * 10.0**d:.6g}") for d in decades for f in factors]
        marks = [mark for mark in places if low <= mark[0] <= high]
        if len(marks) <= MARKS:
            return marks
    return marks[:: math.ceil(len(marks) / MARKS)]


def _thinned(curve: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """At most MOST_POINTS points, means of neighbours."""
    per_point = math.ceil(len(curve[0]) / MOST_POINTS)
    if per_point <= 1:
        return curve
    starts = np.arange(0, len(curve[0]), per_point)
    counts = np.diff([*starts, len(curve[0])])
    return tuple(np.add.reduceat(axis, starts) / counts for axis in curve)


def _running_mean(
    steps: np.ndarray, values: np.ndarray, reach: float
) -> tuple[np.ndarray, np.ndarray]:
    """Mean of the values within half of `reach` steps; at the ends of those that there are."""
    total = np.concatenate([[0.0], np.cumsum(values)])
    first = np.searchsorted(steps, steps - reach / 2)
    behind = np.searchsorted(steps, steps + reach / 2, side="right")
    return steps, (total[behind] - total[first]) / np.maximum(behind - first, 1)


def _pale(colour: Colour) -> Colour:
    return tuple(round(255 - 0.35 * (255 - channel)) for channel in colour)


def _count(number: float) -> str:
    """40000 as 40k."""
    return f"{number / 1000:g}k" if number >= 10_000 else f"{number:g}"


def _shortened(name: str, length: int = 120) -> str:
    return name if len(name) <= length else f"{name[: length // 2]}…{name[-length // 2 + 1 :]}"
