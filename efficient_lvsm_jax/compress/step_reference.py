"""Compares steps in which Lite3R trained the projections of a sparse VGGT against the dense one.

Arrays beside those of `model_reference`: cameras `step_extrinsics`, `step_intrinsics`, depth
`step_depth_target` where `step_mask` is, to `step_rows` [step, 8] (total, camera loss, depth loss
plain and by confidence, attention loss, its weight, norm of the gradient, learning rate),
`step_attention_each` (the first step's, call by call), `step_grad:{name}` (likewise) and
`step_P_after:{name}` (after all of `step_rows`). Weights and rates tell how long the run was.
`step_fp8_*` are of a student with linear maps in eight bits, with the same targets.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from efficient_lvsm_jax.compress.distill_reference import encoded
from efficient_lvsm_jax.compress.fit import replaced
from efficient_lvsm_jax.compress.lines import Arrays, Line, shares
from efficient_lvsm_jax.models.geometry_model import GeometryModel
from efficient_lvsm_jax.models.running import bound, run
from efficient_lvsm_jax.models.scene_geometry import Geometry
from efficient_lvsm_jax.models.vggt import VGGT
from efficient_lvsm_jax.nn.watching import watched
from efficient_lvsm_jax.training.distillation import (
    OPTIMIZER,
    attention_loss,
    attention_weight,
    camera_loss,
    depth_losses,
    matched,
)
from efficient_lvsm_jax.training.losses import mean_squared_error
from efficient_lvsm_jax.training.optimizer import OptimizerConfig, learning_rate, make_optimizer
from efficient_lvsm_jax.weights.vggt import STACKS

# Gradients and projections in shares of the largest of an array. Updates divide by small roots, so
# what comes after one is less exact.
LIMIT, UPDATED = 1e-4, 1e-3
LEAST = 0.01  # weight of attention at the end of a run
COLUMNS = ("total", "cameras", "depth", "confidence", "attention", "weight", "norm", "rate")


def steps(
    teacher: GeometryModel,
    student: GeometryModel,
    build: Callable[[GeometryModel, dict], VGGT],
    arrays: Arrays,
    images: jax.Array,
    start: str,
) -> Iterator[Line]:
    """Lines of all steps.

    Args:
      teacher, student: the dense model and the one that is trained.
      build: makes the student's network of its parameters.
      arrays: of the file.
      images: [1, S, Y, X, 3].
      start: of the names, "step_", or that of steps in eight bits, whose targets are the same.
    """
    rows = arrays[f"{start}rows"]
    size = images.shape[2:4]
    camera_target = encoded(arrays["step_extrinsics"], arrays["step_intrinsics"], size)
    target = np.float32(arrays["step_depth_target"])
    valid = arrays["step_mask"]

    bits = "fp8 " if start == "step_fp8_" else ""
    first, later = f"{bits}first step", f"{bits}later steps"

    def objective(
        trained: dict, rest: dict, images: jax.Array, outputs: list, weight: jax.Array
    ) -> tuple:
        seen, given = _observed(build(student, replaced(rest, trained)), images)
        cameras, _ = camera_loss(seen.encodings, camera_target, valid)
        plain, weighted = depth_losses(seen.depth, seen.depth_confidence, target, valid)
        pairs = matched(given, outputs)
        attention = attention_loss(pairs)
        each = jnp.stack([mean_squared_error(*pair) for pair in pairs])
        total = cameras + plain + weighted + weight * attention
        return total, (jnp.stack([total, cameras, plain, weighted, attention]), each)

    def teach(params: dict, images: jax.Array) -> list[jax.Array]:
        return _observed(bound(teacher, params), images)[1]

    outputs = run(teach, teacher.ready, images)
    gradient = jax.jit(jax.grad(objective, has_aux=True))
    config = _run(rows)
    optimizer = make_optimizer(config)
    update = jax.jit(optimizer.update)
    ready = student.ready
    largest = float(rows[0, COLUMNS.index("weight")])
    places = (ours for ours, _ in STACKS.values())
    trained = {place: {"kernel": _at(ready, place)["sparse"]["kernel"]} for place in places}
    moments = optimizer.init(trained)
    for step, row in enumerate(rows):
        weight = attention_weight(jnp.float32(step), config.decay_end, largest, LEAST)
        slope, (losses, each) = gradient(trained, ready, images, outputs, weight)
        norm = np.sqrt(sum(np.sum(np.square(x, dtype=float)) for x in jax.tree.leaves(slope)))
        rate = learning_rate(config, step)
        found = dict(zip(COLUMNS, (*losses, weight, norm, rate), strict=True))
        which, limit = (first, LIMIT) if step == 0 else (later, UPDATED)
        for column, recorded in zip(COLUMNS, row, strict=True):
            yield f"{which}: {column}", f"{start}rows", found[column], recorded, limit, 1.0
        if step == 0:
            if (name := f"{start}attention_each") in arrays:
                yield f"{which}: attention, each", name, each, arrays[name], LIMIT, 1.0
            yield from _projections(f"{which}: gradients", f"{start}grad:", slope, arrays, LIMIT)
        clip = np.float32(min(1.0, config.clip_norm / (norm + 1e-6)))
        updates, moments = update(jax.tree.map(lambda x, c=clip: c * x, slope), moments, trained)
        trained = jax.tree.map(lambda p, u, r=rate: p + r * u, trained, updates)
    name = f"{start}P_after:"
    yield from _projections(f"{later}: projections", name, trained, arrays, UPDATED)


def _run(rows: np.ndarray) -> OptimizerConfig:
    """How long a run was, of the weights and rates of its first steps."""
    warmup, total = 1, 2  # of the first step neither says anything
    if len(rows) > 1:
        largest, weight = rows[:2, COLUMNS.index("weight")].astype(float)
        warmup = round(OPTIMIZER.learning_rate / float(rows[1, COLUMNS.index("rate")]))
        total = round(math.pi / math.acos((weight - LEAST) / (0.5 * (largest - LEAST)) - 1))
    return dataclasses.replace(OPTIMIZER, warmup_steps=warmup).over(total)


def _projections(
    quantity: str, start: str, tree: dict, arrays: Arrays, limit: float
) -> Iterator[Line]:
    for theirs, (ours, _) in STACKS.items():
        for layer, kernel in enumerate(np.asarray(tree[ours]["kernel"])):
            name = f"{start}{theirs}.{layer}.attn"
            yield from shares(quantity, name, kernel.T, arrays, limit)


def _at(params: dict, path: str) -> dict:
    for folder in path.split("/"):
        params = params[folder]
    return params


def _observed(network: VGGT, images: jax.Array) -> tuple[Geometry, list[jax.Array]]:
    """What is seen in a clip, and what its attentions give, call by call."""
    with watched() as shown:
        _, geometry = network.observe(None, images)
    encoder, frame, among, camera = shown["attention"]
    rounds = [output for both in zip(frame, among, strict=True) for output in both]
    return geometry, [*encoder, *rounds, *(x for iteration in camera for x in iteration)]
