"""Training a compressed model against the one that it was made of (Lite3R, §3).

What is minimised is the loss of the whole, see `passes`, and the difference of what attentions
give from that model's, whose weight falls over the run.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from data_pipeline.evaluation.scenes import EvaluationScenes
from efficient_lvsm_jax.compress.passes import Batch, Kind, batch_of
from efficient_lvsm_jax.media.progress import Progress
from efficient_lvsm_jax.nn.watching import Shown, watched
from efficient_lvsm_jax.training.distillation import (
    OPTIMIZER,
    attention_loss,
    attention_weight,
    matched,
)
from efficient_lvsm_jax.training.optimizer import OptimizerConfig, learning_rate, make_optimizer


def distilled(
    kind: Kind,
    teacher: Callable[[dict], nnx.Module],
    student: Callable[[dict, Any], nnx.Module],
    params: dict,
    start: Any,
    scenes: EvaluationScenes,
    steps: int,
    optimizer: OptimizerConfig = OPTIMIZER,
) -> Any:
    """What is trained, after so many steps.

    Args:
      kind: of model.
      teacher, student: the bound networks, of parameters, and of these and what is trained.
      params: of the teacher; they stay as they are.
      start: what is trained, a tree, to begin with.
      scenes: gone through in turn, again and again.
      steps: updates.
      optimizer: its settings; those of a run of `steps` are made of them.
    """
    settings = optimizer.over(max(steps, optimizer.warmup_steps + 1))
    rule = make_optimizer(settings)

    def watch(network: nnx.Module, batch: Batch) -> tuple[Any, list[jax.Array]]:
        with watched() as shown:
            result = kind.through(network, batch)
        return result, _calls(shown, kind.output_axes)

    @jax.jit
    def teach(params: dict, batch: Batch) -> tuple[Any, list[jax.Array]]:
        return watch(teacher(params), batch)

    @jax.jit
    def update(
        trained: Any, moments: Any, params: dict, batch: Batch, taught: tuple, step: jax.Array
    ) -> tuple:
        def objective(trained: Any) -> jax.Array:
            result, given = watch(student(params, trained), batch)
            of_attention = attention_loss(matched(given, taught[1]))
            weight = attention_weight(step, steps)
            return kind.loss(result, batch, taught[0]) + weight * of_attention

        gradient = jax.grad(objective)(trained)
        norm = jnp.sqrt(sum(jnp.square(x).sum() for x in jax.tree.leaves(gradient)))
        clip = jnp.minimum(1.0, settings.clip_norm / (norm + 1e-6))
        gradient = jax.tree.map(lambda x: clip * x, gradient)
        updates, moments = rule.update(gradient, moments, trained)
        rate = learning_rate(settings, step + 1)  # from 0 the first would change nothing
        return jax.tree.map(lambda p, u: p + rate * u, trained, updates), moments

    trained = jax.tree.map(jnp.float32, start)
    moments = rule.init(trained)
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
