"""Two evaluations side by side: differences per scene of the same targets, A before, B after."""

from __future__ import annotations

import csv
import dataclasses
import html
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.pictures.images import load_image
from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.evaluation.predictions import picture_path
from efficient_lvsm_jax.evaluation.results import (
    SceneScores,
    differences,
    metrics_of,
    read_results,
    results_folder,
    standard_error,
)
from efficient_lvsm_jax.files.writing import json_safe, write_json, written_whole
from efficient_lvsm_jax.media.page import (
    METRIC_LOOKS,
    error_legend,
    error_map,
    figure,
    label,
    number,
    plus_minus,
    scenes_count,
    table,
    tiles,
    write_page,
)

SHOWN = 10  # scenes in which B lost most, and as many in which it won most
# Parts of a protocol that must be equal where both have them: with another one, a score of the same
# name means another thing.
SAME = ("pictures", "metrics", "foreground", "lpips_sha256")


@dataclasses.dataclass(frozen=True)
class Pair:
    """A scene that both evaluations scored.

    before, after: its scores. difference: for every metric after - before, means over targets.
    """

    before: SceneScores
    after: SceneScores
    difference: dict[str, float]


def compare(before: Path, after: Path, output: Path) -> dict[str, Any]:
    """Writes comparison.json, comparison.csv and comparison.html to `output`.

    Args:
      before, after: workdirs or results folders A and B.
      output: folder, made if there is none.

    Returns:
      What comparison.json holds: for every metric both means over the shared scenes, the mean of
      the differences B - A and its standard error (paired; NaN for a single scene), and the share
      of scenes in which B is better.

    Raises:
      InputError: no results there, nothing in common, or scores of different things.
    """
    (a, rows_a), (b, rows_b) = read_results(before), read_results(after)
    different = differences(a, b)
    for name, here, there in different:
        if name.split(".")[0] in SAME and None not in (here, there):
            raise InputError(
                f"{before} and {after} measure different things: {name} is {here!r} and {there!r}; "
                "evaluate both alike"
            )
    pairs = _pairs(rows_a, rows_b, before, after)
    metrics = list(pairs[0].difference)
    result = {
        "before": str(before),
        "after": str(after),
        "scenes": len(pairs),
        "only_before": _only(rows_a, rows_b),
        "only_after": _only(rows_b, rows_a),
        "metrics": {metric: _statistics(pairs, metric) for metric in metrics},
        "protocol_differences": [
            {"name": name, "before": here, "after": there} for name, here, there in different
        ],
    }
    output.mkdir(parents=True, exist_ok=True)
    with written_whole(output / "comparison.csv") as partial:
        partial.write_text(_csv(pairs, metrics), encoding="utf-8")
    write_json(output / "comparison.json", json_safe(result))
    folders = (results_folder(before), results_folder(after))
    write_page(
        output / "comparison.html", "Two evaluations compared", _parts(result, pairs, folders)
    )
    return result


def _pairs(
    rows_a: Sequence[SceneScores], rows_b: Sequence[SceneScores], before: Path, after: Path
) -> list[Pair]:
    by_scene = {row.scene: row for row in rows_b if not row.unusable}
    pairs = []
    for row in rows_a:
        other = by_scene.get(row.scene)
        if row.unusable or other is None:
            continue
        if row.targets != other.targets:
            raise InputError(
                f"scene {row.scene}: targets {row.targets} in {before}, {other.targets} in "
                f"{after}; only the same targets can be compared: use one index for both"
            )
        difference = {
            metric: _difference(row.mean(metric), other.mean(metric))
            for metric in metrics_of([row, other])
        }
        pairs.append(Pair(row, other, difference))
    if not pairs:
        raise InputError(f"{before} and {after} have no scored scene in common")
    return pairs


def _difference(before: float, after: float) -> float:
    return 0.0 if before == after else after - before  # two infinite scores are equal


def _only(rows: Sequence[SceneScores], others: Sequence[SceneScores]) -> list[str]:
    known = {row.scene for row in others if not row.unusable}
    return [row.scene for row in rows if not row.unusable and row.scene not in known]


def _statistics(pairs: Sequence[Pair], metric: str) -> dict[str, float]:
    values = [pair.difference[metric] for pair in pairs]
    better = METRIC_LOOKS[metric][3]
    return {
        "before": float(np.mean([pair.before.mean(metric) for pair in pairs])),
        "after": float(np.mean([pair.after.mean(metric) for pair in pairs])),
        "difference": float(np.mean(values)),
        "standard_error": standard_error(values),
        "share_better": float(np.mean([value * better > 0 for value in values])),
    }


