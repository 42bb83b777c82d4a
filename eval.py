"""Scores a model on held-out scenes: numbers, a report to look at, and a film.

    python eval.py --config configs/tiny.py --workdir runs/tiny [--weights FOLDER_OR_FILE]

Writes metrics.json, report.html and fly.mp4 to WORKDIR/evaluation. The weights are those trained in
the workdir unless --weights names others. The last line printed has the scores and those of two
trivial baselines on the same targets: copying the nearest input, and the mean input colour.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict
from tqdm import tqdm

from data_pipeline.pipeline import evaluation_scenes
from data_pipeline.procedural import ProceduralScenes, SceneRecipe
from efficient_lvsm_jax.checkpoints import load, write_json
from efficient_lvsm_jax.configuration import build, command_line
from efficient_lvsm_jax.errors import main_exit
from efficient_lvsm_jax.evaluation import (
    EvaluationConfig,
    added_one_by_one,
    baselines,
    fly_through,
    score,
    summarise,
)
from efficient_lvsm_jax.models import Model
from efficient_lvsm_jax.report import write_report
from efficient_lvsm_jax.video import write_film


def evaluate(config: ConfigDict, model: Model, folder: Path) -> dict:
    """Scores `model` and writes metrics.json, report.html and fly.mp4 to `folder`.

    Returns:
      What metrics.json holds: summary, baselines, added_one_by_one, and scores of every scene.
    """
    settings = build(EvaluationConfig, config.evaluation.to_dict(), "evaluation")
    recipe = SceneRecipe(size=settings.size, views=settings.views)
    source = ProceduralScenes(
        settings.scenes, split="heldout", seed=config.seed, recipe=recipe, progress=True
    )
    scenes = evaluation_scenes(source, inputs=settings.inputs, targets=settings.targets)
    scored = score(model, scenes, settings.batch_size)
    results = list(tqdm(scored, total=len(scenes), unit="scene", desc="scoring"))
    metrics = {"summary": summarise(results), "baselines": baselines(scenes)}

    film_scene = scenes[0]
    if settings.added_one_by_one:
        more = evaluation_scenes(source, inputs=settings.added_one_by_one, targets=settings.targets)
        metrics["added_one_by_one"] = added_one_by_one(model, more)
        film_scene = more[0]
    metrics["settings"] = dataclasses.asdict(settings)
    metrics["scenes"] = [
        {"scene": r.scene, "psnr": r.psnr.tolist(), "ssim": r.ssim.tolist()} for r in results
    ]

    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "metrics.json", metrics)
    frames = fly_through(model, film_scene, settings.film_frames)
    write_film(folder / "fly.mp4", frames)
    write_report(folder / "report.html", results, metrics, film=folder / "fly.mp4")
    return metrics


def main() -> None:
    """The command line."""

    def define(values: flags.FlagValues) -> None:
        flags.DEFINE_string("weights", None, "what elvsm.load takes", flag_values=values)

    config, values = command_line(sys.argv, define, usage=__doc__)
    workdir = Path(values.workdir)
    model = load(values.weights or workdir)
    metrics = evaluate(config, model, workdir / "evaluation")

    if "added_one_by_one" in metrics:
        print("views added one by one (medians; time per view added, per picture rendered):")
        print("  inputs   PSNR dB    add ms  render ms")
        for row in metrics["added_one_by_one"]:
            print(
                f"  {row['inputs']:6d} {row['psnr']:9.2f} {row['add_ms']:9.1f} "
                f"{row['render_ms']:10.1f}"
            )
    for name in ("report.html", "fly.mp4", "metrics.json"):
        print(workdir / "evaluation" / name)
    summary, trivial = metrics["summary"], metrics["baselines"]
    print(
        f"psnr={summary['psnr']:.2f} ssim={summary['ssim']:.3f} scenes={summary['scenes']} "
        f"nearest_input_psnr={trivial['nearest']['psnr']:.2f} "
        f"mean_colour_psnr={trivial['mean']['psnr']:.2f}"
    )


if __name__ == "__main__":
    main_exit(main)
