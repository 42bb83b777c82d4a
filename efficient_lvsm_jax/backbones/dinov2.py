"""DINOv2 (ViT-B/14, or with registers): a learned position table, resized twice.

Axes as in `vit`.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from efficient_lvsm_jax.backbones.vit import TeacherConfig, VisionTransformer
from efficient_lvsm_jax.nn.resize import bicubic, bicubic_antialiased

# Added to the number of patches before it becomes a factor; it shifts all samples a little.
POSITION_OFFSET = 0.1


class DINOv2(VisionTransformer):
    """Tokens are the class token, registers if there are any, then patches."""

    epsilon = 1e-6

    def __init__(self, config: TeacherConfig):
        super().__init__(config)
        self.prefix_tokens = 1 + config.storage_tokens
        storage = (1, config.storage_tokens, config.width)
        self.storage = nnx.Param(jnp.zeros(storage)) if config.storage_tokens else None
        self.positions = nnx.Param(jnp.zeros((1, 1 + config.position_side**2, config.width)))

    def patch_grid(self, grid: tuple[int, int]) -> tuple[int, int]:
        """Three patches for four tokens of the student, as published: 24 for 32; at least one."""
        return tuple(max(1, (3 * size + 2) // 4) for size in grid)

    def embed(self, images: jax.Array, grid: tuple[int, int]) -> tuple[jax.Array, None]:
        """See `VisionTransformer.embed`."""
        patches, patch_grid = self.embed_patches(images)
        tokens = jnp.concatenate([self.repeat(self.cls[...], len(images)), patches], axis=1)
        tokens = tokens + self.position_table(patch_grid, grid)
        if self.storage is not None:  # registers have no position
            registers = self.repeat(self.storage[...], len(images))
            tokens = jnp.concatenate([tokens[:, :1], registers, tokens[:, 1:]], axis=1)
        return tokens, None

    def position_table(self, patch_grid: tuple[int, int], grid: tuple[int, int]) -> jax.Array:
        """Positions [1, T, D] of an image of `patch_grid`.

        The published program resizes the table to the student's `grid` when it builds the teacher
        (timm's rule), and to the image's patches when it runs it (DINOv2's). Without a student
        `grid` is the image's own, so that only the first is done, as VGGT does it. The entry of the
        class token is left alone.
        """
        table = self.positions[...]
        side = self.config.position_side
        patches = bicubic_antialiased(table[:, 1:].reshape(1, side, side, -1), grid)
        if patch_grid != grid:
            factor = tuple(
                (new + POSITION_OFFSET) / old for new, old in zip(patch_grid, grid, strict=True)
            )
            patches = bicubic(patches, patch_grid, factor=factor)
        patches = patches.reshape(1, patch_grid[0] * patch_grid[1], -1)
        return jnp.concatenate([table[:, :1], patches], axis=1)
