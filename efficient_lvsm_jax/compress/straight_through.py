"""A renderer's weights trained to be rounded to eight bits, against the model in floats.

Products are of the weights as they will be stored; the floats behind them move by gradients that
pass straight through the rounding.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
from flax import nnx

from efficient_lvsm_jax.compress.distill import distilled
from efficient_lvsm_jax.compress.passes import RENDERING, Batch, scored
from efficient_lvsm_jax.compress.scenes import Split
from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.models.model import Model, bind
from efficient_lvsm_jax.training.distillation import OPTIMIZER
from efficient_lvsm_jax.training.losses import mean_squared_error
from efficient_lvsm_jax.weights.scaled import rounded

ROUNDED, TRAINED = "eight bits", "trained"
LEARNING_RATE = 1e-5  # at its peak


def _loss(pictures: jax.Array, _: Batch, of_floats: jax.Array) -> jax.Array:
    # Not the true pictures: with them it would learn what the model in floats could as well.
    return mean_squared_error(pictures, of_floats)


def _scores(*given: Any) -> dict[str, jax.Array]:
    return {name.replace("dense", "float"): x for name, x in RENDERING.scores(*given).items()}


KIND = dataclasses.replace(RENDERING, loss=_loss, scores=_scores)


@dataclasses.dataclass(frozen=True)
class Training:
    """So many updates on the scenes that are fitted on; what they gain is seen on the others."""

    split: Split
    steps: int


def trained(model: Model, bits: str, training: Training) -> tuple[Model, dict[str, Any]]:
    """The model with weights that were trained to be rounded, and JSON values about it.

    Raises:
      InputError: fewer than one step, or no scene for training or for comparing.
    """
    split, steps = training.split, training.steps
    if steps < 1 or not len(split.fitted) or not len(split.held_out):
        raise InputError(
            f"--bits {bits}: {steps} steps on {len(split.fitted)} scenes, {len(split.held_out)} "
            "held out: expected one or more of each"
        )

    def network(params: dict) -> nnx.Module:
        return bind(model.family, model.config, params)

    def in_bits(params: dict) -> dict:
        return rounded(params, model.family, model.config, bits)

    @jax.jit
    def render(params: dict, batch: Batch) -> jax.Array:
        return KIND.through(network(params), batch)

    after = distilled(
        KIND,
        network,
        lambda _, params: network(in_bits(params)),
        model.params,
        model.params,
        split.fitted,
        steps,
        dataclasses.replace(OPTIMIZER, learning_rate=LEARNING_RATE),
    )
    stages = {"float32": model.params, ROUNDED: in_bits(model.params), TRAINED: in_bits(after)}
    models = {what: functools.partial(render, params) for what, params in stages.items()}
    report = {
        "bits": bits,
        "distillation steps": steps,
        "fitted on": list(split.fitted.names),
        "held out": list(split.held_out.names),
        "scores": scored(KIND, models, split.held_out),
    }
    return dataclasses.replace(model, params=after), report
