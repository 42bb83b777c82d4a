"""Trains a model: data, model, shardings, restore, loop.

    python train.py --config configs/tiny.py --workdir runs/tiny [--config.steps=100]
        [--profile DIR]
    python train.py --help-settings                  # all settings: values, choices, meaning

Started again with the same arguments it goes on from its newest checkpoint, with the same numbers
as if it had never stopped. What it writes to the workdir: `run_log`, `checkpoints`, `provenance`.

Exit status: 0 all steps are done; 2 something given is wrong, the message says what; 4 training
diverged; 143 and 130 ended by SIGTERM and Ctrl-C, after saving (a second one ends at once).
"""

# ruff: noqa: E402 - --help is answered before what takes seconds to load
from __future__ import annotations

import sys

from absl import flags

from efficient_lvsm_jax.commands import answer_help, command_line, complete, main_exit


def define_flags(values: flags.FlagValues) -> None:
    """Flags besides those of all programs."""
    flags.DEFINE_string("profile", None, "folder for a trace of some steps", flag_values=values)


if __name__ == "__main__":
    answer_help(sys.argv, define_flags, usage=__doc__)

import contextlib
import dataclasses
import functools
import hashlib
import json
from pathlib import Path
from typing import Any

import grain
import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from data_pipeline.batches.pipeline import DataConfig, TrainingBatches, training_batches
from efficient_lvsm_jax.configuration import Settings, build, setting
from efficient_lvsm_jax.cost import flops
from efficient_lvsm_jax.cost.memory import estimate
from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.evaluation.heldout import open_heldout, render_heldout
from efficient_lvsm_jax.evaluation.protocol import EvaluationConfig
from efficient_lvsm_jax.models.families import configure, family_named
from efficient_lvsm_jax.models.model import Model
from efficient_lvsm_jax.parallel.processes import join_processes
from efficient_lvsm_jax.parallel.sharding import make_mesh, put_batch, replicate, state_shardings
from efficient_lvsm_jax.runs.profiling import STEPS, StepTrace
from efficient_lvsm_jax.runs.progress import Progress, StepClock, peak_flops
from efficient_lvsm_jax.runs.provenance import record_start
from efficient_lvsm_jax.runs.run_log import RunLog
from efficient_lvsm_jax.training.checkpoints import Checkpoints
from efficient_lvsm_jax.training.interruption import Interruption, exit_by
from efficient_lvsm_jax.training.objective import FrozenNetworks, LossConfig, load_frozen
from efficient_lvsm_jax.training.optimizer import OptimizerConfig
from efficient_lvsm_jax.training.settings import TrainingConfig
from efficient_lvsm_jax.training.step import (
    Recipe,
    TrainState,
    abstract_state,
    init_state,
    start_from,
    train_step,
)
from efficient_lvsm_jax.weights.load import load
from efficient_lvsm_jax.weights.workdir import claim_workdir

DIVERGED = 4  # exit status


class TrainingDivergedError(RuntimeError):
    """Too many updates in a row had to be skipped."""


@dataclasses.dataclass(frozen=True)
class LogConfig(Settings):
    """What a run shows while it trains.

    Attributes:
      every: steps between two rows of numbers.
      pictures_every: steps between two pictures of held-out predictions; 0 for none.
      pictures: held-out scenes of a picture, the first of the `evaluation` group.
      tensorboard: also write for TensorBoard.
      wandb: project of Weights & Biases; "" for none.
    """

    group = "log"
    every: int = setting(10, at_least=1)
    pictures_every: int = setting(0, at_least=0)
    pictures: int = setting(3, at_least=1)
    tensorboard: bool = True
    wandb: str = ""


@dataclasses.dataclass(frozen=True)
class Run:
    """A run as its configuration describes it, before anything is computed.

    `all_settings` are plain values, defaults among them, for the record.
    """

    all_settings: dict[str, Any]
    config: TrainingConfig
    workdir: Path
    recipe: Recipe
    data: DataConfig
    log: LogConfig
    mesh: Mesh
    frozen: FrozenNetworks

    @classmethod
    def open(cls, config: ConfigDict, workdir: Path) -> Run:
        """Checks all settings, loads the losses' networks and claims the workdir."""
        values = complete(config, settings).to_dict()
        single = {name: value for name, value in values.items() if not isinstance(value, dict)}
        chosen = build(TrainingConfig, single, "config")
        model = configure(chosen.family, values["model"])
        losses = build(LossConfig, values["losses"], "losses")
        optimizer = build(OptimizerConfig, values["optimizer"], "optimizer")
        data = build(DataConfig, values["data"], "data")
        log = build(LogConfig, values["log"], "log")
        mesh = make_mesh(chosen.mesh)
        frozen, alignment = load_frozen(losses, model)
        recipe = Recipe(chosen.family, model, optimizer, losses, alignment, chosen.micro_batches)
        claim_workdir(workdir, chosen.family, model)
        return cls(values, chosen, workdir, recipe, data, log, mesh, replicate(mesh, frozen))


