"""Two evaluations side by side: differences per scene of the same targets, A before, B after."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from data_pipeline.pictures.images import load_image
from efficient_lvsm_jax.commands import Parser
from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.evaluation.predictions import picture_path
from efficient_lvsm_jax.evaluation.results import (
    FILM,
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
    data_uri,
    error_map,
    label,
    number,
    picture,
    plus_minus,
    write_page,
)
from efficient_lvsm_jax.media.plots import GOOD, bars

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


@dataclasses.dataclass(frozen=True, eq=False)
class Kept:
    """Which pictures of a scene's targets the evaluations kept, [T] each, None where none.

    truth: of either evaluation. a, b: predictions.
    """

    pair: Pair
    truth: list[Path | None]
    a: list[Path | None]
    b: list[Path | None]

    @property
    def shown(self) -> bool:
        """Whether there is something to look at."""
        return all(self.truth) and (all(self.a) or all(self.b))


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
    _write_page(output / "comparison.html", result, pairs, folders)
    return result


def main() -> None:
    """The command line `eval.py --compare A B`."""
    about = "Compares two finished evaluations, B with A."
    parser = Parser("python eval.py", about, {"--output": "--out"})
    parser.add_argument("--compare", nargs=2, metavar=("A", "B"), required=True)
    parser.add_argument("--out", metavar="FOLDER", help="default: B/comparison")
    arguments = parser.parse_args()
    before, after = (Path(folder) for folder in arguments.compare)
    out = Path(arguments.out) if arguments.out else after / "comparison"
    result = compare(before, after, out)
    for name in ("comparison.html", "comparison.csv", "comparison.json"):
        print(out / name)
    several = result["scenes"] > 1
    scenes = f"over {result['scenes']} scenes" if several else "in 1 scene: no standard error"
    for metric, row in result["metrics"].items():
        error = f" +- {row['standard_error']:z.4f}" if several else ""
        print(
            f"{metric}: {row['before']:.4f} -> {row['after']:.4f}, difference "
            f"{row['difference']:+z.4f}{error} {scenes}"
        )


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


def _write_page(
    path: Path, result: dict, pairs: Sequence[Pair], folders: tuple[Path, Path]
) -> None:
    headline, scores = [], []
    for metric, row in result["metrics"].items():
        name, _, unit, better = METRIC_LOOKS[metric]
        difference = number(metric, row["difference"], sign=True)
        error = plus_minus(metric, row["standard_error"])
        words = f"{unit} {name}, {'higher' if better > 0 else 'lower'} is better"
        headline.append((difference, error, words.strip()))
        before, after = number(metric, row["before"]), number(metric, row["after"])
        share = f"{row['share_better']:.0%} of scenes"
        scores.append((label(metric), before, after, difference + error, share))
    ranked = sorted(pairs, key=lambda pair: pair.difference["psnr"])
    finite = [pair for pair in ranked if np.isfinite(pair.difference["psnr"])]
    kept = [_kept_of(pair, folders) for pair in ranked]
    losses = [each for each in kept[:SHOWN] if each.pair.difference["psnr"] < 0]
    gains = [each for each in kept[::-1][:SHOWN] if each.pair.difference["psnr"] > 0]
    groups = [_group("Where B lost most", losses), _group("Where B won most", gains)]
    others = [each for each in kept if each.shown and each not in losses + gains][:SHOWN]
    if others and any(group["absent"] for group in groups):
        groups.append(_group("Others, of which there are pictures", others))
    films = {}
    for which, folder in zip("AB", folders, strict=True):
        if (folder / FILM).exists():
            films[which] = data_uri("video/mp4", (folder / FILM).read_bytes())
    write_page(
        path,
        "evaluation/comparison.html.j2",
        films=films,
        result=result,
        headline=headline,
        scores=scores,
        most_names=SHOWN,
        chart=_chart(finite) if finite else None,
        left_out=len(ranked) - len(finite),
        groups=groups,
        differences=[
            (row["name"], row["before"], row["after"]) for row in result["protocol_differences"]
        ],
    )


def _chart(pairs: Sequence[Pair]) -> Markup:
    """Differences of all scenes, sorted, about zero."""
    values = [pair.difference["psnr"] for pair in pairs]
    description = f"Differences of PSNR, {values[0]:+.2g} to {values[-1]:+.2g} dB"
    names = [pair.before.scene for pair in pairs]
    along = "scenes, from where B lost most to where it won most"
    return bars(values, names, description, unit="dB", along=along, above=GOOD)


def _group(heading: str, kept: Sequence[Kept]) -> dict[str, Any]:
    """Those of the scenes with pictures: the true ones and those of A or B."""
    shown = [each for each in kept if each.shown]
    return {
        "heading": heading,
        "count": len(kept),
        "absent": len(kept) - len(shown),
        "cards": map(_card, shown),
    }


def _kept_of(pair: Pair, folders: tuple[Path, Path]) -> Kept:
    def kept(kind: str, *folders: Path) -> list[Path | None]:
        return [_kept(folders, kind, pair.before.scene, frame) for frame in pair.before.targets]

    before, after = folders
    return Kept(
        pair,
        kept("truth", before, after),
        kept("predictions", before),
        kept("predictions", after),
    )


def _card(kept: Kept) -> dict[str, Any]:
    pair = kept.pair
    name = pair.before.scene
    targets = []
    for i, frame in enumerate(pair.before.targets):
        truth = load_image(kept.truth[i])
        pictures = [picture(truth, f"{name}, true frame {frame}", f"true, frame {frame}")]
        errors = []
        for which, scores, paths in (("A", pair.before, kept.a), ("B", pair.after, kept.b)):
            line = f"{which}: {number('psnr', scores.scores['psnr'][i])} dB"
            if paths[i] is None:
                pictures.append({"caption": f"{line}; no picture kept"})
                errors.append({"caption": ""})
                continue
            predicted = load_image(paths[i])
            pictures.append(picture(predicted, f"{name}, {which}, frame {frame}", line))
            error = f"error of {which}"
            errors.append(picture(error_map(predicted, truth), f"{name}, {error}", error))
        targets.append(pictures + errors)
    line = " · ".join(
        f"{METRIC_LOOKS[m][0]} {number(m, value, sign=True)}{METRIC_LOOKS[m][2]}"
        for m, value in pair.difference.items()
    )
    return {"name": name, "line": line, "targets": targets}


def _kept(folders: Sequence[Path], kind: str, scene: str, frame: int) -> Path | None:
    """The picture that an evaluation kept: of all scenes, or of those in its report."""
    roots = [root / kind for folder in folders for root in (folder, folder / "shown")]
    paths = [picture_path(root, scene, frame) for root in roots]
    return next((path for path in paths if path.is_file()), None)
