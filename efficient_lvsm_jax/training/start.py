"""The state that a run begins with: fresh, from other weights, or as it was saved."""

from __future__ import annotations

import functools
from typing import Any

import grain
import jax
from jax.sharding import Mesh

from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.parallel.processes import say
from efficient_lvsm_jax.parallel.sharding import state_shardings
from efficient_lvsm_jax.training.checkpoints import Checkpoints
from efficient_lvsm_jax.training.settings import TrainingConfig
from efficient_lvsm_jax.training.step import (
    Recipe,
    TrainState,
    abstract_state,
    init_state,
    start_from,
)
from efficient_lvsm_jax.weights.load import load


def first_state(
    recipe: Recipe,
    config: TrainingConfig,
    mesh: Mesh,
    checkpoints: Checkpoints,
    batches: grain.DatasetIterator,
) -> TrainState:
    """Fresh, from other weights, or where training stopped; every array born in its place.

    Where training stopped, `batches` moves there as well.

    Raises:
      InputError: no step there is good, or it is of other settings; or the weights to begin with
        are not there, or of another model.
    """
    abstract = abstract_state(recipe)
    shardings = state_shardings(mesh, abstract)
    step = checkpoints.latest()
    if step is not None:
        say(f"going on from step {step} in {checkpoints.workdir}")
        placed = jax.tree.map(
            lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
            abstract,
            shardings,
        )
        position = grain.checkpoint.CheckpointRestore(batches)
        restored = checkpoints.restore(step, _items(placed, position))
        return TrainState(
            **restored["optimizer"],
            params=restored["params"],
            ema=restored.get("ema"),
            projectors=restored.get("projectors", {}),
        )
    key = jax.random.key(config.seed)
    if config.init_from:
        params = _weights_like(config.init_from, abstract.params, recipe.family)
        params = jax.device_put(params, shardings.params)
        start = functools.partial(start_from, recipe)
        return jax.jit(start, out_shardings=shardings)(params, key)
    return jax.jit(functools.partial(init_state, recipe), out_shardings=shardings)(key)


def save_state(
    checkpoints: Checkpoints, step: int, state: TrainState, batches: grain.DatasetIterator
) -> None:
    """Starts saving a state and the position in the data, see `Checkpoints.save`."""
    checkpoints.save(step, _items(state, grain.checkpoint.CheckpointSave(batches)))


def _items(state: TrainState, data: Any) -> dict[str, Any]:
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


def _weights_like(source: str, abstract: dict, family: str) -> dict:
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
