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
import dataclasses
import functools
import logging
from collections.abc import Sequence
from typing import Any

import grain
import jax
import numpy as np
from absl import flags

from data_pipeline.batches.views import (
    check_counts,
    draw_clip,
    draw_views,
    draw_window,
    mirror,
    permute_colours,
)
from data_pipeline.batches.workers import Watch, how_to_go_on, serve_parent
from data_pipeline.formats import open_scenes
from data_pipeline.formats.array_record import hold_out_of
from data_pipeline.pictures.images import decode_jpeg_into
from data_pipeline.pictures.scratch import scratch
from data_pipeline.pictures.transforms import crop_into, depth_through, portrait_to_square
from data_pipeline.procedural.rooms import ProceduralScenes, SceneRecipe
from data_pipeline.read_options import ReadOptions
from data_pipeline.scenes import Frame, Scene, scene_of_arrays
from efficient_lvsm_jax.configuration import Settings, setting
from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.geometry.cameras import Batch, Views, normalise_poses

log = logging.getLogger(__name__)

COUNTS = ("replaced", "unreadable")  # scenes left out, for each place in a batch
ENDLESS = 2**60  # places in batches
MAX_REPLACEMENTS = 100  # scenes tried for one place in a batch
WORKER_NAME = "grain-process-prefetch"  # how grain begins the names of its workers
MAX_REDRAWS = 20  # of a scene's views, when one of them is a hole


@dataclasses.dataclass(frozen=True)
class DataConfig(Settings):
    """What training sees.

    Attributes:
      path: what `formats.open_scenes` reads; "" trains on generated scenes.
      split: of that data set, if it has several; "" is the one of which a part was held out.
      scenes, views: generated scenes and their views.
      size: height and width of the pictures. Frames of another size are resized and cropped
        (`transforms.crop_into`).
      patch: a frame's width is rounded to a multiple of it when it is resized, as published.
      batch_size: scenes of a batch, of all processes together.
      num_inputs_cycle: input views of the scenes of batch 0, 1, 2, …, starting over at the end; so
        a batch has one shape and as many shapes are compiled as there are different numbers.
      num_targets: target views of a scene; 0: none, the inputs are a clip in the order of the film
        (`views.draw_clip`), for a model of geometry.
      depth: of a clip, also the depth of its frames, in the world's unit.
      queries: of a clip, so many pixels of its first frame to be tracked, drawn from those whose
        depth is known, where it is asked for; all (0, 0) if there are fewer.
      target_has_input: targets are drawn from all views drawn, inputs included.
      min_distance, max_distance: frames between the first and the last view drawn, in the order of
        the film (`Scene.film`), see `views.draw_window`; max_distance 0 draws any views of a scene
        (`views.draw_views`).
      normalise_poses: poses in the frame of all views drawn, as published for scenes; object
        renders share a frame already and are trained without, and so is depth.
      shuffle_inputs: inputs in random order, not the window's ends first.
      mirror, permute_colours: variations, see `views`.
      skip_unreadable: another scene takes the place of one that cannot be read, and is counted;
        otherwise training ends with an error that names the file.
      threads: that prepare batches while the model computes.
      workers: processes that do instead; 0 uses threads, which suits few cores.
    """

    group = "data"
    path: str = ""
    split: str = ""
    scenes: int = setting(4000, at_least=1)
    views: int = setting(8, at_least=1)
    size: int = setting(48, at_least=1)
    patch: int = setting(8, at_least=1)
    batch_size: int = setting(8, at_least=1)
    num_inputs_cycle: tuple[int, ...] = setting((2, 4, 2, 1), at_least=1)
    num_targets: int = setting(4, at_least=0)
    depth: bool = False
    queries: int = setting(0, at_least=0)
    target_has_input: bool = False
    min_distance: int = setting(25, at_least=1)
    max_distance: int = setting(0, at_least=0)
    normalise_poses: bool = True
    shuffle_inputs: bool = False
    mirror: bool = True
    permute_colours: bool = True
    skip_unreadable: bool = False
    threads: int = setting(1, at_least=1)
    workers: int = setting(0, at_least=0)

    def __post_init__(self):
        super().__post_init__()
        if not self.num_inputs_cycle:
            raise InputError("data.num_inputs_cycle=(): must name at least one number of inputs")
        if self.max_distance and self.max_distance <= self.min_distance:
            raise InputError(
                f"data.max_distance={self.max_distance}: must be above min_distance="
                f"{self.min_distance}, or 0 for any views"
            )
        if self.num_targets and (self.depth or self.queries):
            raise InputError(
                f"data.num_targets={self.num_targets}: data.depth and data.queries are of clips; "
                "set data.num_targets=0"
            )
        if self.depth and self.normalise_poses:
            raise InputError(
                "data.normalise_poses=True: depth is in the world's unit and would not fit the "
                "poses; set data.normalise_poses=False"
            )
        if not self.path:
            self.check_views(self.views)

    def check_views(self, views: int) -> None:
        """Raises InputError unless scenes of this many views are enough for every batch."""
        for num_inputs in self.num_inputs_cycle:
            if not self.num_targets:
                if num_inputs > views:
                    raise InputError(f"clips of {num_inputs} frames, the scenes have {views} views")
                continue
            check_counts(
                views, num_inputs, self.num_targets, target_has_input=self.target_has_input
            )


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
    return grain.MapDataset.range(ENDLESS).map(_BatchMaker(scenes, config, seed, index, count))


