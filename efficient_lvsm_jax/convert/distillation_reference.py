"""Compares losses and a step of distilling StreamVGGT with those that were recorded.

- losses: `student_*`, `teacher_*` and `valid_mask`, of one frame or several, to `loss_*`, `total`
  and the gradients `grad_*` of the total;
- a step: the student is the masked network, its teacher the same without masks; `images_u8`,
  `query_points`, `valid_mask` to `weighted_L*`, `total` and norms `grad_norm*` and some tensors
  `grad:*` of the gradient, by published names.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from efficient_lvsm_jax.models.geometry_model import GeometryModel
from efficient_lvsm_jax.models.running import bound, floats, run, with_settings
from efficient_lvsm_jax.models.scene_geometry import Geometry, Tracks
from efficient_lvsm_jax.training.geometry_losses import WEIGHTS, distillation_loss, maps_loss
from efficient_lvsm_jax.weights.published import bring_out

# In shares of values and 1: tracks are apart by pixels, of which there may be hundreds.
LOSSES, GRADIENTS = 1e-5, 1e-4
# Of a step: rounding grows through the tracker. Gradients in shares of each array's largest value.
STEP_LOSSES, STEP_GRADIENTS = 1e-3, 5e-3
FROZEN = ("encoder", "camera_token", "register_tokens", "mask_token")
# Recorded names of losses, and of what they are taken of.
LOSS_NAMES = {"camera": "cameras", "depth": "depth", "pmap": "points", "track": "tracks"}
ARRAYS = {
    "pose": lambda x: x.encodings[-1],
    "depth": lambda x: x.depth,
    "depth_conf": lambda x: x.depth_confidence,
    "points": lambda x: x.points,
    "points_conf": lambda x: x.points_confidence,
    "track": lambda x: x.tracks.points,
    "vis": lambda x: x.tracks.visible,
    "track_conf": lambda x: x.tracks.confidence,
}


def losses(model: GeometryModel, reference: Any) -> Iterator[tuple]:
    """Quantity, name, value, recorded value and limit, maybe what `difference` takes besides."""
    data = reference.arrays
    student, teacher = (_geometry(data, who) for who in ("student", "teacher"))
    valid = data["valid_mask"]

    def total(student: Geometry) -> tuple:
        loss, parts = distillation_loss(student, teacher, valid)
        depth = student.depth[..., None], student.depth_confidence, teacher.depth[..., None]
        points = student.points, student.points_confidence, teacher.points
        return loss, (parts, maps_loss(*depth, valid), maps_loss(*points, valid))

    (loss, (parts, depth, points)), gradient = run(jax.value_and_grad(total, has_aux=True), student)
    for name, got in (
        ("loss_camera", parts["cameras"]),
        ("loss_track", parts["tracks"]),
        ("loss_depth_per_frame", depth),
        ("loss_points_per_frame", points),
    ):
        yield "losses", name, got, data.get(name), LOSSES, 1.0
    yield "losses, total", "total", loss, data.get("total"), GRADIENTS
    for name, of in ARRAYS.items():
        expected = data.get(f"grad_{name}")
        yield "gradients of losses", f"grad_{name}", of(gradient), expected, GRADIENTS


def _geometry(data: Mapping[str, np.ndarray], who: str) -> Geometry:
    given = {name: jnp.asarray(data[f"{who}_{name}"]) for name in ARRAYS}
    tracks = Tracks(given["track"], given["vis"], given["track_conf"])
    maps = (given[name] for name in ("depth", "depth_conf", "points", "points_conf"))
    return Geometry(None, given["pose"][None], *maps, tracks)


def step(model: GeometryModel, reference: Any) -> Iterator[tuple]:
    """As `losses`."""
    data = reference.arrays
    images, valid = floats(data["images_u8"]), jnp.asarray(data["valid_mask"])
    queries = jnp.asarray(data["query_points"], jnp.float32)
    student, teacher = (with_settings(model, causal=causal) for causal in (True, False))
    _, target = teacher.observe(None, images, queries)

    def total(trained: dict, frozen: dict, target: Geometry) -> tuple:
        _, geometry = bound(student, trained | frozen).observe(None, images, queries)
        return distillation_loss(geometry, target, valid)

    frozen = {name: model.params[name] for name in FROZEN}
    trained = {name: part for name, part in model.params.items() if name not in FROZEN}
    (loss, parts), gradient = run(jax.value_and_grad(total, has_aux=True), trained, frozen, target)
    for theirs, ours in LOSS_NAMES.items():
        name = f"weighted_L{theirs}"
        yield "losses of a step", name, WEIGHTS[ours] * parts[ours], data.get(name), STEP_LOSSES
    yield "losses of a step", "total", loss, data.get("total"), STEP_LOSSES

    zeros = jax.tree.map(np.zeros_like, frozen)
    tensors = bring_out(gradient | zeros, model.family, model.config)
    for name in sorted(data):
        if name.startswith("grad:"):
            got, expected = tensors[name.removeprefix("grad:")], data[name]
        elif name.startswith("grad_norm"):
            group = name.removeprefix("grad_norm").removeprefix(":")
            squares = [np.sum(x**2, dtype=float) for k, x in tensors.items() if k.startswith(group)]
            got, expected = np.sqrt(sum(squares)), data[name]
        else:
            continue
        largest = np.abs(expected).max()
        yield "gradients of a step", name, got / largest, expected / largest, STEP_GRADIENTS
