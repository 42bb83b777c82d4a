"""What Lite3R trains its projections by (§3 there): the scene's geometry, and a dense teacher.

Of the teacher only the outputs of attentions are matched, after their projection, not its depth or
cameras. What the two parts weigh to each other changes over a run, see `attention_weight`. All
losses are computed in float32.

Axes: I refinement of the cameras, B scene, V view, Y X pixel.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import jax
import jax.numpy as jnp

from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.training.losses import mean_squared_error
from efficient_lvsm_jax.training.optimizer import OptimizerConfig

# Of the projections, over as many steps as `over` is told.
OPTIMIZER = OptimizerConfig(
    learning_rate=1e-3,
    warmup_steps=30,
    schedule="linear",
    decay_end=1.0,
    final_fraction=0.5,
    beta2=0.999,
    weight_decay=0.0,
    clip_norm=1.0,
    skip_factor=1e9,  # no update is left out
)
CAMERA_WEIGHTS = {"translation": 1.0, "rotation": 1.0, "field_of_view": 0.5}
REFINEMENT_DECAY = 0.6  # of the weight of a refinement, from the last backwards
CONFIDENCE = 0.2  # of the term that rewards it
LEAST_CONFIDENCE = 1e-3
BOUND = 100.0  # of errors and targets; beyond it an error has no gradient
LEAST_VALID = 100  # pixels of a scene's first view, or of all depth
TRIMMED_ABOVE = 1000  # errors; of so many the largest are left out
KEPT = (19, 20)  # the share of them that stays: 0.95
SCALES = (0.1, 10.0)  # that a prediction is multiplied by to fit
SMALL = 1e-8


def camera_loss(
    encodings: jax.Array, target: jax.Array, valid: jax.Array
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Of cameras after every refinement, and its parts before they are weighted.

    Translations are compared after one scale for all scenes of a refinement, which has no gradient.

    Args:
      encodings: [I, B, V, 9], as of `geometry.pose_encoding`.
      target: [B, V, 9], quaternions with w ≥ 0; no sign of theirs is matched.
      valid: pixels with depth, [B, V, Y, X] bool. A scene counts if its first view has more than
        100; if none does, all is zero.
    """
    counted = (valid[:, 0].sum(axis=(-2, -1)) > LEAST_VALID)[:, None, None]
    scenes = counted.sum()

    def mean(error: jax.Array) -> jax.Array:
        """Of errors [B, V, C] over the scenes that count."""
        total = jnp.where(counted, jnp.abs(error), 0.0).sum()
        return total / jnp.maximum(scenes * error.shape[1] * error.shape[2], 1)

    def of_refinement(encoding: jax.Array) -> dict[str, jax.Array]:
        translation = jnp.where(counted, encoding[..., :3], 0.0)
        fit = _fit(translation, target[..., :3])
        scale = jnp.sign(fit) * jnp.clip(jnp.abs(fit), *SCALES)
        error = _bounded(jnp.concatenate([scale * translation, encoding[..., 3:]], -1) - target)
        parts = jnp.split(error, [3, 7], axis=-1)
        return dict(zip(CAMERA_WEIGHTS, map(mean, parts), strict=True))

    count = encodings.shape[0]
    weights = REFINEMENT_DECAY ** jnp.arange(count - 1.0, -1, -1) / count
    parts = jax.tree.map(lambda part: (weights * part).sum(), jax.vmap(of_refinement)(encodings))
    return sum(CAMERA_WEIGHTS[name] * part for name, part in parts.items()), parts


def depth_losses(
    depth: jax.Array, confidence: jax.Array, target: jax.Array, valid: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The plain error of depth, and the one weighted by confidence; they are added.

    Above 100 valid pixels depth is first multiplied by the scale that fits it best, which has no
    gradient and is at least 0.1, however it points. Above 1000 errors the largest twentieth is left
    out, of each loss by itself, if that leaves more than 1000.

    Args:
      depth, confidence: the student's, [..., Y, X].
      target: as depth; what is not finite counts as 0.
      valid: of the same shape, bool; below 100 valid pixels both are zero.
    """
    target = jnp.clip(jnp.where(jnp.isfinite(target), target, 0.0), -BOUND, BOUND)
    count = valid.sum()
    fit = jnp.clip(_fit(jnp.where(valid, depth, 0.0), target), *SCALES)
    error = jnp.abs(target - jnp.where(count > LEAST_VALID, fit, 1.0) * depth)
    confidence = jnp.maximum(confidence, LEAST_CONFIDENCE)
    weighted = error * confidence - CONFIDENCE * jnp.log(confidence)
    enough = count >= LEAST_VALID
    plain, weighted = (
        jnp.where(enough, _trimmed_mean(_bounded(x), valid), 0.0) for x in (error, weighted)
    )
    return plain, weighted


def matched(
    student: Iterable[jax.Array], teacher: Iterable[jax.Array]
) -> list[tuple[jax.Array, jax.Array]]:
    """Attention outputs side by side in the order of calls; pairs of unlike shape are left out.

    So are calls that only one of the two made, as published: ask how many pairs are left.
    """
    pairs = zip(student, teacher, strict=False)
    return [(ours, theirs) for ours, theirs in pairs if ours.shape == theirs.shape]


def attention_loss(pairs: Sequence[tuple[jax.Array, jax.Array]]) -> jax.Array:
    """The mean over pairs (student, teacher) of their mean squared difference.

    The teacher has no gradient.

    Raises:
      InputError: no pair, or shapes that differ.
    """
    if not pairs:
        raise InputError("attention outputs: none of the student is like one of the teacher")
    errors = [mean_squared_error(ours, jax.lax.stop_gradient(theirs)) for ours, theirs in pairs]
    return sum(errors) / len(errors)


def attention_weight(
    step: jax.Array, steps: int, largest: float = 0.1, least: float = 0.01
) -> jax.Array:
    """What `attention_loss` weighs in step `step` of so many, from 0: half a cosine."""
    done = jnp.clip(step / steps, 0.0, 1.0)
    return least + 0.5 * (largest - least) * (1 + jnp.cos(jnp.pi * done))


def _fit(prediction: jax.Array, target: jax.Array) -> jax.Array:
    """The scale that brings a prediction nearest to its target, without gradient."""
    # Products of vectors: their sums are ten times as exact as a reduction's on a CPU.
    product, square = (jnp.vdot(prediction, x, precision="highest") for x in (target, prediction))
    return jax.lax.stop_gradient(product / jnp.maximum(square, SMALL))


def _bounded(error: jax.Array) -> jax.Array:
    """Within ±100, and 0 where it is not finite: there it has no gradient."""
    return jnp.clip(jnp.where(jnp.isfinite(error), error, 0.0), -BOUND, BOUND)


def _trimmed_mean(error: jax.Array, valid: jax.Array) -> jax.Array:
    """The mean of valid errors, of many without the largest twentieth."""
    count = valid.sum()
    whole, rest = jnp.divmod(KEPT[0] * (count - 1), KEPT[1])
    half = KEPT[1] // 2
    place = whole + ((rest > half) | ((rest == half) & (whole % 2 == 1)))  # rounded, half to even
    ranked = jnp.sort(jax.lax.stop_gradient(jnp.where(valid, error, jnp.inf)).ravel())
    kept = valid & (error < jnp.minimum(ranked[place], BOUND))
    kept = jnp.where((count > TRIMMED_ABOVE) & (kept.sum() > TRIMMED_ABOVE), kept, valid)
    return jnp.where(kept, error, 0.0).sum() / jnp.maximum(kept.sum(), 1)