@dataclasses.dataclass(frozen=True)
class _BatchMaker(grain.transforms.Map):
    """From the number of a batch to one process's rows of it.

    Every place in a batch has a random generator of its own, so it is filled alike by any process.
    """

    scenes: Sequence[Scene]
    config: DataConfig
    seed: int
    process: int
    processes: int

    def map(self, step: int) -> tuple[Batch, dict[str, np.ndarray]]:
        config = self.config
        num_inputs = config.num_inputs_cycle[step % len(config.num_inputs_cycle)]
        rows = config.batch_size // self.processes
        batch = _empty_batch(rows, num_inputs, config)
        first = step * config.batch_size + self.process * rows
        left_out = [self._fill(batch, row, first + row, num_inputs) for row in range(rows)]
        return batch, dict(zip(COUNTS, np.array(left_out, np.int32).T, strict=True))

    def _fill(self, batch: Batch, row: int, place: int, num_inputs: int) -> tuple[int, int]:
        """Writes a row of the batch: its scene, or another if that cannot be used; see COUNTS."""
        epoch, position = divmod(place, len(self.scenes))
        index = int(_order(len(self.scenes), self.seed, epoch)[position])
        rng = np.random.default_rng([self.seed, place])
        replaced = unreadable = longest = 0
        for _ in range(MAX_REPLACEMENTS):
            try:
                scene = self.scenes[index]
                if self._write(batch, row, scene, num_inputs, rng):
                    return replaced, unreadable
                replaced, longest = replaced + 1, max(longest, len(scene.frames))
            except InputError as error:
                if not self.config.skip_unreadable:
                    raise
                log.warning("skipped: %s", error)
                unreadable += 1
            index = int(rng.integers(len(self.scenes)))
        raise InputError(
            f"none of {MAX_REPLACEMENTS} scenes drawn could be used: {replaced} too short for "
            f"{num_inputs} inputs and {self.config.num_targets} targets at least "
            f"{self.config.min_distance} frames apart, {unreadable} unreadable; "
            + (self._fitting(longest) if replaced else "prepare the data again")
        )

    def _fitting(self, frames: int) -> str:
        """Advice for films of at most so many frames, all too short for the windows asked for."""
        config = self.config
        views = max(config.num_inputs_cycle) + config.num_targets
        if views > frames - 2:
            return (
                f"the longest has {frames} frames, so a window holds at most {max(frames - 2, 0)} "
                "views: lower data.num_inputs_cycle or data.num_targets"
                + (", or set data.max_distance=0" if views <= frames else "")
            )
        return (
            f"the longest has {frames} frames: set data.min_distance to at most {frames - 2} and "
            f"data.max_distance above that and {views}, for instance data.min_distance="
            f"{max(frames // 4, 1)} data.max_distance={frames - 1}, or data.max_distance=0 to draw "
            "any views"
        )

    def _write(
        self,
        batch: Batch,
        row: int,
        scene: Scene,
        num_inputs: int,
        rng: np.random.Generator,
    ) -> bool:
        """Writes views of the scene to a row; False if it is too short."""
        chosen = self._choose(scene, num_inputs, rng)
        if chosen is None:
            return False
        # Drawn whether used or not, so that a setting changes only what it says.
        flip, order = rng.random() < 0.5, rng.permutation(3)
        places: dict[int, np.ndarray] = {}  # where the picture of a view is
        frames = {}
        sides = [side for side in (batch.inputs, batch.targets) if side is not None]
        for side, views in zip(sides, chosen, strict=True):
            for column, view in enumerate(map(int, views)):
                image = side.image[row, column]
                if view in places:
                    image[:] = places[view]
                else:
                    frames[view] = self._read(scene.frames[view], image)
                    places[view] = image

        poses = np.stack([frames[view][0] for view in np.concatenate(chosen).tolist()])
        c2w = poses.astype(np.float32)
        if self.config.normalise_poses:
            c2w = normalise_poses(poses, checked=True)
        parts = np.split(c2w, [num_inputs])[: len(sides)]
        for side, views, poses in zip(sides, chosen, parts, strict=True):
            intrinsics = np.stack([frames[view][1] for view in views]).astype(np.float32)
            read = Views(side.image[row], poses, intrinsics)
            if self.config.mirror and flip:
                read = mirror(read)
            if self.config.permute_colours:
                read = permute_colours(read, order)
            for name, value in vars(read).items():
                getattr(side, name)[row] = value
        if batch.depth is not None:
            for column, view in enumerate(map(int, chosen[0])):
                depth = _depth(scene.frames[view], scene.name, frames[view][1], self.config.size)
                batch.depth[row, column] = depth[:, ::-1] if self.config.mirror and flip else depth
        if batch.queries is not None:
            known = np.ones((self.config.size,) * 2) if batch.depth is None else batch.depth[row, 0]
            batch.queries[row] = _points(rng, known > 0, self.config.queries)
        return True

    def _choose(
        self, scene: Scene, num_inputs: int, rng: np.random.Generator
    ) -> tuple[np.ndarray, ...] | None:
        """Inputs and, but for clips, targets, none a hole; None if the scene is too short."""
        config, count = self.config, len(scene.frames)
        for _ in range(MAX_REDRAWS):
            if not config.num_targets:
                clip = draw_clip(
                    rng,
                    count,
                    num_inputs,
                    min_distance=config.min_distance,
                    max_distance=config.max_distance,
                    shuffle=config.shuffle_inputs,
                )
                film = np.array(scene.film or range(count))
                chosen = None if clip is None else (film[clip],)
            elif config.max_distance:
                chosen = draw_window(
                    rng,
                    count,
                    num_inputs,
                    config.num_targets,
                    min_distance=config.min_distance,
                    max_distance=config.max_distance,
                    target_has_input=config.target_has_input,
                    shuffle_inputs=config.shuffle_inputs,
                )
                if chosen is not None and scene.film:
                    chosen = tuple(np.array(scene.film)[views] for views in chosen)
            else:
                try:
                    config.check_views(count)
                except InputError as error:
                    raise InputError(f"{scene.name}: {error}") from None
                chosen = draw_views(
                    rng,
                    count,
                    num_inputs,
                    config.num_targets,
                    target_has_input=config.target_has_input,
                )
            if chosen is None or set(scene.holes).isdisjoint(np.concatenate(chosen)):
                return chosen
        raise InputError(
            f"{scene.name}: {len(scene.holes)} of its {count} frames are unreadable, too many to "
            "draw views among the others"
        )

    def _read(self, frame: Frame, out: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Writes a view's picture to `out` [size, size, 3]; its pose and intrinsics."""
        shape = (frame.height, frame.width, 3)
        if frame.encoded is None:
            image = frame.image()
        else:
            image = out if shape == out.shape else scratch("frame", shape, np.uint8)
            decode_jpeg_into(frame.encoded(), image, frame.name)
        if shape == out.shape:
            if image is not out:
                out[:] = image
            return frame.c2w, frame.fxfycxcy
        square = portrait_to_square(image, frame.fxfycxcy)
        return frame.c2w, crop_into(*square, out, patch=self.config.patch)


def _empty_batch(rows: int, num_inputs: int, config: DataConfig) -> Batch:
    """Arrays of a batch, to be filled; all pictures in one piece of memory, which is cheaper."""
    num_targets, size = config.num_targets, config.size
    pictures = np.empty((rows * (num_inputs + num_targets), size, size, 3), np.uint8)
    parts = np.split(pictures, [rows * num_inputs])
    inputs, targets = (
        Views(
            part.reshape(rows, count, size, size, 3),
            np.empty((rows, count, 4, 4), np.float32),
            np.empty((rows, count, 4), np.float32),
        )
        for count, part in zip((num_inputs, num_targets), parts, strict=True)
    )
    return Batch(
        inputs,
        targets if num_targets else None,
        np.empty((rows, num_inputs, size, size), np.float32) if config.depth else None,
        np.empty((rows, config.queries, 2), np.float32) if config.queries else None,
    )


def _depth(frame: Frame, scene: str, fxfycxcy: np.ndarray, size: int) -> np.ndarray:
    """Depth [size, size] of a frame whose picture now has these intrinsics."""
    if frame.depth is None:
        raise InputError(
            f"{scene}, frame {frame.name}: has no depth, which data.depth asks for; expected a "
            "capture with depth_file_path, as elvsm walk --depth writes"
        )
    return depth_through(frame.depth(), frame.fxfycxcy, fxfycxcy, (size, size))


def _points(rng: np.random.Generator, known: np.ndarray, count: int) -> np.ndarray:
    """Pixels x y [count, 2] drawn with replacement where `known` [Y, X], zeros if too few are."""
    y, x = np.nonzero(known)
    if len(x) < count:
        return np.zeros((count, 2), np.float32)
    drawn = rng.integers(len(x), size=count)
    return np.stack([x[drawn], y[drawn]], -1).astype(np.float32)


@functools.lru_cache(maxsize=4)
def _order(num_scenes: int, seed: int, epoch: int) -> np.ndarray:
    """The scenes of an epoch. grain's own shuffle takes milliseconds an index for few scenes."""
    return np.random.default_rng([seed, epoch]).permutation(num_scenes)
