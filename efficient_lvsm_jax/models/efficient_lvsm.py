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

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from efficient_lvsm_jax.attention import IMPLEMENTATIONS, attend
from efficient_lvsm_jax.attention_kernels import saved_outputs
from efficient_lvsm_jax.cache import ViewCache
from efficient_lvsm_jax.cameras import Cameras, Views, plucker, rays
from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.layers import (
    MLP,
    CrossAttention,
    Initializer,
    Projection,
    SelfAttention,
    layer_norm,
    normal,
    uniform,
)
from efficient_lvsm_jax.sharding import platform, views_are_spread

IMAGE_CHANNELS = 3
RAY_CHANNELS = 6

REMAT_POLICIES = {
    "none": None,
    "attention": saved_outputs,
    "full": jax.checkpoint_policies.nothing_saveable,
}
ENCODER_INITS = ("uniform", "depth")
DECODER_INITS = ("depth", "uniform")
# From this many tokens a view, a CPU is fastest, and leanest, with one view in hand at a time.
CPU_TOKENS_AT_ONCE = 512


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """What the model is (first block, fixed by its weights) and how it is computed.

    Attributes:
      width: D, channels of a token; a multiple of head_dim.
      head_dim: K.
      layers: L, both of the encoder and of the decoder.
      patch: edge of a patch in pixels; image sides must be multiples of it.
      mlp_ratio: hidden channels of an MLP over width.
      ray_dtype: "float32", or "bf16_parity": rays rounded as the published training rounded them.
      attention: how attention is computed: "cpu", "xla", "cudnn" (NVIDIA GPUs, not in float32),
        "splash" (TPUs), or "auto": the best that can run where it runs. One that cannot run is an
        error, never replaced.
      compute_dtype: "float32" or "bfloat16" for matmuls and the residual stream. Parameters,
        norms, softmax and losses stay float32.
      remat: what training keeps for the backward pass: "none" (everything), "attention" (only
        attention outputs) or "full" (only layer inputs).
      encoder_init: "uniform", as published: PyTorch's default U(±1/√fan_in); or "depth": the
        decoder's rule, N(0, s²) with s = 0.02/√(2(i+1)) in layer i.
      decoder_init: "depth", as published, or "uniform", which starts small models faster.
    """

    width: int = 768
    head_dim: int = 64
    layers: int = 12
    patch: int = 8
    mlp_ratio: int = 4

    ray_dtype: str = "float32"
    compute_dtype: str = "float32"
    attention: str = "auto"
    remat: str = "none"
    encoder_init: str = "uniform"
    decoder_init: str = "depth"

    def __post_init__(self):
        for name in ("width", "head_dim", "layers", "patch", "mlp_ratio"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise InputError(f"model.{name}={value!r}: expected a positive integer")
        if self.width % self.head_dim:
            raise InputError(
                f"model.width={self.width} is not a multiple of head_dim={self.head_dim}"
            )
        choices = {
            "ray_dtype": ("float32", "bf16_parity"),
            "compute_dtype": ("float32", "bfloat16"),
            "attention": ("auto", *IMPLEMENTATIONS),
            "remat": tuple(REMAT_POLICIES),
            "encoder_init": ENCODER_INITS,
            "decoder_init": DECODER_INITS,
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise InputError(
                    f"model.{name}={getattr(self, name)!r}: expected one of {', '.join(allowed)}"
                )

    @property
    def dtype(self) -> jnp.dtype:
        """compute_dtype as a dtype."""
        return jnp.dtype(self.compute_dtype)


class EncoderLayer(nnx.Module):
    """Self-attention within each input view, then an MLP."""

    def __init__(self, config: ModelConfig, init: Initializer, *, rngs: nnx.Rngs):
        self.attention = SelfAttention(
            config.width,
            config.head_dim,
            init,
            implementation=config.attention,
            spread="views",
            rngs=rngs,
        )
        self.mlp = MLP(config.width, config.mlp_ratio * config.width, init, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.mlp(self.attention(x))


class DecoderLayer(nnx.Module):
    """Self-attention within each target view, cross-attention to the inputs, then one MLP."""

    def __init__(self, config: ModelConfig, init: Initializer, *, rngs: nnx.Rngs):
        self.self_attention = SelfAttention(
            config.width, config.head_dim, init, implementation=config.attention, rngs=rngs
        )
        self.cross_attention = CrossAttention(config.width, config.head_dim, init, rngs=rngs)
        self.mlp = MLP(config.width, config.mlp_ratio * config.width, init, rngs=rngs)

    def __call__(self, x: jax.Array, attend_memory: Callable[[jax.Array], jax.Array]) -> jax.Array:
        return self.mlp(self.cross_attention(self.self_attention(x), attend_memory))


class EfficientLVSM(nnx.Module):
    """The model. Layers are stacked on axis 0 of every parameter and scanned."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        self.config = config
        area = config.patch**2
        token = normal(0.02)
        inputs, targets = area * (IMAGE_CHANNELS + RAY_CHANNELS), area * RAY_CHANNELS
        self.input_tokenizer = Projection((inputs,), (config.width,), token, rngs=rngs)
        self.target_tokenizer = Projection((targets,), (config.width,), token, rngs=rngs)
        self.encoder = stack(EncoderLayer, config, config.encoder_init, rngs)
        self.decoder = stack(DecoderLayer, config, config.decoder_init, rngs)
        self.head = Projection((config.width,), (area * IMAGE_CHANNELS,), token, rngs=rngs)

    def input_tokens(self, views: Views) -> jax.Array:
        """Posed images [B, V, Y, X, 3] to tokens [B, V, N, D] (rgb scaled to ±1, o×d, d)."""
        pixels = jnp.concatenate([views.image * 2 - 1, self._plucker(views.cameras)], axis=-1)
        return self.input_tokenizer(self._patches(pixels))

    def target_tokens(self, cameras: Cameras) -> jax.Array:
        """Cameras [B, T] to tokens [B, T, N, D] (o×d, d)."""
        return self.target_tokenizer(self._patches(self._plucker(cameras)))

    def encode(self, views: Views) -> ViewCache:
        """Input views [B, V, …] to their pages of keys and values, one page per view."""
        return self.encode_with_taps(views, ())[0]

    def decode(self, cache: ViewCache, cameras: Cameras) -> jax.Array:
        """Cameras [B, T] to images [B, T, Y, X, 3] in [0, 1], float32."""
        return self.decode_with_taps(cache, cameras, ())[0]

    def encode_with_taps(
        self, views: Views, layers: tuple[int, ...]
    ) -> tuple[ViewCache, jax.Array | None]:
        """`encode`, and what leaves some encoder layers on the way.

        Args:
          views: input views [B, V, …].
          layers: distinct numbers of layers, 1 … L.

        Returns:
          The cache, and the tokens [len(layers), B, V, N, D] in the order of `layers`, in the
          compute dtype; None without layers. No other layer's output is kept for them.

        Raises:
          InputError: there is no such layer, or one is asked for twice.
        """

        def step(x: jax.Array, layers: tuple) -> tuple[jax.Array, tuple]:
            layer, cross_layer = layers

            def one(x: jax.Array) -> tuple:
                x = layer(x)
                return x, cross_layer.keys_values(x)

            x, (k, v) = _over_views(one, x, view_axes=(1, (2, 2)))
            return x, (k, v)

        stacks = (self.encoder, self.decoder.cross_attention)
        _, taps, (k, v) = self._scan(step, self.input_tokens(views), stacks, layers)
        return ViewCache(k, v), taps

    def decode_with_taps(
        self, cache: ViewCache, cameras: Cameras, layers: tuple[int, ...]
    ) -> tuple[jax.Array, jax.Array | None]:
        """`decode`, and the tokens [len(layers), B, T, N, D] that leave some decoder layers.

        `layers`, their order and the errors are as in `encode_with_taps`.
        """
        # A full cache is scanned with the layers, which gradients need; a partly filled one is
        # read page by page, so that empty slots cost nothing.
        scanned = (cache.k, cache.v) if cache.count is None else None
        attend_pages = functools.partial(
            attend, implementation=self.config.attention, spread="pages"
        )

        def step(x: jax.Array, xs: tuple) -> tuple[jax.Array, None]:
            layer, index, pages = xs

            def attend_memory(q: jax.Array) -> jax.Array:
                if pages is not None:
                    return attend_pages(q, *pages)
                return attend_pages(q, cache.k, cache.v, count=cache.count, layer=index)

            return _over_views(lambda x: layer(x, attend_memory), x, view_axes=1), None

        stacks = (self.decoder, jnp.arange(self.config.layers), scanned)
        x, taps, _ = self._scan(step, self.target_tokens(cameras), stacks, layers)
        patches = jax.nn.sigmoid(self.head(layer_norm(x))).astype(jnp.float32)
        return self._unpatch(patches, cameras.height, cameras.width), taps

    def _scan(
        self, step: Callable, x: jax.Array, stacks: tuple, layers: tuple[int, ...]
    ) -> tuple[jax.Array, jax.Array | None, object]:
        """`step` along the stacks: the last x, x after each of `layers`, stacked other outputs."""
        depth = self.config.layers
        if len(set(layers)) < len(layers) or not set(layers) <= set(range(1, depth + 1)):
            raise InputError(
                f"taps at layers {list(layers)}: expected distinct numbers from 1 to {depth}, the "
                "layers of this model"
            )
        # One slot for each tap and one more, which every other layer overwrites.
        slots = np.full(depth, len(layers))
        slots[np.array(layers, int) - 1] = np.arange(len(layers))
        taps = jnp.zeros((len(layers) + 1, *x.shape), x.dtype) if layers else None
        step = self._remat(step)

        def tapped(carry: tuple, xs: tuple) -> tuple[tuple, object]:
            # Taps are written outside of what is rematerialised: nothing is kept per layer.
            x, taps = carry
            x, outputs = step(x, xs[1])
            if taps is not None:
                taps = jax.lax.dynamic_update_index_in_dim(taps, x, xs[0], axis=0)
            return (x, taps), outputs

        (x, taps), outputs = jax.lax.scan(tapped, (x, taps), (slots, stacks))
        return x, None if taps is None else taps[:-1], outputs

    def _remat(self, step: Callable) -> Callable:
        if self.config.remat == "none":
            return step
        return jax.checkpoint(step, policy=REMAT_POLICIES[self.config.remat], prevent_cse=False)

    def _plucker(self, cameras: Cameras) -> jax.Array:
        return plucker(*rays(cameras, self.config.ray_dtype))

    def _patches(self, x: jax.Array) -> jax.Array:
        """[B, V, Y, X, C] to [B, V, N, p·p·C]: patches row by row, channel fastest within one."""
        p = self.config.patch
        batch, views, height, width, channels = x.shape
        if height % p or width % p:
            raise InputError(
                f"image of {height}x{width} (height x width): both must be multiples of the patch "
                f"size {p}; resize or crop it to {height // p * p or p}x{width // p * p or p} and "
                "scale fxfycxcy along"
            )
        x = x.reshape(batch, views, height // p, p, width // p, p, channels)
        x = x.transpose(0, 1, 2, 4, 3, 5, 6)
        return x.reshape(batch, views, -1, p * p * channels).astype(self.config.dtype)

    def _unpatch(self, x: jax.Array, height: int, width: int) -> jax.Array:
        """The inverse of `_patches` for three channels."""
        p = self.config.patch
        x = x.reshape(*x.shape[:2], height // p, width // p, p, p, IMAGE_CHANNELS)
        x = x.transpose(0, 1, 2, 4, 3, 5, 6)
        return x.reshape(*x.shape[:2], height, width, IMAGE_CHANNELS)


def stack(layer: type, config: ModelConfig, init: str, rngs: nnx.Rngs) -> nnx.Module:
    """config.layers layers as one module whose parameters have a leading axis L."""
    depth_std = 0.02 / jnp.sqrt(2 * (jnp.arange(config.layers) + 1.0))

    def one(key: jax.Array, std: jax.Array) -> nnx.Module:
        return layer(config, normal(std) if init == "depth" else uniform(), rngs=nnx.Rngs(key))

    return jax.vmap(one)(jax.random.split(rngs.params(), config.layers), depth_std)


def _over_views(function: Callable, x: jax.Array, *, view_axes: object) -> object:
    """`function` on all views of x [B, V, N, D] at once, or on a CPU with long views one by one.

    Views never see each other in `function`, so both are the same. `view_axes` says where each
    output has its view axis.
    """
    at_once = x.shape[2] < CPU_TOKENS_AT_ONCE or x.shape[1] == 1 or views_are_spread()
    if at_once or platform() != "cpu":
        return function(x)
    outputs = jax.lax.map(lambda view: function(view[:, None]), jnp.moveaxis(x, 1, 0))
    return jax.tree.map(
        lambda axis, y: jnp.moveaxis(y.squeeze(axis + 1), 0, axis), view_axes, outputs
    )
