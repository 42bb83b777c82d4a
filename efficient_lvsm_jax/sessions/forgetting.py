"""What a full stream forgets: whole frames, or of all frames the keys most like the mean of all.

Axes: L layer, B scene, H head, S slot, P token of a frame, I iteration of the camera head,
K head dim.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp

from efficient_lvsm_jax.models.scene_geometry import SceneMemory
from efficient_lvsm_jax.nn.paged import from_bits

# Words of `Stream(when_full=…)`.
WHEN_FULL = ("refuse", "window", "confidence", "similarity")


def frames_left(
    when_full: str, kept: Sequence[int], over: int, confidence: Mapping[int, jax.Array]
) -> list[int]:
    """Those of the slots `kept`, in the order of frames, that stay when `over` leave.

    The first frame stays, whose camera is the world. Of a "window" the oldest of the others leave;
    by "confidence" those of the least, and the last frame, from which the next is a small step,
    after all others.

    Args:
      when_full: "window" or "confidence".
      kept: slots.
      over: less than there are.
      confidence: of every slot, a number.
    """
    leaving = list(kept[1:])
    if when_full == "confidence":
        leaving = sorted(leaving[:-1], key=lambda slot: float(confidence[slot])) + leaving[-1:]
    leaving = leaving[:over]
    return [slot for slot in kept if slot not in leaving]


@functools.partial(jax.jit, static_argnums=(1, 2), donate_argnums=0)
def without_similar(memory: SceneMemory, frames: int, over: int) -> SceneMemory:
    """A memory with `over` slots freed by taking out keys, as InfiniteVGGT does (arXiv:2601.02281).

    Of every layer, scene and head as many leave as are in so many frames: those most like the mean
    of all, by the cosine. The first frame's stay. Keys of the last frames take the places of those
    that left; order means nothing to attention. What the camera head keeps, a token a frame,
    forgets the oldest frames but the first.

    Args:
      memory: its first slots are used. It is donated. Keys are stored as they are, without scales.
      frames: how many slots are used.
      over: less than that.
    """
    tokens = memory.tokens
    left, page = (frames - 1 - over) * tokens.page_tokens, over * tokens.page_tokens

    def of_head(k: jax.Array, v: jax.Array) -> tuple[jax.Array, jax.Array]:
        """k and v [S, P, K] of which the first (S - over) slots count from now on."""
        numbers = from_bits(k[1:frames]).astype(jnp.float32).reshape(-1, k.shape[-1])
        numbers /= jnp.maximum(jnp.linalg.norm(numbers, axis=-1, keepdims=True), 1e-12)
        dropped = jax.lax.top_k(numbers @ numbers.mean(axis=0), page)[1]
        stays = jnp.ones(left + page, bool).at[dropped].set(False)
        movers = left + jnp.argsort(~stays[left:], stable=True)
        # As many places before `left` are empty as keys behind it stay; the rest of both is no use.
        places = jnp.sort(jnp.where(dropped < left, dropped, left + page))

        def moved(x: jax.Array) -> jax.Array:
            flat = x[1:frames].reshape(-1, x.shape[-1])
            flat = flat.at[places].set(flat[movers], mode="drop")
            return x.at[1:frames].set(flat.reshape(-1, *x.shape[1:]))

        return moved(k), moved(v)

    def of_layer(layer: jax.Array, pools: tuple[jax.Array, jax.Array]) -> tuple:
        left = jax.vmap(jax.vmap(of_head))(*(pool[layer] for pool in pools))
        return tuple(pool.at[layer].set(x) for pool, x in zip(pools, left, strict=True))

    k, v = jax.lax.fori_loop(0, tokens.k.shape[0], of_layer, (tokens.k, tokens.v))

    def rolled(x: jax.Array) -> jax.Array:
        each = x.reshape(*x.shape[:3], memory.capacity, -1, *x.shape[4:])  # [L, B, H, S, I, …]
        later = jnp.roll(each[:, :, :, 1:], -over, axis=3)
        return jnp.concatenate([each[:, :, :, :1], later], axis=3).reshape(x.shape)

    return dataclasses.replace(
        memory,
        tokens=dataclasses.replace(tokens, k=k, v=v),
        cameras=jax.tree.map(rolled, memory.cameras),
        used=jnp.arange(memory.capacity) < frames - over,
    )
