"""The evaluation as one self-contained page: numbers, a film, and every scene to look at.

Axes: V input view, T target view, Y X pixel. Pictures are uint8 RGB.
"""

from __future__ import annotations

import base64
import dataclasses
import html
import io
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

ERROR_RANGE = 0.5  # mean absolute error shown as the brightest colour
PICTURE_EDGE = 144  # pixels; smaller pictures are enlarged to it in the page
# Black, violet, orange, pale yellow: darker is better, readable without telling red from green.
ERROR_COLOURS = np.array([(6, 4, 20), (87, 16, 110), (188, 55, 84), (249, 142, 9), (252, 255, 164)])


@dataclasses.dataclass(frozen=True)
class SceneResult:
    """A scored scene.

    Attributes:
      scene: its name.
      inputs: [V, Y, X, 3] uint8.
      targets, predictions: [T, Y, X, 3] uint8.
      psnr, ssim: [T].
    """

    scene: str
    inputs: np.ndarray
    targets: np.ndarray
    predictions: np.ndarray
    psnr: np.ndarray
    ssim: np.ndarray


def write_report(
    path: str | Path,
    results: Sequence[SceneResult],
    metrics: dict,
    *,
    film: str | Path | None = None,
    max_scenes: int = 60,
) -> None:
    """Writes report.html, beside and then renamed; it needs no other file.

    Args:
      path: of the page.
      results: the scored scenes; shown from the worst to the best mean PSNR.
      metrics: `summary` and `baselines`, and `added_one_by_one` if there is one, as eval.py
        writes them to metrics.json.
      film: an mp4 to embed.
      max_scenes: of more scenes the worst and the best are shown, half of them each.
    """
    path = Path(path)
    ranked = sorted(results, key=lambda result: float(np.mean(result.psnr)))
    shown = ranked
    if len(ranked) > max_scenes:
        half = max_scenes // 2
        shown = ranked[:half] + ranked[len(ranked) - (max_scenes - half) :]
    parts = [
        _headline(metrics),
        _film(film),
        _one_by_one(metrics.get("added_one_by_one", [])),
        _chart(ranked),
        f"<h2>Scenes <small>{len(shown)} of {len(ranked)}, worst first</small></h2>",
        _legend(),
        *(_card(result) for result in shown),
    ]
    page = _PAGE.replace("{{body}}", "\n".join(parts)).replace("{{edge}}", str(PICTURE_EDGE))
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(page, encoding="utf-8")
    os.replace(partial, path)


