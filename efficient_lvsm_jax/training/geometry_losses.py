"""How far a model's geometry is from another's, or from the truth (StreamVGGT, §3 there).

A student's depth and points are compared with its teacher's frame by frame, after each has been
brought to a size of about 1 and the student's to the teacher's scale and place, so they say nothing
of where frames are relative to each other; cameras do. With the truth they are compared as they
are, as VGGT was taught, which begins from nothing. All are computed in float32.

Axes: B scene, R frame, Y X pixel, C channel, Q point.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from efficient_lvsm_jax.models.scene_geometry import Geometry, Tracks

WEIGHTS = {"cameras": 20.0, "depth": 20.0, "points": 10.0, "tracks": 0.5}
HUBER = 0.1  # errors of cameras above it count linearly
CONFIDENCE = 0.1  # of the term that rewards it
STRIDES = (1, 2, 4)  # of the grids on which normals are compared
SMALL = 1e-6


def distillation_loss(
    student: Geometry, teacher: Geometry, valid: jax.Array
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The published sum, and its parts before they are weighted.

    Args:
      student, teacher: of the same frames, [B, R], with tracks.
      valid: pixels that count, [B, R, Y, X] bool; of a frame without any all do.
    """
    parts = losses_of(student, teacher, valid, tuple(WEIGHTS))
    return sum(WEIGHTS[name] * part for name, part in parts.items()), parts


def losses_of(
    seen: Geometry,
    truth: Geometry,
    valid: jax.Array,
    names: Sequence[str],
    *,
    fitted: bool = True,
) -> dict[str, jax.Array]:
    """The losses of these names, of WEIGHTS, before they are weighted; `fitted` as `maps_loss`."""

    def of_maps(maps: jax.Array, confidence: jax.Array, target: jax.Array) -> jax.Array:
        return maps_loss(maps, confidence, target, valid, fitted=fitted).mean()

    def of_depth() -> jax.Array:
        return of_maps(seen.depth[..., None], seen.depth_confidence, truth.depth[..., None])

    losses = {
        "cameras": lambda: camera_loss(seen.encodings[-1], truth.encodings[-1]),
        "depth": of_depth,
        "points": lambda: of_maps(seen.points, seen.points_confidence, truth.points),
        "tracks": lambda: track_loss(seen.tracks, truth.tracks),
    }
    return {name: losses[name]() for name in names}


def camera_loss(encoding: jax.Array, target: jax.Array) -> jax.Array:
    """Of encodings [..., 9]: translation, rotation, and by half the fields of view."""
    error = jnp.abs(encoding - target)
    error = jnp.where(error <= HUBER, error**2 / (2 * HUBER), error - HUBER / 2)
    translation, rotation, fov = jnp.split(error, [3, 7], axis=-1)
    return translation.mean() + rotation.mean() + 0.5 * fov.mean()


def track_loss(tracks: Tracks, target: Tracks) -> jax.Array:
    """Where points are, and whether they are seen, both weighted by the student's confidence.

    Probabilities of being seen are taken for logits, as published.
    """
    distance = jnp.sqrt(_at_least(jnp.square(tracks.points - target.points).sum(-1), 0))
    logit = tracks.visible
    unlike = jnp.maximum(logit, 0) - logit * target.visible + jnp.log1p(jnp.exp(-jnp.abs(logit)))
    return (tracks.confidence * distance).mean() + (tracks.confidence * unlike).mean()


def maps_loss(
    maps: jax.Array,
    confidence: jax.Array,
    target: jax.Array,
    valid: jax.Array,
    *,
    fitted: bool = True,
) -> jax.Array:
    """Of depth or points, frame by frame: [R].

    Args:
      maps: the student's, [B, R, Y, X, C], C = 1 of depth and 3 of points.
      confidence: the student's, [B, R, Y, X], at least 1.
      target: the teacher's, as maps.
      valid: [B, R, Y, X] bool.
      fitted: both are brought to one size, and the student's to the target's scale and place.
    """
    by_frame = (jnp.moveaxis(x, 1, 0) for x in (maps, confidence, target, valid))
    return jax.vmap(functools.partial(_frame_loss, fitted))(*by_frame)


