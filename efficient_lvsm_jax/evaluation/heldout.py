"""Fixed held-out scenes, rendered now and then while training: a sheet to look at and a score.

Axes: B scene, V input view, T target view, Y X pixel.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from data_pipeline.evaluation.index import ChosenFrames
from data_pipeline.evaluation.scenes import EvaluationScene
from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.evaluation.protocol import (
    EvaluationConfig,
    open_evaluation,
    settings_of_run,
)
from efficient_lvsm_jax.evaluation.scoring import model_renders, padded_size
from efficient_lvsm_jax.media.levels import to_bytes
from efficient_lvsm_jax.media.sheet import sheet
from efficient_lvsm_jax.metrics.pictures import psnr
from efficient_lvsm_jax.models.families import family_named
from efficient_lvsm_jax.models.model import Model
from efficient_lvsm_jax.models.scene_geometry import SceneGeometry
from efficient_lvsm_jax.parallel.processes import say

MOST_TARGETS = 3  # of a scene; a sheet is as wide as its inputs and twice this


def heldout_of(
    values: dict[str, Any], *, every: int, seed: int, count: int
) -> list[EvaluationScene]:
    """The scenes of the pictures that training draws; none if it draws none.

    Args:
      values: settings of all groups.
      every: steps between two pictures, 0 for none.
      seed, count: see `open_heldout`.

    Raises:
      InputError: the settings do not say what the scenes are, or as `open_heldout`.
    """
    if not every:
        return []
    if issubclass(family_named(values["family"]).module, SceneGeometry):
        raise InputError(
            f"log.pictures_every={every}: {values['family']} renders no pictures; set 0"
        )
    evaluation, path = values["evaluation"], values["data"]["path"]
    if not (evaluation["data"] or evaluation["scenes"] or path):
        raise InputError(
            f"log.pictures_every={every} needs evaluation.data or evaluation.scenes, which say "
            "what the held-out scenes are; 0 draws no pictures"
        )
    try:
        settings = settings_of_run(values)
    except InputError as error:
        raise InputError(f"{error} (log.pictures_every=0 draws no pictures)") from None
    if settings.data and not evaluation["data"]:
        say(f"held-out pictures: of {settings.data}, split {settings.split}")
    return open_heldout(settings, seed=seed, count=count)


def open_heldout(settings: EvaluationConfig, *, seed: int, count: int) -> list[EvaluationScene]:
    """The first `count` scenes that an evaluation would score, with at most MOST_TARGETS targets.

    Raises:
      InputError: what `open_evaluation` and reading the scenes raise, or scenes of several shapes.
    """
    settings = dataclasses.replace(settings, added_one_by_one=())
    if not settings.data:
        settings = dataclasses.replace(settings, scenes=min(count, settings.scenes))
    scenes = open_evaluation(settings, seed=seed).scenes
    chosen = [_with_fewer_targets(scenes[i]) for i in range(min(count, len(scenes)))]
    shapes = {(s.inputs.image.shape, s.targets.image.shape) for s in chosen}
    if len(shapes) != 1:
        raise InputError(
            f"the first {count} held-out scenes have several shapes: "
            + "; ".join(f"inputs {inputs}, targets {targets}" for inputs, targets in sorted(shapes))
            + "; set evaluation.square_crop=True, or log.pictures_every=0 for no pictures"
        )
    return chosen


def _with_fewer_targets(scene: EvaluationScene) -> EvaluationScene:
    """The scene with at most MOST_TARGETS of its targets, evenly chosen."""
    count = len(scene.chosen.targets)
    kept = np.linspace(0, count - 1, min(count, MOST_TARGETS)).round().astype(int)
    return dataclasses.replace(
        scene,
        chosen=ChosenFrames(scene.chosen.inputs, tuple(scene.chosen.targets[i] for i in kept)),
        target_names=tuple(scene.target_names[i] for i in kept),
        targets=jax.tree.map(lambda x: x[kept], scene.targets),
        foreground=None if scene.foreground is None else scene.foreground[kept],
    )


def render_heldout(
    model: Model, scenes: Sequence[EvaluationScene], mesh: Mesh, *, step: int
) -> tuple[np.ndarray, dict[str, float]]:
    """Renders the scenes over the mesh. Every process must call this, with the same scenes.

    Args:
      model: with parameters that are in their places already, or anywhere in a single process.
      scenes: of equal shapes, see `open_heldout`.
      mesh: of the training run.
      step: for the title.

    Returns:
      A sheet uint8 [Y, X, 3] (a row per scene: inputs, true and predicted targets), and
      {"heldout/psnr": mean over targets and scenes, dB}.
    """
    size, processes = padded_size(len(scenes), mesh), jax.process_count()
    rows = size // processes
    padded = [*scenes, *[scenes[-1]] * (size - len(scenes))]
    own = padded[jax.process_index() * rows :][:rows]
    images = model_renders(model, mesh)(own)
    if processes > 1:
        images = multihost_utils.process_allgather(images, tiled=True)
    images = np.asarray(images, np.float32)[: len(scenes)]
    truth = np.stack([scene.targets.image for scene in scenes])
    scores = np.asarray(psnr(images, truth), np.float64)  # [B, T]
    mean = float(scores.mean())
    title = f"step {step:,}: held-out scenes, mean {mean:.2f} dB"
    rows = [
        [to_bytes(scene.inputs.image), to_bytes(scene.targets.image), picture]
        for scene, picture in zip(scenes, to_bytes(np.nan_to_num(images)), strict=True)
    ]
    captions = [[(), (), [f"{score:.1f} dB" for score in row]] for row in scores]
    shown = sheet(title, ("inputs", "true", "predicted"), rows, captions)
    return shown, {"heldout/psnr": mean}
