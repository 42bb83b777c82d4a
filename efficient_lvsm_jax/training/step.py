"""One training step: losses, gradients, rules for skipping, optimizer (published program, §6).

Axes: B scene, V input view, T target view, Y X pixel.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax

from efficient_lvsm_jax.configuration import Settings, setting
from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.geometry.cameras import Batch
from efficient_lvsm_jax.models.model import Model, bind, init_params
from efficient_lvsm_jax.training.geometry_objective import GeometryLossConfig
from efficient_lvsm_jax.training.objective import (
    Alignment,
    FrozenNetworks,
    LossConfig,
    metrics_of,
    objective,
)
from efficient_lvsm_jax.training.optimizer import (
    OptimizerConfig,
    held,
    learning_rate,
    make_optimizer,
)

MEAN_SQUARED = LossConfig()
NO_NETWORKS = FrozenNetworks()


@dataclasses.dataclass(frozen=True)
class Recipe(Settings):
    """Everything about a step that is fixed when it is compiled.

    Attributes:
      family: of the model, see `models.families`.
      model: its configuration.
      optimizer: how parameters move.
      losses: what is minimised.
      alignment: which layers REPA compares; None without it.
      micro_batches: a batch is walked in this many equal parts whose gradients are averaged, for
        the memory of one part.
    """

    family: str
    model: Any
    optimizer: OptimizerConfig
    losses: LossConfig | GeometryLossConfig = MEAN_SQUARED
    alignment: Alignment | None = None
    micro_batches: int = setting(1, at_least=1)

    def __post_init__(self):
        super().__post_init__()
        if bool(self.losses.repa) != (self.alignment is not None):
            raise InputError("a recipe has an alignment if, and only if, losses.repa is not 0")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything a step changes.

    Attributes:
      step: batches seen.
      schedule_step: position in the learning-rate schedule.
      skipped: updates left out so far.
      skipped_in_a_row: of them, how many since the last update.
      params, ema: nested dicts of float32 arrays; ema is None unless an average is kept.
      projectors: of REPA, {} without it.
      optimizer: optax state for both.
    """

    step: jax.Array
    schedule_step: jax.Array
    skipped: jax.Array
    skipped_in_a_row: jax.Array
    params: dict
    ema: dict | None
    projectors: dict
    optimizer: Any

    def model(self, recipe: Recipe) -> Model:
        """What was trained so far, with the averaged parameters where an average is kept."""
        return Model(recipe.family, recipe.model, self.params if self.ema is None else self.ema)


def init_state(recipe: Recipe, key: jax.Array) -> TrainState:
    """A fresh state; jit it with out_shardings so that every array is born in its place."""
    return start_from(recipe, init_params(recipe.family, recipe.model, key), key)


def abstract_state(recipe: Recipe) -> TrainState:
    """Shapes and dtypes of the state, without making it."""
    return jax.eval_shape(functools.partial(init_state, recipe), jax.random.key(0))


def start_from(recipe: Recipe, params: dict, key: jax.Array) -> TrainState:
    """The state before the first step with these parameters; `key` draws REPA's projectors."""
    counters = [jnp.zeros((), jnp.int32) for _ in range(4)]  # buffers of their own, to be donated
    ema = jax.tree.map(jnp.copy, params) if recipe.optimizer.ema_decay else None
    projectors = {}
    if recipe.alignment:
        key = jax.random.fold_in(key, 1)  # the key itself drew the parameters
        projectors = recipe.alignment.init_projectors(key, recipe.model.width)
    moments = make_optimizer(recipe.optimizer).init({"model": params, "projectors": projectors})
    return TrainState(*counters, params, ema, projectors, moments)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
