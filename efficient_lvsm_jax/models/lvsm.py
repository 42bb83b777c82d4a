"""The LVSM baselines (LVSM, arXiv:2410.17242): decoder-only and encoder-decoder.

Both attend among the tokens of all input views at once, so nothing of one view can be kept when
another comes or goes. The decoder-only model's memory is the input tokens themselves, which every
target attends with again in every layer; that of the encoder-decoder is a fixed number of latents.
Every target is a sequence of its own. LayerNorms have a scale here, and no bias.

Axes: B scene, V input view, T target view, N patch token, Z latent, D width.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from efficient_lvsm_jax.configuration import setting
from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.geometry.cameras import Cameras, Views
from efficient_lvsm_jax.models.families import Family, register
from efficient_lvsm_jax.models.view_synthesis import (
    IMAGE_CHANNELS,
    RAY_CHANNELS,
    LayerUnits,
    ModelConfig,
    SelfAttentionLayer,
    ViewModel,
)
from efficient_lvsm_jax.nn.flops import Flops, projections
from efficient_lvsm_jax.nn.layers import LayerNorm
from efficient_lvsm_jax.nn.positions import Positions
from efficient_lvsm_jax.nn.stacks import INITS, over_views, stack, walk_layers
from efficient_lvsm_jax.parallel.sharding import views_are_spread

LATENT_STD = 0.02


# Arrays [N, D] of a view in use at the peak of the backward pass, per view's worth of a sequence.
WORKING_UNITS = 46


@dataclasses.dataclass(frozen=True)
class LVSMConfig(ModelConfig):
    """What both cost; layers of a sequence each, which count in views of N tokens."""

    @property
    def depths(self) -> tuple[int, int]:
        """Layers that encode and layers that decode."""
        raise NotImplementedError  # each family has its own

    def memory_tokens(self, inputs: int, tokens: int) -> int:
        """How many tokens of memory a target attends with."""
        raise NotImplementedError  # each family has its own

    def encode_flops(self, inputs: int, pixels: int) -> dict[str, Flops]:
        """As `ModelConfig` says."""
        tokens = pixels // self.patch**2
        ends = self.pixels_flops(pixels, IMAGE_CHANNELS + RAY_CHANNELS) * inputs
        sequence = self.memory_tokens(inputs, tokens) + inputs * tokens
        layers = self.layers_flops("encoder attention", sequence, self.depths[0])
        return {**(layers if self.depths[0] else {}), "tokenizers and head": ends}

    def decode_flops(self, inputs: int, targets: int, pixels: int) -> dict[str, Flops]:
        """As `ModelConfig` says."""
        tokens = pixels // self.patch**2
        ends = self.pixels_flops(pixels, RAY_CHANNELS + IMAGE_CHANNELS) * targets
        sequence = self.memory_tokens(inputs, tokens) + tokens
        layers = self.layers_flops("decoder self-attention", sequence, self.depths[1] * targets)
        return {**layers, "tokenizers and head": ends}

    def recomputed_projections(self, inputs: int, targets: int, tokens: int) -> Flops:
        """As `ModelConfig` says."""
        memory, (encoding, decoding) = self.memory_tokens(inputs, tokens), self.depths
        rows = targets * decoding * (memory + tokens) + encoding * (memory + inputs * tokens)
        return projections(self.width, rows, 4 + self.mlp_ratio)

    def activation_units(
        self, layer: LayerUnits, inputs: int, targets: int, tokens: int
    ) -> tuple[float, float]:
        """As `ModelConfig` says."""
        memory, (encoding, decoding) = self.memory_tokens(inputs, tokens) / tokens, self.depths
        decoded = targets * (memory + 1)
        encoded = memory + inputs if encoding else 0
        kept = (decoding * decoded + encoding * encoded) * layer.self_attention
        return kept, WORKING_UNITS * max(encoded, decoded)


@dataclasses.dataclass(frozen=True)
class DecoderOnlyConfig(LVSMConfig):
    """Settings of the decoder-only LVSM besides those of every model.

    Attributes:
      layers: L, of the one stack.
      init: of the layers: "depth", as published, N(0, s²) with s = 0.02/√(2(i+1)) in layer i; or
        "uniform", PyTorch's default U(±1/√fan_in), which starts small models faster.
    """

    places: ClassVar[tuple[str, ...]] = ("decoder",)

    layers: int = setting(24, at_least=1)
    init: str = setting("depth", choices=INITS)

    @property
    def depths(self) -> tuple[int, int]:
        """No layers encode."""
        return 0, self.layers

    def memory_tokens(self, inputs: int, tokens: int) -> int:
        """Those of all inputs."""
        return inputs * tokens


@dataclasses.dataclass(frozen=True)
class EncoderDecoderConfig(LVSMConfig):
    """Settings of the encoder-decoder LVSM besides those of every model.

    Attributes:
      encoder_layers, decoder_layers: L of each.
      latents: Z, tokens that the encoder writes and the decoder reads.
      init: as in DecoderOnlyConfig; layers of the decoder count from 0 again.
    """

    places: ClassVar[tuple[str, ...]] = ("encoder", "decoder")

    encoder_layers: int = setting(12, at_least=1)
    decoder_layers: int = setting(12, at_least=1)
    latents: int = setting(3072, at_least=1)
    init: str = setting("depth", choices=INITS)

    def __post_init__(self):
        super().__post_init__()
        if self.positions != "none":
            raise InputError(
                f"model.positions={self.positions!r}: the latents of an encoder-decoder LVSM are "
                "nowhere, so nothing is relative to them; it takes 'none' alone"
            )

    @property
    def depths(self) -> tuple[int, int]:
        """Both numbers."""
        return self.encoder_layers, self.decoder_layers

    def memory_tokens(self, inputs: int, tokens: int) -> int:
        """The latents, however many inputs."""
        return self.latents


class LVSM(ViewModel):
    """What both have in common: layers of self-attention over whole sequences."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        super().__init__(config, norm_scale=True, rngs=rngs)
        # Before the layers that decode: over inputs, or latents, and targets.
        self.input_norm = LayerNorm(config.width, scaled=True)

    def _stack(self, place: str, layers: int, rngs: nnx.Rngs) -> nnx.Module:
        how = {"norm_scale": True, "sparsity": self.config.sparsity(place)}
        layer = functools.partial(SelfAttentionLayer, self.config, **how)
        return stack(layer, layers, self.config.init, rngs)

    def _run(
        self,
        layers: int,
        stacked: nnx.Module,
        x: jax.Array,
        positions: Positions | None = None,
    ) -> jax.Array:
        """Sequences x [B, T, tokens, D] through a stack of layers; `positions` of all tokens."""

        def step(x: jax.Array, layer: SelfAttentionLayer) -> tuple[jax.Array, None]:
            return over_views(layer, x, positions, view_axes=1), None

        return walk_layers(self.config, step, x, stacked, layers=layers)[0]

    def _all_input_tokens(self, views: Views) -> jax.Array:
        """Input views [B, V, …] to one sequence of tokens [B, V·N, D]."""
        if views_are_spread():
            raise InputError(
                "mesh: the context axis spreads input views over devices, and LVSM attends across "
                "them; use context:1"
            )
        tokens = self.input_tokens(views)
        return tokens.reshape(tokens.shape[0], -1, tokens.shape[-1])


