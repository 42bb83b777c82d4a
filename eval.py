"""Scores a model, or pictures of any other method: numbers, a report to look at, and a film.

    python eval.py --config configs/tiny.py --workdir runs/tiny [--weights FOLDER_OR_FILE] \\
        [--profile DIR]
    python eval.py --config configs/re10k_evaluation.py --workdir OUT --weights FOLDER_OR_FILE \\
        --config.evaluation.data=PATH
    python eval.py --config ... --workdir OUT --predictions FOLDER     # FOLDER/SCENE/FRAME.png
    python eval.py --compare A B [--output FOLDER]                     # two finished workdirs
    python eval.py --help-settings                                     # what can be set

Writes metrics.json, scenes.csv, report.html and fly.mp4 to WORKDIR/evaluation. The weights are
those trained in the workdir unless --weights names others. Started again it goes on where it was
interrupted. The last line printed has the scores and those of two trivial baselines on the same
targets: copying the nearest input, and the mean input colour. docs/evaluation.md has the protocol.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import math
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags
from ml_collections import ConfigDict
from tqdm import tqdm

import efficient_lvsm_jax
from data_pipeline.evaluation.scenes import EvaluationScene, EvaluationScenes
from efficient_lvsm_jax.commands import command_line, complete, main_exit
from efficient_lvsm_jax.configuration import Settings, build, setting
from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.evaluation.comparison import compare
from efficient_lvsm_jax.evaluation.predictions import NAMED, Predictions, save_pictures, to_bytes
from efficient_lvsm_jax.evaluation.protocol import (
    EvaluationConfig,
    OpenedScenes,
    open_evaluation,
    protocol_of,
)
from efficient_lvsm_jax.evaluation.report import ShownScene, choose_shown, write_report
from efficient_lvsm_jax.evaluation.results import (
    ResultsFile,
    SceneScores,
    baselines,
    leak_report,
    protocol_hash,
    scores_csv,
    summarise,
)
from efficient_lvsm_jax.evaluation.scoring import (
    Scorer,
    added_one_by_one,
    batches,
    fly_through,
    folder_renders,
    model_renders,
    padded_size,
)
from efficient_lvsm_jax.files.writing import json_safe, write_json, written_whole
from efficient_lvsm_jax.media.video import write_film
from efficient_lvsm_jax.metrics.lpips import WEIGHTS_FOLDER
from efficient_lvsm_jax.models.model import Model
from efficient_lvsm_jax.parallel.sharding import make_mesh
from efficient_lvsm_jax.runs.profiling import StepTrace
from efficient_lvsm_jax.weights.folder import digest
from efficient_lvsm_jax.weights.load import load
from efficient_lvsm_jax.weights.lpips import find_lpips


@dataclasses.dataclass(frozen=True)
class MachineConfig(Settings):
    """The settings of an evaluation that belong to no group.

    Attributes:
      seed: of generated scenes.
      mesh: axes of the devices and their sizes; -1 takes all that are left.
    """

    seed: int = setting(0, at_least=0)
    mesh: str = "data:-1,fsdp:1"


@dataclasses.dataclass(frozen=True)
class Options:
    """What the command line says besides the configuration.

    Attributes:
      save_predictions: keep all rendered and true pictures as PNG, and score what is kept.
      restart: discard what an earlier run left in the folder.
      weights: where the model came from, for the record.
      profile: folder for a trace of some batches.
    """

    save_predictions: bool = False
    restart: bool = False
    weights: str = ""
    profile: str | None = None


def evaluate(
    config: ConfigDict,
    source: Model | Predictions,
    folder: Path,
    options: Options,
) -> dict[str, Any]:
    """Scores `source` and writes everything to `folder`.

    Returns:
      What metrics.json holds, see docs/evaluation.md.
    """
    if jax.process_count() > 1:
        raise InputError("evaluation runs in one process, over all devices of one machine")
    config = complete(config, settings_of)
    machine = build(MachineConfig, {"seed": config.seed, "mesh": config.mesh}, "config")
    settings = build(EvaluationConfig, config.evaluation.to_dict(), "evaluation")
    mesh = make_mesh(machine.mesh)
    if isinstance(source, Model):
        source = as_set(source, settings)
        opened = open_evaluation(settings, seed=machine.seed)
        render = model_renders(source, mesh)
    else:
        opened = open_evaluation(settings, seed=machine.seed)
        if source.folder.resolve().is_relative_to(folder.resolve()):
            raise InputError(f"{source.folder} is part of {folder}: name another --workdir")
        source.check(opened.scenes.names)
        render = folder_renders(source)
    lpips = find_lpips(settings.lpips)
    if lpips is None:
        print(f"LPIPS is left out: no weights in {WEIGHTS_FOLDER}, see docs/evaluation.md")
    scorer = Scorer(
        render,
        mesh,
        settings.batch_size,
        eight_bit=options.save_predictions,
        foreground=settings.foreground,
        lpips=lpips,
    )
    renderer = describe(source, opened, options)
    protocol = protocol_of(settings, opened, renderer, scorer.metrics)
    if lpips is not None:
        protocol["lpips_sha256"] = digest(lpips.params)

    with ResultsFile(folder, protocol, restart=options.restart) as results:
        if options.restart:
            for name in ("predictions", "truth", "shown"):
                shutil.rmtree(folder / name, ignore_errors=True)
        score_missing(scorer, opened.scenes, results, folder, settings, options)
        rows = results.rows
    usable = [row for row in rows if not row.unusable]
    if not usable:
        raise InputError(f"none of the {len(rows)} scenes can be scored: {rows[0].unusable}")
    metrics = {
        **numbers(rows, opened),
        "protocol": protocol,
        "protocol_sha256": protocol_hash(protocol),
        "run": {
            "version": efficient_lvsm_jax.__version__,
            "renderer": options.weights
            if isinstance(source, Model)
            else f"pictures in {source.folder}",
            "data": opened.source,
            "jax": jax.__version__,
            "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
            "mesh": machine.mesh,
            "batch_size": padded_size(settings.batch_size, mesh),
            "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        },
        "settings": dataclasses.asdict(settings),
    }
    with written_whole(folder / "scenes.csv") as partial:
        partial.write_text(scores_csv(rows), encoding="utf-8")
    film = None
    if isinstance(source, Model):
        if opened.more and source.paged:
            metrics["added_one_by_one"] = added_one_by_one(source, opened.more)
        elif opened.more:
            print(f"inputs one by one are left out: a {source.family} encodes all views anew")
        first = opened.scenes.names.index(usable[0].scene)
        film_scene = (opened.more or opened.scenes)[first]
        if settings.film_frames and len(film_scene.inputs["image"]) > 1:
            film = folder / "fly.mp4"
            write_film(film, fly_through(source, film_scene, settings.film_frames))
    write_json(folder / "metrics.json", json_safe(metrics))
    shown = render_shown(scorer, opened.scenes, rows, folder, options)
    write_report(folder / "report.html", rows, shown, metrics, film=film)
    return metrics


def as_set(model: Model, settings: EvaluationConfig) -> Model:
    """The model with the dtypes of the settings; InputError where they or patches do not fit."""
    if settings.data and model.config.patch != settings.patch:
        raise InputError(
            f"the model's patches have {model.config.patch} pixels, evaluation.patch is "
            f"{settings.patch}; pictures are prepared for it: set it alike"
        )
    if settings.cache and not model.paged:
        raise InputError(
            f"evaluation.cache={settings.cache!r}: a model of the family {model.family} has no "
            "cache; leave it empty"
        )
    names = ("compute_dtype", "ray_dtype", "cache")
    given = {name: getattr(settings, name) for name in names if getattr(settings, name)}
    return dataclasses.replace(model, config=dataclasses.replace(model.config, **given))


def describe(source: Model | Predictions, opened: OpenedScenes, options: Options) -> dict[str, Any]:
    """What makes the pictures, for the protocol."""
    if isinstance(source, Predictions):
        return {
            "kind": "pictures",
            "files_sha256": source.sha256(opened.scenes.names),
            "named_by": source.named,
        }
    return {
        "kind": "model",
        "family": source.family,
        "weights_sha256": digest(source.params),
        "compute_dtype": source.config.compute_dtype,
        "ray_dtype": source.config.ray_dtype,
        "cache": source.config.cache if source.paged else "",
        "levels": "256" if options.save_predictions else "float32",
    }


def score_missing(
    scorer: Scorer,
    scenes: EvaluationScenes,
    results: ResultsFile,
    folder: Path,
    settings: EvaluationConfig,
    options: Options,
) -> None:
    """Scores the scenes that have no results yet; whatever is finished is on disk."""
    done = {row.scene for row in results.rows}
    order = [i for i, name in enumerate(scenes.names) if name not in done]
    size = padded_size(scorer.batch_size, scorer.mesh)
    skip = settings.missing == "report"
    trace = StepTrace(
        options.profile, "batches of scenes", warm_up=1, total=math.ceil(len(order) / size)
    )
    progress = tqdm(total=len(scenes), initial=len(done), unit="scene", desc="scoring")
    with progress as bar, trace:
        for batch in batches(scenes, order, size, skip_unreadable=skip):
            if isinstance(batch[0], SceneScores):
                results.append(batch)
            else:
                trace.begin(len(results.rows))
                rows, pictures = scorer.score(batch)
                if options.save_predictions:
                    for scene, rendered in zip(batch, pictures, strict=True):
                        save(folder, scene, rendered)
                results.append(rows)
            bar.update(len(batch))


def save(folder: Path, scene: EvaluationScene, rendered: np.ndarray) -> None:
    """Keeps rendered and true pictures of the targets of a scene."""
    for name, pictures in (("predictions", rendered), ("truth", to_bytes(scene.targets["image"]))):
        save_pictures(folder / name, scene.name, scene.chosen.targets, pictures)


def render_shown(
    scorer: Scorer,
    scenes: EvaluationScenes,
    rows: Sequence[SceneScores],
    folder: Path,
    options: Options,
) -> list[ShownScene]:
    """The scenes that the report shows, rendered once more: pictures of all would not fit."""
    chosen = {row.scene: row for row in choose_shown(rows)}
    order = [i for i, name in enumerate(scenes.names) if name in chosen]
    shutil.rmtree(folder / "shown", ignore_errors=True)
    shown = []
    for batch in batches(scenes, order, padded_size(scorer.batch_size, scorer.mesh)):
        for scene, rendered in zip(batch, scorer.score(batch)[1], strict=True):
            if not options.save_predictions:
                save(folder / "shown", scene, rendered)
            pictures = [to_bytes(side["image"]) for side in (scene.inputs, scene.targets)]
            shown.append(ShownScene(chosen[scene.name], *pictures, rendered))
    return shown


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


def settings_of(config: ConfigDict) -> dict[str, type]:
    """What the groups of a configuration become; "" is what belongs to none."""
    return {"": MachineConfig, "evaluation": EvaluationConfig}


def main() -> None:
    """The command line."""
    if "--compare" in sys.argv:
        return compare_main()

    def define(values: flags.FlagValues) -> None:
        own = {"flag_values": values}
        flags.DEFINE_string("weights", None, "what elvsm.load takes", **own)
        flags.DEFINE_string("predictions", None, "pictures to score: FOLDER/SCENE/FRAME.png", **own)
        flags.DEFINE_enum(
            "predictions_named", "frame", NAMED, "by target frame, or one each, sorted", **own
        )
        flags.DEFINE_bool("save_predictions", False, "keep all pictures, score what is kept", **own)
        flags.DEFINE_bool("restart", False, "discard the results of an earlier run", **own)
        flags.DEFINE_string("profile", None, "folder for a trace of some batches", **own)

    config, values = command_line(sys.argv, define, usage=__doc__, settings=settings_of)
    folder = Path(values.workdir) / "evaluation"
    if values.predictions:
        if values.weights or values.save_predictions:
            raise InputError("--predictions scores given pictures: no --weights, nothing to save")
        source = Predictions(values.predictions, named=values.predictions_named)
    else:
        source = load(values.weights or values.workdir)
    options = Options(
        values.save_predictions,
        values.restart,
        weights=str(values.weights or values.workdir),
        profile=values.profile,
    )
    metrics = evaluate(config, source, folder, options)
    print_results(metrics, folder)


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
    for name in ("report.html", "fly.mp4", "metrics.json"):
        if (folder / name).exists():
            print(folder / name)
    lpips = f"lpips={summary['lpips']:.3f} " if "lpips" in summary else ""
    print(
        f"psnr={summary['psnr']:.2f} ssim={summary['ssim']:.3f} {lpips}scenes={summary['scenes']} "
        f"nearest_input_psnr={trivial['nearest']['psnr']:.2f} "
        f"mean_colour_psnr={trivial['mean']['psnr']:.2f}"
    )


def compare_main() -> None:
    """`eval.py --compare A B`."""
    parser = argparse.ArgumentParser(description="Compares two finished evaluations, B with A.")
    parser.add_argument("--compare", nargs=2, metavar=("A", "B"), required=True)
    parser.add_argument("--output", metavar="FOLDER", help="default: B/comparison")
    arguments = parser.parse_args()
    before, after = (Path(folder) for folder in arguments.compare)
    output = Path(arguments.output) if arguments.output else after / "comparison"
    result = compare(before, after, output)
    for name in ("comparison.html", "comparison.csv", "comparison.json"):
        print(output / name)
    several = result["scenes"] > 1
    scenes = f"over {result['scenes']} scenes" if several else "in 1 scene: no standard error"
    for metric, row in result["metrics"].items():
        error = f" +- {row['standard_error']:z.4f}" if several else ""
        print(
            f"{metric}: {row['before']:.4f} -> {row['after']:.4f}, difference "
            f"{row['difference']:+z.4f}{error} {scenes}"
        )


if __name__ == "__main__":
    main_exit(main)
