"""Scoring a model on held-out scenes: every scene once, two trivial baselines, the cache at work.

Axes: B scene, V input view, T target view, Y X pixel.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable, Iterator, Sequence

import jax
import numpy as np

from efficient_lvsm_jax.camera_paths import camera_path
from efficient_lvsm_jax.cameras import Cameras, SceneFrame, Views, nearest_camera
from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.metrics import psnr, ssim
from efficient_lvsm_jax.models import Model
from efficient_lvsm_jax.report import SceneResult
from efficient_lvsm_jax.session import Session


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """Which views of which scenes are scored.

    Attributes:
      scenes, views, size: how many held-out scenes, views of each, and their edge in pixels.
      inputs, targets: indices of the views that are given and of those that are predicted.
      added_one_by_one: the order in which inputs join a Session for the cache table.
      batch_size: scenes scored in one call; changes the speed, not the result.
      film_frames: frames between two neighbouring input cameras of the film.
    """

    scenes: int
    views: int
    size: int
    inputs: tuple[int, ...]
    targets: tuple[int, ...]
    added_one_by_one: tuple[int, ...] = ()
    batch_size: int = 8
    film_frames: int = 45

    def __post_init__(self):
        for name in ("inputs", "targets", "added_one_by_one"):
            wrong = [i for i in getattr(self, name) if not 0 <= i < self.views]
            if wrong:
                raise InputError(f"evaluation.{name}: no view {wrong[0]} among {self.views}")


def score(model: Model, scenes: Iterable[dict], batch_size: int) -> Iterator[SceneResult]:
    """Renders the targets of every scene and scores them, each scene exactly once.

    Args:
      model: what renders.
      scenes: {"scene", "inputs", "targets"} with [V, …] views each, as `evaluation_scenes` gives
        them; all of equal shapes.
      batch_size: the last batch is padded by repeating a scene, whose extra scores are dropped.
    """
    for batch in _batches(scenes, batch_size):
        padded = batch + [batch[-1]] * (batch_size - len(batch))
        inputs, targets = (
            {key: np.stack([scene[side][key] for scene in padded]) for key in padded[0][side]}
            for side in ("inputs", "targets")
        )
        truth = targets["image"]
        cameras = Cameras(targets["c2w"], targets["fxfycxcy"], *truth.shape[2:4])
        images = model.decode(model.encode(Views(**inputs)), cameras)
        psnrs, ssims = np.asarray(psnr(images, truth)), np.asarray(ssim(images, truth))
        for i, scene in enumerate(batch):
            yield SceneResult(
                scene=scene["scene"],
                inputs=to_bytes(scene["inputs"]["image"]),
                targets=to_bytes(scene["targets"]["image"]),
                predictions=to_bytes(images[i]),
                psnr=psnrs[i],
                ssim=ssims[i],
            )


def summarise(results: Sequence[SceneResult]) -> dict[str, float]:
    """Means over the targets of a scene, then over scenes."""
    return {
        "psnr": float(np.mean([result.psnr.mean() for result in results])),
        "ssim": float(np.mean([result.ssim.mean() for result in results])),
        "scenes": len(results),
    }


def baselines(scenes: Iterable[dict]) -> dict[str, dict[str, float]]:
    """PSNR of two predictions that need no model, averaged like the model's.

    `nearest` copies the input whose camera centre is nearest to the target's; `mean` paints the
    mean colour of the inputs.
    """
    scores: dict[str, list[float]] = {"nearest": [], "mean": []}
    for scene in scenes:
        inputs, targets = scene["inputs"], scene["targets"]
        nearest = [nearest_camera(inputs["c2w"], c2w) for c2w in targets["c2w"]]
        mean = np.broadcast_to(inputs["image"].mean(axis=(0, 1, 2)), targets["image"].shape)
        for name, guess in (("nearest", inputs["image"][np.array(nearest)]), ("mean", mean)):
            scores[name].append(float(np.mean(psnr(guess, targets["image"]))))
    return {name: {"psnr": float(np.mean(values))} for name, values in scores.items()}


def added_one_by_one(model: Model, scenes: Sequence[dict]) -> list[dict[str, float]]:
    """What every further input brings and costs, through a Session.

    Returns:
      A row for 1, 2, 4, … inputs (powers of two and all): inputs, psnr over all scenes, and the
      median milliseconds of adding the last view and of rendering one target, after a warm-up.
    """
    count = len(scenes[0]["inputs"]["image"])
    shown = sorted({2**i for i in range(count.bit_length()) if 2**i <= count} | {count})
    rows: dict[int, list[tuple]] = {number: [] for number in shown}
    for scene in [scenes[0], *scenes]:  # the first one warms up
        session = Session(model, frame=SceneFrame.identity(), capacity=count)
        inputs, targets = scene["inputs"], scene["targets"]
        size = targets["image"].shape[1:3]
        for number in range(1, count + 1):
            start = time.perf_counter()
            session.add(*(inputs[key][number - 1] for key in ("image", "c2w", "fxfycxcy")))
            session.block_until_ready()
            added = time.perf_counter()
            images = session.render(targets["c2w"], targets["fxfycxcy"], size)
            rendered = (time.perf_counter() - added) / len(images)
            if number in rows:
                quality = float(np.mean(psnr(images, targets["image"])))
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


def fly_through(model: Model, scene: dict, steps: int) -> np.ndarray:
    """Frames uint8 [F, Y, X, 3] along the path through the inputs of a scene, nearest first."""
    inputs = scene["inputs"]
    session = Session(model, frame=SceneFrame.identity(), capacity=len(inputs["image"]))
    for image, c2w, fxfycxcy in zip(*inputs.values(), strict=True):
        session.add(image, c2w, fxfycxcy)
    path = camera_path(inputs["c2w"], inputs["fxfycxcy"], steps, nearest_first=True)
    return to_bytes(session.render(*path, inputs["image"].shape[1:3]))


def to_bytes(image: np.ndarray | jax.Array) -> np.ndarray:
    """Floats in [0, 1] to the nearest of 256 levels."""
    return np.round(np.clip(np.asarray(image), 0, 1) * 255).astype(np.uint8)


def _batches(items: Iterable[dict], size: int) -> Iterator[list[dict]]:
    batch: list[dict] = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
