"""What all plots share: matplotlib figures without its global state, their colours, how they end.

Figures are made as objects, never by pyplot, which keeps every figure it makes.
"""

from __future__ import annotations

import io
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from efficient_lvsm_jax.files.writing import written_whole

# Told apart with any colour vision (Okabe and Ito), without the yellow that paper swallows.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#5a5a5a", "#783c14")
INK, FAINT = "#282c34", "#e2e5e9"
# Of plots within pages, which replace them by the colours of the same name that they have set.
SOFT, LINE, ACCENT, GOOD = "#6b6a73", "#e4e1da", "#b5432a", "#2c7a5b"
OF_THE_PAGE = {SOFT: "--soft", LINE: "--line", ACCENT: "--accent", GOOD: "--good"}
DOTS_PER_INCH = 100
MOST_BARS = 200


def new_figure(width: int, height: int) -> Figure:
    """An empty figure of so many pixels; `figure.savefig(path)` keeps them."""
    size = (width / DOTS_PER_INCH, height / DOTS_PER_INCH)
    return Figure(figsize=size, dpi=DOTS_PER_INCH, layout="constrained")


def style(axes: Axes, *, ink: str = INK, grid: str = FAINT) -> None:
    """A faint grid behind what is drawn, and a frame and marks in one colour."""
    axes.set_axisbelow(True)
    axes.grid(color=grid, linewidth=0.8)
    axes.tick_params(which="both", color=ink, labelcolor=ink, length=0)
    axes.spines[:].set_color(ink)


def save_png(figure: Figure, path: Path) -> None:
    """Writes the figure beside and then renamed.

    Raises:
      OSError: it cannot be written.
    """
    with written_whole(path) as partial:
        figure.savefig(partial, format="png")


def png(figure: Figure) -> bytes:
    """The figure as a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def bars(
    values: Sequence[float],
    names: Sequence[str],
    description: str,
    *,
    unit: str,
    along: str,
    above: str = ACCENT,
) -> Markup:
    """Bars of sorted finite numbers, as an element of a page; of many, their outline.

    Args:
      values, names: [N]; bars start at 0, and a name is shown when one points at its bar.
      description: for those who do not see it.
      unit, along: what the axes count.
      above: the colour of numbers above 0; those below are ACCENT.
    """
    figure = new_figure(1200, 240)
    axes = figure.subplots()
    style(axes, ink=SOFT, grid=LINE)
    values, places = np.asarray(values, np.float64), np.arange(len(values))
    titles = {f"bar{i}": f"{names[i]}: {value:.4g} {unit}" for i, value in enumerate(values)}
    if len(values) <= MOST_BARS:
        colours = np.where(values < 0, ACCENT, above)
        for gid, bar in zip(titles, axes.bar(places, values, 0.9, color=colours), strict=True):
            bar.set_gid(gid)
    else:  # sorted, so that some of them show the shape of all
        places = places[np.linspace(0, len(values) - 1, 2 * MOST_BARS).round().astype(int)]
        for colour, part in ((ACCENT, np.minimum(values, 0)), (above, np.maximum(values, 0))):
            axes.fill_between(places, part[places], color=colour, linewidth=0)
    axes.set(xlim=(-0.5, max(len(values), 12) - 0.5), xticks=[])  # few are bars, not walls
    axes.set_xlabel(along, color=SOFT)
    axes.set_ylabel(unit, color=SOFT)
    axes.yaxis.set_major_formatter("{x:.6g}")
    return svg(figure, description, titles)


def svg(figure: Figure, description: str, titles: Mapping[str, str]) -> Markup:
    """The figure as an element of a page, as wide as there is room, in the page's own colours.

    Args:
      figure: drawn with SOFT, LINE, ACCENT and GOOD.
      description: for those who do not see it.
      titles: of parts, by the gid they were given: shown when one points at them.
    """
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none"}):  # letters, not their outlines
        figure.savefig(buffer, format="svg", transparent=True)
    root = ElementTree.fromstring(buffer.getvalue())
    for element in list(root.iter()):
        element.tag = element.tag.rpartition("}")[2]
        for name in [name for name in element.attrib if "}" in name]:
            element.set(name.rpartition("}")[2], element.attrib.pop(name))
        if element.get("id") in titles:
            title = ElementTree.Element("title")
            title.text = titles[element.get("id")]
            element.insert(0, title)
        for child in list(element):
            if child.tag.endswith(("}metadata", "}style")):  # the style is one of the whole page
                element.remove(child)
    root.attrib = {"viewBox": root.get("viewBox"), "role": "img", "aria-label": description}
    text = ElementTree.tostring(root, encoding="unicode")
    for colour, name in OF_THE_PAGE.items():
        text = text.replace(colour, f"var({name})")
    return Markup(f'<div class="scroll chart">{text}</div>')
