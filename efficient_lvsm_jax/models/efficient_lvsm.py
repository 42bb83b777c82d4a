"""Efficient-LVSM: the dual-stream view synthesis transformer (Efficient-LVSM, §3).

The encoder attends within each input view. After every encoder layer, the decoder layer of the
same index turns its output into keys and values: one page of the cache per view. The decoder starts
from target rays only; each layer attends within a target view, then to all pages, then applies its
MLP. There is one way through it, `decode(encode(views), cameras)`, for training and rendering.

Axes: B scene, V input view, T target view, Y X pixel, N patch token, D width, H head, K head dim,
L layer, S page slot.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from efficient_lvsm_jax.configuration import setting
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
from efficient_lvsm_jax.nn.cache import store
from efficient_lvsm_jax.nn.flops import Flops, projections
from efficient_lvsm_jax.nn.layers import MLP, CrossAttention, Initializer, SelfAttention
from efficient_lvsm_jax.nn.paged import PRECISIONS, Pages
from efficient_lvsm_jax.nn.positions import Positions
from efficient_lvsm_jax.nn.sparse_linear import attend_by
from efficient_lvsm_jax.nn.sparsity import attention_flops
from efficient_lvsm_jax.nn.stacks import INITS, over_views, stack, walk_layers

# Arrays [N, D] of a view in use at the peak of the backward pass, per view of the larger side: one
# layer's outputs, hidden channels, queries, keys, values and their gradients, and the pictures.
WORKING_UNITS = 55


@dataclasses.dataclass(frozen=True)
class EfficientLVSMConfig(ModelConfig):
    """Settings of Efficient-LVSM besides those of every model.

    Attributes:
      layers: L, both of the encoder and of the decoder.
      encoder_init: "uniform", as published: PyTorch's default U(±1/√fan_in); or "depth": the
        decoder's rule, N(0, s²) with s = 0.02/√(2(i+1)) in layer i.
      decoder_init: "depth", as published, or "uniform", which starts small models faster.
      cache: how `encode` stores keys and values, one of `nn.paged.PRECISIONS`, or "computed": as
        they come out of its layers, which is what training uses.
    """

    paged: ClassVar[bool] = True
    tapped: ClassVar[bool] = True
    places: ClassVar[tuple[str, ...]] = ("encoder", "decoder", "cross")

    layers: int = setting(12, at_least=1)
    encoder_init: str = setting("uniform", choices=INITS)
    decoder_init: str = setting("depth", choices=INITS)
    cache: str = setting("computed", choices=("computed", *PRECISIONS))

    def encode_flops(self, inputs: int, pixels: int) -> dict[str, Flops]:
        """As `ModelConfig` says."""
        tokens, layers = pixels // self.patch**2, inputs * self.layers
        pages = projections(self.width, tokens, 2)
        if self.sparsity("cross"):
            pages += Flops(attention=2 * tokens * self.head_dim * self.width)  # sums of keys
        return {
            **self.layers_flops("encoder attention", tokens, layers),
            "decoder cross-attention": pages * layers,
            "tokenizers and head": self.pixels_flops(pixels, IMAGE_CHANNELS + RAY_CHANNELS)
            * inputs,
        }

    def decode_flops(self, inputs: int, targets: int, pixels: int) -> dict[str, Flops]:
        """As `ModelConfig` says."""
        tokens, layers = pixels // self.patch**2, targets * self.layers
        shape = self.width, self.head_dim, tokens, tokens
        cross = projections(self.width, tokens, 2)
        if inputs:
            cross += attention_flops(self.sparsity("cross"), *shape, pages=inputs, summed=0)
        return {
            **self.layers_flops("decoder self-attention", tokens, layers),
            "decoder cross-attention": cross * layers,
            "tokenizers and head": self.pixels_flops(pixels, RAY_CHANNELS + IMAGE_CHANNELS)
            * targets,
        }

    def recomputed_projections(self, inputs: int, targets: int, tokens: int) -> Flops:
        """As `ModelConfig` says; in the encoder, keys and values are made of a sum before."""
        encoder, decoder = 4 + 2 + 2 * self.mlp_ratio, 4 + 2 + self.mlp_ratio
        widths = encoder * inputs + decoder * targets
        return projections(self.width, tokens, widths) * self.layers

    def activation_units(
        self, layer: LayerUnits, inputs: int, targets: int, tokens: int
    ) -> tuple[float, float]:
        """As `ModelConfig` says; keys and values of the inputs wait for the decoder."""
        of_input = layer.self_attention + layer.keys_values
        kept = self.layers * (inputs * of_input + targets * layer.cross_attention)
        return kept, WORKING_UNITS * max(inputs, targets)


class DecoderLayer(nnx.Module):
    """Self-attention within each target view, cross-attention to the inputs, then one MLP."""

    def __init__(self, config: ModelConfig, *, init: Initializer, rngs: nnx.Rngs):
        heads = config.width, config.head_dim, init
        self.self_attention = SelfAttention(
            *heads,
            implementation=config.attention,
            sparsity=config.sparsity("decoder"),
            rngs=rngs,
        )
        self.cross_attention = CrossAttention(*heads, sparsity=config.sparsity("cross"), rngs=rngs)
        self.mlp = MLP(config.width, config.mlp_ratio * config.width, init, rngs=rngs)

    def __call__(
        self,
        x: jax.Array,
        attend_memory: Callable[[jax.Array], jax.Array],
        positions: Positions | None = None,
    ) -> jax.Array:
        x = self.self_attention(x, positions and positions.within_views())
        return self.mlp(self.cross_attention(x, attend_memory, positions))


class EfficientLVSM(ViewModel):
    """The model. Layers are stacked on axis 0 of every parameter and scanned."""

    def __init__(self, config: EfficientLVSMConfig, *, rngs: nnx.Rngs):
        super().__init__(config, rngs=rngs)
        how = {"spread": "views", "sparsity": config.sparsity("encoder")}
        encoder_layer = functools.partial(SelfAttentionLayer, config, **how)
        decoder_layer = functools.partial(DecoderLayer, config)
        self.encoder = stack(encoder_layer, config.layers, config.encoder_init, rngs)
        self.decoder = stack(decoder_layer, config.layers, config.decoder_init, rngs)

    def encode(self, views: Views) -> Pages:
        """Input views [B, V, …] to their pages, one per view, stored as `config.cache` says."""
        return self.encode_with_taps(views, ())[0]

    def decode(self, cache: Pages, cameras: Cameras) -> jax.Array:
        """Cameras [B, T] to images [B, T, Y, X, 3] in [0, 1], float32.

        `cache.used` may be [B, T, S]: the slots that each target reads, see `nn.cache.reading`.
        """
        return self.decode_with_taps(cache, cameras, ())[0]

    def encode_with_taps(
        self, views: Views, layers: tuple[int, ...]
    ) -> tuple[Pages, jax.Array | None]:
        """`encode`, and what leaves some encoder layers on the way.

        Args:
          views: input views [B, V, …].
          layers: distinct numbers of layers, 1 … L.

        Returns:
          The cache, and the tokens [len(layers), B, V, N, D] in the order of `layers`, patches row
          by row, in the compute dtype; None without layers. No other output of a layer is kept for
          them.

        Raises:
          InputError: there is no such layer, or one is asked for twice.
        """

        def step(x: jax.Array, layers: tuple) -> tuple[jax.Array, tuple]:
            layer, cross_layer = layers

            def one(x: jax.Array, positions: Positions | None) -> tuple:
                x = layer(x, positions and positions.within_views())
                return x, cross_layer.pages(x, positions)

            return over_views(one, x, positions, view_axes=(1, 2))

        positions = self.positions(views.cameras)
        stacks = (self.encoder, self.decoder.cross_attention)
        x, depth = self.input_tokens(views), self.config.layers
        _, taps, cache = walk_layers(self.config, step, x, stacks, layers=depth, taps=layers)
        precision = self.config.cache
        if taps is not None:
            taps = self.row_by_row(taps, *views.image.shape[2:4])
        return cache if precision == "computed" else store(cache, precision), taps

    def decode_with_taps(
        self, cache: Pages, cameras: Cameras, layers: tuple[int, ...]
    ) -> tuple[jax.Array, jax.Array | None]:
        """`decode`, and the tokens [len(layers), B, T, N, D] that leave some decoder layers.

        `layers`, their order and the errors are as in `encode_with_taps`.
        """
        # One straight from `encode` is scanned with the layers, which gradients need; one with
        # slots is read chunk by chunk, so that those with nothing in use cost nothing.
        scanned = cache if cache.used is None else None
        positions = self.positions(cameras)
        each = cache.used is not None and cache.used.ndim == 3  # targets read views of their own

        def step(x: jax.Array, xs: tuple) -> tuple[jax.Array, None]:
            layer, index, pages = xs
            if pages is None:
                pages = dataclasses.replace(cache, layer=index)

            def one(x: jax.Array, used: jax.Array | None, positions: Positions | None) -> jax.Array:
                how = {"implementation": self.config.attention, "spread": "pages"}
                read = pages if used is None else dataclasses.replace(pages, used=used)
                sparse, targets = layer.cross_attention.sparse, x.shape[1]
                attend = functools.partial(attend_by, sparse, pages=read, targets=targets, **how)
                return layer(x, attend, positions)

            beside = cache.used if each else None, positions
            return over_views(one, x, *beside, view_axes=1), None

        x, depth = self.target_tokens(cameras), self.config.layers
        stacks = (self.decoder, jnp.arange(depth), scanned)
        x, taps, _ = walk_layers(self.config, step, x, stacks, layers=depth, taps=layers)
        if taps is not None:
            taps = self.row_by_row(taps, cameras.height, cameras.width)
        return self.pictures(x, cameras), taps


register(Family("efficient_lvsm", EfficientLVSMConfig, EfficientLVSM))