def train_step(
    recipe: Recipe, state: TrainState, batch: Batch, frozen: FrozenNetworks = NO_NETWORKS
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One update on a batch.

    Args:
      recipe: what is trained, and how.
      state: donated.
      batch: pictures are uint8 or floats in [0, 1].
      frozen: networks the losses look through.

    Returns:
      The new state and scalars: loss, each loss by name (loss/mean_squared, …), psnr of what is
      rendered, grad_norm
      (before clipping), learning_rate, skipped, skipped_in_a_row. A non-finite loss changes nothing
      but the counters; too large a gradient also advances the schedule. NaN in a gradient counts as
      0, ±inf as ±1e-6, as in the published program.

    Raises:
      InputError: the batch does not divide into micro_batches.
    """
    optimizer = recipe.optimizer
    trained = {"model": state.params, "projectors": state.projectors}
    (loss, parts), grads = _gradients(recipe, trained, batch, frozen)
    finite = jnp.isfinite(loss)
    grads = jax.tree.map(lambda g: jnp.nan_to_num(g, nan=0.0, posinf=1e-6, neginf=-1e-6), grads)
    norm = optax.tree.norm(grads)
    update = finite & (norm <= optimizer.clip_norm * optimizer.skip_factor)
    clip = jnp.minimum(1.0, optimizer.clip_norm / (norm + 1e-6))
    grads = jax.tree.map(lambda g: g * clip, grads)

    rate = learning_rate(optimizer, state.schedule_step)
    updates, moments = make_optimizer(optimizer).update(grads, state.optimizer, trained)
    moved = jax.tree.map(lambda p, u: p + rate * u, trained, updates)
    moved, moments = jax.tree.map(
        functools.partial(jnp.where, update), (moved, moments), (trained, state.optimizer)
    )
    params = moved["model"]
    ema = state.ema
    if ema is not None:
        ema = jax.tree.map(
            lambda e, p: jnp.where(update, e + (1 - optimizer.ema_decay) * (p - e), e), ema, params
        )
    after = TrainState(
        step=state.step + 1,
        schedule_step=state.schedule_step + finite,
        skipped=state.skipped + ~update,
        skipped_in_a_row=jnp.where(update, 0, state.skipped_in_a_row + 1),
        params=params,
        ema=ema,
        projectors=moved["projectors"],
        optimizer=moments,
    )
    return after, {
        "loss": loss,
        **metrics_of(parts),
        "grad_norm": norm,
        "learning_rate": rate,
        "skipped": after.skipped,
        "skipped_in_a_row": after.skipped_in_a_row,
    }


def _gradients(
    recipe: Recipe, trained: dict, batch: Batch, frozen: FrozenNetworks
) -> tuple[tuple[jax.Array, dict], dict]:
    """Losses of a batch and their gradients, part by part if the recipe says so."""
    of_part = jax.value_and_grad(functools.partial(_losses, recipe), has_aux=True)
    parts = recipe.micro_batches
    if parts == 1:
        return of_part(trained, batch, frozen)

    def split(x: jax.Array) -> jax.Array:
        if x.shape[0] % parts:
            raise InputError(
                f"a batch of {x.shape[0]} scenes does not divide into micro_batches={parts}"
            )
        # Every part takes scenes from every device, so no scene moves.
        return jnp.swapaxes(x.reshape(x.shape[0] // parts, parts, *x.shape[1:]), 0, 1)

    def add(total: Any, part: dict) -> tuple[Any, None]:
        found = of_part(trained, part, frozen)
        return jax.tree.map(lambda t, x: t + x / parts, total, found), None

    zeros = jax.tree.map(jnp.zeros_like, jax.eval_shape(of_part, trained, batch, frozen))
    return jax.lax.scan(add, zeros, jax.tree.map(split, batch))[0]


def _losses(
    recipe: Recipe, trained: dict, batch: Batch, frozen: FrozenNetworks
) -> tuple[jax.Array, dict[str, jax.Array]]:
    batch = jax.tree.map(_bytes_to_floats, batch)
    params = held(recipe.optimizer, trained["model"])
    module = bind(recipe.family, recipe.model, params)
    return objective(recipe.losses, recipe.alignment, module, trained["projectors"], frozen, batch)


def _bytes_to_floats(x: jax.Array) -> jax.Array:
    """Pictures become floats on the device: a quarter of the traffic to it."""
    return x.astype(jnp.float32) / 255 if x.dtype == jnp.uint8 else x
