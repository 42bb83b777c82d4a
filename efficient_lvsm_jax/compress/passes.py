"""What a model does with the views of a scene, and how it is told what it should have done.

Axes: B scene, V view, Y X pixel.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from data_pipeline.evaluation.scenes import EvaluationScene, EvaluationScenes
from efficient_lvsm_jax.geometry.cameras import Views
from efficient_lvsm_jax.metrics.pictures import psnr
from efficient_lvsm_jax.models.geometry_model import GeometryModel
from efficient_lvsm_jax.models.model import Model
from efficient_lvsm_jax.models.scene_geometry import Geometry
from efficient_lvsm_jax.training.distillation import camera_loss, depth_losses
from efficient_lvsm_jax.training.losses import mean_squared_error

Batch = tuple[Views, Views]  # inputs and targets of scenes, [B, V, …]


@dataclasses.dataclass(frozen=True)
class Kind:
    """Of models.

    Attributes:
      through: a bound network and a batch to pictures [B, V, Y, X, 3] of the targets, or to the
        geometry of all views.
      loss: of what came of it, the batch, and what came of the dense network.
      scores: of the same three, numbers by name.
      output_axes: of what one attention gives.
    """

    through: Callable[[nnx.Module, Batch], Any]
    loss: Callable[[Any, Batch, Any], jax.Array]
    scores: Callable[[Any, Batch, Any], dict[str, jax.Array]]
    output_axes: int


def kind_of(model: Model | GeometryModel) -> Kind:
    """Of renderers, or of models of geometry."""
    return SEEING if isinstance(model, GeometryModel) else RENDERING


def batch_of(scene: EvaluationScene) -> Batch:
    """A scene as a batch of one."""
    return jax.tree.map(lambda x: np.asarray(x)[None], (scene.inputs, scene.targets))


def scored(
    kind: Kind, models: Mapping[str, Callable[[Batch], Any]], scenes: EvaluationScenes
) -> dict[str, dict[str, tuple[float, float]]]:
    """Mean and standard error over scenes of every model, by score.

    Args:
      kind: of the models.
      models: what gives what came of a batch, by name; the first is what others are compared with.
      scenes: one or more.
    """
    score = jax.jit(kind.scores)
    rows: dict[str, list] = {what: [] for what in models}
    for batch in map(batch_of, scenes):
        first = next(iter(models.values()))(batch)
        for what, through in models.items():
            rows[what].append(score(through(batch), batch, first))

    def told(values: list[Any]) -> tuple[float, float]:
        several = len(values) > 1 and np.isfinite(values).all()  # of equal pictures PSNR is not
        spread = np.std(values, ddof=1) / len(values) ** 0.5 if several else 0.0
        return float(np.mean(values)), float(spread)

    return {
        what: {name: told([float(one[name]) for one in each]) for name in each[0]}
        for what, each in rows.items()
    }


def score_lines(scores: Mapping[str, Mapping[str, tuple[float, float]]]) -> list[str]:
    """Lines of `scored`, score by score."""
    lines = []
    for name in next(iter(scores.values())):
        lines.append(name)
        for what, of in scores.items():
            mean, error = of[name]
            lines.append(f"    {what:<20}{mean:9.3f} ± {error:.3f}")
    return lines


def _render(network: nnx.Module, batch: Batch) -> jax.Array:
    inputs, targets = batch
    return network.decode(network.encode(inputs), targets.cameras)


def _render_loss(pictures: jax.Array, batch: Batch, _: jax.Array) -> jax.Array:
    return mean_squared_error(pictures, batch[1].image)


def _render_scores(pictures: jax.Array, batch: Batch, dense: jax.Array) -> dict[str, jax.Array]:
    found, of_dense = (psnr(x, batch[1].image).mean() for x in (pictures, dense))
    return {
        "PSNR, dB": found,
        "PSNR beyond the dense model's, dB": found - of_dense,
        "PSNR to the dense model, dB": psnr(pictures, dense).mean(),
    }


def _see(network: nnx.Module, batch: Batch) -> Geometry:
    images = jnp.concatenate([views.image for views in batch], axis=1)
    return network.observe(None, images)[1]


def _see_loss(seen: Geometry, _: Batch, dense: Geometry) -> jax.Array:
    valid = jnp.ones(dense.depth.shape, bool)
    cameras, _ = camera_loss(seen.encodings, dense.encodings[-1], valid)
    return cameras + sum(depth_losses(seen.depth, seen.depth_confidence, dense.depth, valid))


def _see_scores(seen: Geometry, _: Batch, dense: Geometry) -> dict[str, jax.Array]:
    error = jnp.abs(seen.depth / dense.depth - 1).mean()
    cameras = jnp.abs(seen.encodings[-1] - dense.encodings[-1]).mean()
    return {"depth, |error| to the dense model": error, "cameras, |error| of encodings": cameras}


RENDERING = Kind(_render, _render_loss, _render_scores, 4)
SEEING = Kind(_see, _see_loss, _see_scores, 3)