def error_map(prediction: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Mean absolute error over the channels of two [Y, X, 3] pictures as colours [Y, X, 3]."""
    error = np.abs(prediction.astype(np.float64) - target).mean(axis=-1) / 255 / ERROR_RANGE
    stops = np.linspace(0, 1, len(ERROR_COLOURS))
    channels = [np.interp(error, stops, ERROR_COLOURS[:, channel]) for channel in range(3)]
    return np.stack(channels, axis=-1).astype(np.uint8)


def _headline(metrics: dict) -> str:
    summary, trivial = metrics["summary"], metrics["baselines"]
    numbers = [
        (f"{summary['psnr']:.2f}", "dB PSNR"),
        (f"{summary['ssim']:.3f}", "SSIM"),
        (f"{summary['scenes']}", "held-out scenes"),
        (f"+{summary['psnr'] - trivial['nearest']['psnr']:.2f}", "dB over the nearest input"),
    ]
    tiles = "".join(f"<div><b>{value}</b><span>{label}</span></div>" for value, label in numbers)
    bars = "".join(
        f"<tr><th>{name}</th><td>{value:.2f} dB</td>"
        f'<td class="bar"><i style="width:{max(value, 0) / 40:.0%}"></i></td></tr>'
        for name, value in (
            ("this model", summary["psnr"]),
            ("copy the nearest input", trivial["nearest"]["psnr"]),
            ("mean input colour", trivial["mean"]["psnr"]),
        )
    )
    return f'<div class="tiles">{tiles}</div><table class="wide">{bars}</table>'


def _film(film: str | Path | None) -> str:
    if film is None:
        return ""
    data = base64.b64encode(Path(film).read_bytes()).decode()
    return (
        "<h2>Film <small>along a path through the inputs of one held-out scene</small></h2>"
        '<video controls loop autoplay muted playsinline aria-label="Film of one scene" '
        f'src="data:video/mp4;base64,{data}"></video>'
    )


def _one_by_one(rows: Sequence[dict]) -> str:
    if not rows:
        return ""
    body = "".join(
        f"<tr><td>{row['inputs']}</td><td>{row['psnr']:.2f}</td><td>{row['add_ms']:.1f}</td>"
        f"<td>{row['render_ms']:.1f}</td></tr>"
        for row in rows
    )
    return (
        "<h2>Views added one by one <small>the cache at work, medians over scenes</small></h2>"
        "<table><tr><th>inputs</th><th>PSNR, dB</th><th>adding a view, ms</th>"
        f"<th>rendering a picture, ms</th></tr>{body}</table>"
    )


def _chart(ranked: Sequence[SceneResult]) -> str:
    """A bar per scene, worst to best, as inline SVG."""
    values = [float(np.mean(result.psnr)) for result in ranked]
    low = np.floor(min(values)) - 1
    span = max(np.ceil(max(values)) - low, 1)
    width = 720 / len(values)
    bars = "".join(
        f'<rect x="{40 + i * width:.2f}" y="{110 - 100 * (value - low) / span:.1f}" '
        f'width="{max(width - 1, 0.5):.2f}" height="{100 * (value - low) / span:.1f}">'
        f"<title>{html.escape(result.scene)}: {value:.2f} dB</title></rect>"
        for i, (value, result) in enumerate(zip(values, ranked, strict=True))
    )
    marks = "".join(
        f'<text x="34" y="{114 - 100 * share:.0f}">{low + span * share:.0f}</text>'
        for share in (0.0, 0.5, 1.0)
    )
    return (
        "<h2>PSNR of every scene <small>dB, mean of its targets</small></h2>"
        '<svg class="chart" viewBox="0 0 764 120" role="img" '
        f'aria-label="Bars of PSNR per scene, {values[0]:.1f} to {values[-1]:.1f} dB">'
        f"{marks}{bars}</svg>"
    )


def _legend() -> str:
    stops = ", ".join(f"rgb({r},{g},{b})" for r, g, b in ERROR_COLOURS)
    return (
        '<p class="legend">error, mean over channels: 0 '
        f'<i style="background:linear-gradient(90deg, {stops})"></i> {ERROR_RANGE} of the range '
        "or more</p>"
    )


def _card(result: SceneResult) -> str:
    name = html.escape(result.scene)
    inputs = "".join(
        _figure(picture, f"{name}, input {i + 1}", "input")
        for i, picture in enumerate(result.inputs)
    )
    columns = ""
    for i, (target, prediction) in enumerate(zip(result.targets, result.predictions, strict=True)):
        scores = f"{result.psnr[i]:.2f} dB · {result.ssim[i]:.3f}"
        columns += (
            '<div class="column">'
            + _figure(target, f"{name}, target {i + 1}", "true")
            + _figure(prediction, f"{name}, prediction {i + 1}", scores)
            + _figure(error_map(prediction, target), f"{name}, error {i + 1}", "error")
            + "</div>"
        )
    return (
        f"<article><h3>{name}<small>{np.mean(result.psnr):.2f} dB · SSIM "
        f'{np.mean(result.ssim):.3f}</small></h3><div class="scene">'
        f'<div class="column">{inputs}</div><div class="targets">{columns}</div></div></article>'
    )


def _figure(picture: np.ndarray, alt: str, caption: str) -> str:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG", optimize=True)
    data = base64.b64encode(buffer.getvalue()).decode()
    return (
        f'<figure><img alt="{alt}" src="data:image/png;base64,{data}">'
        f"<figcaption>{caption}</figcaption></figure>"
    )


_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Efficient-LVSM: held-out scenes</title>
<style>
:root { color-scheme: light dark; --paper: #fbfaf8; --ink: #1d1d22; --soft: #6b6a73;
  --line: #e4e1da; --card: #fff; --accent: #b5432a; }
@media (prefers-color-scheme: dark) { :root { --paper: #15151a; --ink: #ecebe8; --soft: #9b99a3;
  --line: #2c2c34; --card: #1d1d24; --accent: #f08a5d; } }
body { margin: 0 auto; padding: 2rem 1.25rem 4rem; max-width: 1060px; background: var(--paper);
  color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.7rem; margin: 0; letter-spacing: -0.02em; }
h2 { font-size: 1.15rem; margin: 2.5rem 0 .75rem; }
h3 { font-size: 1rem; margin: 0 0 .75rem; display: flex; justify-content: space-between;
  gap: 1rem; flex-wrap: wrap; overflow-wrap: anywhere; }
small { color: var(--soft); font-weight: 400; font-size: .85em;
  font-variant-numeric: tabular-nums; }
.tiles { display: flex; flex-wrap: wrap; gap: .75rem; margin: 1.5rem 0; }
.tiles div { flex: 1 1 9rem; background: var(--card); border: 1px solid var(--line);
  border-radius: 10px; padding: .8rem 1rem; }
.tiles b { display: block; font-size: 1.9rem; line-height: 1.2; letter-spacing: -0.02em;
  font-variant-numeric: tabular-nums; }
.tiles span { color: var(--soft); font-size: .85rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .3rem 1rem .3rem 0; font-weight: 400; white-space: nowrap; }
tr + tr > * { border-top: 1px solid var(--line); }
th { color: var(--soft); }
table.wide { width: 100%; } table.wide th { text-align: left; }
td.bar { width: 60%; padding-right: 0; }
td.bar i { display: block; height: .6rem; border-radius: 3px; background: var(--soft);
  opacity: .5; }
tr:first-child td.bar i { background: var(--accent); opacity: 1; }
video { width: min(100%, 420px); border-radius: 10px; image-rendering: pixelated; }
.chart { width: 100%; } .chart rect { fill: var(--accent); }
.chart text { fill: var(--soft); font-size: 12px; text-anchor: end; }
.legend { color: var(--soft); font-size: .85rem; }
.legend i { display: inline-block; width: 8rem; height: .7rem; border-radius: 3px; }
article { background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  padding: 1rem; margin: 0 0 1rem; }
.scene, .targets { display: flex; flex-wrap: wrap; gap: .75rem; }
.scene { gap: .75rem 2.5rem; } .column { display: grid; gap: .5rem; align-content: start; }
figure { margin: 0; } figcaption { color: var(--soft); font-size: .75rem;
  font-variant-numeric: tabular-nums; }
img { display: block; width: {{edge}}px; max-width: 26vw; height: auto; border-radius: 4px;
  image-rendering: pixelated; }
</style>
<h1>Efficient-LVSM on scenes it never saw</h1>
{{body}}
</html>
"""
