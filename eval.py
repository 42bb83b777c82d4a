"""Scores a model, or pictures of any other method: numbers, a report to look at, and a film.

    python eval.py --config configs/tiny.py --workdir runs/tiny [--weights FOLDER_OR_FILE] \\
        [--profile DIR]
    python eval.py --config configs/re10k_evaluation.py --workdir OUT --weights FOLDER_OR_FILE \\
        --config.evaluation.data=PATH
    python eval.py --config ... --workdir OUT --predictions FOLDER     # FOLDER/SCENE/FRAME.png
    python eval.py --compare A B [--out FOLDER]                        # two finished workdirs
    python eval.py --geometry --weights MODEL CAPTURE                  # cameras, depth; own --help
    python eval.py --help-settings                                     # what can be set

Writes metrics.json, scenes.csv, report.html and fly.mp4 to WORKDIR/evaluation. The weights are
those trained in the workdir unless --weights names others. Started again it goes on where it was
interrupted. The last line printed has the scores and those of two trivial baselines on the same
targets: copying the nearest input, and the mean input colour. docs/evaluation.md has the protocol.
"""

# ruff: noqa: E402 - --help is answered before what takes seconds to load
from __future__ import annotations

import sys

from absl import flags

from efficient_lvsm_jax.commands import (
    PRODUCTS,
    answer_help,
    command_line,
    complete,
    main_exit,
)


def define_flags(values: flags.FlagValues) -> None:
    """Flags besides those of all programs."""
    own = {"flag_values": values}
    flags.DEFINE_string(
        "weights", None, "a folder, workdir, file, hf://… or name: docs/weights.md", **own
    )
    flags.DEFINE_enum(
        "products", None, PRODUCTS, "in which layers multiply (default: floats)", **own
    )
    flags.DEFINE_string("predictions", None, "pictures to score: FOLDER/SCENE/FRAME.png", **own)
    flags.DEFINE_string(
        "predictions-named", "frame", "by target frame, or by order: one each, sorted", **own
    )
    flags.DEFINE_bool("save-predictions", False, "keep all pictures, score what is kept", **own)
    flags.DEFINE_bool("restart", False, "discard the results of an earlier run", **own)
    flags.DEFINE_string("profile", None, "folder for a trace of some batches", **own)


if __name__ == "__main__" and "--geometry" not in sys.argv:  # which has a help of its own
    answer_help(sys.argv, define_flags, usage=__doc__)

