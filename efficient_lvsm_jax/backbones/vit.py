"""What the two teachers share: a vision transformer, frozen, read off after some of its layers.

Nothing here is trained and nothing is random. Parameters are made as zeros for their shapes alone;
values come from `weights.backbones`. Matrices (every `kernel`) may be bfloat16, then products with
them are; norms, softmax and the residual stream are float32.

Axes: I image, Y X pixel, T token (prefix first, then patches row by row), D width, H head,
K head dim, F hidden channels of an MLP, L layer.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.nn.attention import attend
from efficient_lvsm_jax.nn.layers import gelu
from efficient_lvsm_jax.nn.paged import Pages

Rotation = tuple[jax.Array, jax.Array]


@dataclasses.dataclass(frozen=True)
class TeacherConfig:
    """What a teacher is; fixed by its weights.

    Attributes:
      family: "dinov3" or "dinov2".
      width: D.
      head_dim: K.
      layers: L.
      hidden: F.
      patch: edge of a patch in pixels.
      storage_tokens: DINOv3's tokens between the class token and the patches.
      position_side: DINOv2's position table is for so many patches squared.
    """

    family: str
    width: int = 768
    head_dim: int = 64
    layers: int = 12
    hidden: int = 3072
    patch: int = 16
    storage_tokens: int = 0
    position_side: int = 0

    def __post_init__(self):
        if self.width % self.head_dim:
            raise InputError(f"width {self.width} is not a multiple of head_dim {self.head_dim}")


class Linear(nnx.Module):
    """A linear map with bias; the caller names the axes. Computed in the dtype of its kernel."""

    def __init__(self, kernel: tuple[int, ...], bias: tuple[int, ...]):
        self.kernel = nnx.Param(jnp.zeros(kernel))
        self.bias = nnx.Param(jnp.zeros(bias))

    def __call__(self, axes: str, x: jax.Array) -> jax.Array:
        kernel = self.kernel[...]
        return jnp.einsum(axes, x.astype(kernel.dtype), kernel) + self.bias[...].astype(
            kernel.dtype
        )


class LayerNorm(nnx.Module):
    """LayerNorm over the last axis with scale and bias, in float32."""

    def __init__(self, width: int, epsilon: float):
        self.epsilon = epsilon
        self.scale = nnx.Param(jnp.zeros((width,)))
        self.bias = nnx.Param(jnp.zeros((width,)))

    def __call__(self, x: jax.Array) -> jax.Array:
        centred = x - x.mean(axis=-1, keepdims=True)
        variance = jnp.square(centred).mean(axis=-1, keepdims=True)
        return centred * jax.lax.rsqrt(variance + self.epsilon) * self.scale[...] + self.bias[...]


class Block(nnx.Module):
    """Attention among the tokens of an image, then an MLP; each with LayerNorm and LayerScale."""

    def __init__(self, config: TeacherConfig, epsilon: float):
        width, hidden = config.width, config.hidden
        heads = (width // config.head_dim, config.head_dim)
        self.norm1 = LayerNorm(width, epsilon)
        self.qkv = Linear((width, 3, *heads), (3, *heads))
        self.out = Linear((*heads, width), (width,))
        self.scale1 = nnx.Param(jnp.zeros((width,)))
        self.norm2 = LayerNorm(width, epsilon)
        self.up = Linear((width, hidden), (hidden,))
        self.down = Linear((hidden, width), (width,))
        self.scale2 = nnx.Param(jnp.zeros((width,)))

    def __call__(self, x: jax.Array, rotation: Rotation | None) -> jax.Array:
        """x [I, T, D] to the same; `rotation` turns queries and keys, see `rotate`."""
        qkv = self.qkv("ITD,DCHK->ITCHK", self.norm1(x))
        q, k, v = jnp.einsum("ITCHK->CIHTK", qkv)
        if rotation is not None:
            q, k = rotate(q, rotation), rotate(k, rotation)
        mixed = attend(q, Pages(k[:, :, None], v[:, :, None]))
        x = x + self.scale1[...] * self.out("IHTK,HKD->ITD", mixed)
        hidden = gelu(self.up("ITD,DF->ITF", self.norm2(x)))
        return x + self.scale2[...] * self.down("ITF,FD->ITD", hidden)


def rotate(x: jax.Array, rotation: Rotation) -> jax.Array:
    """Turns channel c of x [I, H, T, K] against channel c + K/2, in float32.

    `rotation` is the cosine and sine of every token's angles, each [T, K].
    """
    cosine, sine = rotation
    wide = x.astype(jnp.float32)
    low, high = jnp.split(wide, 2, axis=-1)
    turned = jnp.concatenate([-high, low], axis=-1)
    return (wide * cosine + turned * sine).astype(x.dtype)


class VisionTransformer(nnx.Module):
    """Patch embedding and layers. Families add their tokens and positions in `embed`."""

    epsilon: float  # of every norm
    prefix_tokens: int

    def __init__(self, config: TeacherConfig):
        self.config = config
        patch = (config.patch, config.patch, 3)
        self.patches = Linear((*patch, config.width), (config.width,))
        self.cls = nnx.Param(jnp.zeros((1, 1, config.width)))
        self.blocks = jax.vmap(lambda _: Block(config, self.epsilon))(jnp.arange(config.layers))

    def embed(self, images: jax.Array, grid: tuple[int, int]) -> tuple[jax.Array, Rotation | None]:
        """Tokens [I, T, D] of images [I, Y, X, 3], and how queries and keys are turned."""
        raise NotImplementedError  # each family has its own

    def patch_grid(self, grid: tuple[int, int]) -> tuple[int, int]:
        """Patches (rows, columns) this teacher should see for a student with `grid` tokens."""
        raise NotImplementedError  # each family has its own

    def features(
        self, images: jax.Array, layers: tuple[int, ...], grid: tuple[int, int]
    ) -> jax.Array:
        """Patch tokens after some layers: the residual stream itself, not normed.

        Args:
          images: [I, Y, X, 3], normalised with ImageNet's mean and deviation; sides are multiples
            of the patch.
          layers: counted from 1, ascending. Later ones are not computed.
          grid: tokens (rows, columns) of the student; DINOv2's position table depends on it.

        Returns:
          [len(layers), I, patches, D], float32.

        Raises:
          InputError: layers that do not exist or are not ascending, or an image that is no whole
            number of patches.
        """
        if not layers or list(layers) != sorted(set(layers)) or layers[0] < 1:
            raise InputError(f"teacher layers {layers}: expected ascending numbers from 1")
        if layers[-1] > self.config.layers:
            raise InputError(
                f"teacher layer {layers[-1]} is not there: {self.config.family} was loaded with "
                f"{self.config.layers} layers"
            )
        x, rotation = self.embed(images, grid)

        def step(x: jax.Array, block: Block) -> tuple[jax.Array, None]:
            return block(x, rotation), None

        taps = []
        for start, stop in zip((0, *layers), layers, strict=False):
            part = jax.tree.map(lambda p, a=start, b=stop: p[a:b], self.blocks)
            x, _ = jax.lax.scan(step, x, part)
            taps.append(x[:, self.prefix_tokens :])
        return jnp.stack(taps)

    def embed_patches(self, images: jax.Array) -> tuple[jax.Array, tuple[int, int]]:
        """Patches of images [I, Y, X, 3] as tokens [I, N, D], float32, and their rows, columns."""
        p = self.config.patch
        count, height, width, _ = images.shape
        if height % p or width % p:
            raise InputError(
                f"a teacher's image of {height}x{width} (height x width): both must be multiples "
                f"of its patch size {p}"
            )
        rows, columns = height // p, width // p
        pixels = images.reshape(count, rows, p, columns, p, 3)
        tokens = self.patches("IyYxXC,YXCD->IyxD", pixels).reshape(count, rows * columns, -1)
        return tokens.astype(jnp.float32), (rows, columns)

    def repeat(self, tokens: jax.Array, count: int) -> jax.Array:
        """Prefix tokens [1, P, D] for `count` images."""
        return jnp.broadcast_to(tokens, (count, *tokens.shape[1:]))
