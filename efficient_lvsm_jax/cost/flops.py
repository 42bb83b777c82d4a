"""Analytic FLOPs: what encoding, decoding and a training step cost in matrix products.

What a family costs stands beside it (`ModelConfig.encode_flops`). Norms, softmax, rays, the
optimizer and, but for `frozen_loss`, losses are left out.

Axes: V input view, T target view.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Container, Mapping
from typing import Any

from efficient_lvsm_jax.models.scene_geometry import GeometryConfig
from efficient_lvsm_jax.models.view_synthesis import IMAGE_CHANNELS, RAY_CHANNELS, ModelConfig
from efficient_lvsm_jax.nn.flops import Flops


@dataclasses.dataclass(frozen=True)
class TrainFlops:
    """FLOPs of a training step.

    Attributes:
      forward, backward: what the mathematics asks for.
      recompute: of the forward pass once more, for lack of memory to keep it.
    """

    forward: Flops
    backward: Flops
    recompute: Flops

    @property
    def model(self) -> Flops:
        """Forward and backward: what model FLOP utilisation is measured by."""
        return self.forward + self.backward

    @property
    def executed(self) -> Flops:
        """All of it."""
        return self.model + self.recompute


def forward(config: ModelConfig, inputs: int, targets: int, pixels: int) -> dict[str, Flops]:
    """One scene: `encode` and `decode`.

    Args:
      config: of the model.
      inputs, targets: V and T.
      pixels: of one view, height * width.

    Returns:
      FLOPs by part, see `ModelConfig.encode_flops`.
    """
    encoding = config.encode_flops(inputs, pixels)
    decoding = config.decode_flops(inputs, targets, pixels)
    nothing = Flops()
    return {
        part: encoding.get(part, nothing) + decoding.get(part, nothing)
        for part in encoding | decoding
    }


def train_step(
    config: ModelConfig,
    scenes: int,
    inputs: int,
    targets: int,
    pixels: int,
    *,
    fused_attention: bool,
) -> TrainFlops:
    """A training step on `scenes` scenes; `config.remat` decides what is recomputed.

    Args:
      config: of the model.
      scenes: B.
      inputs, targets, pixels: as in `forward`.
      fused_attention: attention keeps no weights for the backward pass, as the kernels of
        accelerators and the loops of a CPU; q kᵀ is then computed again.
    """
    once = sum(forward(config, inputs, targets, pixels).values(), Flops())
    # Every product has two gradients, but the tokenizers' pictures and rays need none.
    tokenizers = config.pixels_flops(pixels, IMAGE_CHANNELS + RAY_CHANNELS) * inputs
    tokenizers += config.pixels_flops(pixels, RAY_CHANNELS) * targets
    backward = once * 2 + tokenizers * -1

    again = once.attention if config.remat == "full" else 0
    if fused_attention or config.remat in ("products", "attention"):
        again += once.attention // 2  # one of the two products
    recompute = Flops(0, again)
    if config.remat in ("attention", "full"):
        recompute += config.recomputed_projections(inputs, targets, pixels // config.patch**2)
    return TrainFlops(once * scenes, backward * scenes, recompute * scenes)


def observing_step(
    config: GeometryConfig,
    scenes: int,
    frames: int,
    size: tuple[int, int],
    *,
    fused_attention: bool,
    frozen: Container[str] = (),
) -> TrainFlops:
    """A training step of a model of geometry on clips; tracks are left out.

    Args:
      config: of the model; with any `remat` the rounds and maps count again, as of large pictures.
      scenes: B.
      frames: R, of a clip.
      size: (Y, X) in pixels.
      fused_attention: as in `train_step`.
      frozen: names of parts without gradients; with "encoder" there is no way back through it.
    """
    parts = config.observe_flops(frames, size)
    once = sum(parts.values(), Flops())
    trained = once + parts["encoder"] * -1 if "encoder" in frozen else once
    again = Flops(0, once.attention // 2 if fused_attention else 0)
    if config.remat != "none":
        again = parts["within frames"] + parts["among frames"] + parts["maps"]
    return TrainFlops(once * scenes, trained * 2 * scenes, again * scenes)


def frozen_loss(params: Mapping[str, Any], pictures: int, pixels: int) -> int:
    """FLOPs of a loss through VGG16 or VGG19: both pictures forward, and the gradient of one.

    Args:
      params: conv{stage}_{layer} with a "kernel" [3, 3, C, C], arrays or shapes, see `vgg`; the
        pictures are half as wide and high in each further stage.
      pictures: pairs of them.
      pixels: of one, height * width.
    """
    once = 0
    for name, layer in params.items():
        if stage := re.fullmatch(r"conv(\d+)_\d+", name):
            once += 2 * math.prod(layer["kernel"].shape) * (pixels >> 2 * (int(stage[1]) - 1))
    return 3 * pictures * once
