"""A few training steps on a mesh; for tests that need other devices than their own process has.

python tests/mesh_worker.py --devices 8 OUT MESH [MESH …]     each mesh on its first devices
python tests/mesh_worker.py --devices 2 --process 0 --processes 2 --port 1234 OUT MESH

OUT gets numpy's .npz: for mesh number i "losses_i", "gradients_i" (norms, one a step) and, from one
process alone, "params_i", all parameters after the last step in one row.
"""

from __future__ import annotations

import argparse
import dataclasses
import math

import conftest
import jax
import numpy as np
from jax.sharding import Mesh

from efficient_lvsm_jax.geometry.cameras import Batch
from efficient_lvsm_jax.parallel.sharding import make_mesh, put_batch, state_shardings
from efficient_lvsm_jax.training.optimizer import OptimizerConfig
from efficient_lvsm_jax.training.step import Recipe, TrainState, init_state, train_step

FAMILY = "efficient_lvsm"
MODEL = dataclasses.replace(conftest.SMALL, positions="prope")  # cameras go with their views
# Matrices by Muon, the rest by AdamW.
MUON = OptimizerConfig(name="muon", learning_rate=1e-3, warmup_steps=1, ema_decay=0.9)
SCENES, INPUTS, STEPS = 8, 4, 3


def born_in_place(mesh: Mesh, recipe: Recipe) -> TrainState:
    """A fresh state, checked to be where the rules say."""

    def init(key):
        return init_state(recipe, key)

    shardings = state_shardings(mesh, jax.eval_shape(init, jax.random.key(0)))
    state = jax.jit(init, out_shardings=shardings)(jax.random.key(0))
    for x, sharding in zip(jax.tree.leaves(state), jax.tree.leaves(shardings), strict=True):
        assert x.sharding.is_equivalent_to(sharding, x.ndim)
    return state


def train_on(mesh: Mesh) -> tuple[np.ndarray, np.ndarray, TrainState]:
    """Losses, norms of gradients and final state of STEPS steps on random views.

    Every process reads its share of the same batches.
    """
    recipe = Recipe(FAMILY, MODEL, MUON)
    state = born_in_place(mesh, recipe)
    share = SCENES // jax.process_count()
    mine = slice(share * jax.process_index(), share * (jax.process_index() + 1))
    rows = []
    with jax.set_mesh(mesh):
        for step in range(STEPS):
            batch = Batch(
                conftest.random_views(INPUTS, seed=10 * step, batch=SCENES),
                conftest.random_views(2, seed=10 * step + 1, batch=SCENES),
            )
            batch = put_batch(mesh, jax.tree.map(lambda x: x[mine], batch))
            state, metrics = train_step(recipe, state, batch)
            rows.append((float(metrics["loss"]), float(metrics["grad_norm"])))
    losses, gradients = np.array(rows).T
    return losses, gradients, state


def in_one_row(params: dict) -> np.ndarray:
    """All parameters one after another."""
    return np.concatenate([np.ravel(x) for x in jax.tree.leaves(params)])


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("out")
    parser.add_argument("meshes", nargs="+")
    parser.add_argument("--devices", type=int, required=True)
    parser.add_argument("--process", type=int, default=0)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--port", type=int)
    asked = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", asked.devices)
    if asked.processes > 1:
        address = f"127.0.0.1:{asked.port}"
        jax.distributed.initialize(
            address, asked.processes, asked.process, initialization_timeout=30
        )
    arrays = {}
    for number, spec in enumerate(asked.meshes):
        size = math.prod(int(part.partition(":")[2]) for part in spec.split(","))
        losses, gradients, state = train_on(make_mesh(spec, jax.devices()[:size]))
        arrays |= {f"losses_{number}": losses, f"gradients_{number}": gradients}
        if asked.processes == 1:
            arrays[f"params_{number}"] = in_one_row(state.params)
    np.savez(asked.out, **arrays)
    if asked.processes > 1:
        jax.distributed.shutdown()


if __name__ == "__main__":
    main()
