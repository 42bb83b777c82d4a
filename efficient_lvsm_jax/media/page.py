"""Parts of self-contained HTML pages: style, pictures, tables, error maps. RGB uint8 [Y, X, 3]."""

from __future__ import annotations

import base64
import html
import io
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from efficient_lvsm_jax.files.writing import written_whole

ERROR_RANGE = 0.5  # mean absolute error shown as the brightest colour
PICTURE_EDGE = 144  # pixels on the page
LARGEST_PNG = 128  # pixels; larger pictures are JPEG in the page, a tenth of the size
# Black, violet, orange, pale yellow: darker is better, readable without telling red from green.
ERROR_COLOURS = np.array([(6, 4, 20), (87, 16, 110), (188, 55, 84), (249, 142, 9), (252, 255, 164)])
# Name, digits, unit and which way is better.
METRIC_LOOKS = {
    "psnr": ("PSNR", 2, " dB", +1),
    "ssim": ("SSIM", 3, "", +1),
    "lpips": ("LPIPS", 3, "", -1),
    "foreground_psnr": ("PSNR of the foreground", 2, " dB", +1),
    "foreground_ssim": ("SSIM of the foreground", 3, "", +1),
}


def write_page(path: Path, title: str, parts: Iterable[str]) -> None:
    """Writes a page of the parts under the title, beside and then renamed."""
    page = _PAGE.replace("{{edge}}", str(PICTURE_EDGE)).replace("{{title}}", html.escape(title))
    head, tail = page.split("{{body}}")
    with written_whole(path) as partial, partial.open("w", encoding="utf-8") as file:
        file.write(head)
        for part in parts:  # one by one: the pictures of all would be in memory twice
            file.write(part + "\n")
        file.write(tail)


def tiles(numbers: Iterable[tuple[str, str]]) -> str:
    """Large numbers, each with what it is."""
    body = "".join(
        f"<div><b>{value}</b><span>{html.escape(label)}</span></div>" for value, label in numbers
    )
    return f'<div class="tiles">{body}</div>'


def table(header: Sequence[str], rows: Iterable[Sequence[Any]], style: str = "") -> str:
    """A table of texts; the first column is a heading."""
    head = "".join(f"<th>{html.escape(str(cell))}</th>" for cell in header)
    body = "".join(
        f"<tr><th>{html.escape(str(first))}</th>"
        + "".join(f"<td>{html.escape(str(cell))}</td>" for cell in rest)
        + "</tr>"
        for first, *rest in rows
    )
    return f'<div class="scroll"><table class="{style}"><tr>{head}</tr>{body}</table></div>'


def flat(value: dict, prefix: str = "") -> list[tuple[str, Any]]:
    """(dotted name, value) of everything in nested dicts."""
    pairs = []
    for key, item in value.items():
        name = f"{prefix}{key}"
        pairs += flat(item, f"{name}.") if isinstance(item, dict) else [(name, item)]
    return pairs


def label(metric: str) -> str:
    """Name and unit of a metric."""
    name, _, unit, _ = METRIC_LOOKS[metric]
    return f"{name},{unit}" if unit else name


def number(metric: str, value: float, *, sign: bool = False) -> str:
    """A score with its digits, without its unit; what rounds to zero has no sign."""
    text = f"{value:{'+' if sign else ''}.{METRIC_LOOKS[metric][1]}f}"
    return text.lstrip("+-") if float(text) == 0 else text


def plus_minus(metric: str, error: float) -> str:
    """A standard error as it follows its mean; "" for NaN, where there is none."""
    return "" if math.isnan(error) else f" ± {number(metric, error)}"


def scenes_count(count: int) -> str:
    """1 scene, 2 scenes."""
    return f"{count:,} scene" + ("" if count == 1 else "s")


def figure(picture: np.ndarray, alt: str, caption: str) -> str:
    """A picture with a line below it."""
    buffer = io.BytesIO()
    kind = "png" if max(picture.shape) <= LARGEST_PNG else "jpeg"
    how = {"optimize": True} if kind == "png" else {"quality": 90, "subsampling": 0}
    Image.fromarray(picture).save(buffer, kind, **how)
    data = base64.b64encode(buffer.getvalue()).decode()
    size = "" if kind == "png" else ' class="large"'
    return (
        f'<figure><img{size} alt="{html.escape(alt)}" src="data:image/{kind};base64,{data}">'
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
    )


