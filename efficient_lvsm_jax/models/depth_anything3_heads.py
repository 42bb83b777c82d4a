"""What Depth Anything 3 reads cameras in with, and what it tells cameras and rays with.

All are computed in float32.

Axes: B scene, R view, I image, Y X pixel, D width of tokens, E channels, C channel.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from efficient_lvsm_jax.geometry.pose_encoding import USUAL_CAMERA
from efficient_lvsm_jax.nn.blocks import Block, LayerNorm, Linear
from efficient_lvsm_jax.nn.dpt import LAST_CHANNELS, Conv, Fusions, fusion_flops, placed
from efficient_lvsm_jax.nn.flops import Flops, convolution
from efficient_lvsm_jax.nn.initial import begin_near
from efficient_lvsm_jax.nn.layers import gelu
from efficient_lvsm_jax.nn.watching import scan

ENCODING = 9  # numbers of a camera, see `geometry.pose_encoding`
RAY = 7  # direction, origin, confidence
RAY_CONVOLUTIONS = 5


class CameraEncoder(nnx.Module):
    """Known cameras to a token each, which takes the place of the view's own camera token.

    Args:
      width: D.
      heads: of attention among the views.
      layers: of it.
    """

    def __init__(self, width: int, heads: int, layers: int):
        self.up = Linear((ENCODING, width // 2), (width // 2,))
        self.down = Linear((width // 2, width), (width,))
        self.token_norm = LayerNorm(width, 1e-5)
        self.trunk = jax.vmap(lambda _: Block(width, width // heads, 4 * width, 1e-5))(
            jnp.arange(layers)
        )
        self.trunk_norm = LayerNorm(width, 1e-5)

    def __call__(self, encodings: jax.Array) -> jax.Array:
        """Encodings [B, R, 9] to tokens [B, R, D]."""
        hidden = gelu(self.up("BRC,CE->BRE", encodings))
        x = self.token_norm(self.down("BRE,ED->BRD", hidden))
        x, _ = scan(lambda x, block: (block(x, None), None), x, self.trunk)
        return self.trunk_norm(x)


class CameraDecoder(nnx.Module):
    """Camera tokens [B, R, E] to encodings [B, R, 9], fields of view not below 0."""

    def __init__(self, width: int):
        self.hidden1 = Linear((width, width), (width,))
        self.hidden2 = Linear((width, width), (width,))
        self.translation = Linear((width, 3), (3,))
        self.quaternion = Linear((width, 4), (4,))
        self.field_of_view = Linear((width, 2), (2,))

    def begin(self) -> None:
        """Lets drawn cameras begin near USUAL_CAMERA: fields of view below 0 would stay."""
        begin_near(self.translation, USUAL_CAMERA[:3])
        begin_near(self.quaternion, USUAL_CAMERA[3:7])
        begin_near(self.field_of_view, USUAL_CAMERA[7:])

    def __call__(self, tokens: jax.Array) -> jax.Array:
        x = tokens
        for hidden in (self.hidden1, self.hidden2):
            x = jax.nn.relu(hidden("BRD,DE->BRE", x))
        parts = [
            part("BRE,EC->BRC", x)
            for part in (self.translation, self.quaternion, self.field_of_view)
        ]
        return jnp.concatenate([*parts[:2], jax.nn.relu(parts[2])], axis=-1)


class RayHead(Fusions):
    """The levels of a DPT head to a ray for every pixel of the finest map."""

    def __init__(self, features: int):
        super().__init__(features, to_relu=False)
        few = features // 2
        for number in range(1, RAY_CONVOLUTIONS + 1):
            inputs, outputs = (features, few) if number % 2 else (few, features)
            setattr(self, f"neck{number}", Conv(3, inputs, outputs))
        self.last1 = Conv(3, few, LAST_CHANNELS)
        self.norm = LayerNorm(LAST_CHANNELS, 1e-5)
        self.last2 = Conv(1, LAST_CHANNELS, RAY)

    def __call__(self, levels: list[jax.Array], size: tuple[int, int]) -> jax.Array:
        """Levels as `DPT.reduced` has them, of pictures of `size` (Y, X), to rays.

        Returns:
          [I, Y, X, 7]: direction and origin in the world, and what is confidence after 1 + exp.
        """
        x = placed(self.necked(self.fuse(levels)[-1]), size)
        return self.last2(jax.nn.relu(self.norm(self.last1(x))))

    def necked(self, x: jax.Array) -> jax.Array:
        """What was fused last, after five convolutions without anything between them."""
        for number in range(1, RAY_CONVOLUTIONS + 1):
            x = getattr(self, f"neck{number}")(x)
        return x


def ray_flops(features: int, sizes: list[tuple[int, int]]) -> Flops:
    """FLOPs of a `RayHead` for levels of these sizes (Y, X), finest first."""
    few, last = features // 2, tuple(2 * side for side in sizes[0])
    convolutions = convolution(3, features, few, last) * RAY_CONVOLUTIONS
    convolutions += convolution(3, few, LAST_CHANNELS, last)
    convolutions += convolution(1, LAST_CHANNELS, RAY, last)
    return fusion_flops(features, sizes) + convolutions
