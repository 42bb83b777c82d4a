"""The evaluation as one self-contained page: numbers, how they were made, a film, and scenes.

Axes: V input view, T target view, Y X pixel. Pictures are uint8 RGB.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from efficient_lvsm_jax.evaluation.results import SceneScores, metrics_of
from efficient_lvsm_jax.media.page import (
    METRIC_LOOKS,
    data_uri,
    error_map,
    flat,
    label,
    number,
    picture,
    plus_minus,
    scenes_count,
    write_page,
)
from efficient_lvsm_jax.media.plots import bars

WORST, MIDDLE, BEST = 10, 3, 3  # scenes shown of each
MOST_NAMES = 20
FULL_BAR = 40.0  # dB, or the highest score if that is more
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
    place = {row.scene: i for i, row in enumerate(ranked)}
    finite = [row for row in ranked if math.isfinite(row.mean("psnr"))]
    summary = metrics["summary"]
    own = _own_psnr(metrics)
    pairs = [*flat(metrics["protocol"]), *flat(metrics["run"])]
    pairs.append(("protocol_sha256", metrics["protocol_sha256"]))
    write_page(
        Path(path),
        "evaluation/report.html.j2",
        metrics=metrics,
        headline=_headline(metrics, own),
        baselines=_baselines(metrics, own),
        film=film and data_uri("video/mp4", Path(film).read_bytes()),
        one_by_one=[
            (row["inputs"], f"{row['psnr']:.2f}", f"{row['add_ms']:.1f}", f"{row['render_ms']:.1f}")
            for row in metrics.get("added_one_by_one", [])
        ],
        chart=_chart(finite) if finite and len(ranked) > 1 else None,
        left_out=len(ranked) - len(finite),
        leaks=_leaks(metrics),
        most_names=MOST_NAMES,
        more=_more,
        shown=len(shown),
        scored=len(ranked),
        captions=", ".join(METRIC_LOOKS[m][0] for m in CAPTIONED if m in summary),
        cards=(
            _card(scene, f"{place[scene.scores.scene] + 1} of {len(ranked)}")
            for scene in sorted(shown, key=lambda scene: place[scene.scores.scene])
        ),
        glance=_glance(shown, ranked),
        made=[(name, _text(value)) for name, value in pairs],
    )


def _ranked(rows: Sequence[SceneScores]) -> list[SceneScores]:
    """Scenes with scores, worst first; not a number is worse than any."""

    def key(row: SceneScores) -> float:
        psnr = row.mean("psnr")
        return -math.inf if math.isnan(psnr) else psnr

    return sorted((row for row in rows if not row.unusable), key=key)


def _own_psnr(metrics: dict) -> float:
    """Like the baselines, without targets that are inputs: their copy is perfect."""
    return metrics["leak"]["without_them"].get("psnr", math.nan)


def _headline(metrics: dict, own: float) -> list[tuple[str, str, str]]:
    """Large numbers: (number, what follows it, words)."""
    summary = metrics["summary"]
    numbers = [
        (
            number(metric, summary[metric]),
            plus_minus(metric, summary[f"{metric}_standard_error"]),
            f"{unit} {name}".strip(),
        )
        for metric, (name, _, unit, _) in METRIC_LOOKS.items()
        if metric in summary
    ]
    count, what = scenes_count(summary["scenes"]).split()
    numbers.append((count, "", f"{what}, {summary['targets']:,} targets"))
    gain = own - metrics["baselines"]["nearest"]["psnr"]
    if math.isfinite(gain):
        numbers.append((f"{gain:+.2f}", "", "dB over the nearest input"))
    return numbers


def _baselines(metrics: dict, own: float) -> list[tuple[str, float, float]]:
    """(name, dB, part of a full bar) of these pictures and of trivial ones."""
    trivial = metrics["baselines"]
    found = {
        "these pictures": own,
        "copy the nearest input": trivial["nearest"]["psnr"],
        "mean input colour": trivial["mean"]["psnr"],
    }
    found = {name: value for name, value in found.items() if math.isfinite(value)}
    full = max(FULL_BAR, *found.values())
    return [(name, value, max(value, 0) / full) for name, value in found.items()]


def _chart(rows: Sequence[SceneScores]) -> Markup:
    """PSNR of every scene, worst to best."""
    values = [row.mean("psnr") for row in rows]
    description = f"PSNR per scene, {values[0]:.1f} to {values[-1]:.1f} dB"
    names = [row.scene for row in rows]
    return bars(values, names, description, unit="dB", along="scenes, worst to best")


def _leaks(metrics: dict) -> tuple[Sequence[str], list[Sequence[str]]]:
    """Heading and rows of a table: scores with and without targets that are inputs."""
    both = (("all targets", metrics["summary"]), ("without those", metrics["leak"]["without_them"]))
    names = [metric for metric in METRIC_LOOKS if metric in metrics["summary"]]
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
        for which, numbers in both
    ]
    return ("", "scenes", "targets", *map(label, names)), rows


def _more(names: Collection[str]) -> str:
    return f" and {len(names) - MOST_NAMES:,} more" if len(names) > MOST_NAMES else ""


def _text(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return "none" if value is None else str(value)


def _card(scene: ShownScene, place: str) -> dict[str, Any]:
    scores = scene.scores
    name = scores.scene
    targets = []
    for i, frame in enumerate(scores.targets):
        target, prediction = scene.targets[i], scene.predictions[i]
        leaked = ", also an input" if scores.leaked[i] else ""
        targets.append(
            (
                picture(target, f"{name}, true frame {frame}", f"true, frame {frame}{leaked}"),
                picture(prediction, f"{name}, predicted frame {frame}", _scores_line(scores, i)),
                picture(error_map(prediction, target), f"{name}, error of frame {frame}", "error"),
            )
        )
    means = " · ".join(
        f"{METRIC_LOOKS[m][0]} {number(m, scores.mean(m))}{METRIC_LOOKS[m][2]}"
        for m in metrics_of([scores])
    )
    return {
        "name": name,
        "line": f"{place} · {means}",
        "inputs": [
            picture(pixels, f"{name}, input frame {frame}", f"input, frame {frame}")
            for pixels, frame in zip(scene.inputs, scores.inputs, strict=True)
        ],
        "targets": targets,
    }


def _glance(
    shown: Sequence[ShownScene], ranked: Sequence[SceneScores]
) -> list[tuple[str, str, list[dict[str, Any]]]]:
    """The best, the median and the worst scene: what, its PSNR, two inputs and the first target."""
    if len(ranked) < 3:
        return []
    of = {scene.scores.scene: scene for scene in shown}
    glance = []
    for what, row in (
        ("best", ranked[-1]),
        ("median", ranked[len(ranked) // 2]),
        ("worst", ranked[0]),
    ):
        if (scene := of.get(row.scene)) is None:
            continue
        frames = [("input", scene.inputs[0]), ("input", scene.inputs[-1])]
        frames += [("true", scene.targets[0]), ("rendered", scene.predictions[0])]
        pictures = [picture(pixels, f"{what}, {word}", word) for word, pixels in frames]
        glance.append((what, f"{row.mean('psnr'):.1f} dB", pictures))
    return glance


def _scores_line(scores: SceneScores, target: int) -> str:
    shown = [metric for metric in CAPTIONED if metric in scores.scores]
    return " · ".join(
        number(metric, scores.scores[metric][target]) + METRIC_LOOKS[metric][2] for metric in shown
    )
