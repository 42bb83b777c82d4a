"""The evaluation as one self-contained page: numbers, how they were made, a film, and scenes.

Axes: V input view, T target view, Y X pixel. Pictures are uint8 RGB.
"""

from __future__ import annotations

import base64
import dataclasses
import html
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from efficient_lvsm_jax.evaluation.results import SceneScores, metrics_of
from efficient_lvsm_jax.media.page import (
    METRIC_LOOKS,
    error_legend,
    error_map,
    figure,
    flat,
    label,
    number,
    plus_minus,
    scenes_count,
    table,
    tiles,
    write_page,
)

WORST, MIDDLE, BEST = 10, 3, 3  # scenes shown of each
MOST_BARS = 200  # scenes of which each gets a bar of its own
MOST_NAMES = 20
CAPTIONED = ("psnr", "ssim", "lpips")  # below every prediction, in this order


@dataclasses.dataclass(frozen=True)
class ShownScene:
    """A scored scene with its pictures.

    scores: of the scene. inputs: [V, Y, X, 3] uint8. targets, predictions: [T, Y, X, 3] uint8.
    """

    scores: SceneScores
    inputs: np.ndarray
    targets: np.ndarray
    predictions: np.ndarray


def choose_shown(rows: Sequence[SceneScores]) -> list[SceneScores]:
    """The worst, some middle and the best scenes by PSNR, worst first, each once."""
    ranked = _ranked(rows)
    count, middle = len(ranked), (len(ranked) - MIDDLE) // 2
    places = {*range(WORST), *range(middle, middle + MIDDLE), *range(count - BEST, count)}
    return [ranked[place] for place in sorted(places) if 0 <= place < count]


def write_report(
    path: str | Path,
    rows: Sequence[SceneScores],
    shown: Sequence[ShownScene],
    metrics: dict,
    *,
    film: str | Path | None = None,
) -> None:
    """Writes report.html, beside and then renamed; it needs no other file.

    Args:
      path: of the page.
      rows: all scored scenes.
      shown: those with pictures.
      metrics: as eval.py writes them to metrics.json.
      film: an mp4 to embed.
    """
    ranked = _ranked(rows)

    def parts() -> Iterator[str]:
        yield _headline(metrics)
        yield _film(film)
        yield _one_by_one(metrics.get("added_one_by_one", []))
        if len(ranked) > 1:
            yield _chart(ranked)
        yield _leak(metrics)
        yield _coverage(metrics["coverage"])
        yield f"<h2>Scenes <small>{len(shown)} of {len(ranked)}, by PSNR, worst first</small></h2>"
        captions = ", ".join(METRIC_LOOKS[m][0] for m in CAPTIONED if m in metrics["summary"])
        yield f'<p class="note">Below every prediction: its {captions}.</p>'
        yield error_legend()
        place = {row.scene: i for i, row in enumerate(ranked)}
        for scene in sorted(shown, key=lambda scene: place[scene.scores.scene]):
            yield _card(scene, f"{place[scene.scores.scene] + 1} of {len(ranked)}")
        yield "<h2>How this was made <small>metrics.json has it all</small></h2>"
        pairs = [*flat(metrics["protocol"]), *flat(metrics["run"])]
        pairs.append(("protocol_sha256", metrics["protocol_sha256"]))
        yield table(("", ""), [(name, _text(value)) for name, value in pairs], "text")

    write_page(Path(path), "Novel views, scored", parts())


def _ranked(rows: Sequence[SceneScores]) -> list[SceneScores]:
    """Scenes with scores, worst first; not a number is worse than any."""

    def key(row: SceneScores) -> float:
        psnr = row.mean("psnr")
        return -math.inf if math.isnan(psnr) else psnr

    return sorted((row for row in rows if not row.unusable), key=key)


