"""Efficient-LVSM and the two LVSM baselines trained on generated scenes: equal steps, equal time.

    python benchmarks/baselines.py --workdir runs/baselines [--steps 250] [--seeds 0 1 2]

First the time of a training step of each is measured, taking turns. Then every model is trained for
--steps steps, and the baselines once more for as many steps as take the time of ours, with the
schedule squeezed into them. All are scored on the same held-out scenes. Prints the tables of
docs/reproduction.md and writes baselines.png and baselines.json to the working folder; --table
prints and draws from that file again.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.toy_training import (
    behind,
    parameters,
    squeezed,
    step_seconds,
    study_parser,
    trained_score,
)
from configs import tiny, tiny_lvsm_decoder_only, tiny_lvsm_encoder_decoder
from efficient_lvsm_jax.files.writing import write_json
from efficient_lvsm_jax.media.curves import Panel, draw_curves
from efficient_lvsm_jax.runs.listing import read_run

OURS = "Efficient-LVSM"
MODELS = {
    OURS: tiny,
    "LVSM decoder-only": tiny_lvsm_decoder_only,
    "LVSM encoder-decoder": tiny_lvsm_encoder_decoder,
}
POINTS = 10  # of a curve
SCENES = 8  # held out, that a point is measured on


def train_all(arguments: argparse.Namespace) -> dict:
    """Trains and scores every model for every seed, for equal steps and for equal time."""
    seconds = step_seconds(
        {name: squeezed(made.get_config(), seed=0, steps=100) for name, made in MODELS.items()}
    )
    print({name: f"{time:.3f} s a step" for name, time in seconds.items()}, flush=True)
    equal_time = {
        name: round(arguments.steps * seconds[OURS] / taken) for name, taken in seconds.items()
    }
    runs = []
    for seed, (name, made) in itertools.product(arguments.seeds, MODELS.items()):
        for steps in sorted({arguments.steps, equal_time[name]}, reverse=True):
            config = squeezed(made.get_config(), seed=seed, steps=steps)
            config.log.update(pictures_every=max(steps // POINTS, 1), pictures=SCENES)
            workdir = arguments.workdir / f"{config.family}-{steps}-{seed}"
            score = trained_score(config, workdir, evaluation_seed=arguments.seeds[0])
            curve = read_run(workdir, workdir.name, now=time.time()).curve("heldout/psnr")
            runs.append(
                {
                    "model": name,
                    "seed": seed,
                    "steps": steps,
                    "psnr": score,
                    "parameters": parameters(config),
                    "curve": [values.tolist() for values in curve],
                }
            )
            print(f"{name}, seed {seed}, {steps} steps: {score:.2f} dB", flush=True)
    return {
        "steps": arguments.steps,
        "seeds": arguments.seeds,
        "step_seconds": seconds,
        "equal_time": equal_time,
        "runs": runs,
    }


def tables(results: dict) -> None:
    """Prints what docs/reproduction.md holds."""
    seeds, seconds = results["seeds"], results["step_seconds"]
    for title, steps_of in (
        ("equal steps", dict.fromkeys(MODELS, results["steps"])),
        ("equal time", results["equal_time"]),
    ):
        print(
            f"\n| {title} | parameters | steps | a step, s | "
            f"{' | '.join(f'seed {seed}' for seed in seeds)} | mean, dB | behind ours, dB |"
        )
        print("|---" * (6 + len(seeds)) + "|")
        scores = {name: _runs(results, name, steps) for name, steps in steps_of.items()}
        ours = [run["psnr"] for run in scores[OURS]]
        for name, found in scores.items():
            psnr = [run["psnr"] for run in found]
            row = [name, f"{found[0]['parameters'] / 1e6:.2f} M", str(steps_of[name])]
            row += [f"{seconds[name]:.3f}", *(f"{score:.2f}" for score in psnr)]
            print(f"| {' | '.join(row)} | {statistics.mean(psnr):.2f} | {behind(psnr, ours)} |")


def picture(results: dict, path: Path) -> None:
    """Held-out PSNR over steps and over time, means over seeds."""
    panels = []
    for title, steps_of, scale in (
        ("equal steps: held-out PSNR, dB", dict.fromkeys(MODELS, results["steps"]), None),
        ("equal time: held-out PSNR, dB", results["equal_time"], results["step_seconds"]),
    ):
        curves = {}
        for name, steps in steps_of.items():
            found = np.array([run["curve"] for run in _runs(results, name, steps)]).mean(axis=0)
            curves[name] = found[0] * (scale[name] if scale else 1), found[1]
        along = "seconds of training" if scale else "step"
        panels.append(Panel(title, curves, points=curves, along=along))
    draw_curves(panels, list(MODELS), [f"means over seeds {results['seeds']}"]).savefig(path)


def _runs(results: dict, name: str, steps: int) -> list[dict]:
    return [run for run in results["runs"] if (run["model"], run["steps"]) == (name, steps)]


def main() -> None:
    """Trains, writes, prints and draws."""
    parser = study_parser(__doc__)
    parser.add_argument("--table", action="store_true", help="of results that are there already")
    arguments = parser.parse_args()
    file = arguments.workdir / "baselines.json"
    if not arguments.table:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, train_all(arguments))
    results = json.loads(file.read_text())
    tables(results)
    picture(results, file.with_suffix(".png"))


if __name__ == "__main__":
    main()
