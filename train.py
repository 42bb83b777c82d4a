"""Trains a model: data, model, shardings, restore, loop.

    python train.py --config configs/tiny.py --workdir runs/tiny [--config.steps=100] [--profile D]
    python train.py --help-settings                  # all settings: values, choices, meaning

Started again with the same arguments it goes on from its newest checkpoint, with the same numbers
as if it had never stopped. docs/training.md says what it writes to the workdir.

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
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from data_pipeline.batches.pipeline import TrainingBatches, training_batches
from efficient_lvsm_jax.aot import fitting, training_step
from efficient_lvsm_jax.configuration import build
from efficient_lvsm_jax.evaluation.heldout import heldout_of, render_heldout
from efficient_lvsm_jax.evaluation.protocol import EvaluationConfig
from efficient_lvsm_jax.parallel.processes import join_processes, say
from efficient_lvsm_jax.parallel.sharding import make_mesh, put_batch
from efficient_lvsm_jax.runs.profiling import STEPS, StepTrace
from efficient_lvsm_jax.runs.progress import Progress, StepClock, peak_flops
from efficient_lvsm_jax.runs.provenance import record_start
from efficient_lvsm_jax.runs.run_log import RunLog
from efficient_lvsm_jax.runs.settings import LogConfig
from efficient_lvsm_jax.training.checkpoints import Checkpoints
from efficient_lvsm_jax.training.divergence import TrainingDivergedError, check_skips
from efficient_lvsm_jax.training.interruption import Interruption, exit_by
from efficient_lvsm_jax.training.objective import frozen_shardings
from efficient_lvsm_jax.training.settings import TrainingConfig
from efficient_lvsm_jax.training.start import first_state, save_state
from efficient_lvsm_jax.training.step import TrainState, train_step
from efficient_lvsm_jax.weights.workdir import claim_workdir

DIVERGED = 4  # exit status


@dataclasses.dataclass(frozen=True)
class Run:
    """A run as its configuration describes it, before anything is computed.

    `all_settings` are plain values for the record, defaults among them, fractions of the run as
    updates; `asked` is what is to be trained, on what.
    """

    all_settings: dict[str, Any]
    config: TrainingConfig
    log: LogConfig
    mesh: Mesh
    asked: training_step.Question

    @classmethod
    def open(cls, config: ConfigDict, workdir: Path) -> Run:
        """Checks all settings, loads the losses' networks and claims the workdir."""
        values = complete(config, settings).to_dict()
        single = {name: value for name, value in values.items() if not isinstance(value, dict)}
        chosen = build(TrainingConfig, single, "config")
        log = build(LogConfig, values["log"], "log")
        mesh = make_mesh(chosen.mesh)
        asked = training_step.question(config, mesh.size, abstract=False)
        claim_workdir(workdir, chosen.family, asked.recipe.model, [(asked.data.size,) * 2])
        frozen = jax.device_put(asked.frozen, frozen_shardings(mesh, asked.frozen))
        asked = dataclasses.replace(asked, frozen=frozen)
        values["optimizer"] |= asked.recipe.optimizer.planned(chosen.steps)
        return cls(values, chosen, log, mesh, asked)


def train(config: ConfigDict, workdir: Path, *, profile: str | None = None) -> TrainState:
    """Trains until `config.steps` and returns the final state; `profile`: folder for a trace.

    Raises:
      InputError: settings that cannot be, another model's workdir, too little memory or disk.
      TrainingDivergedError: `config.abort_after_skips` updates in a row were skipped.
      SystemExit: ended early by a signal, after saving.
    """
    run = Run.open(config, workdir)
    config = run.config
    platform = jax.default_backend()
    say(f"memory: {run.asked.estimate(platform)}")
    fitting.check_memory(run.asked, platform, fitting.room_of_a_device())
    checkpoints = Checkpoints(
        workdir,
        keep=config.checkpoints_to_keep,
        keep_every=config.checkpoint_keep_every,
        config=run.all_settings,
    )
    made = contextlib.closing(training_batches(run.asked.data, seed=config.seed, progress=True))
    explained = fitting.explaining_out_of_memory(run.asked, platform)
    with Interruption() as interruption, checkpoints, made as batches, explained:
        state = first_state(run.asked.recipe, config, run.mesh, checkpoints, batches)
        step = int(state.step)
        record_start(workdir, run.all_settings, step=step)
        with RunLog(workdir, step, run.log, steps=config.steps, config=run.all_settings) as log:
            state, ended_by = loop(run, state, batches, checkpoints, interruption, log, profile)
            checkpoints.wait()  # before the log says that the run finished
    if ended_by:
        exit_by(ended_by, f"saved step {int(state.step)} of {config.steps} in {workdir}")
    return state


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
    recipe, data, frozen = run.asked.recipe, run.asked.data, run.asked.frozen
    shown = {"every": run.log.pictures_every, "count": run.log.pictures, "seed": config.seed}
    heldout = heldout_of(run.all_settings, **shown)
    clock = StepClock(peak=peak_flops())
    cycle = len(data.num_inputs_cycle)  # each number of inputs is a program of its own
    trace = StepTrace(
        profile, "train", warm_up=cycle + 1, total=config.steps - step, steps=max(STEPS, cycle)
    )
    with jax.set_mesh(run.mesh), Progress(step, config.steps) as progress, trace:
        while step < config.steps and not ended_by:
            trace.begin(step + 1, after=state)
            with clock.waiting("data"):
                batch = next(batches)
            inputs = batch.inputs.c2w.shape[1]
            state, metrics = train_step(recipe, state, put_batch(run.mesh, batch), frozen)
            step += 1
            last = step == config.steps
            clock.stepped(
                scenes=data.batch_size,
                images=data.batch_size * (inputs + data.num_targets),
                flops=run.asked.flops(inputs).model.total,
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
                    model = state.model(recipe)
                    picture, scores = render_heldout(model, heldout, run.mesh, step=step)
                    log.scalars(step, scores)
                    log.picture(step, picture)
            if step % config.checkpoint_every == 0 or last or ended_by:
                with clock.waiting("checkpoint", after=state):
                    log.flush(step)
                    save_state(checkpoints, step, state, batches)
    say(f"waited {clock.share('checkpoint'):.1%} of the time for checkpoints")
    return state, ended_by


def settings(config: ConfigDict) -> dict[str, type]:
    """What the groups of a configuration become; "" is what belongs to none."""
    return training_step.settings(config) | {"log": LogConfig, "evaluation": EvaluationConfig}


def main() -> int | None:
    """The command line."""
    config, values = command_line(sys.argv, define_flags, usage=__doc__, settings=settings)
    join_processes(config.processes)
    try:
        state = train(config, Path(values.workdir), profile=values.profile)
    except TrainingDivergedError as error:
        print(f"error: {error}", file=sys.stderr)
        return DIVERGED
    say(f"trained {int(state.step)} steps, {int(state.skipped)} updates skipped: {values.workdir}")


if __name__ == "__main__":
    main_exit(main)