def _csv(pairs: Sequence[Pair], metrics: Sequence[str]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    columns = [f"{m}_{part}" for m in metrics for part in ("before", "after", "difference")]
    writer.writerow(["scene", *columns])
    for pair in pairs:
        numbers = [
            value
            for m in metrics
            for value in (pair.before.mean(m), pair.after.mean(m), pair.difference[m])
        ]
        writer.writerow([pair.before.scene, *(f"{value:.6f}" for value in numbers)])
    return text.getvalue()


def _parts(result: dict, pairs: Sequence[Pair], folders: tuple[Path, Path]) -> Iterator[str]:
    several = result["scenes"] > 1
    yield (
        f"<p><b>A</b> {html.escape(result['before'])}<br><b>B</b> {html.escape(result['after'])}"
        f"<br><small>{scenes_count(result['scenes'])}, the same targets; differences are B − A per "
        f"scene{', ± the standard error of their mean' if several else ''}</small></p>"
    )
    numbers = []
    for metric, row in result["metrics"].items():
        name, _, unit, better = METRIC_LOOKS[metric]
        error = plus_minus(metric, row["standard_error"])
        value = f"{number(metric, row['difference'], sign=True)}<small>{error}</small>"
        numbers.append((value, f"{unit} {name}, {'higher' if better > 0 else 'lower'} is better"))
    yield tiles(numbers)
    yield table(
        ("", "A", "B", "B − A", "B better in"),
        [
            (
                label(metric),
                number(metric, row["before"]),
                number(metric, row["after"]),
                number(metric, row["difference"], sign=True)
                + plus_minus(metric, row["standard_error"]),
                f"{row['share_better']:.0%} of scenes",
            )
            for metric, row in result["metrics"].items()
        ],
    )
    for key, which in (("only_before", "A"), ("only_after", "B")):
        if result[key]:
            names = ", ".join(result[key][:SHOWN]) + (", …" if len(result[key]) > SHOWN else "")
            yield f"<p>{scenes_count(len(result[key]))} only in {which}: {html.escape(names)}</p>"

    ranked = sorted(pairs, key=lambda pair: pair.difference["psnr"])
    yield _chart(ranked)
    losses = [pair for pair in ranked[:SHOWN] if pair.difference["psnr"] < 0]
    gains = [pair for pair in ranked[::-1][:SHOWN] if pair.difference["psnr"] > 0]
    yield error_legend()
    for chosen, heading in ((losses, "Where B lost most"), (gains, "Where B won most")):
        yield f"<h2>{heading} <small>by PSNR</small></h2>"
        cards = [_card(pair, folders) for pair in chosen]
        absent = sum(card is None for card in cards)
        if absent or not cards:
            yield _absent(absent, len(cards))
        yield from (card for card in cards if card)

    yield "<h2>What differs between the two</h2>"
    rows = [(row["name"], row["before"], row["after"]) for row in result["protocol_differences"]]
    yield table(("", "A", "B"), rows, "text") if rows else "<p>Nothing: the same protocol.</p>"


def _absent(absent: int, count: int) -> str:
    if not count:
        return "<p>Nowhere.</p>"
    return (
        f'<p class="note">{absent} of these {count} scenes cannot be shown: the evaluations kept '
        "no pictures of them. eval.py --save_predictions keeps all.</p>"
    )


def _chart(ranked: Sequence[Pair]) -> str:
    """Differences of all scenes, sorted, as an outline about zero."""
    values = np.array([pair.difference["psnr"] for pair in ranked])
    finite = values[np.isfinite(values)]
    if not len(finite):
        return ""
    reach = max(np.abs(finite).max(), 1e-6)
    width = 700 / len(finite)
    if len(finite) > 700:
        finite = finite[np.linspace(0, len(finite) - 1, 700).round().astype(int)]
        width = 1
    bars = "".join(
        f'<rect class="{"good" if value > 0 else "bad"}" x="{60 + i * width:.2f}" '
        f'y="{60 - max(value, 0) / reach * 50:.1f}" width="{max(width * 0.9, 0.5):.2f}" '
        f'height="{abs(value) / reach * 50:.1f}"/>'
        for i, value in enumerate(finite)
    )
    marks = "".join(
        f'<text x="54" y="{y}">{text}</text>'
        for y, text in ((14, f"{reach:+.2g}"), (64, "0"), (114, f"{-reach:+.2g}"))
    )
    return (
        "<h2>Difference of every scene <small>PSNR in dB, B − A, sorted</small></h2>"
        '<svg class="chart" viewBox="0 0 764 120" role="img" '
        f'aria-label="Differences of PSNR, {finite.min():+.2g} to {finite.max():+.2g} dB">'
        f"{marks}{bars}</svg>"
    )


def _card(pair: Pair, folders: tuple[Path, Path]) -> str | None:
    """The scene with both predictions; None where one of them was not kept."""
    name = pair.before.scene
    rows = ""
    for i, frame in enumerate(pair.before.targets):
        kept = [
            _kept(folder, kind, name, frame)
            for folder, kind in (
                (folders[0], "truth"),
                (folders[0], "predictions"),
                (folders[1], "predictions"),
            )
        ]
        if any(path is None for path in kept):
            return None
        truth, a, b = (load_image(path) for path in kept)
        rows += (
            '<div class="row">'
            + figure(truth, f"{name}, true frame {frame}", f"true, frame {frame}")
            + figure(a, f"{name}, A, frame {frame}", _caption("A", pair.before, i))
            + figure(b, f"{name}, B, frame {frame}", _caption("B", pair.after, i))
            + figure(error_map(a, truth), f"{name}, error of A", "error of A")
            + figure(error_map(b, truth), f"{name}, error of B", "error of B")
            + "</div>"
        )
    line = " · ".join(
        f"{METRIC_LOOKS[m][0]} {number(m, value, sign=True)}{METRIC_LOOKS[m][2]}"
        for m, value in pair.difference.items()
    )
    return f"<article><h3>{html.escape(name)}<small>{line}</small></h3>{rows}</article>"


def _caption(which: str, scores: SceneScores, target: int) -> str:
    return f"{which}: {number('psnr', scores.scores['psnr'][target])} dB"


def _kept(folder: Path, kind: str, scene: str, frame: int) -> Path | None:
    """The picture an evaluation kept: of all scenes, or of those in its report."""
    for root in (folder / kind, folder / "shown" / kind):
        path = picture_path(root, scene, frame)
        if path.is_file():
            return path
    return None