class DecoderOnlyLVSM(LVSM):
    """Input tokens and the tokens of one target attend to each other in every layer."""

    def __init__(self, config: DecoderOnlyConfig, *, rngs: nnx.Rngs):
        super().__init__(config, rngs=rngs)
        self.decoder = self._stack("decoder", config.layers, rngs)

    def encode(self, views: Views) -> jax.Array | tuple[jax.Array, Positions]:
        """Input views [B, V, …] to their tokens [B, V·N, D]; with positions, these as well."""
        tokens, positions = self._all_input_tokens(views), self.positions(views.cameras)
        return tokens if positions is None else (tokens, positions.in_one_sequence())

    def decode(
        self, memory: jax.Array | tuple[jax.Array, Positions], cameras: Cameras
    ) -> jax.Array:
        """Cameras [B, T] to images [B, T, Y, X, 3] in [0, 1], float32."""
        tokens, places = memory if isinstance(memory, tuple) else (memory, None)
        targets, positions = self.target_tokens(cameras), self.positions(cameras)
        inputs = _for_each_target(tokens, targets)
        x = self.input_norm(jnp.concatenate([inputs, targets], axis=2))
        x = self._run(self.config.layers, self.decoder, x, _after(places, positions))
        return self.pictures(x[:, :, -targets.shape[2] :], cameras)


class EncoderDecoderLVSM(LVSM):
    """An encoder gathers the input views in latents, which a decoder reads for each target."""

    def __init__(self, config: EncoderDecoderConfig, *, rngs: nnx.Rngs):
        super().__init__(config, rngs=rngs)
        shape = (config.latents, config.width)
        self.latents = nnx.Param(LATENT_STD * jax.random.normal(rngs.params(), shape, jnp.float32))
        self.encoder = self._stack("encoder", config.encoder_layers, rngs)
        self.decoder = self._stack("decoder", config.decoder_layers, rngs)

    def encode(self, views: Views) -> jax.Array:
        """Input views [B, V, …] to latents [B, Z, D]."""
        tokens = self._all_input_tokens(views)
        latents = self.latents[...].astype(tokens.dtype)
        latents = jnp.broadcast_to(latents, (tokens.shape[0], *latents.shape))
        x = jnp.concatenate([latents, tokens], axis=1)[:, None]  # a scene is one sequence
        x = self._run(self.config.encoder_layers, self.encoder, x)
        return x[:, 0, : self.config.latents]

    def decode(self, memory: jax.Array, cameras: Cameras) -> jax.Array:
        """Cameras [B, T] to images [B, T, Y, X, 3] in [0, 1], float32."""
        targets = self.target_tokens(cameras)
        latents = _for_each_target(memory, targets)
        x = self.input_norm(jnp.concatenate([targets, latents], axis=2))
        x = self._run(self.config.decoder_layers, self.decoder, x)
        return self.pictures(x[:, :, : targets.shape[2]], cameras)


def _after(inputs: Positions | None, targets: Positions | None) -> Positions | None:
    """Of sequences of all inputs [B, 1, V·N, …], then the tokens of one of targets [B, T, N, …]."""
    if inputs is None:
        return None
    count = targets.sine.shape[1]

    def join(of_inputs: jax.Array, of_target: jax.Array) -> jax.Array:
        if of_target.ndim == 4:  # a camera for each token
            tokens = (*targets.sine.shape[:3], 4, 4)
            of_target = jnp.broadcast_to(of_target[:, :, None], tokens)
        return jnp.concatenate([jnp.repeat(of_inputs, count, axis=1), of_target], axis=2)

    return jax.tree.map(join, inputs, targets)


def _for_each_target(memory: jax.Array, targets: jax.Array) -> jax.Array:
    """Memory [B, M, D] once for each of targets [B, T, N, D]: [B, T, M, D]."""
    batch, count = targets.shape[:2]
    return jnp.broadcast_to(memory[:, None], (batch, count, *memory.shape[1:]))


register(Family("lvsm_decoder_only", DecoderOnlyConfig, DecoderOnlyLVSM))
register(Family("lvsm_encoder_decoder", EncoderDecoderConfig, EncoderDecoderLVSM))
