"""Pictures that are kept of scored scenes: those the report shows, or all of them."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data_pipeline.evaluation.scenes import EvaluationScene, EvaluationScenes
from efficient_lvsm_jax.evaluation.predictions import save_pictures, to_bytes
from efficient_lvsm_jax.evaluation.report import ShownScene, choose_shown
from efficient_lvsm_jax.evaluation.results import SceneScores
from efficient_lvsm_jax.evaluation.scoring import Scorer, batches, padded_size


def save(folder: Path, scene: EvaluationScene, rendered: np.ndarray) -> None:
    """Keeps rendered and true pictures of the targets of a scene."""
    for name, pictures in (("predictions", rendered), ("truth", to_bytes(scene.targets.image))):
        save_pictures(folder / name, scene.name, scene.chosen.targets, pictures)


def render_shown(
    scorer: Scorer,
    scenes: EvaluationScenes,
    rows: Sequence[SceneScores],
    folder: Path | None,
) -> list[ShownScene]:
    """The scenes that the report shows, rendered once more: pictures of all would not fit.

    Their pictures are kept in `folder`, if there is one, instead of what was there.
    """
    chosen = {row.scene: row for row in choose_shown(rows)}
    order = [i for i, name in enumerate(scenes.names) if name in chosen]
    if folder is not None:
        shutil.rmtree(folder, ignore_errors=True)
    shown = []
    for batch in batches(scenes, order, padded_size(scorer.batch_size, scorer.mesh)):
        for scene, rendered in zip(batch, scorer.score(batch)[1], strict=True):
            if folder is not None:
                save(folder, scene, rendered)
            pictures = [to_bytes(side.image) for side in (scene.inputs, scene.targets)]
            shown.append(ShownScene(chosen[scene.name], *pictures, rendered))
    return shown