def error_map(prediction: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Mean absolute error over the channels of two [Y, X, 3] pictures as colours [Y, X, 3]."""
    error = np.abs(prediction.astype(np.float64) - target).mean(axis=-1) / 255 / ERROR_RANGE
    stops = np.linspace(0, 1, len(ERROR_COLOURS))
    channels = [np.interp(error, stops, ERROR_COLOURS[:, channel]) for channel in range(3)]
    return np.stack(channels, axis=-1).astype(np.uint8)


def error_legend() -> str:
    """What the colours of error maps mean."""
    stops = ", ".join(f"rgb({r},{g},{b})" for r, g, b in ERROR_COLOURS)
    return (
        '<p class="legend">error, mean over channels: 0 '
        f'<i style="background:linear-gradient(90deg, {stops})"></i> {ERROR_RANGE} of the range '
        "or more</p>"
    )


_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{title}}</title>
<style>
:root { color-scheme: light dark; --paper: #fbfaf8; --ink: #1d1d22; --soft: #6b6a73;
  --line: #e4e1da; --card: #fff; --accent: #b5432a; --good: #2c7a5b; }
@media (prefers-color-scheme: dark) { :root { --paper: #15151a; --ink: #ecebe8; --soft: #9b99a3;
  --line: #2c2c34; --card: #1d1d24; --accent: #f08a5d; --good: #6cc5a0; } }
body { margin: 0 auto; padding: 2rem 1.25rem 4rem; max-width: 1060px; background: var(--paper);
  color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.7rem; margin: 0; letter-spacing: -0.02em; }
h2 { font-size: 1.15rem; margin: 2.5rem 0 .75rem; }
h3 { font-size: 1rem; margin: 0 0 .75rem; display: flex; justify-content: space-between;
  gap: 1rem; flex-wrap: wrap; overflow-wrap: anywhere; }
p { max-width: 46rem; }
small { color: var(--soft); font-weight: 400; font-size: .85em;
  font-variant-numeric: tabular-nums; }
.tiles { display: flex; flex-wrap: wrap; gap: .75rem; margin: 1.5rem 0; }
.tiles div { flex: 1 1 9rem; background: var(--card); border: 1px solid var(--line);
  border-radius: 10px; padding: .8rem 1rem; }
.tiles b { display: block; font-size: 1.9rem; line-height: 1.2; letter-spacing: -0.02em;
  font-variant-numeric: tabular-nums; }
.tiles b small { font-size: 1rem; letter-spacing: 0; }
.tiles span { color: var(--soft); font-size: .85rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .3rem 1rem .3rem 0; font-weight: 400; white-space: nowrap; }
th:first-child { text-align: left; }
tr + tr > * { border-top: 1px solid var(--line); }
th { color: var(--soft); }
table.wide { width: 100%; } table.wide th { text-align: left; }
table.text { font-size: .85rem; } table.text td { text-align: left; white-space: normal;
  overflow-wrap: anywhere; } table.text th { vertical-align: top; }
table.text th:not(:first-child) { text-align: left; }
td.bar { width: 60%; padding-right: 0; }
td.bar i { display: block; height: .6rem; border-radius: 3px; background: var(--soft);
  opacity: .5; }
tr:first-child td.bar i { background: var(--accent); opacity: 1; }
video { width: min(100%, 420px); border-radius: 10px; image-rendering: pixelated; }
.chart { width: 100%; } .chart rect, .chart path { fill: var(--accent); }
.chart .good { fill: var(--good); }
.chart text { fill: var(--soft); font-size: 12px; text-anchor: end; }
.legend, .note { color: var(--soft); font-size: .85rem; }
.legend i { display: inline-block; width: 8rem; height: .7rem; border-radius: 3px; }
article { background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  padding: 1rem; margin: 0 0 1rem; }
.scene, .targets, .row { display: flex; flex-wrap: wrap; gap: .75rem; }
.row + .row { margin-top: .75rem; }
.scene { gap: .75rem 2.5rem; } .column, .inputs { display: grid; gap: .5rem;
  align-content: start; }
.inputs { grid-template-rows: repeat(3, auto); grid-auto-flow: column; }
figure { margin: 0; } figcaption { color: var(--soft); font-size: .75rem;
  font-variant-numeric: tabular-nums; }
img { display: block; width: {{edge}}px; max-width: 26vw; height: auto; border-radius: 4px;
  image-rendering: pixelated; }
img.large { width: 184px; image-rendering: auto; }
</style>
<h1>{{title}}</h1>
{{body}}
</html>
"""
