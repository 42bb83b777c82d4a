"""Passes over scenes: those without results are scored, those in the report rendered again."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from data_pipeline.evaluation.scenes import EvaluationScene, EvaluationScenes
from efficient_lvsm_jax.evaluation.predictions import save_pictures
from efficient_lvsm_jax.evaluation.report import ShownScene, choose_shown
from efficient_lvsm_jax.evaluation.results import ResultsFile, SceneScores
from efficient_lvsm_jax.evaluation.scoring import Scorer, batches, padded_size
from efficient_lvsm_jax.media.levels import to_bytes
from efficient_lvsm_jax.media.progress import Progress


def score_missing(
    scorer: Scorer,
    scenes: EvaluationScenes,
    missing: Sequence[int],
    results: ResultsFile,
    *,
    keep: Path | None,
    skip_unreadable: bool,
    begin: Callable[[int], None],
) -> None:
    """Scores scenes that have no results yet; whatever is finished is on disk.

    Args:
      scorer, scenes, results: of the evaluation.
      missing: positions of the scenes.
      keep: folder for all pictures, or None.
      skip_unreadable: scenes that cannot be read are noted instead of ending this.
      begin: called with the number of results so far before each batch.
    """
    size = padded_size(scorer.batch_size, scorer.mesh)
    with Progress("scoring", len(scenes), "scenes", done=len(results.rows)) as progress:
        for batch in batches(scenes, missing, size, skip_unreadable=skip_unreadable):
            if isinstance(batch[0], SceneScores):
                results.append(batch)
            else:
                begin(len(results.rows))
                rows, pictures = scorer.score(batch)
                if keep is not None:
                    for scene, rendered in zip(batch, pictures, strict=True):
                        _save(keep, scene, rendered)
                results.append(rows)
            progress.advance(len(batch))


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
                _save(folder, scene, rendered)
            pictures = [to_bytes(side.image) for side in (scene.inputs, scene.targets)]
            shown.append(ShownScene(chosen[scene.name], *pictures, rendered))
    return shown


def _save(folder: Path, scene: EvaluationScene, rendered: np.ndarray) -> None:
    """Keeps rendered and true pictures of the targets of a scene."""
    for name, pictures in (("predictions", rendered), ("truth", to_bytes(scene.targets.image))):
        save_pictures(folder / name, scene.name, scene.chosen.targets, pictures)