def _headline(metrics: dict) -> str:
    summary, trivial = metrics["summary"], metrics["baselines"]
    numbers = []
    for metric, (name, _, unit, _) in METRIC_LOOKS.items():
        if metric in summary:
            value = number(metric, summary[metric])
            value += f"<small>{plus_minus(metric, summary[f'{metric}_standard_error'])}</small>"
            numbers.append((value, (unit + " ").lstrip() + name))
    count, what = scenes_count(summary["scenes"]).split()
    numbers.append((count, f"{what}, {summary['targets']:,} targets"))
    # Like the baselines, without targets that are inputs: their copy is perfect.
    own = metrics["leak"]["without_them"].get("psnr", math.nan)
    gain = own - trivial["nearest"]["psnr"]
    if math.isfinite(gain):
        numbers.append((f"{gain:+.2f}", "dB over the nearest input"))
    bars = "".join(
        f"<tr><th>{name}</th><td>{value:.2f} dB</td>"
        f'<td class="bar"><i style="width:{min(max(value, 0), 40) / 40:.0%}"></i></td></tr>'
        for name, value in (
            ("these pictures", own),
            ("copy the nearest input", trivial["nearest"]["psnr"]),
            ("mean input colour", trivial["mean"]["psnr"]),
        )
        if math.isfinite(value)
    )
    notes = []
    if summary["scenes"] > 1:
        notes.append("± is the standard error of the mean over scenes.")
    if metrics["leak"]["targets_that_are_inputs"]:
        notes.append("Compared with the baselines on targets that are no inputs.")
    note = f'<p class="note">{" ".join(notes)}</p>' if notes else ""
    return f'{_origin(metrics)}{tiles(numbers)}{note}<table class="wide">{bars}</table>'


def _origin(metrics: dict) -> str:
    """One line: what was scored, on what."""
    run = metrics["run"]
    return (
        f'<p class="note">{html.escape(run["renderer"])}<br>on {html.escape(run["data"])}, '
        f"pictures {metrics['protocol']['pictures']['size']} pixels high</p>"
    )


def _film(film: str | Path | None) -> str:
    if film is None:
        return ""
    data = base64.b64encode(Path(film).read_bytes()).decode()
    return (
        "<h2>Film <small>along a path through the inputs of the first scene</small></h2>"
        '<video controls loop autoplay muted playsinline aria-label="Film of one scene" '
        f'src="data:video/mp4;base64,{data}"></video>'
    )


def _one_by_one(rows: Sequence[dict]) -> str:
    if not rows:
        return ""
    body = [
        (row["inputs"], f"{row['psnr']:.2f}", f"{row['add_ms']:.1f}", f"{row['render_ms']:.1f}")
        for row in rows
    ]
    header = ("inputs", "PSNR, dB", "adding a view, ms", "rendering a picture, ms")
    return (
        "<h2>Views added one by one <small>the cache at work, medians over scenes</small></h2>"
        + table(header, body)
    )


def _chart(ranked: Sequence[SceneScores]) -> str:
    """PSNR of every scene, worst to best, as inline SVG: a bar each, or of many their outline."""
    finite = [row for row in ranked if math.isfinite(row.mean("psnr"))]
    if not finite:
        return ""
    values = [row.mean("psnr") for row in finite]
    low = np.floor(min(values)) - 1
    span = 2 * math.ceil((max(values) - low) / 2)  # even: the middle mark is a whole number
    width = 720 / len(values)
    heights = [100 * (value - low) / span for value in values]
    if len(values) <= MOST_BARS:
        drawn = "".join(
            f'<rect x="{40 + i * width:.2f}" y="{110 - height:.1f}" '
            f'width="{max(width - 1, 0.5):.2f}" height="{height:.1f}">'
            f"<title>{html.escape(row.scene)}: {value:.2f} dB</title></rect>"
            for i, (value, height, row) in enumerate(zip(values, heights, finite, strict=True))
        )
    else:
        at = np.linspace(0, len(values) - 1, 720).round().astype(int)
        outline = " ".join(f"L{40 + i} {110 - heights[k]:.1f}" for i, k in enumerate(at))
        drawn = f'<path d="M40 110 {outline} L759 110 Z"/>'
    marks = "".join(
        f'<text x="34" y="{114 - 100 * share:.0f}">{low + span * share:.0f}</text>'
        for share in (0.0, 0.5, 1.0)
    )
    left_out = len(ranked) - len(finite)
    note = f", without {left_out} that are not finite" if left_out else ""
    return (
        f"<h2>PSNR of every scene <small>dB, mean of its targets{note}</small></h2>"
        '<svg class="chart" viewBox="0 0 764 120" role="img" '
        f'aria-label="PSNR per scene, {values[0]:.1f} to {values[-1]:.1f} dB">'
        f"{marks}{drawn}</svg>"
    )


