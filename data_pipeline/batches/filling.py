"""One batch: which views of which scenes, read into its arrays.

Axis legend: B scene  V view (inputs or targets)  Y X pixels.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Sequence

import grain
import numpy as np

from data_pipeline.batches.settings import DataConfig
from data_pipeline.batches.views import (
    draw_clip,
    draw_views,
    draw_window,
    mirror,
    permute_colours,
)
from data_pipeline.pictures.images import decode_jpeg_into
from data_pipeline.pictures.scratch import scratch
from data_pipeline.pictures.transforms import crop_into, depth_through, portrait_to_square
from data_pipeline.scenes import Frame, Scene
from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.geometry.cameras import Batch, Views, normalise_poses

log = logging.getLogger(__name__)

COUNTS = ("replaced", "unreadable")  # scenes left out, for each place in a batch
MAX_REPLACEMENTS = 100  # scenes tried for one place in a batch
MAX_REDRAWS = 20  # of a scene's views, when one of them is a hole


@dataclasses.dataclass(frozen=True)
class BatchMaker(grain.transforms.Map):
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
