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

from efficient_lvsm_jax.cameras import Views
from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.losses import mean_squared_error, psnr_of_batch
from efficient_lvsm_jax.models import bind, init_params
from efficient_lvsm_jax.optimizer import OptimizerConfig, learning_rate, make_optimizer


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Everything about a step that is fixed when it is compiled.

    Attributes:
      family: of the model, see `models.FAMILIES`.
      model: its configuration.
      optimizer: how parameters move.
      micro_batches: a batch is walked in this many equal parts whose gradients are averaged, for
        the memory of one part.
    """

    family: str
    model: Any
    optimizer: OptimizerConfig
    micro_batches: int = 1

    def __post_init__(self):
        if self.micro_batches < 1:
            raise InputError(f"micro_batches={self.micro_batches}: expected at least 1")


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=(
        "step", "schedule_step", "skipped", "skipped_in_a_row", "params", "ema", "optimizer"
    ),
    meta_fields=(),
)  # fmt: skip
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything a step changes.

    Attributes:
      step: batches seen.
      schedule_step: position in the learning-rate schedule.
      skipped: updates left out so far.
      skipped_in_a_row: of them, how many since the last update.
      params, ema: nested dicts of float32 arrays; ema is None unless an average is kept.
      optimizer: optax state.
    """

    step: jax.Array
    schedule_step: jax.Array
    skipped: jax.Array
    skipped_in_a_row: jax.Array
    params: dict
    ema: dict | None
    optimizer: Any


def init_state(recipe: Recipe, key: jax.Array) -> TrainState:
    """A fresh state; jit it with out_shardings so that every array is born in its place."""
    return start_from(recipe, init_params(recipe.family, recipe.model, key))


def start_from(recipe: Recipe, params: dict) -> TrainState:
    """The state before the first step with these parameters."""
    counters = [jnp.zeros((), jnp.int32) for _ in range(4)]  # buffers of their own, to be donated
    ema = jax.tree.map(jnp.copy, params) if recipe.optimizer.ema_decay else None
    return TrainState(*counters, params, ema, make_optimizer(recipe.optimizer).init(params))


@functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
def train_step(
    recipe: Recipe, state: TrainState, batch: dict
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One update on a batch.

    Args:
      recipe: what is trained, and how.
      state: donated.
      batch: {"inputs", "targets"}, each {"image" [B, V, Y, X, 3], uint8 or floats in [0, 1], "c2w",
        "fxfycxcy"}, poses normalised.

    Returns:
      The new state and scalars: loss, psnr, grad_norm (before clipping), learning_rate, skipped,
      skipped_in_a_row. A non-finite loss changes nothing but the counters; too large a gradient
      also advances the schedule. NaN in a gradient counts as 0, ±inf as ±1e-6, as in the published
      program.

    Raises:
      InputError: the batch does not divide into micro_batches.
    """
    optimizer = recipe.optimizer
    loss, grads = _gradients(recipe, state.params, batch)
    finite = jnp.isfinite(loss)
    grads = jax.tree.map(lambda g: jnp.nan_to_num(g, nan=0.0, posinf=1e-6, neginf=-1e-6), grads)
    norm = optax.tree.norm(grads)
    update = finite & (norm <= optimizer.clip_norm * optimizer.skip_factor)
    clip = jnp.minimum(1.0, optimizer.clip_norm / (norm + 1e-6))
    grads = jax.tree.map(lambda g: g * clip, grads)

    rate = learning_rate(optimizer, state.schedule_step)
    updates, moments = make_optimizer(optimizer).update(grads, state.optimizer, state.params)
    params = jax.tree.map(lambda p, u: p + rate * u, state.params, updates)
    params, moments = jax.tree.map(
        functools.partial(jnp.where, update), (params, moments), (state.params, state.optimizer)
    )
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
        optimizer=moments,
    )
    return after, {
        "loss": loss,
        "psnr": psnr_of_batch(loss),
        "grad_norm": norm,
        "learning_rate": rate,
        "skipped": after.skipped,
        "skipped_in_a_row": after.skipped_in_a_row,
    }


def _gradients(recipe: Recipe, params: dict, batch: dict) -> tuple[jax.Array, dict]:
    """Loss of a batch and its gradients, part by part if the recipe says so."""
    of_part = jax.value_and_grad(functools.partial(_loss, recipe))
    parts = recipe.micro_batches
    if parts == 1:
        return of_part(params, batch)

    def split(x: jax.Array) -> jax.Array:
        if x.shape[0] % parts:
            raise InputError(
                f"a batch of {x.shape[0]} scenes does not divide into micro_batches={parts}"
            )
        # Every part takes scenes from every device, so no scene moves.
        return jnp.swapaxes(x.reshape(x.shape[0] // parts, parts, *x.shape[1:]), 0, 1)

    def add(total: Any, part: dict) -> tuple[Any, None]:
        return jax.tree.map(lambda t, x: t + x / parts, total, of_part(params, part)), None

    zeros = jax.tree.map(jnp.zeros_like, jax.eval_shape(of_part, params, batch))
    return jax.lax.scan(add, zeros, jax.tree.map(split, batch))[0]


def _loss(recipe: Recipe, params: dict, batch: dict) -> jax.Array:
    inputs, targets = (
        Views(_float_image(batch[side]["image"]), batch[side]["c2w"], batch[side]["fxfycxcy"])
        for side in ("inputs", "targets")
    )
    module = bind(recipe.family, recipe.model, params)
    images = module.decode(module.encode(inputs), targets.cameras)
    return mean_squared_error(images, targets.image)


def _float_image(image: jax.Array) -> jax.Array:
    """Bytes become floats on the device: a quarter of the traffic to it."""
    return image.astype(jnp.float32) / 255 if image.dtype == jnp.uint8 else image
