"""Attention: one entry, `attend`, for every place in the model where tokens look at tokens.

Axes: B batch, H head, Q query, S page, M token of a page, K head dim, L layer.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from efficient_lvsm_jax.errors import InputError

# Up to this many scores per head one batched einsum over all heads is fastest on a CPU; above it
# the heads are walked one by one so that no more than one block of scores exists at a time.
SMALL_SCORES = 2**16
QUERY_BLOCK = 1024
# Up to this many keys, pages are merged and a query sees its whole row; beyond, page after page is
# folded in, as fast on a CPU and leaner.
WHOLE_ROW_KEYS = 1024


def attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    count: jax.Array | None = None,
    layer: jax.Array | None = None,
) -> jax.Array:
    """Softmax attention over pages of keys: softmax(q kᵀ / √K) v, no mask, no dropout.

    Args:
      q: queries, [B, H, Q, K].
      k, v: keys and values in pages, [B, H, S, M, K]; with `layer`, [L, B, H, S, M, K].
      count: number of leading pages to read, a traced int32 of at least 1. None reads all S.
        The work follows `count`, not S, and changing it compiles nothing. With 0 the result is
        NaN: callers own that check.
      layer: which layer of stacked `k` and `v` to read. Pages are fetched from the stack one by
        one, so that a large, mostly empty cache is never copied. Not meant for gradients.

    Returns:
      [B, H, Q, K] in the dtype of `q`. Scores, softmax and sums are float32.

    Raises:
      InputError: the shapes do not belong together.
    """
    pages = k.shape[-3:]
    if k.shape != v.shape or k.ndim != q.ndim + 1 + (layer is not None):
        raise InputError(
            f"attend: q {q.shape}, k {k.shape}, v {v.shape}: expected [B,H,Q,K] "
            "queries and equal [B,H,S,M,K] keys and values (one axis more with layer)"
        )
    if k.shape[-5:-3] != q.shape[:2] or pages[-1] != q.shape[-1]:
        raise InputError(f"attend: q {q.shape} and k {k.shape} differ in batch, heads or head dim")

    batch, heads, queries, head_dim = q.shape
    if count is None and layer is None and pages[0] * pages[1] <= WHOLE_ROW_KEYS:
        k, v = (x.reshape(batch, heads, 1, pages[0] * pages[1], head_dim) for x in (k, v))
    num_pages, page_tokens = k.shape[-3:-1]

    def fetch(x: jax.Array, page: jax.Array | int, row: tuple = ()) -> jax.Array:
        """Page `page` of x: [B, H, M, K], or [M, K] at one (batch, head) `row`."""
        lead = () if layer is None else (layer,)
        start = (*lead, *(row or (0, 0)), page, 0, 0)
        size = (1,) * len(lead) + ((1, 1) if row else (batch, heads)) + (1, page_tokens, head_dim)
        shape = (() if row else (batch, heads)) + (page_tokens, head_dim)
        return jax.lax.dynamic_slice(x, start, size).reshape(shape)

    steps = num_pages if count is None else count
    if jax.default_backend() != "cpu" or queries * page_tokens * num_pages <= SMALL_SCORES:
        return _fold_pages(q, lambda page: (fetch(k, page), fetch(v, page)), steps)

    def one_head(row: tuple) -> jax.Array:
        def one_block(block: jax.Array) -> jax.Array:
            return _fold_pages(
                block, lambda page: (fetch(k, page, row), fetch(v, page, row)), steps
            )

        return _map_blocks(jax.checkpoint(one_block, prevent_cse=False), q[row])

    rows = jnp.divmod(jnp.arange(batch * heads), heads)
    return jax.lax.map(one_head, rows).reshape(q.shape)


def _map_blocks(function: Callable, q: jax.Array) -> jax.Array:
    """`function` on blocks of at most QUERY_BLOCK rows of q [Q, K], one after another."""
    whole = q.shape[0] // QUERY_BLOCK * QUERY_BLOCK
    parts = []
    if whole:
        blocks = q[:whole].reshape(-1, QUERY_BLOCK, q.shape[1])
        parts.append(jax.lax.map(function, blocks).reshape(whole, -1))
    if whole < q.shape[0]:
        parts.append(function(q[whole:]))
    return jnp.concatenate(parts) if len(parts) > 1 else parts[0]


def _fold_pages(
    q: jax.Array, fetch: Callable[[jax.Array | int], tuple], steps: jax.Array | int
) -> jax.Array:
    """Attention of q [..., Q, K] over `steps` pages, by the online softmax if there are several."""
    q = q * q.shape[-1] ** -0.5

    def scores_of(k: jax.Array) -> jax.Array:
        return jnp.matmul(q, jnp.swapaxes(k, -1, -2), preferred_element_type=jnp.float32)

    def mix(weights: jax.Array, v: jax.Array) -> jax.Array:
        return jnp.matmul(weights.astype(v.dtype), v, preferred_element_type=jnp.float32)

    if isinstance(steps, int) and steps == 1:
        k, v = fetch(0)
        return mix(jax.nn.softmax(scores_of(k), axis=-1), v).astype(q.dtype)

    def fold(page: jax.Array | int, carry: tuple) -> tuple:
        highest, total, mixed = carry
        k, v = fetch(page)
        scores = scores_of(k)
        # The result does not depend on the subtracted maximum, so neither does its gradient.
        peak = jax.lax.stop_gradient(jnp.maximum(highest, scores.max(axis=-1, keepdims=True)))
        weights = jnp.exp(scores - peak)
        shrink = jnp.exp(highest - peak)
        total = total * shrink + weights.sum(axis=-1, keepdims=True)
        return peak, total, mixed * shrink + mix(weights, v)

    row = q.shape[:-1]
    start = (
        jnp.full((*row, 1), -jnp.inf, jnp.float32),
        jnp.zeros((*row, 1), jnp.float32),
        jnp.zeros(q.shape, jnp.float32),
    )
    _, total, mixed = jax.lax.fori_loop(0, steps, fold, start)
    return (mixed / total).astype(q.dtype)