def train(config: ConfigDict, workdir: Path, *, profile: str | None = None) -> TrainState:
    """Trains until `config.steps` and returns the final state; `profile`: folder for a trace.

    Raises:
      InputError: settings that cannot be, a workdir of another model, or a failed write.
      TrainingDivergedError: `config.abort_after_skips` updates in a row were skipped.
      SystemExit: ended early by a signal, after saving.
    """
    run = Run.open(config, workdir)
    config = run.config
    memory = estimate(
        run.recipe.model,
        abstract_state(run.recipe),
        dict(run.mesh.shape),
        batch_size=run.data.batch_size,
        inputs=max(run.data.num_inputs_cycle),
        targets=run.data.num_targets,
        pixels=run.data.size**2,
        platform=jax.default_backend(),
        micro_batches=run.recipe.micro_batches,
    )
    say(f"memory: {memory}")
    checkpoints = Checkpoints(
        workdir,
        keep=config.checkpoints_to_keep,
        keep_every=config.checkpoint_keep_every,
        config_sha256=hashlib.sha256(
            json.dumps(run.all_settings, sort_keys=True).encode()
        ).hexdigest(),
    )
    made = contextlib.closing(training_batches(run.data, seed=config.seed, progress=True))
    with Interruption() as interruption, checkpoints, made as batches:
        state = first_state(run, checkpoints, batches)
        step = int(state.step)
        record_start(workdir, run.all_settings, step=step)
        log = RunLog(
            workdir,
            step,
            steps=config.steps,
            tensorboard=run.log.tensorboard,
            wandb=run.log.wandb,
            config=run.all_settings,
        )
        with log:
            state, ended_by = loop(run, state, batches, checkpoints, interruption, log, profile)
            checkpoints.wait()  # before the log says that the run finished
    if ended_by:
        exit_by(ended_by, f"saved step {int(state.step)} of {config.steps} in {workdir}")
    return state


def first_state(run: Run, checkpoints: Checkpoints, batches: TrainingBatches) -> TrainState:
    """Fresh, from other weights, or where training stopped; every array born in its place."""
    key = jax.random.key(run.config.seed)
    init = functools.partial(init_state, run.recipe)
    abstract = abstract_state(run.recipe)
    shardings = state_shardings(run.mesh, abstract)
    step = checkpoints.latest()
    if step is not None:
        say(f"going on from step {step} in {run.workdir}")
        return restore(checkpoints, step, abstract, shardings, batches)
    if run.config.init_from:
        params = weights_like(run.config.init_from, abstract.params, run.recipe.family)
        params = jax.device_put(params, shardings.params)
        start = functools.partial(start_from, run.recipe)
        return jax.jit(start, out_shardings=shardings)(params, key)
    return jax.jit(init, out_shardings=shardings)(key)


def loop(
    run: Run,
    state: TrainState,
    batches: TrainingBatches,
    checkpoints: Checkpoints,
    interruption: Interruption,
    log: RunLog,
    profile: str | None,
) -> tuple[TrainState, int]:
    """Steps until the last one; the state, and the signal that ended it early or 0."""
    config, step, ended_by = run.config, int(state.step), 0
    heldout = held_out_scenes(run)
    clock = StepClock(peak=peak_flops())
    cycle = len(run.data.num_inputs_cycle)  # each number of inputs is a program of its own
    trace = StepTrace(
        profile, "train", warm_up=cycle + 1, total=config.steps - step, steps=max(STEPS, cycle)
    )
    with jax.set_mesh(run.mesh), Progress(step, config.steps) as progress, trace:
        while step < config.steps and not ended_by:
            trace.begin(step + 1, after=state)
            with clock.waiting("data"):
                batch = next(batches)
            views = {side: views.c2w.shape[1] for side, views in vars(batch).items()}
            batch = put_batch(run.mesh, batch)
            state, metrics = train_step(run.recipe, state, batch, run.frozen)
            step += 1
            last = step == config.steps
            clock.stepped(
                scenes=run.data.batch_size,
                images=run.data.batch_size * sum(views.values()),
                flops=model_flops(run, **views),
            )
            progress.stepped()
            ended_by = 0 if last else interruption.after_step()
            if step % run.log.every == 0 or last:
                values = jax.device_get(metrics)
                reading = clock.read(config.steps - step)
                log.scalars(step, values | batches.left_out, reading.numbers())
                progress.show(values, reading)
                check_skips(values, config.abort_after_skips, step)
            if heldout and (step % run.log.pictures_every == 0 or last):
                with clock.waiting("pictures", after=state):
                    weights = state.params if state.ema is None else state.ema
                    model = Model(run.recipe.family, run.recipe.model, weights)
                    picture, scores = render_heldout(model, heldout, run.mesh, step=step)
                    log.scalars(step, scores)
                    log.picture(step, picture)
            if step % config.checkpoint_every == 0 or last or ended_by:
                with clock.waiting("checkpoint", after=state):
                    log.flush(step)
                    position = grain.checkpoint.CheckpointSave(batches)
                    checkpoints.save(step, items_of(state, position))
    say(f"waited {clock.share('checkpoint'):.1%} of the time for checkpoints")
    return state, ended_by