import dataclasses
import math
import shutil
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from data_pipeline.batches.settings import DataConfig
from efficient_lvsm_jax.configuration import build
from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.evaluation import comparison, geometry
from efficient_lvsm_jax.evaluation.passes import render_shown, score_missing
from efficient_lvsm_jax.evaluation.predictions import Predictions
from efficient_lvsm_jax.evaluation.protocol import (
    EvaluationConfig,
    MachineConfig,
    open_evaluation,
    protocol_of,
    settings_of_run,
)
from efficient_lvsm_jax.evaluation.renderers import FolderRenderer, ModelRenderer
from efficient_lvsm_jax.evaluation.report import write_report
from efficient_lvsm_jax.evaluation.results import ResultsFile, protocol_hash, scores_csv
from efficient_lvsm_jax.evaluation.scoring import Scorer, padded_size
from efficient_lvsm_jax.evaluation.summary import made_by, numbers, print_results
from efficient_lvsm_jax.files.writing import json_safe, write_json, written_whole
from efficient_lvsm_jax.metrics.lpips import WEIGHTS_FOLDER
from efficient_lvsm_jax.models.model import Model
from efficient_lvsm_jax.parallel.sharding import make_mesh
from efficient_lvsm_jax.runs.profiling import StepTrace
from efficient_lvsm_jax.runs.provenance import check_generated
from efficient_lvsm_jax.weights.folder import digest
from efficient_lvsm_jax.weights.load import load_renderer
from efficient_lvsm_jax.weights.lpips import find_lpips


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
    config: ConfigDict, source: Model | Predictions, folder: Path, options: Options
) -> dict[str, Any]:
    """Scores `source`, writes to `folder`, gives what metrics.json holds (docs/evaluation.md)."""
    if jax.process_count() > 1:
        raise InputError("evaluation runs in one process, over all devices of one machine")
    values = complete(config, settings_of).to_dict()
    machine = build(MachineConfig, {name: values[name] for name in ("seed", "mesh")}, "config")
    settings = settings_of_run(values)
    mesh = make_mesh(machine.mesh)
    if isinstance(source, Model):
        renderer = ModelRenderer(source, settings, mesh, weights=options.weights)
    else:
        renderer = FolderRenderer(source, folder)
    opened = open_evaluation(settings, seed=machine.seed)
    described = renderer.describe(opened.scenes.names, eight_bit=options.save_predictions)
    lpips = find_lpips(settings.lpips)
    if lpips is None:
        print(f"LPIPS is left out: no weights in {WEIGHTS_FOLDER}, see docs/evaluation.md")
    scorer = Scorer(
        renderer.render,
        mesh,
        settings.batch_size,
        eight_bit=options.save_predictions,
        foreground=settings.foreground,
        lpips=lpips,
    )
    batch_size = padded_size(settings.batch_size, mesh)
    protocol = protocol_of(settings, opened, described, scorer.metrics)
    if lpips is not None:
        protocol["lpips_sha256"] = digest(lpips.params)

    with ResultsFile(folder, protocol, restart=options.restart) as results:
        if options.restart:
            for name in ("predictions", "truth", "shown"):
                shutil.rmtree(folder / name, ignore_errors=True)
        done = {row.scene for row in results.rows}
        missing = [i for i, name in enumerate(opened.scenes.names) if name not in done]
        calls = math.ceil(len(missing) / batch_size)
        with StepTrace(options.profile, "batches of scenes", warm_up=1, total=calls) as trace:
            score_missing(
                scorer,
                opened.scenes,
                missing,
                results,
                keep=folder if options.save_predictions else None,
                skip_unreadable=settings.missing == "report",
                begin=trace.begin,
            )
        rows = results.rows
    usable = [row for row in rows if not row.unusable]
    if not usable:
        raise InputError(f"none of the {len(rows)} scenes can be scored: {rows[0].unusable}")
    metrics = {
        **numbers(rows, opened),
        "protocol": protocol,
        "protocol_sha256": protocol_hash(protocol),
        "run": made_by(renderer.name, opened.source, machine.mesh, batch_size),
        "settings": dataclasses.asdict(settings),
    }
    with written_whole(folder / "scenes.csv") as partial:
        partial.write_text(scores_csv(rows), encoding="utf-8")
    found, film = renderer.beyond_scores(opened, usable[0].scene, folder, settings)
    metrics |= found
    write_json(folder / "metrics.json", json_safe(metrics))
    kept = None if options.save_predictions else folder / "shown"
    shown = render_shown(scorer, opened.scenes, rows, kept)
    write_report(folder / "report.html", rows, shown, metrics, film=film)
    return metrics


def settings_of(config: ConfigDict) -> dict[str, type]:
    """What the groups of a configuration become; "" is what belongs to none."""
    return {"": MachineConfig, "data": DataConfig, "evaluation": EvaluationConfig}


def main() -> None:
    """The command line."""
    for flag, other in {"--compare": comparison, "--geometry": geometry}.items():
        if flag in sys.argv:
            return other.main()

    config, values = command_line(sys.argv, define_flags, usage=__doc__, settings=settings_of)
    folder = Path(values.workdir) / "evaluation"
    save = values["save-predictions"].value
    if values.predictions:
        if values.weights or values.products or save:
            raise InputError(
                "--predictions scores given pictures: no --weights or --products, nothing to save"
            )
        source = Predictions(values.predictions, named=values["predictions-named"].value)
    else:
        source = load_renderer(values.weights or values.workdir, products=values.products)
        if not (config.evaluation.data or config.data.path or values.weights):
            check_generated(Path(values.workdir))
    options = Options(save, values.restart, values.weights or values.workdir, values.profile)
    metrics = evaluate(config, source, folder, options)
    print_results(metrics, folder)


if __name__ == "__main__":
    main_exit(main)
