"""What all model families share: settings, patches, tokenizers and head, self-attention layers.

Axes: B scene, V input view, T target view, Y X pixel, N patch token, D width, H head, K head dim,
L layer.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from efficient_lvsm_jax.configuration import Settings, setting
from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.geometry.cameras import Cameras, Views, plucker, rays
from efficient_lvsm_jax.nn.attention import IMPLEMENTATIONS
from efficient_lvsm_jax.nn.flops import Flops, projections
from efficient_lvsm_jax.nn.layers import (
    MLP,
    Initializer,
    LayerNorm,
    Projection,
    SelfAttention,
    normal,
)
from efficient_lvsm_jax.nn.positions import KINDS, Positions
from efficient_lvsm_jax.nn.sparsity import Sparsity, attention_flops, in_strips, placed
from efficient_lvsm_jax.nn.stacks import REMAT_POLICIES

IMAGE_CHANNELS = 3
RAY_CHANNELS = 6


@dataclasses.dataclass(frozen=True)
class LayerUnits:
    """What a layer keeps for the backward pass on one view, in arrays [N, D] of it.

    Attributes:
      self_attention: a layer of self-attention and MLP.
      cross_attention: one with cross-attention besides.
      keys_values: keys and values of a view that wait for another layer, and their gradients.
    """

    self_attention: float
    cross_attention: float
    keys_values: float


@dataclasses.dataclass(frozen=True)
class ModelConfig(Settings):
    """What every model is made of (first block, fixed by its weights) and how it is computed.

    Attributes:
      width: D, channels of a token; a multiple of head_dim.
      head_dim: K, channels of an attention head.
      patch: edge of a patch in pixels; image sides must be multiples of it.
      mlp_ratio: hidden channels of an MLP over width.
      positions: what attention is told of where tokens are, see `nn.positions`: "none", as
        published; "rotary", the patches in their pictures; "prope", these and relative cameras.
      rays: that tokens are made of: "scene", Plücker coordinates in the scene's frame, as
        published; with "prope" also "camera", in that of their own camera, or "none", ones instead.
      ray_dtype: "float32", or "bf16_parity": rays rounded as the published training rounded them.
      attention_sparsity: where attention is sparse, and how, see `nn.sparsity.placed`, of
        the family's `places`, as in "cross=0.3"; each then has a projection P of its own.
      attention: how attention is computed: "cpu", "xla", "cudnn" (NVIDIA GPUs, not in float32),
        "splash" (TPUs), or "auto": the best that can run where it runs. One that cannot run is an
        error, never replaced.
      compute_dtype: "float32" or "bfloat16" for matmuls and the residual stream. Parameters,
        norms, softmax and losses stay float32.
      remat: what training keeps for the backward pass: "none" (everything), "products" (what
        attention and projections return; norms, GELU and sums are computed again), "attention"
        (only attention outputs) or "full" (only layer inputs).
      scan_layers: layers are one loop of a program, which compiles fast. False writes them out: the
        same numbers, several times as long to compile, and nothing is copied between layers.
    """

    group = "model"
    paged: ClassVar[bool] = False  # memory is a cache, `nn.paged.Pages`: views come and go in it
    tapped: ClassVar[bool] = False  # has encode_with_taps and decode_with_taps, which REPA needs
    places: ClassVar[tuple[str, ...]] = ()  # where attention may be sparse
    # That weights fix and no shape shows.
    unshown_settings: ClassVar[tuple[str, ...]] = (
        *("positions", "rays", "ray_dtype"),
        "attention_sparsity",
    )

    width: int = setting(768, at_least=1)
    head_dim: int = setting(64, at_least=1)
    patch: int = setting(8, at_least=1)
    mlp_ratio: int = setting(4, at_least=1)

    positions: str = setting("none", choices=KINDS)
    rays: str = setting("scene", choices=("scene", "camera", "none"))
    ray_dtype: str = setting("float32", choices=("float32", "bf16_parity"))
    attention_sparsity: str = ""
    compute_dtype: str = setting("float32", choices=("float32", "bfloat16"))
    attention: str = setting("auto", choices=("auto", *IMPLEMENTATIONS))
    remat: str = setting("none", choices=REMAT_POLICIES)
    scan_layers: bool = True

    def __post_init__(self):
        super().__post_init__()
        if self.width % self.head_dim:
            raise InputError(
                f"model.width={self.width} is not a multiple of head_dim={self.head_dim}"
            )
        if self.head_dim % KINDS[self.positions]:
            raise InputError(
                f"model.head_dim={self.head_dim}: positions={self.positions!r} needs a multiple of "
                f"{KINDS[self.positions]}"
            )
        if self.rays != "scene" and self.positions != "prope":
            raise InputError(
                f"model.rays={self.rays!r} says nothing of where cameras are, so it needs "
                f"model.positions='prope', not {self.positions!r}"
            )
        if (cross := self.sparsity("cross")) and cross.by != "block":
            raise InputError(
                f"model.attention_sparsity={self.attention_sparsity!r}: a cache is read in blocks; "
                f"name them, as in cross=0.3:block64, not by {cross.by!r}"
            )

    def sparsity(self, place: str) -> Sparsity | None:
        """How attention is sparse at one of `places`; None: it is dense."""
        return placed(self.attention_sparsity, self.places).get(place)

    def token_order(self, height: int, width: int) -> np.ndarray | None:
        """In which order tokens of a picture are where attention is sparse, [N] indices of patches
        row by row, see `nn.sparsity.in_strips`; None: row by row."""
        sparsities = placed(self.attention_sparsity, self.places).values()
        if not sparsities:
            return None
        block = min(sparsity.key_block for sparsity in sparsities)
        return in_strips(height // self.patch, width // self.patch, block)

    @property
    def architecture(self) -> dict[str, int]:
        """The settings that are fixed by the weights."""
        names = [field.name for field in dataclasses.fields(self) if field.type == "int"]
        return {name: getattr(self, name) for name in names}

    @property
    def dtype(self) -> jnp.dtype:
        """compute_dtype as a dtype."""
        return jnp.dtype(self.compute_dtype)

    def encode_flops(self, inputs: int, pixels: int) -> dict[str, Flops]:
        """Input views of one scene to a memory.

        Args:
          inputs: V.
          pixels: of one view, height * width.

        Returns:
          FLOPs by part, of those that the family has: encoder attention, decoder self-attention,
          decoder cross-attention (each with its projections; keys and values of a cache count as
          the last), MLP, tokenizers and head.
        """
        raise NotImplementedError  # each family has its own

    def decode_flops(self, inputs: int, targets: int, pixels: int) -> dict[str, Flops]:
        """Target cameras of one scene to images, through a memory of `inputs` views; T targets."""
        raise NotImplementedError  # each family has its own

    def recomputed_projections(self, inputs: int, targets: int, tokens: int) -> Flops:
        """All projections of layers but an MLP's second if the next layer's input, which is kept,
        is what it adds up to; of one scene with N tokens a view."""
        raise NotImplementedError  # each family has its own

    def activation_units(
        self, layer: LayerUnits, inputs: int, targets: int, tokens: int
    ) -> tuple[float, float]:
        """Of a training step on one scene with N tokens a view: what is kept for the backward pass
        and what is in use at once at its peak, both in arrays [N, D] of one view."""
        raise NotImplementedError  # each family has its own

    def layers_flops(self, attention: str, tokens: int, times: int) -> dict[str, Flops]:
        """Layers of self-attention, under that name, and MLP on sequences of so many tokens.

        The name begins with the place, see `sparsity`.
        """
        place = attention.split()[0]
        mlp = projections(self.width, tokens, 2 * self.mlp_ratio)
        own = projections(self.width, tokens, 4) + attention_flops(
            self.sparsity(place), self.width, self.head_dim, tokens, tokens
        )
        return {attention: own * times, "MLP": mlp * times}

    def pixels_flops(self, pixels: int, channels: int) -> Flops:
        """A tokenizer, or the head, on one view: patch² pixels a token."""
        return Flops(linear=2 * pixels * channels * self.width)


class SelfAttentionLayer(nnx.Module):
    """Self-attention within each view, or other sequence of tokens, then an MLP."""

    def __init__(
        self,
        config: ModelConfig,
        init: Initializer,
        *,
        norm_scale: bool = False,
        spread: str | None = None,
        sparsity: Sparsity | None = None,
        rngs: nnx.Rngs,
    ):
        self.attention = SelfAttention(
            config.width,
            config.head_dim,
            init,
            implementation=config.attention,
            norm_scale=norm_scale,
            spread=spread,
            sparsity=sparsity,
            rngs=rngs,
        )
        hidden = config.mlp_ratio * config.width
        self.mlp = MLP(config.width, hidden, init, norm_scale=norm_scale, rngs=rngs)

    def __call__(self, x: jax.Array, positions: Positions | None = None) -> jax.Array:
        return self.mlp(self.attention(x, positions))


class ViewModel(nnx.Module):
    """From posed images and cameras to tokens, and from tokens to images.

    A family adds what is between: `encode` and `decode`.
    """

    float32: tuple[str, ...] = ()  # as of `SceneGeometry`

    def __init__(self, config: ModelConfig, *, norm_scale: bool = False, rngs: nnx.Rngs):
        self.config = config
        area, token = config.patch**2, normal(0.02)
        inputs, targets = area * (IMAGE_CHANNELS + RAY_CHANNELS), area * RAY_CHANNELS
        self.input_tokenizer = Projection((inputs,), (config.width,), token, rngs=rngs)
        self.target_tokenizer = Projection((targets,), (config.width,), token, rngs=rngs)
        self.head_norm = LayerNorm(config.width, scaled=norm_scale)
        self.head = Projection((config.width,), (area * IMAGE_CHANNELS,), token, rngs=rngs)

    def encode(self, views: Views) -> Any:
        """Input views [B, V, …] to a memory of them, for `decode`."""
        raise NotImplementedError  # each family has its own

    def decode(self, memory: Any, cameras: Cameras) -> jax.Array:
        """Cameras [B, T] seen through a memory: images [B, T, Y, X, 3] in [0, 1], float32."""
        raise NotImplementedError  # each family has its own

    def input_tokens(self, views: Views) -> jax.Array:
        """Posed images [B, V, Y, X, 3] to tokens [B, V, N, D] (rgb scaled to ±1, o×d, d)."""
        pixels = jnp.concatenate([views.image * 2 - 1, self._plucker(views.cameras)], axis=-1)
        return self.input_tokenizer(self._patches(pixels))

    def target_tokens(self, cameras: Cameras) -> jax.Array:
        """Cameras [B, T] to tokens [B, T, N, D] (o×d, d)."""
        return self.target_tokenizer(self._patches(self._plucker(cameras)))

    def pictures(self, x: jax.Array, cameras: Cameras) -> jax.Array:
        """Tokens [B, T, N, D] to images [B, T, Y, X, 3] in [0, 1], float32."""
        p, height, width = self.config.patch, cameras.height, cameras.width
        x = jax.nn.sigmoid(self.head(self.head_norm(x))).astype(jnp.float32)
        x = self.row_by_row(x, height, width)
        x = x.reshape(*x.shape[:2], height // p, width // p, p, p, IMAGE_CHANNELS)
        x = x.transpose(0, 1, 2, 4, 3, 5, 6)
        return x.reshape(*x.shape[:2], height, width, IMAGE_CHANNELS)

    def positions(self, cameras: Cameras) -> Positions | None:
        """Of the tokens of views with these cameras [B, V], if attention is told of any."""
        config = self.config
        positions = Positions.of(config.positions, cameras, config.patch, config.head_dim)
        order = config.token_order(cameras.height, cameras.width)
        if positions is None or order is None:
            return positions
        turns = (jnp.take(x, order, axis=2) for x in (positions.cosine, positions.sine))
        return Positions(*turns, positions.projection, positions.inverse)

    def row_by_row(self, x: jax.Array, height: int, width: int) -> jax.Array:
        """Tokens [..., N, D] of pictures, as layers have them, in the order of their patches."""
        order = self.config.token_order(height, width)
        return x if order is None else jnp.take(x, np.argsort(order), axis=-2)

    def _plucker(self, cameras: Cameras) -> jax.Array:
        if self.config.rays == "none":
            return jnp.ones((*cameras.c2w.shape[:2], cameras.height, cameras.width, RAY_CHANNELS))
        if self.config.rays == "camera":
            own = jnp.broadcast_to(jnp.eye(4), cameras.c2w.shape)
            cameras = dataclasses.replace(cameras, c2w=own)
        return plucker(*rays(cameras, self.config.ray_dtype))

    def _patches(self, x: jax.Array) -> jax.Array:
        """[B, V, Y, X, C] to [B, V, N, p·p·C]: patches row by row, or in the model's `token_order`,
        channel fastest within one."""
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
        x = x.reshape(batch, views, -1, p * p * channels).astype(self.config.dtype)
        order = self.config.token_order(height, width)
        return x if order is None else jnp.take(x, order, axis=2)