def _frame_loss(
    fitted: bool, maps: jax.Array, confidence: jax.Array, target: jax.Array, valid: jax.Array
) -> jax.Array:
    """`maps_loss` of one frame, [B, Y, X, …]."""
    counts = jnp.where(valid.any(), valid, True).astype(jnp.float32)
    if fitted:
        maps, target = (x / mean_norm(x, counts)[:, None, None, None] for x in (maps, target))
        scale, shift = alignment(maps, target)
        maps = scale * maps + shift
    total = counts.sum()
    error = confidence[..., None] * jnp.abs(maps - target) * counts[..., None]
    error = error.sum() / (total * maps.shape[-1])
    surface = slope_loss if maps.shape[-1] == 1 else normal_loss
    reward = (jnp.log(confidence) * counts).sum() / total
    return error + surface(maps, target, counts) - CONFIDENCE * reward


def mean_norm(maps: jax.Array, valid: jax.Array) -> jax.Array:
    """The mean length of maps [B, Y, X, C] over valid pixels, within 1e-3 and 1e3: [B]."""
    length = jnp.sqrt(_at_least(jnp.square(maps).sum(-1), 0))
    mean = (length * valid).sum((1, 2)) / (valid.sum((1, 2)) + 1e-3)
    return jnp.clip(mean, 1e-3, 1e3)


def alignment(maps: jax.Array, target: jax.Array) -> tuple[jax.Array, jax.Array]:
    """One scale and a shift for each channel that bring maps [B, Y, X, C] nearest to the target."""
    mean, target_mean = maps.mean((0, 1, 2)), target.mean((0, 1, 2))
    centred = maps - mean
    spread = jnp.square(centred).sum()
    scale = (centred * (target - target_mean)).sum() / jnp.maximum(spread, SMALL)
    return scale, target_mean - scale * mean


def slope_loss(maps: jax.Array, target: jax.Array, counts: jax.Array) -> jax.Array:
    """How unlike steps from pixel to pixel are, along rows and columns; [B, Y, X, 1]."""
    error = (maps - target)[..., 0]
    along_x = jnp.abs(error[:, :-1, 1:] - error[:, :-1, :-1])
    along_y = jnp.abs(error[:, 1:, :-1] - error[:, :-1, :-1])
    along_x = along_x * counts[:, :-1, 1:] * counts[:, :-1, :-1]
    along_y = along_y * counts[:, 1:, :-1] * counts[:, :-1, :-1]
    return (along_x.mean() + along_y.mean()) / 2


def normal_loss(maps: jax.Array, target: jax.Array, counts: jax.Array) -> jax.Array:
    """One minus the mean cosine of surface normals, of points [B, Y, X, 3]; all pixels count."""
    del counts
    losses = []
    for stride in STRIDES:
        ours, theirs = (_normals(x[:, ::stride, ::stride]) for x in (maps, target))
        losses.append(1 - (ours * theirs).sum(-1).mean())
    return sum(losses) / len(STRIDES)


def _normals(points: jax.Array) -> jax.Array:
    """Unit normals [4, B, Y, X, 3] by every two neighbours; beyond the border points are zeros.

    In a corner two neighbours are the same zeros, so the normal is none: rounding would make a
    random one of it.
    """
    padded = jnp.pad(points, ((0, 0), (1, 1), (1, 1), (0, 0)))
    up, down = padded[:, :-2, 1:-1] - points, padded[:, 2:, 1:-1] - points
    left, right = padded[:, 1:-1, :-2] - points, padded[:, 1:-1, 2:] - points
    pairs = ((up, left), (left, down), (down, right), (right, up))
    corners = ((0, 0), (-1, 0), (-1, -1), (0, -1))
    normals = [
        jnp.cross(one, other).at[:, y, x].set(0)
        for (one, other), (y, x) in zip(pairs, corners, strict=True)
    ]
    normals = jnp.stack(normals)
    return normals / jnp.sqrt(_at_least(jnp.square(normals).sum(-1, keepdims=True), SMALL**2))


def _at_least(square: jax.Array, bound: float) -> jax.Array:
    """A square to draw the root of: bounded inside, so that zeros have a gradient and not NaN."""
    return jnp.maximum(square, max(bound, jnp.finfo(jnp.float32).tiny))
