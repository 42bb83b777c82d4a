"""VGGT's pass over a clip with all that its attentions give, for who compares these layer by layer.

What an attention gives is after its projection and before LayerScale, as Lite3R matches it.

Axes: B scene, R frame, P token of a frame, D width, L layer, I iteration of the camera head.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from efficient_lvsm_jax.models.vggt import VGGT
from efficient_lvsm_jax.models.vggt_camera_head import activated, normed
from efficient_lvsm_jax.nn.blocks import Block
from efficient_lvsm_jax.nn.layers import gelu
from efficient_lvsm_jax.nn.paged import Pages
from efficient_lvsm_jax.nn.rotary import patch_rotation
from efficient_lvsm_jax.nn.sparse_linear import attend_by


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Attended:
    """A clip as it was seen.

    Attributes:
      encoder: outputs of attention in DINOv2, [L, B·R, T, D].
      frame, among: within frames [L, B·R, P, D] and among all [L, B, R·P, D].
      camera: of the camera head, [I, L, B, R, 2·D].
      taps: [4, B, R, P, 2·D], as `VGGT.rounds` gives them.
      encodings: [I, B, R, 9], as `Geometry` has them.
    """

    encoder: jax.Array
    frame: jax.Array
    among: jax.Array
    camera: jax.Array
    taps: jax.Array
    encodings: jax.Array

    def in_order(self) -> list[jax.Array]:
        """The outputs, call by call."""
        rounds = [output for both in zip(self.frame, self.among, strict=True) for output in both]
        return [*self.encoder, *rounds, *(x for iteration in self.camera for x in iteration)]


def attended(network: VGGT, images: jax.Array) -> Attended:
    """What a network without causal masks sees in images [B, R, Y, X, 3], without a memory."""
    config = network.config
    batch, frames, height, width = images.shape[:4]
    grid = height // config.patch, width // config.patch
    rotation = patch_rotation(*grid, config.head_dim, 1 + config.registers)
    pictures = network.normalised(images).reshape(-1, *images.shape[2:])
    start, _ = network.encoder.embed(pictures, grid)
    _, encoder = jax.lax.scan(lambda x, block: _through(block, x), start, network.encoder.blocks)

    def step(x: jax.Array, both: tuple[Block, Block]) -> tuple:
        within, among = both
        x = x.reshape(-1, *x.shape[2:])
        inner, first = _through(within, x, rotation)
        heads = (
            jnp.moveaxis(y.reshape(batch, frames, *y.shape[1:]), 1, 2)
            for y in among.heads(inner, rotation, groups=2)
        )  # [B, H, R, P, K]
        q, k, v = (y.reshape(*y.shape[:2], -1, y.shape[-1]) for y in heads)
        mixed = _mixed(among, q, k, v)
        outer = among.add(inner.reshape(batch, -1, config.width), mixed)
        second = among.out("IHTK,HKD->ITD", mixed)
        inner, outer = (y.reshape(batch, frames, -1, config.width) for y in (inner, outer))
        return outer, (jnp.concatenate([inner, outer], axis=-1), first, second)

    tokens = network.tokens(None, images)
    _, (rounds, frame, among) = jax.lax.scan(step, tokens, (network.within, network.among))
    head = network.camera_head
    cameras = head.token_norm(rounds[-1][:, :, 0])
    plain = normed(cameras)

    def iteration(encoding: jax.Array, index: jax.Array) -> tuple:
        encoding = jax.lax.stop_gradient(encoding)
        known = jnp.where(index == 0, head.empty[...], encoding)
        x = head.modulated(cameras, plain, known)
        x, outputs = jax.lax.scan(lambda x, block: _through(block, x), x, head.trunk)
        hidden = gelu(head.up("BRE,EF->BRF", head.trunk_norm(x)))
        encoding = encoding + head.down("BRF,FC->BRC", hidden)
        return encoding, (activated(encoding), outputs)

    start = jnp.zeros((batch, frames, head.empty.shape[0]))
    _, (encodings, camera) = jax.lax.scan(iteration, start, jnp.arange(head.iterations))
    taps = rounds[jnp.array(config.taps) - 1]
    return Attended(encoder, frame, among, camera, taps, encodings)


def _mixed(block: Block, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    pages = Pages(k[:, :, None], v[:, :, None])
    return attend_by(block.sparse, q, pages, implementation=block.attention)


def _through(block: Block, x: jax.Array, rotation: tuple | None = None) -> tuple:
    """x [I, T, D] through a block, and what its attention gives."""
    mixed = _mixed(block, *block.heads(x, rotation, groups=1 if rotation is None else 2))
    return block.add(x, mixed), block.out("IHTK,HKD->ITD", mixed)
