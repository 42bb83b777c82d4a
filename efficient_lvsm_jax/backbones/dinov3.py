"""DINOv3 (ViT-B/16): rotary positions, four storage tokens, no position table.

Axes as in `vit`; y x a patch's row and column.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from efficient_lvsm_jax.backbones.vit import TeacherConfig, VisionTransformer
from efficient_lvsm_jax.nn.rotary import Rotation


class DINOv3(VisionTransformer):
    """Tokens are the class token, storage tokens, then patches."""

    epsilon = 1e-5

    def __init__(self, config: TeacherConfig):
        super().__init__(config)
        self.prefix_tokens = 1 + config.storage_tokens
        self.storage = nnx.Param(jnp.zeros((1, config.storage_tokens, config.width)))
        # Stored, not computed: the published ones are rounded to bfloat16.
        self.periods = nnx.Param(jnp.zeros((config.head_dim // 4,)))

    def patch_grid(self, grid: tuple[int, int]) -> tuple[int, int]:
        """One patch for each token of the student."""
        return grid

    def embed(self, images: jax.Array, grid: tuple[int, int]) -> tuple[jax.Array, Rotation]:
        """See `VisionTransformer.embed`."""
        patches, patch_grid = self.embed_patches(images)
        prefix = (self.repeat(x[...], len(images)) for x in (self.cls, self.storage))
        return jnp.concatenate([*prefix, patches], axis=1), self.rotation(patch_grid)

    def rotation(self, patch_grid: tuple[int, int]) -> Rotation:
        """Cosine and sine [T, K] of every token's angles; the prefix is not turned.

        A patch's row and column run from -1 to 1, each by its own axis; training's random scale of
        them is left out. The first quarter of channels turns with the row, the second with the
        column, and the other half repeats them.
        """
        y, x = (2 * (jnp.arange(size) + 0.5) / size - 1 for size in patch_grid)
        rows, columns = (2 * jnp.pi * at[:, None] / self.periods[...] for at in (y, x))
        shape = (*patch_grid, rows.shape[-1])
        angles = jnp.concatenate(
            [jnp.broadcast_to(rows[:, None], shape), jnp.broadcast_to(columns, shape)], axis=-1
        )
        angles = jnp.tile(angles.reshape(-1, angles.shape[-1]), 2)
        angles = jnp.pad(angles, ((self.prefix_tokens, 0), (0, 0)))
        return jnp.cos(angles), jnp.sin(angles)