def check_skips(values: dict[str, Any], most: int, step: int) -> None:
    """Ends a run that no longer learns. Raises TrainingDivergedError."""
    if most and values["skipped_in_a_row"] >= most:
        raise TrainingDivergedError(
            f"step {step}: the last {values['skipped_in_a_row']} updates were skipped (loss "
            f"{values['loss']:.4g}, gradient norm {values['grad_norm']:.4g}); parameters are those "
            "before them. Lower optimizer.learning_rate, look at the data, or raise "
            "abort_after_skips"
        )


def model_flops(run: Run, *, inputs: int, targets: int) -> int:
    """Of a step of all devices together, forward and backward."""
    model, pixels = run.recipe.model, run.data.size**2
    scenes = run.data.batch_size
    work = flops.train_step(model, scenes, inputs, targets, pixels, fused_attention=True)
    return work.model.total


def held_out_scenes(run: Run) -> list:
    """The scenes of the pictures; none where there are none to be drawn."""
    if not run.log.pictures_every:
        return []
    values = run.all_settings["evaluation"]
    if not (values["data"] or values["scenes"]):
        raise InputError(
            f"log.pictures_every={run.log.pictures_every} needs evaluation.data or "
            "evaluation.scenes, which say what the held-out scenes are; 0 draws no pictures"
        )
    settings = build(EvaluationConfig, values, "evaluation")
    return open_heldout(settings, seed=run.config.seed, count=run.log.pictures)


def weights_like(source: str, abstract: dict, family: str) -> dict:
    """Parameters to begin with, of the same model.

    Raises:
      InputError: nothing usable there, or another model (names what differs).
    """
    model = load(source)
    if model.family != family:
        raise InputError(f"init_from={source}: holds a {model.family}, this trains a {family}")
    shapes = {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape
        for path, leaf in jax.tree_util.tree_leaves_with_path(abstract)
    }
    for path, leaf in jax.tree_util.tree_leaves_with_path(model.params):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if shapes.pop(name, None) != leaf.shape:
            raise InputError(
                f"init_from={source}: {name} of shape {leaf.shape} does not fit the model of this "
                "configuration; set model.width, layers, … as the weights have them"
            )
    if shapes:
        raise InputError(f"init_from={source}: has no {', '.join(sorted(shapes))}")
    return model.params


def items_of(state: TrainState, data: object) -> dict[str, object]:
    """A state as checkpoint items; parameters apart, so that rendering reads only them."""
    rest = {
        name: value
        for name, value in vars(state).items()
        if name not in ("params", "ema", "projectors")
    }
    items = {
        "params": state.params,
        "ema": state.ema,
        "projectors": state.projectors,
        "optimizer": rest,
        "data": data,
    }
    return {name: item for name, item in items.items() if item not in (None, {})}


def restore(
    checkpoints: Checkpoints,
    step: int,
    abstract: TrainState,
    shardings: TrainState,
    batches: grain.DatasetIterator,
) -> TrainState:
    """The state saved at `step`, every array in its place; `batches` moves to where it was."""
    placed = jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        abstract,
        shardings,
    )
    items = items_of(placed, grain.checkpoint.CheckpointRestore(batches))
    restored = checkpoints.restore(step, items)
    return TrainState(
        **restored["optimizer"],
        params=restored["params"],
        ema=restored.get("ema"),
        projectors=restored.get("projectors", {}),
    )


def say(line: str) -> None:
    """Prints in the first process."""
    if jax.process_index() == 0:
        print(line, flush=True)


def settings(config: ConfigDict) -> dict[str, type]:
    """What the groups of a configuration become; "" is what belongs to none."""
    return {
        "": TrainingConfig,
        "model": family_named(config.get("family", TrainingConfig.family)).config,
        "losses": LossConfig,
        "optimizer": OptimizerConfig,
        "data": DataConfig,
        "log": LogConfig,
        "evaluation": EvaluationConfig,
    }


def main() -> int | None:
    """The command line."""
    config, values = command_line(sys.argv, define_flags, usage=__doc__, settings=settings)
    join_processes(config.processes)
    workdir = Path(values.workdir)
    try:
        state = train(config, workdir, profile=values.profile)
    except TrainingDivergedError as error:
        print(f"error: {error}", file=sys.stderr)
        return DIVERGED
    say(f"trained {int(state.step)} steps, {int(state.skipped)} updates skipped: {workdir}")
    return None


if __name__ == "__main__":
    main_exit(main)
