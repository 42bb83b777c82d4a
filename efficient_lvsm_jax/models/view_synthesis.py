"""What all model families share: settings, patches, tokenizers and head, self-attention layers.

Axes: B scene, V input view, T target view, Y X pixel, N patch token, D width, H head, K head dim,
L layer.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.geometry.cameras import Cameras, Views, plucker, rays
from efficient_lvsm_jax.nn.attention import IMPLEMENTATIONS
from efficient_lvsm_jax.nn.layers import (
    MLP,
    Initializer,
    LayerNorm,
    Projection,
    SelfAttention,
    normal,
)
from efficient_lvsm_jax.nn.stacks import INITS, REMAT_POLICIES

IMAGE_CHANNELS = 3
RAY_CHANNELS = 6


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """What every model is made of (first block, fixed by its weights) and how it is computed.

    Attributes:
      width: D, channels of a token; a multiple of head_dim.
      head_dim: K.
      patch: edge of a patch in pixels; image sides must be multiples of it.
      mlp_ratio: hidden channels of an MLP over width.
      ray_dtype: "float32", or "bf16_parity": rays rounded as the published training rounded them.
      attention: how attention is computed: "cpu", "xla", "cudnn" (NVIDIA GPUs, not in float32),
        "splash" (TPUs), or "auto": the best that can run where it runs. One that cannot run is an
        error, never replaced.
      compute_dtype: "float32" or "bfloat16" for matmuls and the residual stream. Parameters,
        norms, softmax and losses stay float32.
      remat: what training keeps for the backward pass: "none" (everything), "products" (what
        attention and projections return; norms, GELU and sums are computed again), "attention"
        (only attention outputs) or "full" (only layer inputs).
    """

    width: int = 768
    head_dim: int = 64
    patch: int = 8
    mlp_ratio: int = 4

    ray_dtype: str = "float32"
    compute_dtype: str = "float32"
    attention: str = "auto"
    remat: str = "none"

    def __post_init__(self):
        choices = {
            "ray_dtype": ("float32", "bf16_parity"),
            "compute_dtype": ("float32", "bfloat16"),
            "attention": ("auto", *IMPLEMENTATIONS),
            "remat": tuple(REMAT_POLICIES),
        }
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.type == "int" and (type(value) is not int or value < 1):
                raise InputError(f"model.{field.name}={value!r}: expected a positive integer")
            allowed = INITS if field.name.endswith("init") else choices.get(field.name)
            if allowed and value not in allowed:
                raise InputError(
                    f"model.{field.name}={value!r}: expected one of {', '.join(allowed)}"
                )
        if self.width % self.head_dim:
            raise InputError(
                f"model.width={self.width} is not a multiple of head_dim={self.head_dim}"
            )

    @property
    def architecture(self) -> dict[str, int]:
        """The settings that are fixed by the weights."""
        names = [field.name for field in dataclasses.fields(self) if field.type == "int"]
        return {name: getattr(self, name) for name in names}

    @property
    def dtype(self) -> jnp.dtype:
        """compute_dtype as a dtype."""
        return jnp.dtype(self.compute_dtype)


class SelfAttentionLayer(nnx.Module):
    """Self-attention within each view, or other sequence of tokens, then an MLP."""

    def __init__(
        self,
        config: ModelConfig,
        init: Initializer,
        *,
        norm_scale: bool = False,
        spread: str | None = None,
        rngs: nnx.Rngs,
    ):
        self.attention = SelfAttention(
            config.width,
            config.head_dim,
            init,
            implementation=config.attention,
            norm_scale=norm_scale,
            spread=spread,
            rngs=rngs,
        )
        hidden = config.mlp_ratio * config.width
        self.mlp = MLP(config.width, hidden, init, norm_scale=norm_scale, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.mlp(self.attention(x))


class ViewModel(nnx.Module):
    """From posed pictures and cameras to tokens, and from tokens to pictures.

    A family adds what is between: `encode(views)` to a memory of the input views, and
    `decode(memory, cameras)` to pictures.
    """

    def __init__(self, config: ModelConfig, *, norm_scale: bool = False, rngs: nnx.Rngs):
        self.config = config
        area, token = config.patch**2, normal(0.02)
        inputs, targets = area * (IMAGE_CHANNELS + RAY_CHANNELS), area * RAY_CHANNELS
        self.input_tokenizer = Projection((inputs,), (config.width,), token, rngs=rngs)
        self.target_tokenizer = Projection((targets,), (config.width,), token, rngs=rngs)
        self.head_norm = LayerNorm(config.width, scaled=norm_scale)
        self.head = Projection((config.width,), (area * IMAGE_CHANNELS,), token, rngs=rngs)

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
        x = x.reshape(*x.shape[:2], height // p, width // p, p, p, IMAGE_CHANNELS)
        x = x.transpose(0, 1, 2, 4, 3, 5, 6)
        return x.reshape(*x.shape[:2], height, width, IMAGE_CHANNELS)

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
