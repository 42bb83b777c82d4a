"""One training step: loss, gradients, rules for skipping, optimizer (published program, §6).

Axes: B scene, V input view, T target view, Y X pixel, L layer, D width, H head, K head dim.
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


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """How parameters move. The defaults are the published ones.

    Attributes:
      name: "adamw", or "muon" (Muon on the matrices of the layers, AdamW on the rest).
      learning_rate: peak; update k (from 0) uses learning_rate * min(1, k / warmup_steps), later
        times a linear decay.
      decay_start: step at which the decay begins; 0 means none: constant.
      decay_end: step at which it reaches final_fraction of the peak.
      beta1, beta2, epsilon: AdamW. beta1 is also Muon's momentum.
      weight_decay: on tensors with two or more axes per layer, 0 on norm scales.
      clip_norm: global gradient norm is clipped to this.
      skip_factor: with a norm above clip_norm * skip_factor the update is left out.
      ema_decay: decay of an average of the parameters kept for rendering; 0 keeps none.
    """

    name: str = "adamw"
    learning_rate: float = 4e-4
    warmup_steps: int = 3000
    decay_start: int = 0
    decay_end: int = 0
    final_fraction: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.95
    epsilon: float = 1e-8
    weight_decay: float = 0.05
    clip_norm: float = 5.0
    skip_factor: float = 10.0
    ema_decay: float = 0.0

    def __post_init__(self):
        if self.name not in ("adamw", "muon"):
            raise InputError(f"optimizer.name={self.name!r}: expected adamw or muon")
        if self.decay_start and self.decay_end <= self.decay_start:
            raise InputError(
                f"optimizer.decay_end={self.decay_end}: expected a step after decay_start="
                f"{self.decay_start}"
            )


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("step", "schedule_step", "skipped", "params", "ema", "optimizer"),
    meta_fields=(),
)
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything a step changes.

    Attributes:
      step: batches seen.
      schedule_step: position in the learning-rate schedule.
      skipped: updates left out so far.
      params, ema: nested dicts of float32 arrays; ema is None unless an average is kept.
      optimizer: optax state.
    """

    step: jax.Array
    schedule_step: jax.Array
    skipped: jax.Array
    params: dict
    ema: dict | None
    optimizer: Any


def init_state(family: str, model: Any, optimizer: OptimizerConfig, key: jax.Array) -> TrainState:
    """A fresh state; jit it with out_shardings so that every array is born in its place."""
    return start_from(init_params(family, model, key), optimizer)


def start_from(params: dict, optimizer: OptimizerConfig) -> TrainState:
    """The state before the first step with these parameters."""
    counters = [jnp.zeros((), jnp.int32) for _ in range(3)]  # buffers of their own, to be donated
    ema = jax.tree.map(jnp.copy, params) if optimizer.ema_decay else None
    return TrainState(*counters, params, ema, make_optimizer(optimizer).init(params))


def learning_rate(config: OptimizerConfig, step: jax.Array) -> jax.Array:
    """Learning rate of update `step`, counted from 0."""
    rate = config.learning_rate * jnp.minimum(1.0, step / max(config.warmup_steps, 1))
    if not config.decay_start:
        return rate
    done = (step - config.decay_start) / (config.decay_end - config.decay_start)
    return rate * (1 - (1 - config.final_fraction) * jnp.clip(done, 0.0, 1.0))


def make_optimizer(config: OptimizerConfig) -> optax.GradientTransformation:
    """The transformation at learning rate 1; a step multiplies its updates by the rate."""
    if config.name == "adamw":
        return optax.adamw(
            1.0,
            b1=config.beta1,
            b2=config.beta2,
            eps=config.epsilon,
            weight_decay=config.weight_decay,
            mask=functools.partial(_per_leaf, lambda name: name.endswith("kernel")),
        )
    return optax.contrib.muon(
        1.0,
        beta=config.beta1,
        weight_decay=config.weight_decay,
        adam_b1=config.beta1,
        adam_b2=config.beta2,
        muon_weight_dimension_numbers=functools.partial(_per_leaf, _matrix_axes),
        consistent_rms=0.2,
    )


def _per_leaf(function: Any, params: dict) -> dict:
    return jax.tree_util.tree_map_with_path(
        lambda path, _: function(jax.tree_util.keystr(path, simple=True, separator="/")), params
    )


def _matrix_axes(name: str) -> optax.contrib.MuonDimensionNumbers | None:
    """Which axes of a layer kernel are a matrix's inputs and outputs; the rest are batches."""
    axes = {
        "qkv": ((1,), (3, 4)),  # [L, D, 3, H, K]
        "kv": ((1,), (3, 4)),  # [L, D, 2, H, K]
        "q": ((1,), (2, 3)),  # [L, D, H, K]
        "out": ((1, 2), (3,)),  # [L, H, K, D]
        "up": ((1,), (2,)),  # [L, D, F]
        "down": ((1,), (2,)),  # [L, F, D]
    }.get(name.split("/")[-2])
    return axes and optax.contrib.MuonDimensionNumbers(*axes)


@functools.partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=3)
def train_step(
    family: str, model: Any, optimizer: OptimizerConfig, state: TrainState, batch: dict
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One update on a batch.

    Args:
      family, model, optimizer: what is trained, and how.
      state: donated.
      batch: {"inputs", "targets"}, each {"image" [B, V, Y, X, 3], uint8 or floats in [0, 1], "c2w",
        "fxfycxcy"}, poses normalised.

    Returns:
      The new state and scalars: loss, psnr, grad_norm (before clipping), learning_rate, skipped.
      A non-finite loss changes nothing but `step` and `skipped`; too large a gradient also advances
      the schedule. NaN in a gradient counts as 0, ±inf as ±1e-6, as in the published program.
    """

    inputs, targets = (
        Views(_float_image(batch[side]["image"]), batch[side]["c2w"], batch[side]["fxfycxcy"])
        for side in ("inputs", "targets")
    )

    def loss_of(params: dict) -> jax.Array:
        module = bind(family, model, params)
        images = module.decode(module.encode(inputs), targets.cameras)
        return mean_squared_error(images, targets.image)

    loss, grads = jax.value_and_grad(loss_of)(state.params)
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
    skipped = state.skipped + ~update
    metrics = {
        "loss": loss,
        "psnr": psnr_of_batch(loss),
        "grad_norm": norm,
        "learning_rate": rate,
        "skipped": skipped,
    }
    return (
        TrainState(state.step + 1, state.schedule_step + finite, skipped, params, ema, moments),
        metrics,
    )


def _float_image(image: jax.Array) -> jax.Array:
    """Bytes become floats on the device: a quarter of the traffic to it."""
    return image.astype(jnp.float32) / 255 if image.dtype == jnp.uint8 else image
