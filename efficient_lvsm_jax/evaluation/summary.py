"""What is said of all scores together: numbers of metrics.json, and lines on a terminal."""

from __future__ import annotations

import dataclasses
import datetime
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from efficient_lvsm_jax.evaluation.protocol import OpenedScenes
from efficient_lvsm_jax.evaluation.results import (
    FILM,
    SceneScores,
    baselines,
    leak_report,
    summarise,
)
from efficient_lvsm_jax.version import __version__


def numbers(rows: Sequence[SceneScores], opened: OpenedScenes) -> dict[str, Any]:
    """What metrics.json says about the scores: means, baselines, leaks, and which scenes."""
    coverage = opened.scenes.coverage
    unusable = {row.scene: row.unusable for row in rows if row.unusable}
    return {
        "summary": summarise(rows),
        "baselines": baselines(rows),
        "leak": leak_report(rows),
        "coverage": (dataclasses.asdict(coverage) if coverage else {}) | {"unusable": unusable},
        "scenes": [
            {"scene": row.scene, "inputs": row.inputs, "targets": row.targets}
            | {name: values.tolist() for name, values in row.scores.items()}
            for row in rows
            if not row.unusable
        ],
    }


def made_by(renderer: str, data: str, mesh: str, batch_size: int) -> dict[str, Any]:
    """What metrics.json says about the run besides its protocol: what computed what, and when."""
    return {
        "version": __version__,
        "renderer": renderer,
        "data": data,
        "jax": jax.__version__,
        "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "mesh": mesh,
        "batch_size": batch_size,
        "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def print_results(metrics: dict[str, Any], folder: Path) -> None:
    """Tables, files and, as the last line, the scores."""
    if "added_one_by_one" in metrics:
        print("views added one by one (medians; time per view added, per picture rendered):")
        print("  inputs   PSNR dB    add ms  render ms")
        for row in metrics["added_one_by_one"]:
            print(
                f"  {row['inputs']:6d} {row['psnr']:9.2f} {row['add_ms']:9.1f} "
                f"{row['render_ms']:10.1f}"
            )
    summary, trivial, leak = metrics["summary"], metrics["baselines"], metrics["leak"]
    if leak["targets_that_are_inputs"]:
        print(
            f"targets that are inputs as well: {leak['targets_that_are_inputs']} of "
            f"{summary['targets']}; without them, like the baselines, "
            f"psnr={leak['without_them'].get('psnr', math.nan):.2f}"
        )
    coverage = metrics["coverage"]
    for what in ("missing", "unlisted", "unusable"):
        if coverage.get(what):
            print(f"{len(coverage[what])} scenes {what}, listed in metrics.json")
    for name in ("report.html", FILM, "metrics.json"):
        if (folder / name).exists():
            print(folder / name)
    lpips = f"lpips={summary['lpips']:.3f} " if "lpips" in summary else ""
    print(
        f"psnr={summary['psnr']:.2f} ssim={summary['ssim']:.3f} {lpips}scenes={summary['scenes']} "
        f"nearest_input_psnr={trivial['nearest']['psnr']:.2f} "
        f"mean_colour_psnr={trivial['mean']['psnr']:.2f}"
    )
