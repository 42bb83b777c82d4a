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
from efficient_lvsm_jax.nn.blocks import Block, LayerNorm, Linear
from efficient_lvsm_jax.nn.rotary import Rotation
from efficient_lvsm_jax.nn.sparsity import Sparsity
from efficient_lvsm_jax.nn.watching import scan


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
      storage_tokens: DINOv3's tokens between the class token and the patches, DINOv2's registers.
      position_side: DINOv2's position table is for so many patches squared.
      final_norm: whether the norm after the last layer is there, see `patch_tokens`.
      attention: how it is computed, see `nn.attention.attend`.
      sparsity: of it, see `nn.sparse_linear`; None: it is dense.
    """

    family: str
    width: int = 768
    head_dim: int = 64
    layers: int = 12
    hidden: int = 3072
    patch: int = 16
    storage_tokens: int = 0
    position_side: int = 0
    final_norm: bool = False
    attention: str = "auto"
    sparsity: Sparsity | None = None

    def __post_init__(self):
        if self.width % self.head_dim:
            raise InputError(f"width {self.width} is not a multiple of head_dim {self.head_dim}")


class VisionTransformer(nnx.Module):
    """Patch embedding and layers. Families add their tokens and positions in `embed`."""

    epsilon: float  # of every norm
    prefix_tokens: int

    def __init__(self, config: TeacherConfig):
        self.config = config
        patch = (config.patch, config.patch, 3)
        self.patches = Linear((*patch, config.width), (config.width,))
        self.cls = nnx.Param(jnp.zeros((1, 1, config.width)))

        def block(_: jax.Array) -> Block:
            sizes = config.width, config.head_dim, config.hidden
            return Block(*sizes, self.epsilon, attention=config.attention, sparsity=config.sparsity)

        self.blocks = jax.vmap(block)(jnp.arange(config.layers))
        self.norm = LayerNorm(config.width, self.epsilon) if config.final_norm else None

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

    def patch_tokens(self, images: jax.Array) -> jax.Array:
        """Patch tokens [I, N, D] after all layers and the final norm, float32; images as above."""
        grid = tuple(size // self.config.patch for size in images.shape[1:3])
        x, rotation = self.embed(images, grid)
        x, _ = scan(lambda x, block: (block(x, rotation), None), x, self.blocks)
        return self.norm(x[:, self.prefix_tokens :])

    def embed_patches(self, images: jax.Array) -> tuple[jax.Array, tuple[int, int]]:
        """Patches of images [I, Y, X, 3] as tokens [I, N, D], float32, and their rows, columns."""
        p = self.config.patch
        count, height, width, _ = images.shape
        if height % p or width % p:
            raise InputError(
                f"an image of {height}x{width} (height x width): both must be multiples "
                f"of the patch size {p}"
            )
        rows, columns = height // p, width // p
        pixels = images.reshape(count, rows, p, columns, p, 3)
        tokens = self.patches("IyYxXC,YXCD->IyxD", pixels).reshape(count, rows * columns, -1)
        return tokens.astype(jnp.float32), (rows, columns)

    def repeat(self, tokens: jax.Array, count: int) -> jax.Array:
        """Prefix tokens [1, P, D] for `count` images."""
        return jnp.broadcast_to(tokens, (count, *tokens.shape[1:]))
