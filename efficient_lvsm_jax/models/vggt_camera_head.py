"""VGGT's camera head: a camera's encoding, refined several times, from one token of every frame.

Axes: B scene, R frame of this call, S slot of the memory, I iteration, E channels, H head,
K head dim, L layer.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from efficient_lvsm_jax.geometry.pose_encoding import USUAL_CAMERA
from efficient_lvsm_jax.models.scene_geometry import Sight
from efficient_lvsm_jax.nn.blocks import Block, LayerNorm, Linear
from efficient_lvsm_jax.nn.initial import begin_near
from efficient_lvsm_jax.nn.layers import gelu
from efficient_lvsm_jax.nn.paged import Pages
from efficient_lvsm_jax.nn.sparsity import Sparsity
from efficient_lvsm_jax.nn.watching import scan

ENCODING = 9  # numbers of a camera, see `geometry.pose_encoding`
# Which iterations a frame of a stream sees of the frames before: the same one, as in training, or
# all of them, as the published program does.
CACHES = ("separate", "published")


class CameraHead(nnx.Module):
    """The head. Computed in float32.

    Args:
      width: E.
      heads: of the trunk.
      layers: of the trunk, L.
      iterations: I.
      cache: one of CACHES.
      sparsity: of the trunk's attention; None: it is dense.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        layers: int,
        iterations: int,
        cache: str,
        sparsity: Sparsity | None = None,
    ):
        self.iterations, self.cache = iterations, cache
        self.token_norm = LayerNorm(width, 1e-5)
        self.empty = nnx.Param(jnp.zeros((ENCODING,)))
        self.embed = Linear((ENCODING, width), (width,))
        self.modulation = Linear((width, 3, width), (3, width))
        sizes = width, width // heads, 4 * width
        self.trunk = jax.vmap(lambda _: Block(*sizes, 1e-5, sparsity=sparsity))(jnp.arange(layers))
        self.trunk_norm = LayerNorm(width, 1e-5)
        self.up = Linear((width, width // 2), (width // 2,))
        self.down = Linear((width // 2, ENCODING), (ENCODING,))

    def begin(self) -> None:
        """Lets drawn cameras begin near USUAL_CAMERA: fields of view below 0 would stay."""
        begin_near(self.down, jnp.array(USUAL_CAMERA) / self.iterations)

    def __call__(
        self, tokens: jax.Array, sight: Sight, pages: Pages | None
    ) -> tuple[jax.Array, Pages | None]:
        """Tokens to encodings.

        Args:
          tokens: of the cameras, [B, R, E].
          sight: of the frames.
          pages: keys and values of those before, [L, B, H, S·I, 1, K], or None without memory.

        Returns:
          Encodings after every iteration, [I, B, R, 9] float32, the last being the best; pages with
          these frames added.
        """
        frames = tokens.shape[1]
        if sight.slots is None or self.cache == "separate" or frames == 1:
            return self._refine(tokens, sight, pages)

        # Of the frame before all iterations are wanted, so it has to be done.
        def one(pages: Pages, frame: tuple) -> tuple:
            token, slot, reads = frame
            here = dataclasses.replace(sight, slots=slot[None], reads=reads[None])
            encodings, pages = self._refine(token[:, None], here, pages)
            return pages, encodings[:, :, 0]

        reads = jnp.broadcast_to(sight.reads, (frames, sight.reads.shape[1]))
        each = jnp.moveaxis(tokens, 1, 0), sight.slots, reads
        pages, encodings = jax.lax.scan(one, pages, each)
        return jnp.moveaxis(encodings, 0, 2), pages

    def _refine(
        self, tokens: jax.Array, sight: Sight, pages: Pages | None
    ) -> tuple[jax.Array, Pages | None]:
        tokens = self.token_norm(tokens)
        plain = normed(tokens)

        def iteration(carry: tuple, index: jax.Array) -> tuple:
            encoding, pages = carry
            encoding = jax.lax.stop_gradient(encoding)
            known = jnp.where(index == 0, self.empty[...], encoding)
            x = self.modulated(tokens, plain, known)
            x, pages = self._attend(x, self._within(sight, index), pages)
            hidden = gelu(self.up("BRE,EF->BRF", self.trunk_norm(x)))
            encoding = encoding + self.down("BRF,FC->BRC", hidden)
            return (encoding, pages), activated(encoding)

        start = jnp.zeros((*tokens.shape[:2], ENCODING))
        (_, pages), encodings = scan(iteration, (start, pages), jnp.arange(self.iterations))
        return encodings, pages

    def modulated(self, tokens: jax.Array, plain: jax.Array, known: jax.Array) -> jax.Array:
        """Normed tokens [B, R, E] as the trunk gets them, by what is known of encodings [B, R, 9].

        `plain` is a norm of them without parameters.
        """
        condition = jax.nn.silu(self.embed("BRC,CE->BRE", known))
        modulation = self.modulation("BRD,DME->BRME", condition)
        shift, scale, gate = jnp.moveaxis(modulation, 2, 0)
        return tokens + gate * (plain * (1 + scale) + shift)

    def _attend(self, x: jax.Array, sight: Sight, pages: Pages | None) -> tuple:
        """x [B, R, E] through the trunk."""

        def step(carry: tuple, xs: tuple) -> tuple:
            x, pages = carry
            block, layer = xs
            q, k, v = block.heads(x, None)
            k, v = k[:, :, :, None], v[:, :, :, None]
            mixed, pages = sight.attend(q, k, v, pages, layer, block.sparse)
            return (block.add(x, mixed), pages), None

        layers = self.trunk.scale1.shape[0]
        (x, pages), _ = scan(step, (x, pages), (self.trunk, jnp.arange(layers)))
        return x, pages

    def _within(self, sight: Sight, iteration: jax.Array) -> Sight:
        """Slots and reads of frames as those of their iterations."""
        if sight.slots is None:
            return sight
        each = jnp.arange(self.iterations)
        seen = each == iteration
        if self.cache == "published":  # one frame alone
            own = jnp.arange(sight.reads.shape[1]) == sight.slots[0]
            seen = (each <= iteration) | ~own[:, None]
        reads = (sight.reads[..., None] & seen).reshape(len(sight.reads), -1)
        slots = sight.slots * self.iterations + iteration
        return dataclasses.replace(sight, slots=slots, reads=reads)


def normed(x: jax.Array) -> jax.Array:
    """LayerNorm without parameters, of another epsilon."""
    centred = x - x.mean(axis=-1, keepdims=True)
    variance = jnp.square(centred).mean(axis=-1, keepdims=True)
    return centred * jax.lax.rsqrt(variance + 1e-6)


def activated(encoding: jax.Array) -> jax.Array:
    """An encoding whose fields of view are not negative."""
    return jnp.concatenate([encoding[..., :7], jax.nn.relu(encoding[..., 7:])], axis=-1)
