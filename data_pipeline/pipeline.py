"""Batches for training and scenes for evaluation, from any random-access source of posed scenes.

A source has a length and gives, for an index, {"image" uint8 [V, Y, X, 3], "c2w" [V, 4, 4],
"fxfycxcy" [V, 4], "scene" str}: world-space OpenCV camera-to-world poses, intrinsics in pixels.

What comes out is {"inputs", "targets"}, each {"image" float32 [.., Y, X, 3] in [0, 1], "c2w"
float32 [.., 4, 4], "fxfycxcy" float32 [.., 4]}, the poses of a scene normalised over its inputs
and targets together, as the published program does (`cameras.SceneFrame`).

Axis legend: B scene  V view (inputs or targets)  Y X pixels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol

import grain
import numpy as np

from data_pipeline.procedural import ProceduralScenes, SceneRecipe
from data_pipeline.views import check_counts, draw_views, mirror, permute_colours, split_views
from efficient_lvsm_jax.cameras import normalise_poses
from efficient_lvsm_jax.errors import InputError


class Source(Protocol):
    """Random access to posed scenes, see the module's docstring."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]: ...


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """What training sees.

    scenes, views, size: generated scenes, their views and their height and width in pixels.
    batch_size: scenes a batch. num_inputs_cycle: input views of the scenes of batch 0, 1, 2, …,
    starting over at the end. num_targets: target views a scene. target_has_input: targets are drawn
    from all views, inputs included. mirror, permute_colours: variations, see `views`.
    """

    scenes: int = 4000
    views: int = 8
    size: int = 48
    batch_size: int = 8
    num_inputs_cycle: tuple[int, ...] = (2, 4, 2, 1)
    num_targets: int = 4
    target_has_input: bool = False
    mirror: bool = True
    permute_colours: bool = True

    def __post_init__(self):
        if self.batch_size < 1:
            raise InputError(f"data.batch_size={self.batch_size}: must be at least 1")
        if not self.num_inputs_cycle:
            raise InputError("data.num_inputs_cycle=(): must name at least one number of inputs")
        self.check_views(self.views)

    def check_views(self, views: int) -> None:
        """Raises InputError unless scenes of this many views are enough for every batch."""
        for num_inputs in self.num_inputs_cycle:
            check_counts(
                views, num_inputs, self.num_targets, target_has_input=self.target_has_input
            )


def training_batches(
    config: DataConfig, *, seed: int, progress: bool = False
) -> grain.DatasetIterator:
    """Endless batches of generated training scenes; draws the scenes first (see `progress`).

    Batch k is a function of (config, seed, k). The iterator's state is its position: save it with
    `grain.checkpoint.CheckpointSave`, or with `get_state` and `set_state`.
    """
    recipe = SceneRecipe(size=config.size, views=config.views)
    source = ProceduralScenes(
        config.scenes, split="train", seed=seed, recipe=recipe, progress=progress
    )
    # One thread prepares the next batches while the model computes: the cores are for the model.
    options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)
    return iter(training_dataset(source, config, seed=seed).to_iter_dataset(options))


def training_dataset(source: Source, config: DataConfig, *, seed: int) -> grain.MapDataset:
    """Endless random-access batches of a source: `training_dataset(...)[k]` is batch k.

    Every epoch visits every scene once, in another order; a batch may reach into the next epoch.
    All scenes of a batch have the same number of inputs. The settings `scenes`, `views` and `size`
    are the source's own business here.

    Raises:
      InputError: an empty source, or one whose scenes have too few views.
    """
    if not 0 <= seed < 2**32:
        raise InputError(f"seed={seed}: must be at least 0 and below 2**32")
    if len(source) < 1:
        raise InputError("the data source is empty: training needs at least 1 scene")
    config.check_views(len(source[0]["c2w"]))
    cycle = config.num_inputs_cycle

    def choose(example: dict, rng: np.random.Generator) -> dict:
        views = len(example["c2w"])
        counts = (example["num_inputs"], config.num_targets)
        chosen = draw_views(rng, views, *counts, target_has_input=config.target_has_input)
        # Drawn whether used or not, so that a setting changes only what it says.
        flip, order = rng.random() < 0.5, rng.permutation(3)
        example = split_views(example, *chosen)
        del example["scene"]
        for name in example:
            if config.mirror and flip:
                example[name] = mirror(example[name])
            if config.permute_colours:
                example[name] = permute_colours(example[name], order)
        return _normalised(example)

    def with_num_inputs(index: int, example: dict) -> dict:
        return example | {"num_inputs": cycle[index // config.batch_size % len(cycle)]}

    return (
        grain.MapDataset.source(source)
        .seed(seed)
        .shuffle()
        .repeat(None)
        .map_with_index(with_num_inputs)
        .random_map(choose)
        .batch(config.batch_size)
        .map(_with_float_images)
    )


class EvaluationScenes(Sequence):
    """What `evaluation_scenes` returns: a sequence that prepares a scene when asked for it."""

    def __init__(self, source: Source, inputs: Sequence[int], targets: Sequence[int]):
        self._source, self._inputs, self._targets = source, tuple(inputs), tuple(targets)

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"scene {index} of {len(self)}")
        example = self._source[index % len(self)]
        return _with_float_images(_normalised(split_views(example, self._inputs, self._targets)))


def evaluation_scenes(
    source: Source, *, inputs: Sequence[int] = (2, 10), targets: Sequence[int] = (0, 5, 8)
) -> EvaluationScenes:
    """All scenes of a source in its order, with the same views of each.

    Returns:
      A sequence of {"scene": str, "inputs": …, "targets": …}, the views in the order given.

    Raises:
      InputError: no input or no target, or a view that the scenes do not have.
    """
    for name, chosen in (("inputs", inputs), ("targets", targets)):
        if not len(chosen):
            raise InputError(f"evaluation {name}=(): must name at least one view")
    scenes = EvaluationScenes(source, inputs, targets)
    if len(scenes):
        split_views(source[0], inputs, targets)
    return scenes


def _normalised(example: dict) -> dict:
    """Poses in the frame of all views of the example, inputs and targets."""
    inputs, targets = example["inputs"], example["targets"]
    c2w = normalise_poses(np.concatenate([inputs["c2w"], targets["c2w"]]))
    first, last = np.split(c2w, [len(inputs["c2w"])])
    return example | {"inputs": inputs | {"c2w": first}, "targets": targets | {"c2w": last}}


def _with_float_images(example: dict) -> dict:
    """Images from bytes to float32 in [0, 1]; late, so that everything before moves bytes."""
    return example | {
        name: example[name] | {"image": np.divide(example[name]["image"], 255, dtype=np.float32)}
        for name in ("inputs", "targets")
    }
