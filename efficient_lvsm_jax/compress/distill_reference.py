"""Compares what Lite3R distils by with what was recorded from the published program.

- cameras: `extrinsics`, `intrinsics`, `image_hw` to `pose_encoding`, which `camera_{case}_pred`
  are compared with to `_loss`, `_parts` and its gradient `_grad`, over the scenes of
  `camera_masks`, none in the case `none`;
- depth: `depth_{case}_pred`, `_confidence`, `_target`, `_mask` to `_parts` and the gradients
  `_grad_*` of their sum; with the cameras of `camera_plain_pred` also `objective_*`;
- attention outputs: `attention_{case}_student{n}` and `_teacher{n}` to `_loss` and `_grad{n}`;
- `schedule_*` of the weight of these and the learning rate, and `optimiser_*`, updates of P by the
  gradient of mean((xPᵀ − y)²), to the end of a run; P itself tells how many of them warm up.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from efficient_lvsm_jax.compress.lines import Arrays, Line, cases, checked, shares
from efficient_lvsm_jax.geometry.cameras import Cameras
from efficient_lvsm_jax.geometry.pose_encoding import encode
from efficient_lvsm_jax.training.distillation import (
    CAMERA_WEIGHTS,
    OPTIMIZER,
    attention_loss,
    attention_weight,
    camera_loss,
    depth_losses,
    matched,
)
from efficient_lvsm_jax.training.optimizer import OptimizerConfig, learning_rate, make_optimizer

# In shares of the largest value of an array; updates divide by roots of tiny squares.
LIMIT, UPDATED = 1e-5, 1e-4
GAMMAS = {"schedule_gamma": (0.1, 0.01), "schedule_gamma_default": (0.5, 0.05)}


def is_of(names: set[str]) -> bool:
    """Whether arrays of these names are a recording of this."""
    told = r"(camera|depth)_.+_pred|attention_.+_student\d+|schedule_steps|optimiser_P0"
    return any(re.fullmatch(told, name) for name in names)


@checked
def compare(arrays: Arrays) -> Iterator[Line]:
    """Quantity, name, value, recorded value and limit of all that is recorded."""
    if "extrinsics" in arrays:
        yield from _encoding(arrays)
    for case in cases(arrays, r"camera_(.+)_pred"):
        yield from _cameras(arrays, f"camera_{case}")
    for case in cases(arrays, r"depth_(.+)(?<!_grad)_pred"):
        yield from _depth(arrays, f"depth_{case}")
    if "objective" in arrays:
        yield from _objective(arrays)
    for case in cases(arrays, r"attention_(.+)_student\d+"):
        yield from _attentions(arrays, f"attention_{case}")
    if "schedule_steps" in arrays:
        yield from _schedules(arrays)
    if "optimiser_P0" in arrays:
        yield from _optimiser(arrays)


def _encoding(arrays: Arrays) -> Iterator[Line]:
    size = tuple(int(side) for side in arrays["image_hw"])
    found = encoded(arrays["extrinsics"], arrays["intrinsics"], size)
    yield from shares("poses", "pose_encoding", found, arrays, LIMIT)


def encoded(w2c: np.ndarray, intrinsics: np.ndarray, size: tuple[int, int]) -> jax.Array:
    """The encodings [..., 9] of published world to camera [..., 3, 4] and [..., 3, 3]."""
    whole = np.broadcast_to(np.eye(4), (*w2c.shape[:-2], 4, 4)).copy()
    whole[..., :3, :] = w2c
    places = ((0, 0), (1, 1), (0, 2), (1, 2))
    fxfycxcy = np.stack([intrinsics[..., row, column] for row, column in places], axis=-1)
    return encode(Cameras(np.linalg.inv(whole), fxfycxcy, *size))


_camera_gradient = jax.jit(jax.value_and_grad(camera_loss, has_aux=True))


def _cameras(arrays: Arrays, case: str) -> Iterator[Line]:
    target, valid = arrays["pose_encoding"], arrays["camera_masks"]
    if case == "camera_none":
        valid = np.zeros_like(valid)
    (loss, parts), gradient = _camera_gradient(arrays[f"{case}_pred"], target, valid)
    parts = jnp.stack([parts[name] for name in CAMERA_WEIGHTS])
    for name, got in (("loss", loss), ("parts", parts)):
        yield from shares("camera losses", f"{case}_{name}", got, arrays, LIMIT)
    yield from shares("camera gradients", f"{case}_grad", gradient, arrays, LIMIT)


@jax.jit
@functools.partial(jax.grad, argnums=(0, 1), has_aux=True)
def _depth_gradients(*inputs: jax.Array) -> tuple[jax.Array, jax.Array]:
    parts = depth_losses(*inputs)
    return sum(parts), jnp.stack(parts)


def _depth(arrays: Arrays, case: str) -> Iterator[Line]:
    inputs = [arrays[f"{case}_{name}"] for name in ("pred", "confidence", "target", "mask")]
    gradients, parts = _depth_gradients(*inputs)
    yield from shares("depth losses", f"{case}_parts", parts, arrays, LIMIT)
    for name, got in zip(("pred", "confidence"), gradients, strict=True):
        yield from shares("depth gradients", f"{case}_grad_{name}", got, arrays, LIMIT)


def _objective(arrays: Arrays) -> Iterator[Line]:
    valid = arrays["objective_mask"]
    cameras, _ = camera_loss(arrays["camera_plain_pred"], arrays["pose_encoding"], valid)
    inputs = [arrays[f"objective_{name}"] for name in ("pred", "confidence", "target")]
    total = cameras + sum(depth_losses(*inputs, valid))
    yield from shares("objective", "objective", total, arrays, LIMIT)


def _attentions(arrays: Arrays, case: str) -> Iterator[Line]:
    def outputs(who: str) -> list[np.ndarray]:
        numbers = sorted(map(int, cases(arrays, rf"{case}_{who}(\d+)")))
        return [arrays[f"{case}_{who}{number}"] for number in numbers]

    def loss(student: Sequence[jax.Array], teacher: Sequence[jax.Array]) -> jax.Array:
        return attention_loss(matched(student, teacher))

    loss, gradients = jax.jit(jax.value_and_grad(loss))(outputs("student"), outputs("teacher"))
    yield from shares("attention losses", f"{case}_loss", loss, arrays, LIMIT)
    for number, got in enumerate(gradients):
        yield from shares("attention gradients", f"{case}_grad{number}", got, arrays, LIMIT)


def _schedules(arrays: Arrays) -> Iterator[Line]:
    steps = jnp.asarray(arrays["schedule_steps"])
    total, warmup = (int(arrays[f"schedule_{name}_steps"]) for name in ("total", "warmup"))
    for name, ends in GAMMAS.items():
        yield from shares("schedules", name, attention_weight(steps, total, *ends), arrays, LIMIT)
    rates = learning_rate(_planned(total, warmup), steps)
    yield from shares("schedules", "schedule_learning_rate", rates, arrays, LIMIT)


def _planned(steps: int, warmup: int) -> OptimizerConfig:
    return dataclasses.replace(OPTIMIZER, warmup_steps=warmup).over(steps)


def _optimiser(arrays: Arrays) -> Iterator[Line]:
    """As `training.step` updates."""
    x, y = arrays["optimiser_x"], arrays["optimiser_y"]
    start, after = arrays["optimiser_P0"], arrays["optimiser_P"]
    # The first update has rate 0; the second, of the same gradient, moves P by its rate.
    rate = np.abs(after[1] - start).max() if len(after) > 1 else 0.0
    warmup = round(OPTIMIZER.learning_rate / float(rate)) if rate else 1
    config = _planned(len(after), warmup)
    optimizer = make_optimizer(config)

    @jax.jit
    def update(p: dict, moments: tuple, step: jax.Array) -> tuple:
        loss, gradient = jax.value_and_grad(lambda p: jnp.square(x @ p["kernel"].T - y).mean())(p)
        norm = jnp.linalg.norm(gradient["kernel"])
        clip = jnp.minimum(1.0, config.clip_norm / (norm + 1e-6))
        updates, moments = optimizer.update(jax.tree.map(lambda g: g * clip, gradient), moments, p)
        rate = learning_rate(config, step)
        return jax.tree.map(lambda p, u: p + rate * u, p, updates), moments, loss, norm

    p = {"kernel": jnp.asarray(start)}
    moments, found = optimizer.init(p), []
    for step in range(len(after)):
        p, moments, loss, norm = update(p, moments, step)
        found.append((loss, norm, p["kernel"]))
    for name, got in zip(("loss", "grad_norm", "P"), zip(*found, strict=True), strict=True):
        yield from shares("updates of P", f"optimiser_{name}", jnp.stack(got), arrays, UPDATED)
