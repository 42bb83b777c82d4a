"""Scoring pictures of held-out scenes: every scene once, on any mesh, and the cache at work.

What renders is a function from a batch of scenes to pictures: a model, or a folder of pictures of
another method. Everything else, which frames, which pictures count as true, which numbers come of
them, is the same for both.

Axes: B scene, V input view, T target view, Y X pixel.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import jax
import numpy as np
from jax.sharding import Mesh

from data_pipeline.evaluation.scenes import EvaluationScene, EvaluationScenes
from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.evaluation.predictions import Predictions
from efficient_lvsm_jax.evaluation.results import BASELINES, SceneScores
from efficient_lvsm_jax.geometry.cameras import SceneFrame, nearest_camera
from efficient_lvsm_jax.geometry.choice import most_useful
from efficient_lvsm_jax.media.levels import from_bytes, to_bytes
from efficient_lvsm_jax.metrics.pictures import SSIM_WINDOW, check_range, psnr, ssim
from efficient_lvsm_jax.models.model import Model
from efficient_lvsm_jax.nn.cache import reading
from efficient_lvsm_jax.parallel.sharding import put_scenes, state_shardings
from efficient_lvsm_jax.sessions.choice import nearest_of
from efficient_lvsm_jax.sessions.session import Session

Render = Callable[[Sequence[EvaluationScene]], jax.Array | np.ndarray]
Distance = Callable[[jax.Array, np.ndarray], np.ndarray]


def model_renders(model: Model, mesh: Mesh, views: str = "all") -> Render:
    """A function that renders the targets of scenes, its parameters and scenes spread over a mesh.

    The function takes scenes of equal shapes, as many as `padded_size` says, and returns float32
    [B, T, Y, X, 3] in [0, 1]. `views` says what each target reads: "all" inputs or "nearest:k".
    """
    nearest = nearest_of(views, "views")
    params = jax.device_put(model.params, state_shardings(mesh, model.params))
    model = dataclasses.replace(model, params=params)

    def render(scenes: Sequence[EvaluationScene]) -> jax.Array:
        sides = [(scene.inputs, scene.targets.cameras) for scene in scenes]
        stacked = jax.tree.map(lambda *arrays: np.stack(arrays), *sides)
        inputs, cameras = put_scenes(mesh, stacked)
        with jax.set_mesh(mesh):
            memory = model.encode(inputs)
            if nearest is not None:
                own = [(scene.targets.cameras, scene.inputs.cameras) for scene in scenes]
                chosen = np.stack([most_useful(*pair, nearest) for pair in own])
                memory = reading(memory, put_scenes(mesh, chosen))
            return model.decode(memory, cameras)

    return render


def folder_renders(predictions: Predictions) -> Render:
    """A function that reads the targets of scenes from a folder, as `model_renders` otherwise."""

    def read(scenes: Sequence[EvaluationScene]) -> np.ndarray:
        pictures: dict[str, np.ndarray] = {}
        for scene in scenes:
            if scene.name not in pictures:  # padding repeats a scene
                pictures[scene.name] = predictions.read(scene)
        return np.stack([pictures[scene.name] for scene in scenes])

    return read


@dataclasses.dataclass(frozen=True)
class Scorer:
    """Everything between scenes and their scores.

    Attributes:
      render: see `model_renders` and `folder_renders`.
      mesh: over which pictures are spread.
      batch_size: scenes of a call, see `padded_size`.
      eight_bit: round rendered pictures to 256 levels before they are scored, as files hold them.
      foreground: also score the foreground alone.
      lpips: also this distance of [B, T, Y, X, 3] pictures in [0, 1], [B, T].
    """

    render: Render
    mesh: Mesh
    batch_size: int
    eight_bit: bool = False
    foreground: bool = False
    lpips: Distance | None = None

    @property
    def metrics(self) -> list[str]:
        """Names of the scores, baselines aside."""
        names = ["psnr", "ssim"]
        names += ["lpips"] if self.lpips else []
        return names + (["foreground_psnr", "foreground_ssim"] if self.foreground else [])

    def score(self, batch: Sequence[EvaluationScene]) -> tuple[list[SceneScores], list[np.ndarray]]:
        """Scores of the scenes of a batch, and their rendered pictures, uint8 [T, Y, X, 3].

        Args:
          batch: at most `padded_size` scenes, of equal shapes. Fewer are filled up by repeating
            the last, whose extra scores are dropped.
        """
        size = padded_size(self.batch_size, self.mesh)
        padded = [*batch, *[batch[-1]] * (size - len(batch))]
        truth = np.stack([scene.targets.image for scene in padded])
        check_range(truth, f"scene {batch[0].name} and following, true pictures")
        images = self.render(padded)
        as_bytes = to_bytes(np.asarray(images))
        if self.eight_bit:
            images = from_bytes(as_bytes)
        if not isinstance(images, jax.Array):
            images = put_scenes(self.mesh, images)

        guesses = [np.stack(guess) for guess in zip(*map(_guesses, padded), strict=True)]
        mask = _foreground(padded) if self.foreground else None
        measured = _measure(images, *put_scenes(self.mesh, (truth, mask, *guesses)))
        if self.lpips is not None:
            measured["lpips"] = self.lpips(images, truth)
        names = [*self.metrics, *BASELINES.values()]
        scores = {name: np.asarray(measured[name], np.float64) for name in names}
        rows = [
            SceneScores(
                scene.name,
                scene.chosen.inputs,
                scene.chosen.targets,
                {name: values[i] for name, values in scores.items()},
            )
            for i, scene in enumerate(batch)
        ]
        return rows, list(as_bytes[: len(batch)])


def padded_size(batch_size: int, mesh: Mesh) -> int:
    """The batch size, rounded up to a multiple of the devices that share a batch."""
    return math.ceil(batch_size / mesh.size) * mesh.size


def batches(
    scenes: EvaluationScenes, order: Iterable[int], size: int, *, skip_unreadable: bool = False
) -> Iterator[list[EvaluationScene | SceneScores]]:
    """Scenes in order, in lists of up to `size` scenes of equal shapes, read ahead by a thread.

    A scene that cannot be read raises its InputError, or with skip_unreadable comes as a
    `SceneScores` that says why, in a list of its own.
    """
    batch: list[EvaluationScene | SceneScores] = []
    for scene in _read_ahead(scenes, order, 2 * size, skip_unreadable):
        if batch and (len(batch) == size or _shapes(scene) != _shapes(batch[0])):
            yield batch
            batch = []
        batch.append(scene)
    if batch:
        yield batch


def _read_ahead(
    scenes: EvaluationScenes, order: Iterable[int], ahead: int, skip_unreadable: bool
) -> Iterator[EvaluationScene | SceneScores]:
    def read(index: int) -> EvaluationScene | SceneScores:
        try:
            return scenes[index]
        except InputError as error:
            if not skip_unreadable:
                raise
            return SceneScores(scenes.names[index], (), (), {}, unusable=str(error))

    waiting: list[Future] = []
    # One thread: the readers of data sets keep files open and are not made for several.
    with ThreadPoolExecutor(1) as pool:
        try:
            for index in order:
                waiting.append(pool.submit(read, index))
                if len(waiting) > ahead:
                    yield waiting.pop(0).result()
            while waiting:
                yield waiting.pop(0).result()
        finally:
            for future in waiting:
                future.cancel()


def _shapes(scene: EvaluationScene | SceneScores) -> tuple:
    if isinstance(scene, SceneScores):
        return (scene.scene,)
    return scene.inputs.image.shape, scene.targets.image.shape


def _guesses(scene: EvaluationScene) -> tuple[np.ndarray, np.ndarray]:
    """Two predictions that need no model: the input nearest by camera centre, the mean colour."""
    inputs, targets = scene.inputs, scene.targets
    nearest = [nearest_camera(inputs.c2w, c2w) for c2w in targets.c2w]
    mean = np.broadcast_to(inputs.image.mean(axis=(0, 1, 2)), targets.image.shape)
    return inputs.image[np.array(nearest)], mean


def _foreground(scenes: Sequence[EvaluationScene]) -> np.ndarray:
    """Bool [B, T, Y, X], see `protocol.FOREGROUND`."""
    masks = []
    edge = SSIM_WINDOW // 2
    for scene in scenes:
        mask = scene.foreground
        if mask is None:
            raise InputError("evaluation.foreground: generated scenes have no background")
        empty = ~mask[:, edge:-edge, edge:-edge].any(axis=(1, 2))
        if empty.any():
            frame = scene.chosen.targets[int(np.argmax(empty))]
            raise InputError(
                f"scene {scene.name}, target {frame}: no foreground to score; is it a render of an "
                "object? Otherwise set evaluation.foreground to false"
            )
        masks.append(mask)
    return np.stack(masks)


@jax.jit
def _measure(images, truth, mask, nearest, mean):
    scores = {
        "psnr": psnr(images, truth),
        "ssim": ssim(images, truth),
        "nearest_input_psnr": psnr(nearest, truth),
        "mean_colour_psnr": psnr(mean, truth),
    }
    if mask is not None:
        scores["foreground_psnr"] = psnr(images, truth, mask=mask)
        scores["foreground_ssim"] = ssim(images, truth, mask=mask)
    return scores


def added_one_by_one(model: Model, scenes: Sequence[EvaluationScene]) -> list[dict[str, float]]:
    """What every further input brings and costs, through a Session.

    Returns:
      A row for 1, 2, 4, … inputs (powers of two and all): inputs, psnr over all scenes, and the
      median milliseconds of adding the last view and of rendering one target, after a warm-up.
    """
    count = len(scenes[0].inputs.image)
    shown = sorted({2**i for i in range(count.bit_length()) if 2**i <= count} | {count})
    rows: dict[int, list[tuple]] = {number: [] for number in shown}
    for scene in [scenes[0], *scenes]:  # the first one warms up
        session = Session(model, frame=SceneFrame.identity(), capacity=count, check_poses=False)
        inputs, targets = scene.inputs, scene.targets
        size = targets.image.shape[1:3]
        for number in range(1, count + 1):
            start = time.perf_counter()
            session.add(*(array[number - 1] for array in vars(inputs).values()))
            session.block_until_ready()
            added = time.perf_counter()
            images = session.render(targets.c2w, targets.fxfycxcy, size)
            rendered = (time.perf_counter() - added) / len(images)
            if number in rows:
                quality = float(np.mean(psnr(images, targets.image)))
                rows[number].append((quality, added - start, rendered))
    table = []
    for number, values in rows.items():
        quality, add, render = np.array(values[1:]).T
        table.append(
            {
                "inputs": number,
                "psnr": float(quality.mean()),
                "add_ms": float(np.median(add) * 1e3),
                "render_ms": float(np.median(render) * 1e3),
            }
        )
    return table
