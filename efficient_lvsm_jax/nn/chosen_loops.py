"""Attention to chosen blocks of keys as plain JAX, `nn.chosen` says of what.

For every block of queries the chosen blocks are fetched from where they lie in the pages, a few at
a time, and folded in by the online softmax of `nn.paged`, so stored precisions, stacks of layers
and sizes of keys are read as there. Several blocks of queries go together, each with keys of its
own.

Axes: B scene, H head, I block of queries, U of those computed together, Q query of a block, S page,
M token of a page, J block of keys of a page, C chosen, G read together, K head dim.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp

from efficient_lvsm_jax.nn.paged import QUERY_BLOCK, Pages, decoded, fold, in_blocks
from efficient_lvsm_jax.parallel import sharding

# Keys that are fetched at a time; more are no faster on a CPU, and of the last more are in vain.
FETCHED_KEYS = 256


@dataclasses.dataclass(frozen=True)
class Chosen:
    """Blocks of pages as blocks of queries read them, step after step; like `nn.paged.Chunks`.

    Attributes:
      pages: what is read.
      index: [U, C] int32, blocks among the S * J of all pages, by falling score.
      steps: how often it is read.
      size: keys of a block. The last one of a page may reach back into the one before.
      together: G.
      first: where in the index the first step begins.
      end: where it ends, if a step may go beyond; None: none does, and no key needs a mask.
    """

    pages: Pages
    index: jax.Array
    steps: jax.Array | int
    size: int
    together: int
    first: jax.Array | int = 0
    end: jax.Array | int | None = None

    def read(self, step: jax.Array | int, dtype: jnp.dtype, row: tuple) -> tuple:
        """As `Chunks.read`, of one row: keys and values [U, G * size, K], which of them count,
        [1 or U, 1, G * size], and for how much, [U, G * size]."""
        pages, size, counts = self.pages, self.size, []
        in_page = -(-pages.page_tokens // size)
        at = self.first + step * self.together + jnp.arange(self.together)
        if self.end is not None:  # the first once more: a free slot may hold anything
            counts.append(jnp.repeat(at < self.end, size))
            at = jnp.where(at < self.end, at, 0)
        slot, block = jnp.divmod(jnp.take(self.index, at, axis=1, mode="clip"), in_page)  # [U, G]
        token = jnp.minimum(block * size, pages.page_tokens - size)
        lead = (*(() if pages.layer is None else (pages.layer,)), *row)

        def fetched(x: jax.Array | None) -> jax.Array | None:
            def one(slot: jax.Array, token: jax.Array) -> jax.Array:
                start = (*lead, slot, token, 0)[: x.ndim]
                shape = (*(1,) * (len(lead) + 1), size, x.shape[-1])[: x.ndim]
                return jax.lax.dynamic_slice(x, start, shape).reshape(shape[len(lead) + 1 :])

            return None if x is None else jax.vmap(jax.vmap(one))(slot, token)

        def merged(x: jax.Array) -> jax.Array:  # [U, G, size, …]
            return x.reshape(x.shape[0], -1, *x.shape[3:])

        def numbers(stored: jax.Array, scale: jax.Array | None) -> jax.Array:
            scale = None if scale is None else fetched(scale)[..., None, None]
            return merged(decoded(fetched(stored), scale, dtype))

        log_size = fetched(pages.log_size)
        if pages.page_tokens % size:
            own = token[..., None] + jnp.arange(size) >= block[..., None] * size
            counts.append(merged(own)[:, None])
        return (
            numbers(pages.k, pages.k_scale),
            numbers(pages.v, pages.v_scale),
            functools.reduce(jnp.logical_and, counts) if counts else None,
            None if log_size is None else merged(log_size),
        )


def gathered(
    q: jax.Array, pages: Pages, index: jax.Array, count: jax.Array | int, size: int
) -> jax.Array:
    """`nn.chosen.attend_to_chosen` as a loop."""
    batch, heads, blocks, queries, _ = q.shape
    size = min(size, pages.page_tokens)
    together = min(max(1, FETCHED_KEYS // size), index.shape[-1])
    if isinstance(count, int):  # equal steps, so that as little as can be is fetched in vain
        together = -(-count // -(-count // together))
    at_once = max(1, QUERY_BLOCK // queries)

    def one_row(row: jax.Array) -> jax.Array:
        scene, head = jnp.divmod(row, heads)

        @jax.checkpoint
        def some(blocks: tuple) -> jax.Array:
            q, index = blocks
            chosen = Chosen(pages, index, count // together, size, together)
            rest = None
            if not isinstance(count, int) or count % together:
                last = count // together * together
                steps = (count - last + together - 1) // together
                rest = dataclasses.replace(chosen, steps=steps, first=last, end=count)
            return fold(q, chosen, (scene, head), with_log_sum_exp=False, rest=rest)[0]

        of_row = (in_blocks(x[scene, head], at_once) for x in (q, index))
        mixed = jax.lax.map(some, tuple(of_row))
        return mixed.reshape(-1, *mixed.shape[2:])[:blocks]

    # A CPU is fastest with a head at a time, as in `nn.paged`; others have them all at once.
    each = jax.lax.map if sharding.platform() == "cpu" else lambda f, rows: jax.vmap(f)(rows)
    mixed = each(one_row, jnp.arange(batch * heads))
    return mixed.reshape(q.shape)
