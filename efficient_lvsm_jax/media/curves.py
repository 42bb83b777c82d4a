"""Curves of several runs against the training step, as one figure."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, StrMethodFormatter

from efficient_lvsm_jax.media.plots import COLOURS, new_figure, style

MOST_CURVES = len(COLOURS)
PANEL_WIDTH, PANEL_HEIGHT, LEGEND_LINE = 740, 520, 22  # pixels
SMOOTHED = 0.06  # a bold curve is a running mean over this part of the steps' axis


@dataclasses.dataclass(frozen=True)
class Panel:
    """A drawing of curves.

    Attributes:
      title: with the unit.
      curves: run to (steps [N], values [N]); values that are not finite are left out.
      points: the same for what is known at a few steps, drawn as dots.
      logarithmic: the values' axis; values that are not above 0 are left out.
      along: what the other axis counts.
    """

    title: str
    curves: Mapping[str, tuple[np.ndarray, np.ndarray]]
    points: Mapping[str, tuple[np.ndarray, np.ndarray]] = dataclasses.field(default_factory=dict)
    logarithmic: bool = False
    along: str = "step"


def draw_curves(panels: Sequence[Panel], names: Sequence[str], notes: Sequence[str]) -> Figure:
    """Panels side by side with one legend.

    Args:
      panels: what to draw.
      names: runs in the order of their colours, at most MOST_CURVES.
      notes: lines below the legend.
    """
    lines = len(names) + len(notes)
    figure = new_figure(len(panels) * PANEL_WIDTH, PANEL_HEIGHT + LEGEND_LINE * lines)
    colours = dict(zip(names, COLOURS, strict=False))
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        _draw_panel(axes, panel, colours)
    handles = [Line2D([], [], color=colours[name], linewidth=2.5) for name in names]
    handles += [Line2D([], [], linestyle="none") for _ in notes]
    legend = figure.legend(handles, map(str, range(lines)), loc="outside lower left", frameon=False)
    # Set afterwards: a label may not begin with "_" there, and would be read as mathematics.
    for text, words in zip(legend.get_texts(), [*map(_shortened, names), *notes], strict=True):
        text.set_parse_math(False)
        text.set_text(words)
    return figure


def _draw_panel(axes: Axes, panel: Panel, colours: Mapping[str, str]) -> None:
    style(axes)
    axes.set_title(panel.title, fontsize=14)
    axes.set_xlabel(panel.along)
    curves, points = (
        {name: _drawable(*curve, panel.logarithmic) for name, curve in group.items()}
        for group in (panel.curves, panel.points)
    )
    drawn = [c for group in (curves, points) for c in group.values() if len(c[0])]
    if not drawn:
        axes.text(0.5, 0.5, "nothing to draw", ha="center", transform=axes.transAxes)
        axes.set(xticks=[], yticks=[])
        return
    steps, values = (np.concatenate(parts) for parts in zip(*drawn, strict=True))
    last = max(float(steps.max()), 1.0)
    axes.set_xlim(0, 1.01 * last)
    axes.xaxis.set_major_locator(MaxNLocator(8, steps=(1, 2, 5, 10), integer=True))
    axes.xaxis.set_major_formatter(lambda value, _: _count(value))
    if panel.logarithmic:
        axes.set_yscale("log")
        few = values.max() < 1000 * values.min()  # decades
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if few else (1,)))
        axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:.6g}"))
    for name, curve in curves.items():
        axes.plot(*curve, color=colours[name], linewidth=0.8, alpha=0.35)
    for name, curve in curves.items():
        alone = "." if len(curve[0]) == 1 else ""
        smooth = _running_mean(*curve, SMOOTHED * last)
        axes.plot(*smooth, color=colours[name], linewidth=1.8, marker=alone)
    for name, curve in points.items():
        axes.plot(*curve, "o", color=colours[name], markeredgecolor="white", markersize=7)


def _drawable(
    steps: np.ndarray, values: np.ndarray, logarithmic: bool
) -> tuple[np.ndarray, np.ndarray]:
    """What can be drawn of a curve."""
    steps, values = np.asarray(steps, np.float64), np.asarray(values, np.float64)
    kept = np.isfinite(values) & ((values > 0) | (not logarithmic))
    return steps[kept], values[kept]


def _running_mean(
    steps: np.ndarray, values: np.ndarray, reach: float
) -> tuple[np.ndarray, np.ndarray]:
    """Mean of the values within half of `reach` steps; at the ends of those that there are."""
    total = np.concatenate([[0.0], np.cumsum(values)])
    first = np.searchsorted(steps, steps - reach / 2)
    behind = np.searchsorted(steps, steps + reach / 2, side="right")
    return steps, (total[behind] - total[first]) / np.maximum(behind - first, 1)


def _count(number: float) -> str:
    """40000 as 40k."""
    return f"{number / 1000:g}k" if number >= 10_000 else f"{number:g}"


def _shortened(name: str, length: int = 120) -> str:
    return name if len(name) <= length else f"{name[: length // 2]}…{name[-length // 2 + 1 :]}"
