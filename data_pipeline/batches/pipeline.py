"""Batches for training, from any scenes that can be opened.

A batch is a `cameras.Batch` of NumPy arrays. The poses of a scene are normalised over its inputs
and targets together, as the published program does (`cameras.SceneFrame`), unless the settings say
otherwise. Pictures stay bytes, uint8, until they are on the device: a quarter of the traffic.

Batch k is a function of (settings, seed, k) alone, whatever the number of processes, threads and
workers, so the position in the data is one integer.

Axis legend: B scene  V view (inputs or targets)  Y X pixels.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import grain
import jax
from absl import flags

from data_pipeline.batches.filling import COUNTS, BatchMaker
from data_pipeline.batches.settings import DataConfig
from data_pipeline.batches.workers import Watch, how_to_go_on, serve_parent
from data_pipeline.formats import open_scenes
from data_pipeline.formats.array_record import hold_out_of
from data_pipeline.procedural.rooms import ProceduralScenes, SceneRecipe
from data_pipeline.read_options import ReadOptions
from data_pipeline.scenes import Scene, scene_of_arrays
from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.geometry.cameras import Batch

ENDLESS = 2**60  # places in batches
WORKER_NAME = "grain-process-prefetch"  # how grain begins the names of its workers


def training_batches(
    config: DataConfig,
    *,
    seed: int,
    process: tuple[int, int] | None = None,
    progress: bool = False,
) -> TrainingBatches:
    """Endless batches, this process's rows of each.

    Args:
      config: what to read; generated scenes are drawn here, first (see `progress`).
      seed: of the scenes' order, the views drawn and, if scenes are generated, the scenes.
      process: (index, count) of the processes that share each batch; None asks JAX.
      progress: draw a progress bar while generating scenes.

    Returns:
      An iterator whose state is its position, see `TrainingBatches`.

    Raises:
      InputError: nothing to read at the path, scenes with too few views, or a batch that the
        processes do not divide. While iterating: a scene that cannot be read, unless
        `skip_unreadable`.
    """
    if config.path:
        split = ReadOptions(split=training_split(config))
        scenes: Sequence[Scene] = open_scenes(config.path, split)
    else:
        recipe = SceneRecipe(size=config.size, views=config.views)
        scenes = InMemory(
            ProceduralScenes(
                config.scenes,
                split="train",
                seed=seed,
                recipe=recipe,
                progress=progress,
                depth=config.depth,
            )
        )
    return TrainingBatches(training_dataset(scenes, config, seed=seed, process=process), config)


def training_split(config: DataConfig) -> str:
    """The split that is trained on; InputError if it was held out."""
    hold_out = hold_out_of(config.path, config.split)
    if hold_out is None:
        return config.split
    if config.split == hold_out.split:
        raise InputError(
            f"data.split={config.split!r}: was held out when {config.path} was prepared, so it is "
            f"for evaluation alone; train on {hold_out.of!r}"
        )
    return hold_out.of


class TrainingBatches(grain.DatasetIterator):
    """Batches in order, prepared ahead; the state is the number of the next batch.

    Save it with `grain.checkpoint.CheckpointSave`, or with `get_state` and `set_state`. It may go
    on with other numbers of threads and workers than it began with.

    Attributes:
      left_out: scenes that had no place in the batches given so far, of this process's rows:
        "replaced", too short, and "unreadable".
    """

    def __init__(self, dataset: grain.MapDataset, config: DataConfig):
        super().__init__()
        self.left_out = dict.fromkeys(COUNTS, 0)
        self._dataset, self._config, self._next = dataset, config, 0
        self._batches: grain.DatasetIterator | None = None
        self._watch: Watch | None = None

    def __next__(self) -> Batch:
        try:
            if self._batches is None:
                self._watch = Watch(WORKER_NAME, self._failed) if self._config.workers else None
                self._batches = iter(self._from(self._next))
            with self._watched():
                batch, counts = next(self._batches)
        except InputError:
            raise
        # Grain's, for a worker that is gone or that raised, and the system's, of what it refuses.
        except (RuntimeError, OSError) as error:
            raise InputError(self._failed(str(error))) from error
        self._next += 1
        for name, count in counts.items():
            self.left_out[name] += int(count.sum())
        return batch

    def _watched(self) -> contextlib.AbstractContextManager:
        return self._watch.waiting() if self._watch else contextlib.nullcontext()

    def _failed(self, why: str) -> str:
        if not self._config.workers:
            return f"preparing batch {self._next} failed: {why}"
        return (
            f"preparing batch {self._next} failed in a worker process: {why}; {how_to_go_on(why)}"
        )

    def get_state(self) -> dict[str, int]:
        """{"next_index": number of the next batch}."""
        return {"next_index": self._next}

    def set_state(self, state: dict[str, int]) -> None:
        """Goes to where `get_state` was called."""
        self.close()
        self._next = int(state["next_index"])

    def close(self) -> None:
        """Ends threads and workers; the next batch, if one is asked for, starts others."""
        try:
            if self._batches is not None:
                with self._watched():
                    self._batches.close()
        finally:
            if self._watch is not None:
                self._watch.close()
            self._batches = self._watch = None

    def _from(self, first: int) -> grain.IterDataset:
        """Batches from number `first` on, prepared by threads or by processes."""
        config = self._config
        if config.workers and not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # grain reads its own flags, which no one has given
        batches = self._dataset[first:].to_iter_dataset(
            grain.ReadOptions(config.threads, 2 * config.threads)
        )
        if not config.workers:
            return batches
        return batches.mp_prefetch(
            grain.MultiprocessingOptions(config.workers),
            worker_init_fn=lambda _index, _count: serve_parent(),
        )


class InMemory(Sequence):
    """Scenes of a source of arrays, such as `ProceduralScenes`."""

    def __init__(self, source: Any):
        self._source = source

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Scene:
        example = dict(self._source[index])
        return scene_of_arrays(example.pop("scene"), **example)


def training_dataset(
    scenes: Sequence[Scene],
    config: DataConfig,
    *,
    seed: int,
    process: tuple[int, int] | None = None,
) -> grain.MapDataset:
    """Endless random access to batches: `training_dataset(...)[k]` is batch k and what it left out.

    Every epoch visits every scene once, in another order; a batch may reach into the next epoch.
    A scene too short for the views asked for gives its place to another, drawn at random, and so
    does one that cannot be read if the settings allow it: {"replaced", "unreadable"}, int32 [B],
    count them for each place in the batch.

    Raises:
      InputError: no scene, a seed out of range, a batch that the processes do not divide; when
        asked for a batch, what is wrong with the data.
    """
    if not 0 <= seed < 2**32:
        raise InputError(f"seed={seed}: must be at least 0 and below 2**32")
    if len(scenes) < 1:
        raise InputError("the data source is empty: training needs at least 1 scene")
    index, count = process or (jax.process_index(), jax.process_count())
    if config.batch_size % count:
        raise InputError(
            f"data.batch_size={config.batch_size}: not divisible by the {count} processes"
        )
    return grain.MapDataset.range(ENDLESS).map(BatchMaker(scenes, config, seed, index, count))
