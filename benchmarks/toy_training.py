"""Small trainings on generated scenes that are compared with each other."""

from __future__ import annotations

import argparse
import contextlib
import functools
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import jax
from ml_collections import ConfigDict

from data_pipeline.batches.pipeline import training_batches
from efficient_lvsm_jax.aot.training_step import question
from efficient_lvsm_jax.commands import complete
from efficient_lvsm_jax.models.families import configure
from efficient_lvsm_jax.models.model import abstract_params
from efficient_lvsm_jax.training.step import init_state, train_step
from efficient_lvsm_jax.weights.load import load
from eval import Options, evaluate
from train import settings, train

TURNS = 7


def study_parser(description: str) -> argparse.ArgumentParser:
    """The options of every study: where it works, steps of a training, seeds."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    return parser


def squeezed(config: ConfigDict, *, seed: int, steps: int) -> ConfigDict:
    """A configuration of configs/ as published: two inputs a scene, no positions, so many steps."""
    config = complete(config, settings)
    config.model.positions = "none"
    config.seed, config.steps = seed, steps
    config.checkpoint_every = steps
    config.log.update(pictures_every=0, tensorboard=False, every=50)
    config.data.update(num_inputs_cycle=(2,), views=8, scenes=8 * steps)  # every one once
    config.evaluation.update(added_one_by_one=(), film_frames=0)
    return config


def trained_score(config: ConfigDict, workdir: Path, *, evaluation_seed: int) -> float:
    """Trains, and returns the PSNR on the held-out scenes of a seed, dB."""
    train(config, workdir)
    scored = config.copy_and_resolve_references()
    scored.seed = evaluation_seed
    metrics = evaluate(scored, load(workdir), workdir / "evaluation", Options())
    return metrics["summary"]["psnr"]


def step_seconds(configs: dict[str, ConfigDict]) -> dict[str, float]:
    """Median time of a training step of each model, warm, taking turns."""
    steps = {}
    for name, config in configs.items():
        recipe, data = (getattr(question(config, 1), part) for part in ("recipe", "data"))
        state = jax.jit(functools.partial(init_state, recipe))(jax.random.key(0))
        with contextlib.closing(training_batches(data, seed=0)) as batches:
            batch = next(batches)
        steps[name] = recipe, [state], batch
    seconds = {name: [] for name in configs}
    for _ in range(TURNS):
        for name, (recipe, state, batch) in steps.items():
            for _ in range(2):  # the first of a turn warms up
                started = time.perf_counter()
                state[0] = jax.block_until_ready(train_step(recipe, state[0], batch)[0])
            seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(found) for name, found in seconds.items()}


def parameters(config: ConfigDict) -> int:
    """Their number."""
    shapes = abstract_params(config.family, configure(config.family, config.model.to_dict()))
    return sum(x.size for x in jax.tree.leaves(shapes))


def behind(scores: Sequence[float], best: Sequence[float]) -> str:
    """How far scores are behind others of the same seeds, with the standard error of the mean."""
    differences = [a - b for a, b in zip(best, scores, strict=True)]
    mean = statistics.mean(differences)
    if not any(differences) or len(differences) < 2:
        return f"{mean:.2f}"
    return f"{mean:.2f} ± {statistics.stdev(differences) / len(differences) ** 0.5:.2f}"
