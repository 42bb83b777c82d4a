"""Trains a model: data, model, shardings, restore, loop.

    python train.py --config configs/tiny.py --workdir runs/tiny [--config.steps=100]

Started again with the same arguments it goes on from its newest checkpoint, with the same numbers
as if it had never stopped. Metrics go to metrics.jsonl in the workdir. SIGTERM and Ctrl-C save
first and exit with 143 and 130; a second one ends at once.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import sys
from pathlib import Path

import grain
import jax
from ml_collections import ConfigDict
from tqdm import tqdm

from data_pipeline.pipeline import DataConfig, training_batches
from efficient_lvsm_jax.checkpoints import Checkpoints, claim_workdir
from efficient_lvsm_jax.configuration import build, command_line
from efficient_lvsm_jax.errors import main_exit
from efficient_lvsm_jax.interruption import Interruption, exit_by
from efficient_lvsm_jax.models import configure
from efficient_lvsm_jax.optimizer import OptimizerConfig
from efficient_lvsm_jax.sharding import make_mesh, put_batch, state_shardings
from efficient_lvsm_jax.training import Recipe, TrainState, init_state, train_step


def train(config: ConfigDict, workdir: Path) -> TrainState:
    """Trains until `config.steps` and returns the final state.

    Raises:
      InputError: settings that cannot be, a workdir of another model, or a failed write.
      SystemExit: ended early by a signal, after saving.
    """
    model = configure(config.family, config.model.to_dict())
    optimizer = build(OptimizerConfig, config.optimizer.to_dict(), "optimizer")
    recipe = Recipe(config.family, model, optimizer, config.micro_batches)
    data = build(DataConfig, config.data.to_dict(), "data")
    mesh = make_mesh(config.mesh)
    claim_workdir(workdir, config.family, model)
    with (
        Interruption() as interruption,  # outermost: the last save is waited for inside
        Checkpoints(
            workdir,
            keep=config.checkpoints_to_keep,
            keep_every=config.get("checkpoint_keep_every", 0),
            config_sha256=hashlib.sha256(config.to_json(sort_keys=True).encode()).hexdigest(),
        ) as checkpoints,
    ):
        state, ended_by = _loop(config, workdir, recipe, data, mesh, checkpoints, interruption)
    if ended_by:
        exit_by(ended_by, f"saved step {int(state.step)} of {config.steps} in {workdir}")
    return state


def _loop(
    config: ConfigDict,
    workdir: Path,
    recipe: Recipe,
    data: DataConfig,
    mesh: jax.sharding.Mesh,
    checkpoints: Checkpoints,
    interruption: Interruption,
) -> tuple[TrainState, int]:
    """Restores and trains; the state, and the signal that ended it early or 0."""
    init = functools.partial(init_state, recipe)
    key = jax.random.key(config.seed)
    abstract = jax.eval_shape(init, key)
    shardings = state_shardings(mesh, abstract)

    step = checkpoints.latest()
    batches = iter(training_batches(data, seed=config.seed, progress=True))
    if step is None:
        state = jax.jit(init, out_shardings=shardings)(key)
    else:
        state = restore(checkpoints, step, abstract, shardings, batches)
        print(f"going on from step {step} in {workdir}")

    with metrics_file(workdir, since=int(state.step)) as log:
        bar = tqdm(total=config.steps, initial=int(state.step), unit="step", dynamic_ncols=True)
        step, ended_by = int(state.step), 0
        scenes_left_out = {"replaced": 0, "unreadable": 0}  # by this process since it began
        while step < config.steps:
            batch = next(batches)
            for name in scenes_left_out:
                scenes_left_out[name] += int(batch.pop(name).sum())
            batch = put_batch(mesh, batch)
            state, metrics = train_step(recipe, state, batch)
            step += 1
            ended_by = interruption.after_step() if step < config.steps else 0
            bar.update()
            if step % config.log_every == 0 or step == config.steps:
                row = {"step": step} | {name: float(value) for name, value in metrics.items()}
                row |= scenes_left_out
                log.write(json.dumps(row) + "\n")
                rate = (bar.format_dict["rate"] or 0.0) * data.batch_size
                bar.set_postfix_str(
                    f"loss={row['loss']:.4f} psnr={row['psnr']:.2f} scenes/s={rate:.1f} "
                    f"skipped={row['skipped']:.0f}"
                )
            if step % config.checkpoint_every == 0 or step == config.steps or ended_by:
                log.flush()
                checkpoints.save(step, items_of(state, grain.checkpoint.CheckpointSave(batches)))
            if ended_by:
                break
        bar.close()
    return state, ended_by


def items_of(state: TrainState, data: object) -> dict[str, object]:
    """A state as checkpoint items; parameters apart, so that rendering reads only them."""
    rest = dataclasses.replace(state, params=None, ema=None)
    items = {"params": state.params, "ema": state.ema, "optimizer": vars(rest), "data": data}
    return {name: item for name, item in items.items() if item is not None}


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
    rest = restored["optimizer"]
    return TrainState(**rest | {"params": restored["params"], "ema": restored.get("ema")})


def metrics_file(workdir: Path, since: int):
    """metrics.jsonl to append to, without rows an interrupted run wrote past step `since`."""
    path = workdir / "metrics.jsonl"
    if path.exists():
        rows = [line for line in path.read_text().splitlines() if _step_of(line) <= since]
        beside = path.with_suffix(".partial")
        beside.write_text("".join(f"{row}\n" for row in rows))
        beside.replace(path)
    return path.open("a")


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError):
        return float("inf")  # a row cut off in the middle


def main() -> None:
    """The command line."""
    config, flags = command_line(sys.argv, usage=__doc__)
    workdir = Path(flags.workdir)
    state = train(config, workdir)
    print(f"trained {int(state.step)} steps, {int(state.skipped)} updates skipped: {workdir}")


if __name__ == "__main__":
    main_exit(main)
