"""Section "rooms": a small model trained on generated rooms for the time that is left.

Scenes are drawn on the device and stay in its memory; processes draw their parameters. The learning
rate is flat and then falls to the end of the time: the position in its schedule is a number in the
state, which is set from the clock, so nothing compiles again. The result is rooms.safetensors
(float16, published names), scored on held-out rooms, with a strip of pictures.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
import multiprocessing
import os
import queue
import threading
import time
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from benchmarks.gpu.context import Context, Rows, memory_gib
from data_pipeline.batches.views import draw_views
from data_pipeline.procedural.rooms import (
    ProceduralScenes,
    SceneRecipe,
    render_scenes,
    scene_parameters,
)
from efficient_lvsm_jax.files.safetensors_file import write_safetensors
from efficient_lvsm_jax.geometry.cameras import Batch, Cameras, Views, normalise_poses
from efficient_lvsm_jax.metrics.pictures import psnr
from efficient_lvsm_jax.models.families import configure
from efficient_lvsm_jax.models.model import Model
from efficient_lvsm_jax.training.optimizer import OptimizerConfig
from efficient_lvsm_jax.training.step import Recipe, TrainState, init_state, train_step
from efficient_lvsm_jax.weights.published import bring_out

FAMILY, SEED = "efficient_lvsm", 0
TARGETS = 4
FALLING = 0.4  # of the time, at its end
WARM_UP, FALL_BEGINS, FALL_ENDS = 200, 1000, 100_000  # positions in the schedule
# Views of a held-out room, as configs/tiny.py takes them: inputs, and targets between them.
HELD_OUT_VIEWS, HELD_OUT_INPUTS, HELD_OUT_TARGETS = 13, (2, 10), (0, 5, 8)
MOST_BYTES = 16 * 2**20


def rows(context: Context) -> Rows:
    """One row: it uses what time there is."""
    yield "trained on rooms", functools.partial(_trained, context)


@dataclasses.dataclass(frozen=True)
class Plan:
    """Sizes of the training."""

    model: dict
    size: int
    batch: int
    pool: int  # scenes on the device at a time
    chunk: int  # that are drawn together
    workers: int
    rate: float
    cycle: tuple[int, ...] = (2, 4)  # inputs of a batch, in turn


def _plan(context: Context) -> Plan:
    model = {"width": 256, "layers": 4, "patch": 4, "decoder_init": "uniform"}
    if context.dry:
        model |= {"width": 64, "layers": 1, "head_dim": 32, "patch": 8}
        return Plan(model, 16, 2, 16, 8, 1, 1e-3, cycle=(2,))
    workers = max(1, (os.cpu_count() or 2) - 2)
    half = {"compute_dtype": "bfloat16", "remat": "none"}
    return Plan(model | half, 64, 64, 131072, 512, workers, 4e-3)


def _trained(context: Context) -> dict:
    plan = _plan(context)
    config = configure(FAMILY, plan.model)
    optimizer = OptimizerConfig(
        name=context.pick("muon", "adamw"),
        learning_rate=plan.rate,
        warmup_steps=WARM_UP,
        schedule="linear",
        decay_start=FALL_BEGINS,
        decay_end=FALL_ENDS,
        final_fraction=0.01,
        clip_norm=1.0,
        ema_decay=context.pick(0.999, 0.5),
    )
    recipe = Recipe(FAMILY, config, optimizer)
    state = jax.jit(functools.partial(init_state, recipe))(jax.random.key(SEED))
    with Pool(plan) as pool:
        batches = _prefetched(pool.batches(plan))
        for _ in plan.cycle:  # a program for each number of inputs
            state, metrics = train_step(recipe, state, next(batches))
        loss = float(metrics["loss"])
        ready, first = time.monotonic(), int(state.step)
        # Compiling may have taken all there was: then it is half a minute.
        end = ready + context.pick(max(context.end - ready - 20, 30), 1)
        state = _until(recipe, state, batches, ready, end)
        pace = (time.monotonic() - ready) / max(int(state.step) - first, 1)
        drawn = pool.drawn
    model = Model(FAMILY, config, state.ema)
    score, copied, picture = _scored(context, model, plan)
    file = context.out / "rooms.safetensors"
    tensors = bring_out(jax.device_get(state.ema), FAMILY, config)
    write_safetensors(file, {name: x.astype(np.float16) for name, x in tensors.items()})
    picture.save(context.out / "rooms.png")
    return {
        "steps": int(state.step),
        "scenes seen": int(state.step) * plan.batch,
        "scenes drawn": drawn,
        "first loss": loss,
        "ms a step": 1e3 * pace,
        "PSNR, 2 inputs": score,
        "nearest input": copied,
        "file, MiB": file.stat().st_size / 2**20,
        **memory_gib(),
        "ok": bool(np.isfinite(score)) and file.stat().st_size <= MOST_BYTES,
    }


def _until(
    recipe: Recipe, state: TrainState, batches: Iterator[dict], begin: float, end: float
) -> TrainState:
    """Trains until a time; the device is never more than 8 steps behind."""
    step, falls = int(state.step), end - FALLING * (end - begin)
    while (now := time.monotonic()) < end:
        position = min(step, FALL_BEGINS)
        if now > falls:
            position = FALL_BEGINS + int((now - falls) / (end - falls) * (FALL_ENDS - FALL_BEGINS))
        state = dataclasses.replace(state, schedule_step=jnp.asarray(position, jnp.int32))
        state, metrics = train_step(recipe, state, next(batches))
        step += 1
        if step % 8 == 0:
            jax.block_until_ready(metrics["loss"])
    return jax.block_until_ready(state)


class Pool:
    """Scenes in the memory of the device, the oldest of which give way to new ones."""

    def __init__(self, plan: Plan):
        self._recipe = SceneRecipe(size=plan.size)
        self._chunk, self._capacity = plan.chunk, plan.pool
        self._numbers = iter(range(2**31))
        # Processes import this module anew; a fork of a program that runs JAX could hang. They draw
        # numbers and want no device of their own; this process has its devices already.
        os.environ["JAX_PLATFORMS"] = "cpu"
        self._workers = concurrent.futures.ProcessPoolExecutor(
            plan.workers, mp_context=multiprocessing.get_context("spawn")
        )
        self._waiting: list[concurrent.futures.Future] = []
        self._images: list[jax.Array] = []  # of chunks, uint8 [chunk, V, Y, X, 3]
        self._poses: list[np.ndarray] = []
        self._intrinsics: np.ndarray | None = None
        self.drawn = 0

    def __enter__(self) -> Pool:
        for _ in range(4):
            self._order()
        return self

    def __exit__(self, *_: object) -> None:
        self._workers.shutdown(wait=False, cancel_futures=True)

    def _order(self) -> None:
        first = next(self._numbers) * self._chunk
        drawing = self._workers.submit(_parameters, self._recipe, first, self._chunk)
        self._waiting.append(drawing)

    def fill(self, *, wait: bool) -> None:
        """Takes in a chunk of scenes if one is drawn."""
        if not (wait or self._waiting[0].done()):
            return
        batch = self._waiting.pop(0).result()
        self._order()
        self._images.append(render_scenes(batch, self._recipe))
        self._poses.append(batch["c2w"])
        self._intrinsics = batch["fxfycxcy"][0, 0]
        self.drawn += self._chunk
        if len(self._images) * self._chunk > self._capacity:
            del self._images[0], self._poses[0]

    def batches(self, plan: Plan) -> Iterator[Batch]:
        """Batches as `train_step` takes them, from one chunk each, chunks in random order."""
        rng = np.random.default_rng(SEED)
        for step in range(2**31):
            self.fill(wait=not self._images)
            inputs = plan.cycle[step % len(plan.cycle)]
            chunk = int(rng.integers(len(self._images)))
            scenes = rng.choice(self._chunk, plan.batch, replace=self._chunk < plan.batch)
            views, poses = [], []
            for scene in scenes:
                chosen = draw_views(rng, self._recipe.views, inputs, TARGETS)
                views.append(np.concatenate(chosen))
                poses.append(normalise_poses(self._poses[chunk][scene][views[-1]], checked=True))
            image = self._images[chunk][scenes[:, None], np.stack(views)]
            poses = np.stack(poses)
            intrinsics = np.broadcast_to(self._intrinsics, (*poses.shape[:2], 4))
            sides = slice(0, inputs), slice(inputs, None)
            yield Batch(
                *(
                    Views(
                        image[:, part],
                        jnp.asarray(poses[:, part]),
                        jnp.asarray(intrinsics[:, part]),
                    )
                    for part in sides
                )
            )


def _parameters(recipe: SceneRecipe, first: int, count: int) -> dict[str, np.ndarray]:
    scenes = [
        scene_parameters(recipe, seed=SEED, split="train", index=first + i) for i in range(count)
    ]
    return {name: np.stack([scene[name] for scene in scenes]) for name in scenes[0]}


def _prefetched(batches: Iterator[Batch]) -> Iterator[Batch]:
    """Batches made by a thread of their own, a few ahead; what it raises is raised here."""
    ready: queue.Queue = queue.Queue(maxsize=4)

    def make() -> None:
        try:
            for batch in batches:
                ready.put(batch)
        except BaseException as error:
            ready.put(error)

    threading.Thread(target=make, daemon=True).start()
    while True:
        batch = ready.get()
        if isinstance(batch, BaseException):
            raise batch
        yield batch


def _scored(context: Context, model: Model, plan: Plan) -> tuple[float, float, Image.Image]:
    """Mean PSNR on held-out rooms, that of the nearest input's picture, and a strip of some."""
    count = context.pick(48, 2)
    recipe = SceneRecipe(size=plan.size, views=HELD_OUT_VIEWS)
    scenes = ProceduralScenes(count, seed=SEED, split="heldout", recipe=recipe)
    scores, copies, strips = [], [], []
    chosen = [*HELD_OUT_INPUTS, *HELD_OUT_TARGETS]
    for index in range(count):
        scene = scenes[index]
        image = scene["image"][chosen].astype(np.float32)[None] / 255
        c2w = normalise_poses(scene["c2w"][chosen])[None]
        k = scene["fxfycxcy"][chosen][None]
        n = len(HELD_OUT_INPUTS)
        views = Views(image[:, :n], c2w[:, :n], k[:, :n])
        cameras = Cameras(c2w[:, n:], k[:, n:], plan.size, plan.size)
        got = np.asarray(model.decode(model.encode(views), cameras))
        scores.append(float(jnp.mean(psnr(got, image[:, n:]))))
        near = [int(np.argmin([abs(t - i) for i in HELD_OUT_INPUTS])) for t in HELD_OUT_TARGETS]
        copies.append(float(jnp.mean(psnr(image[:, near], image[:, n:]))))
        if index < 4:
            strips.append(np.concatenate([*image[0], *got[0]], axis=1))
    sheet = np.clip(np.concatenate(strips) * 255, 0, 255).round().astype(np.uint8)
    picture = Image.fromarray(sheet)
    larger = picture.resize((picture.width * 2, picture.height * 2), Image.Resampling.NEAREST)
    return float(np.mean(scores)), float(np.mean(copies)), larger
