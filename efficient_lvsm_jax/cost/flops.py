"""Analytic FLOPs: what encoding, decoding and a training step cost in matrix products.

Two FLOPs a multiply-add. Norms, softmax, rays, the optimizer and, but for `frozen_loss`, losses are
left out. Compilers cannot be asked: they count the body of a loop once and a kernel as nothing.

Axes: V input view, T target view, N patch token of a view, Z latent, D width, L layer.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

from efficient_lvsm_jax.models.model import EfficientLVSMConfig, EncoderDecoderConfig, ModelConfig
from efficient_lvsm_jax.models.view_synthesis import IMAGE_CHANNELS, RAY_CHANNELS


@dataclasses.dataclass(frozen=True)
class Flops:
    """FLOPs of products with parameters, and of the two products inside attention.

    They are kept apart because a matrix unit is used well by the first and, at a head dim of 64,
    badly by the second.
    """

    linear: int = 0
    attention: int = 0

    @property
    def total(self) -> int:
        """Both together."""
        return self.linear + self.attention

    def __add__(self, other: Flops) -> Flops:
        return Flops(self.linear + other.linear, self.attention + other.attention)

    def __mul__(self, times: int) -> Flops:
        return Flops(self.linear * times, self.attention * times)


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


def encode(config: ModelConfig, inputs: int, pixels: int) -> dict[str, Flops]:
    """Input views of one scene to a memory.

    Args:
      config: of the model.
      inputs: V.
      pixels: of one view, height * width.

    Returns:
      FLOPs by part (see `forward`); keys and values of the cache count as cross-attention.
    """
    tokens = pixels // config.patch**2
    tokenizer = _pixels_to_width(config, pixels, IMAGE_CHANNELS + RAY_CHANNELS) * inputs
    if isinstance(config, EfficientLVSMConfig):
        layers = inputs * config.layers
        return {
            **_layers(config, "encoder attention", tokens, layers),
            "decoder cross-attention": _projections(config, tokens, 2) * layers,
            "tokenizers and head": tokenizer,
        }
    parts = {"tokenizers and head": tokenizer}
    if isinstance(config, EncoderDecoderConfig):
        sequence = config.latents + inputs * tokens
        parts |= _layers(config, "encoder attention", sequence, config.encoder_layers)
    return parts


def decode(config: ModelConfig, inputs: int, targets: int, pixels: int) -> dict[str, Flops]:
    """Target cameras of one scene to pictures, through a memory of `inputs` views.

    Args, Returns: as in `forward`.
    """
    tokens = pixels // config.patch**2
    ends = _pixels_to_width(config, pixels, RAY_CHANNELS + IMAGE_CHANNELS) * targets
    if isinstance(config, EfficientLVSMConfig):
        layers = targets * config.layers
        cross = _projections(config, tokens, 2) + _scores(config, tokens, inputs * tokens)
        return {
            **_layers(config, "decoder self-attention", tokens, layers),
            "decoder cross-attention": cross * layers,
            "tokenizers and head": ends,
        }
    memory, layers = _sequences(config, inputs, tokens)
    sequences = _layers(config, "decoder self-attention", memory + tokens, layers * targets)
    return {**sequences, "tokenizers and head": ends}


def forward(config: ModelConfig, inputs: int, targets: int, pixels: int) -> dict[str, Flops]:
    """One scene: `encode` and `decode`.

    Args:
      config: of the model.
      inputs, targets: V and T.
      pixels: of one view, height * width.

    Returns:
      FLOPs by part, those that the family has: encoder attention, decoder self-attention, decoder
      cross-attention (each with its projections), MLP, tokenizers and head.
    """
    encoding, decoding = encode(config, inputs, pixels), decode(config, inputs, targets, pixels)
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
    tokenizers = _pixels_to_width(config, pixels, IMAGE_CHANNELS + RAY_CHANNELS) * inputs
    tokenizers += _pixels_to_width(config, pixels, RAY_CHANNELS) * targets
    backward = once * 2 + tokenizers * -1

    again = once.attention if config.remat == "full" else 0
    if fused_attention or config.remat in ("products", "attention"):
        again += once.attention // 2  # one of the two products
    recompute = Flops(0, again)
    if config.remat in ("attention", "full"):
        recompute += _recomputed_projections(config, inputs, targets, pixels // config.patch**2)
    return TrainFlops(once * scenes, backward * scenes, recompute * scenes)


def _recomputed_projections(config: ModelConfig, inputs: int, targets: int, tokens: int) -> Flops:
    """All projections of layers but an MLP's second if the next layer's input, which is kept, is
    what it adds up to. In Efficient-LVSM's encoder keys and values are made of it before."""
    if isinstance(config, EfficientLVSMConfig):
        encoder, decoder = 4 + 2 + 2 * config.mlp_ratio, 4 + 2 + config.mlp_ratio
        widths = encoder * inputs + decoder * targets
        return _projections(config, tokens, widths) * config.layers
    memory, layers = _sequences(config, inputs, tokens)
    rows = targets * layers * (memory + tokens)
    if isinstance(config, EncoderDecoderConfig):
        rows += config.encoder_layers * (config.latents + inputs * tokens)
    return _projections(config, rows, 4 + config.mlp_ratio)


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


def _sequences(config: ModelConfig, inputs: int, tokens: int) -> tuple[int, int]:
    """Of an LVSM: tokens of memory that a target attends with, and layers that decode."""
    if isinstance(config, EncoderDecoderConfig):
        return config.latents, config.decoder_layers
    return inputs * tokens, config.layers


def _layers(config: ModelConfig, attention: str, tokens: int, times: int) -> dict[str, Flops]:
    """Layers of self-attention, under that name, and MLP on sequences of so many tokens."""
    mlp = _projections(config, tokens, 2 * config.mlp_ratio)
    return {attention: _self_attention(config, tokens) * times, "MLP": mlp * times}


def _projections(config: ModelConfig, tokens: int, widths: int) -> Flops:
    """Maps of tokens from D to `widths` times D channels."""
    return Flops(linear=2 * tokens * config.width * widths * config.width)


def _scores(config: ModelConfig, queries: int, keys: int) -> Flops:
    """q kᵀ and weights·v, over all heads."""
    return Flops(attention=2 * 2 * queries * keys * config.width)


def _self_attention(config: ModelConfig, tokens: int) -> Flops:
    """q, k, v, attention within one view or sequence, out."""
    return _projections(config, tokens, 4) + _scores(config, tokens, tokens)


def _pixels_to_width(config: ModelConfig, pixels: int, channels: int) -> Flops:
    """One tokenizer, or the head, on one view: patch² pixels a token."""
    return Flops(linear=2 * pixels * channels * config.width)
