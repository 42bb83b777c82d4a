"""LPIPS 0.1 with VGG16: the learned perceptual distance of the published evaluation (§7).

    lpips = find_lpips("")                # weights/lpips; None if there is none. Or a named folder
    if lpips is None:
        print(f"LPIPS is left out: {HOW_TO_GET_WEIGHTS}")
    scores = lpips(prediction, target)    # [..., Y, X, 3] floats in [0, 1] -> [...]

Both pictures go through VGG16. After each of its five stages, every pixel's channels are scaled to
length one; squared differences are weighted by channel, averaged over the picture and summed over
stages. 0 is equal; published results are averages over pictures. Everything is float32; the
published evaluation ran the convolutions in bfloat16, which moves a score by about 0.001.

Axes: P pair of pictures, Y X pixel, C channel.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.metrics import vgg
from efficient_lvsm_jax.metrics.pictures import check_range

FAMILY = "lpips_vgg16"
CONFIG = {"version": "0.1"}
WEIGHTS_FOLDER = Path("weights/lpips")
HOW_TO_GET_WEIGHTS = (
    "it needs torchvision's vgg16-397923af.pth (https://download.pytorch.org/models/) and "
    "weights/v0.1/vgg.pth of the lpips package (on PyPI, or github.com/richzhang/"
    "PerceptualSimilarity); then run elvsm convert --lpips "
    f"vgg16-397923af.pth vgg.pth --out {WEIGHTS_FOLDER}"
)

STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
SHIFT = (-0.030, -0.088, -0.188)  # of colours in [-1, 1]
SCALE = (0.458, 0.448, 0.450)
# On a CPU a pair takes 1.6 kB a pixel: 0.21 GB for two at 256x256, measured 0.3 GB with everything
# around it, for any number of pairs. Larger groups are no faster there (about 1 s a pair).
PIXELS_AT_ONCE = 2 * 256**2


def abstract_params() -> dict:
    """Shapes and dtypes of the parameters: conv{stage}_{layer} and linear{stage}, from 1."""
    params = {}
    channels = 3
    for stage, widths in enumerate(STAGES, 1):
        for layer, width in enumerate(widths, 1):
            params[f"conv{stage}_{layer}"] = {
                "kernel": jax.ShapeDtypeStruct((3, 3, channels, width), jnp.float32),
                "bias": jax.ShapeDtypeStruct((width,), jnp.float32),
            }
            channels = width
        params[f"linear{stage}"] = {"kernel": jax.ShapeDtypeStruct((channels,), jnp.float32)}
    return params


@functools.partial(jax.jit, static_argnames="dtype")
def stage_distances(
    params: dict, prediction: jax.Array, target: jax.Array, dtype: Any = jnp.float32
) -> jax.Array:
    """Distances [P, stage] of pictures [P, Y, X, 3]; LPIPS is their sum over stages.

    The convolutions run in `dtype`, everything else in float32.
    """
    depths = [len(widths) for widths in STAGES]
    both = [
        vgg.activations(
            params,
            (x * 2 - 1 - jnp.array(SHIFT)) / jnp.array(SCALE),
            depths=depths,
            taps=depths,
            pool=nnx.max_pool,
            dtype=dtype,
        )
        for x in (prediction, target)
    ]
    distances = []
    for stage, pair in enumerate(zip(*both, strict=True), 1):
        unit, other = (_unit_length(x.astype(jnp.float32)) for x in pair)
        difference = jnp.square(unit - other).mean(axis=(1, 2))  # [P, C]
        distances.append((difference * params[f"linear{stage}"]["kernel"]).sum(axis=-1))
    return jnp.stack(distances, axis=-1)


def lpips_loss(
    params: dict, predicted: jax.Array, true: jax.Array, *, dtype: Any = jnp.float32
) -> jax.Array:
    """Mean LPIPS of pictures as a training loss, a float32 scalar.

    Its gradient reaches `predicted` alone, and is finite everywhere; see `vgg.frozen_loss`.

    Args:
      params: as `Lpips.params`.
      predicted, true: [..., V, Y, X, 3], floats in [0, 1]. Memory is that of one view; leading
        axes may be sharded.
      dtype: of the convolutions. The published training took bfloat16.

    Raises:
      InputError: shapes that differ, other axes, or sides below 16 pixels.
    """
    return vgg.frozen_loss(_mean_distance, params, predicted, true, dtype)


def _mean_distance(params: dict, predicted: jax.Array, true: jax.Array, dtype: Any) -> jax.Array:
    return stage_distances(params, predicted, true, dtype).sum(axis=-1).mean()


@dataclasses.dataclass(frozen=True, eq=False)
class Lpips:
    """The distance with its weights.

    Attributes:
      params: as `abstract_params` describes them.
    """

    params: dict

    def __call__(self, prediction: jax.Array, target: jax.Array) -> np.ndarray:
        """One score per picture, float32 [...]; arguments and errors as `by_stage`."""
        return self.by_stage(prediction, target).sum(axis=-1)

    def by_stage(self, prediction: jax.Array, target: jax.Array) -> np.ndarray:
        """What each of the five stages adds to the score, float32 [..., 5].

        Pairs are walked in groups, so that memory does not grow with their number.

        Args:
          prediction, target: pictures [..., Y, X, 3], floats in [0, 1].

        Raises:
          InputError: shapes that differ, sides below 16 pixels, no floats, or another range.
        """
        prediction, target = _checked(prediction, target)
        *lead, height, width, _ = target.shape
        pairs = math.prod(lead)
        scores = np.zeros((pairs, len(STAGES)), np.float32)
        if pairs:
            group = min(pairs, max(1, PIXELS_AT_ONCE // (height * width)))
            pictures = [x.reshape(pairs, height, width, 3) for x in (prediction, target)]
            for start in range(0, pairs, group):
                # The last group reaches back into the one before: one shape, one compilation.
                first = min(start, pairs - group)
                here = slice(first, first + group)
                scores[here] = stage_distances(self.params, *(x[here] for x in pictures))
        return scores.reshape(*lead, len(STAGES))


def _unit_length(x: jax.Array) -> jax.Array:
    """Channels of every pixel over their norm; zero, with finite gradients, where all are zero."""
    squares = jnp.square(x).sum(axis=-1, keepdims=True)
    some = squares > 0  # the root of 0 has an infinite gradient, so another number takes its place
    return x / (jnp.where(some, jnp.sqrt(jnp.where(some, squares, 1)), 0) + 1e-10)


def _checked(prediction: jax.Array, target: jax.Array) -> tuple[np.ndarray, np.ndarray]:
    pictures = np.asarray(prediction), np.asarray(target)
    shape = pictures[1].shape
    if pictures[0].shape != shape or len(shape) < 3 or shape[-1] != 3:
        raise InputError(
            f"prediction {pictures[0].shape} and target {shape}: expected the same [..., Y, X, 3]"
        )
    if min(shape[-3:-1]) < vgg.MIN_SIDE:
        raise InputError(
            f"LPIPS of {shape[-3]}x{shape[-2]} pictures: both sides must be at least "
            f"{vgg.MIN_SIDE} pixels"
        )
    for name, picture in zip(("prediction", "target"), pictures, strict=True):
        if not jnp.issubdtype(picture.dtype, jnp.floating):
            raise InputError(f"{name} of {picture.dtype}: expected floats in [0, 1]; divide by 255")
        if picture.size:
            check_range(picture, name)
    return pictures[0].astype(np.float32, copy=False), pictures[1].astype(np.float32, copy=False)
