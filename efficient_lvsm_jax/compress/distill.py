"""Training what sparse attention adds, and nothing else, against the dense model (Lite3R, §3).

What is minimised is the loss of the whole, see `passes`, and the difference of what attentions
give from the dense model's, whose weight falls over the run. Axes: L layer, K head dim.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from data_pipeline.evaluation.scenes import EvaluationScenes
from efficient_lvsm_jax.compress.fit import Fit, Taught, changed, replaced
from efficient_lvsm_jax.compress.passes import Batch, Kind, batch_of
from efficient_lvsm_jax.media.progress import Progress
from efficient_lvsm_jax.models.model import bind
from efficient_lvsm_jax.nn.watching import Shown, watched
from efficient_lvsm_jax.training.distillation import (
    OPTIMIZER,
    attention_loss,
    attention_weight,
    matched,
)
from efficient_lvsm_jax.training.optimizer import learning_rate, make_optimizer


def distilled(
    kind: Kind,
    family: str,
    config: Any,
    params: dict,
    fits: Mapping[str, Fit],
    scenes: EvaluationScenes,
    steps: int,
) -> dict[str, Fit]:
    """Shares and P after so many steps.

    Args:
      kind, family, config: of the sparse model.
      params: of the dense one; they stay as they are.
      fits: by place, to begin with.
      scenes: gone through in turn, again and again.
      steps: updates.
    """
    settings = OPTIMIZER.over(max(steps, OPTIMIZER.warmup_steps + 1))
    optimizer = make_optimizer(settings)

    def watch(network: nnx.Module, batch: Batch) -> tuple[Any, list[jax.Array]]:
        with watched() as shown:
            result = kind.through(network, batch)
        return result, _calls(shown, kind.output_axes)

    @jax.jit
    def teach(params: dict, batch: Batch) -> tuple[Any, list[jax.Array]]:
        # The sparse network with dense attention: its tokens are in the same order.
        return watch(changed(bind(family, config, replaced(params, fits)), Taught), batch)

    @jax.jit
    def update(
        trained: dict, moments: Any, params: dict, batch: Batch, taught: tuple, step: jax.Array
    ) -> tuple:
        def objective(trained: dict) -> jax.Array:
            network = bind(family, config, replaced(params, trained))
            result, given = watch(network, batch)
            of_attention = attention_loss(matched(given, taught[1]))
            weight = attention_weight(step, steps)
            return kind.loss(result, batch, taught[0]) + weight * of_attention

        gradient = jax.grad(objective)(trained)
        norm = jnp.sqrt(sum(jnp.square(x).sum() for x in jax.tree.leaves(gradient)))
        clip = jnp.minimum(1.0, settings.clip_norm / (norm + 1e-6))
        gradient = jax.tree.map(lambda x: clip * x, gradient)
        updates, moments = optimizer.update(gradient, moments, trained)
        rate = learning_rate(settings, step + 1)  # from 0 the first would change nothing
        return jax.tree.map(lambda p, u: p + rate * u, trained, updates), moments

    trained = jax.tree.map(jnp.float32, dict(fits))
    moments = optimizer.init(trained)
    with Progress("distilling", steps, "steps") as progress:
        for step in range(steps):
            batch = batch_of(scenes[step % len(scenes)])
            taught = teach(params, batch)
            trained, moments = update(trained, moments, params, batch, taught, jnp.float32(step))
            progress.advance()
    return trained


def _calls(shown: Shown, axes: int) -> list[jax.Array]:
    """What attentions gave, call by call, of stacks."""
    return [
        call for stack in shown["attention"] for call in stack.reshape(-1, *stack.shape[-axes:])
    ]
