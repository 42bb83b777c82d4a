"""Compares steps in which Lite3R trained the projections of a sparse VGGT against the dense one.

Arrays beside those of `model_reference`: cameras `step_extrinsics`, `step_intrinsics`, depth
`step_depth_target` where `step_mask` is, to `step_rows` [step, 8] (total, camera loss, depth loss
plain and by confidence, attention loss, its weight, norm of the gradient, learning rate),
`step_attention_each` (the first step's, call by call), `step_grad:{name}` (likewise) and
`step_P_after:{name}` (after all of `step_rows`). Weights and rates tell how long the run was.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from efficient_lvsm_jax.compress.attention_outputs import attended
from efficient_lvsm_jax.compress.distill_reference import encoded
from efficient_lvsm_jax.compress.lines import Arrays, Line, shares
from efficient_lvsm_jax.models.geometry_model import GeometryModel
from efficient_lvsm_jax.models.running import bound, run
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
    teacher: GeometryModel, student: GeometryModel, arrays: Arrays, images: jax.Array
) -> Iterator[Line]:
    """Lines of all steps, of images [1, S, Y, X, 3]."""
    rows = arrays["step_rows"]
    size = images.shape[2:4]
    camera_target = encoded(arrays["step_extrinsics"], arrays["step_intrinsics"], size)
    target = np.float32(arrays["step_depth_target"])
    valid = arrays["step_mask"]

    def objective(
        trained: dict, rest: dict, images: jax.Array, outputs: list, weight: jax.Array
    ) -> tuple:
        network = bound(student, _with(rest, trained))
        seen = attended(network, images)
        maps = network.map(network.depth_head, seen.taps, size)
        depth, confidence = jnp.exp(maps[..., 0]), 1 + jnp.exp(maps[..., 1])
        cameras, _ = camera_loss(seen.encodings, camera_target, valid)
        plain, weighted = depth_losses(depth, confidence, target, valid)
        pairs = matched(seen.in_order(), outputs)
        attention = attention_loss(pairs)
        each = jnp.stack([mean_squared_error(*pair) for pair in pairs])
        total = cameras + plain + weighted + weight * attention
        return total, (jnp.stack([total, cameras, plain, weighted, attention]), each)

    def teach(params: dict, images: jax.Array) -> list[jax.Array]:
        return attended(bound(teacher, params), images).in_order()

    outputs = run(teach, teacher.ready, images)
    gradient = jax.jit(jax.grad(objective, has_aux=True))
    config = _run(rows)
    optimizer = make_optimizer(config)
    update = jax.jit(optimizer.update)
    ready = student.ready
    trained = {ours: _at(ready, ours)["sparse"] for ours, _ in STACKS.values()}
    moments = optimizer.init(trained)
    for step, row in enumerate(rows):
        weight = attention_weight(jnp.float32(step), config.decay_end)
        slope, (losses, each) = gradient(trained, ready, images, outputs, weight)
        norm = np.sqrt(sum(np.sum(np.square(x, dtype=float)) for x in jax.tree.leaves(slope)))
        rate = learning_rate(config, step)
        found = dict(zip(COLUMNS, (*losses, weight, norm, rate), strict=True))
        which, limit = ("first step", LIMIT) if step == 0 else ("later steps", UPDATED)
        for column, recorded in zip(COLUMNS, row, strict=True):
            yield f"{which}: {column}", "step_rows", found[column], recorded, limit, 1.0
        if step == 0:
            if "step_attention_each" in arrays:
                name = "step_attention_each"
                yield "first step: attention, each", name, each, arrays[name], LIMIT, 1.0
            yield from _projections("first step: gradients", "step_grad:", slope, arrays, LIMIT)
        clip = np.float32(min(1.0, config.clip_norm / (norm + 1e-6)))
        updates, moments = update(jax.tree.map(lambda x, c=clip: c * x, slope), moments, trained)
        trained = jax.tree.map(lambda p, u, r=rate: p + r * u, trained, updates)
    yield from _projections("later steps: projections", "step_P_after:", trained, arrays, UPDATED)


def _run(rows: np.ndarray) -> OptimizerConfig:
    """How long a run was, of the weights and rates of its first steps."""
    warmup = total = 1
    if len(rows) > 1:
        weight, rate = (float(rows[1, COLUMNS.index(name)]) for name in ("weight", "rate"))
        warmup = round(OPTIMIZER.learning_rate / rate)
        largest, least = float(rows[0, COLUMNS.index("weight")]), LEAST
        cosine = (weight - least) / (0.5 * (largest - least)) - 1
        total = round(math.pi / math.acos(cosine))
    return dataclasses.replace(OPTIMIZER, warmup_steps=warmup).over(total)


def _projections(
    quantity: str, start: str, tree: dict, arrays: Arrays, limit: float
) -> Iterator[Line]:
    for theirs, (ours, _) in STACKS.items():
        for layer, kernel in enumerate(np.asarray(tree[ours]["kernel"])):
            if (name := f"{start}{theirs}.{layer}.attn") in arrays:
                yield shares(quantity, name, kernel.T, arrays, limit)


def _at(params: dict, path: str) -> dict:
    for folder in path.split("/"):
        params = params[folder]
    return params


def _with(params: dict, trained: dict) -> dict:
    """Parameters with other projections."""
    params = jax.tree.map(lambda x: x, params)
    for path, sparse in trained.items():
        _at(params, path)["sparse"] = sparse
    return params
