"""Scenes that weights are fitted or trained on, and others that show what became of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data_pipeline.evaluation.scenes import EvaluationScenes, Preparation, held_out_views
from data_pipeline.procedural.rooms import ProceduralScenes, SceneRecipe
from data_pipeline.scenes import Scenes, scene_of_arrays
from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.models.geometry_model import GeometryModel
from efficient_lvsm_jax.models.model import USUAL_SIZE, Model

HELD_OUT_EVERY = 4  # scenes: one of so many is never fitted on


@dataclasses.dataclass(frozen=True)
class Split:
    """Scenes to fit on, and others to look at what became of it; each is read when it is used."""

    fitted: EvaluationScenes
    held_out: EvaluationScenes


@dataclasses.dataclass(frozen=True)
class ViewsOf:
    """What is taken of a scene: so many inputs and targets, prepared for a model."""

    inputs: int
    targets: int
    prepare: Preparation

    @classmethod
    def of(
        cls, model: Model | GeometryModel, inputs: int, targets: int, size: int | None
    ) -> ViewsOf:
        """Square pictures of `size` pixels a side; None: as the model was trained on."""
        patch = model.config.patch
        known = size or min((model.trained_sizes or [USUAL_SIZE])[0]) // patch * patch
        if inputs < 1 or targets < 1 or known % patch:
            raise InputError(
                f"{inputs} inputs and {targets} targets of {known} pixels: expected at least one "
                f"of each, and a multiple of the model's patch size {patch}"
            )
        return cls(inputs, targets, Preparation(known, patch))

    def some(self, scenes: Scenes, which: Sequence[int]) -> EvaluationScenes:
        """Some scenes of a data set."""
        counts = {"num_inputs": self.inputs, "num_targets": self.targets}
        every = held_out_views(scenes, **counts, prepare=self.prepare)
        names = [scenes.names[index] for index in which]
        return EvaluationScenes(names, lambda index: every[which[index]])


def split_of(scenes: Scenes, views: ViewsOf) -> Split:
    """Every fourth scene is held out, the last of fewer."""
    count = len(scenes)
    held_out = range(min(count, HELD_OUT_EVERY) - 1, count, HELD_OUT_EVERY)
    rest = [index for index in range(count) if index not in held_out]
    return Split(views.some(scenes, rest), views.some(scenes, held_out))


def drawn(count: int, views: ViewsOf, seed: int = 0) -> Split:
    """Rooms of the training split, and for four of them one that training never sees."""
    recipe = SceneRecipe(size=views.prepare.size, views=max(8, views.inputs + views.targets))

    def rooms(split: str, count: int) -> EvaluationScenes:
        source = ProceduralScenes(count, seed=seed, split=split, recipe=recipe)

        def scene(index: int) -> Any:
            arrays = dict(source[index])
            return scene_of_arrays(arrays.pop("scene"), **arrays)

        names = [source[index]["scene"] for index in range(count)]
        return views.some(Scenes("generated rooms", Path(split), names, scene), range(count))

    return Split(rooms("train", count), rooms("heldout", -(-count // HELD_OUT_EVERY)))
