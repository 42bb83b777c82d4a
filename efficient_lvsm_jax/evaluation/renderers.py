"""What makes the pictures that are scored: a model, or a folder of another method's.

Both have a `name` for the record, `render` (see `scoring.Scorer`), `describe` for the protocol, and
what there is to see beyond the scores, `beyond_scores`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.evaluation.flight import fly_through
from efficient_lvsm_jax.evaluation.predictions import Predictions
from efficient_lvsm_jax.evaluation.protocol import EvaluationConfig, OpenedScenes
from efficient_lvsm_jax.evaluation.results import FILM
from efficient_lvsm_jax.evaluation.scoring import added_one_by_one, folder_renders, model_renders
from efficient_lvsm_jax.media.video import write_film
from efficient_lvsm_jax.models.model import Model
from efficient_lvsm_jax.sessions.choice import check_paged
from efficient_lvsm_jax.weights.folder import digest
from efficient_lvsm_jax.weights.scaled import products_of


class ModelRenderer:
    """A model, with the dtypes of the settings."""

    def __init__(self, model: Model, settings: EvaluationConfig, mesh: Mesh, *, weights: str):
        """`weights` says where the model came from.

        Raises:
          InputError: the settings' patches, cache or choice of views do not fit the model.
        """
        self.name = weights
        self.model = _as_set(model, settings)
        self.views = settings.render_views
        self.render = model_renders(self.model, mesh, self.views)

    def describe(self, scenes: Sequence[str], *, eight_bit: bool) -> dict[str, Any]:
        """What makes the pictures, for the protocol; of any scenes."""
        config = self.model.config
        unusual = {} if self.views == "all" else {"views_read": self.views}
        if products := products_of(self.model.params):
            unusual["products"] = products
        return {
            "kind": "model",
            "family": self.model.family,
            "weights_sha256": digest(self.model.params),
            "compute_dtype": config.compute_dtype,
            "ray_dtype": config.ray_dtype,
            "cache": config.cache if self.model.paged else "",
            "levels": "256" if eight_bit else "float32",
            **unusual,  # of what is usual nothing is said: older records stay the same
        }

    def beyond_scores(
        self, opened: OpenedScenes, first: str, folder: Path, settings: EvaluationConfig
    ) -> tuple[dict[str, Any], Path | None]:
        """The cache at work, for metrics.json, and a film in `folder` of the scene `first`."""
        found, film = {}, None
        if opened.more and self.model.paged:
            found["added_one_by_one"] = added_one_by_one(self.model, opened.more)
        elif opened.more:
            print(f"inputs one by one are left out: a {self.model.family} encodes all views anew")
        scene = (opened.more or opened.scenes)[opened.scenes.names.index(first)]
        if settings.film_frames and len(scene.inputs.image) > 1:
            film = folder / FILM
            write_film(film, fly_through(self.model, scene, settings.film_frames, self.views))
        return found, film


class FolderRenderer:
    """Pictures in a folder."""

    def __init__(self, predictions: Predictions, folder: Path):
        """Raises InputError if the pictures lie in `folder`, to which results are written."""
        if predictions.folder.resolve().is_relative_to(folder.resolve()):
            raise InputError(f"{predictions.folder} is part of {folder}: name another --workdir")
        self.name = f"pictures in {predictions.folder}"
        self.predictions = predictions
        self.render = folder_renders(predictions)

    def describe(self, scenes: Sequence[str], *, eight_bit: bool) -> dict[str, Any]:
        """The pictures of these scenes, for the protocol; they have 256 levels anyway.

        Raises:
          InputError: scenes without a folder (lists them).
        """
        self.predictions.check(scenes)
        return {
            "kind": "pictures",
            "files_sha256": self.predictions.sha256(scenes),
            "named_by": self.predictions.named,
        }

    def beyond_scores(self, *_: Any) -> tuple[dict[str, Any], Path | None]:
        """Nothing."""
        return {}, None


def _as_set(model: Model, settings: EvaluationConfig) -> Model:
    """The model with the dtypes of the settings; InputError where they or patches do not fit."""
    if settings.data and model.config.patch != settings.patch:
        raise InputError(
            f"the model's patches have {model.config.patch} pixels, evaluation.patch is "
            f"{settings.patch}; pictures are prepared for it: set it alike"
        )
    if settings.cache and not model.paged:
        raise InputError(
            f"evaluation.cache={settings.cache!r}: a model of the family {model.family} has no "
            "cache; leave it empty"
        )
    check_paged(model, settings.render_views, "evaluation.render_views")
    names = ("compute_dtype", "ray_dtype", "cache")
    given = {name: getattr(settings, name) for name in names if getattr(settings, name)}
    return dataclasses.replace(model, config=dataclasses.replace(model.config, **given))