def _leak(metrics: dict) -> str:
    leak, summary = metrics["leak"], metrics["summary"]
    heading = "<h2>Targets that are inputs <small>a copy would be perfect there</small></h2>"
    if not leak["targets_that_are_inputs"]:
        return heading + "<p>None: no target is among the inputs of its scene.</p>"
    without = leak["without_them"]
    names = [metric for metric in METRIC_LOOKS if metric in summary]
    rows = [
        (
            which,
            f"{numbers['scenes']:,}",
            f"{numbers['targets']:,}",
            *(
                number(m, numbers[m]) + plus_minus(m, numbers[f"{m}_standard_error"])
                for m in names
                if m in numbers
            ),
        )
        for which, numbers in (("all targets", summary), ("without those", without))
    ]
    header = ("", "scenes", "targets", *map(label, names))
    return (
        f"{heading}<p>{leak['targets_that_are_inputs']:,} of {summary['targets']:,} targets, in "
        f"{scenes_count(leak['scenes_with_such'])}.</p>" + table(header, rows)
    )


def _coverage(coverage: dict) -> str:
    lines = []
    if "listed" in coverage:
        lines.append(
            f"The index lists {scenes_count(coverage['listed'])} to score and "
            f"{coverage['null']:,} not to score."
        )
    for key, what in (
        ("missing", "of the index not in the data"),
        ("unlisted", "of the data not in the index"),
    ):
        if coverage.get(key):
            lines.append(f"{scenes_count(len(coverage[key]))} {what}: {_names(coverage[key])}.")
    if coverage["unusable"]:
        reasons = "".join(
            f"<li>{html.escape(scene)}: {html.escape(why)}</li>"
            for scene, why in list(coverage["unusable"].items())[:MOST_NAMES]
        )
        count = scenes_count(len(coverage["unusable"]))
        lines.append(f"{count} cannot be scored:<ul>{reasons}</ul>")
    return f"<h2>Which scenes</h2><p>{'<br>'.join(lines)}</p>" if lines else ""


def _names(names: Sequence[str]) -> str:
    more = f" and {len(names) - MOST_NAMES:,} more" if len(names) > MOST_NAMES else ""
    return html.escape(", ".join(names[:MOST_NAMES])) + more


def _text(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return "none" if value is None else str(value)


def _card(scene: ShownScene, place: str) -> str:
    scores = scene.scores
    name = scores.scene
    inputs = "".join(
        figure(picture, f"{name}, input frame {frame}", f"input, frame {frame}")
        for picture, frame in zip(scene.inputs, scores.inputs, strict=True)
    )
    columns = ""
    for i, frame in enumerate(scores.targets):
        target, prediction = scene.targets[i], scene.predictions[i]
        leaked = ", also an input" if scores.leaked[i] else ""
        columns += (
            '<div class="column">'
            + figure(target, f"{name}, true frame {frame}", f"true, frame {frame}{leaked}")
            + figure(prediction, f"{name}, predicted frame {frame}", _scores_line(scores, i))
            + figure(error_map(prediction, target), f"{name}, error of frame {frame}", "error")
            + "</div>"
        )
    means = " · ".join(
        f"{METRIC_LOOKS[m][0]} {number(m, scores.mean(m))}{METRIC_LOOKS[m][2]}"
        for m in metrics_of([scores])
    )
    return (
        f"<article><h3>{html.escape(name)}<small>{place} · {means}</small></h3>"
        f'<div class="scene"><div class="inputs">{inputs}</div><div class="targets">{columns}</div>'
        "</div></article>"
    )


def _scores_line(scores: SceneScores, target: int) -> str:
    shown = [metric for metric in CAPTIONED if metric in scores.scores]
    return " · ".join(
        number(metric, scores.scores[metric][target]) + METRIC_LOOKS[metric][2] for metric in shown
    )
