"""Attention as plain JAX: page after page, and on CPUs head by head and block by block.

A CPU is fastest with scores that stay in its cache. So the loops walk the heads, and in each blocks
of queries; their backward pass does the same, from the log-sum-exps that the forward pass keeps
(the backward pass of FlashAttention, arXiv:2205.14135). `attention.attend` chooses.

Axes: B batch, H head, Q query, S page, M token of a page, K head dim, L layer.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from efficient_lvsm_jax.attention_kernels import SAVED_NAME

# Up to this many scores per head one batched einsum over all heads is fastest; above it loops are.
SMALL_SCORES = 2**16
# Queries at most whose scores exist at a time, and in the backward pass, which holds them twice.
QUERY_BLOCK, BACKWARD_BLOCK = 1024, 512
# Up to this many keys, pages are merged and a query sees its whole row; beyond, so many at a time
# are folded in, as fast on a CPU and leaner.
WHOLE_ROW_KEYS = 1024


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("k", "v", "k_scale", "v_scale", "count", "layer"),
    meta_fields=(),
)
@dataclasses.dataclass(frozen=True)
class Pages:
    """Keys and values as they are stored, and which of them are read.

    Attributes:
      k, v: [B, H, S, M, K] of any dtype, uint16 being the bits of bfloat16; with `layer`
        [L, B, H, S, M, K].
      k_scale, v_scale: what the stored numbers are multiplied by, [B, H, S] or [L, B, H, S]; None
        is 1.
      count: number of leading pages to read; None reads all.
      layer: which layer to read.
    """

    k: jax.Array
    v: jax.Array
    k_scale: jax.Array | None = None
    v_scale: jax.Array | None = None
    count: jax.Array | None = None
    layer: jax.Array | None = None

    @property
    def slots(self) -> int:
        """S."""
        return self.k.shape[-3]

    @property
    def steps(self) -> jax.Array | int:
        """How many pages are read."""
        return self.slots if self.count is None else self.count

    @property
    def is_plain(self) -> bool:
        """Whether all pages of the arrays are read, so that gradients can flow through."""
        return self.count is None and self.layer is None

    def page(
        self, index: jax.Array | int, dtype: jnp.dtype, row: tuple = ()
    ) -> tuple[jax.Array, jax.Array]:
        """Keys and values of a page, [B, H, M, K], or [M, K] at one (batch, head) `row`."""
        lead = () if self.layer is None else (self.layer,)
        batch, heads, _, page_tokens, head_dim = self.k.shape[-5:]
        start = (*lead, *(row or (0, 0)), index)
        size = (1,) * len(lead) + ((1, 1) if row else (batch, heads)) + (1,)
        shape = () if row else (batch, heads)

        def read(stored: jax.Array, scale: jax.Array | None) -> jax.Array:
            page = jax.lax.dynamic_slice(stored, (*start, 0, 0), (*size, page_tokens, head_dim))
            if scale is not None:
                scale = jax.lax.dynamic_slice(scale, start, size).reshape(*shape, 1, 1)
            return _decoded(page.reshape(*shape, page_tokens, head_dim), scale, dtype)

        return read(self.k, self.k_scale), read(self.v, self.v_scale)

    def whole_layer(self, dtype: jnp.dtype) -> tuple[jax.Array, jax.Array]:
        """Keys and values of all slots of the layer, [B, H, S, M, K]."""

        def read(stored: jax.Array, scale: jax.Array | None) -> jax.Array:
            if self.layer is not None:
                stored, scale = jax.tree.map(
                    lambda x: jax.lax.dynamic_index_in_dim(x, self.layer, keepdims=False),
                    (stored, scale),
                )
            return _decoded(stored, None if scale is None else scale[..., None, None], dtype)

        return read(self.k, self.k_scale), read(self.v, self.v_scale)


def _decoded(stored: jax.Array, scale: jax.Array | None, dtype: jnp.dtype) -> jax.Array:
    if stored.dtype == jnp.uint16:
        stored = jax.lax.bitcast_convert_type(stored, jnp.bfloat16)
    if scale is None:
        return stored.astype(dtype)
    return (stored.astype(jnp.float32) * scale).astype(dtype)


def whole_scores(
    q: jax.Array, pages: Pages, *, with_log_sum_exp: bool
) -> tuple[jax.Array, jax.Array | None]:
    """Attention of all heads at once, page after page.

    Args:
      q: [B, H, Q, K].
      pages: of the same B, H and K.
      with_log_sum_exp: whether the log-sum-exps of the scores, [B, H, Q] float32, are wanted.
    """
    if pages.is_plain:
        pages = Pages(*(_merged(x) for x in pages.whole_layer(q.dtype)))
    mixed, log_sum_exp = _fold_pages(
        q, lambda page: pages.page(page, q.dtype), pages.steps, with_log_sum_exp
    )
    return checkpoint_name(mixed, SAVED_NAME), log_sum_exp


def loops(
    q: jax.Array, pages: Pages, *, with_log_sum_exp: bool
) -> tuple[jax.Array, jax.Array | None]:
    """`whole_scores`, head by head unless the scores of a head are few.

    Head by head the log-sum-exps come unasked: the backward pass needs them, and a compiler drops
    what is not used.
    """
    if q.shape[2] * pages.slots * pages.k.shape[-2] <= SMALL_SCORES:
        return whole_scores(q, pages, with_log_sum_exp=with_log_sum_exp)
    if pages.is_plain:
        return _by_heads(q, *(_merged(x) for x in pages.whole_layer(q.dtype)))
    return _walk_heads(q, pages)


def _merged(x: jax.Array) -> jax.Array:
    """[B, H, S, M, K] as one page if it is not too long for that, a long one as several."""
    keys = x.shape[-3] * x.shape[-2]
    if keys > WHOLE_ROW_KEYS and keys % WHOLE_ROW_KEYS:
        return x
    length = min(keys, WHOLE_ROW_KEYS)
    return x.reshape(*x.shape[:2], -1, length, x.shape[-1])


def _walk_heads(q: jax.Array, pages: Pages) -> tuple[jax.Array, jax.Array]:
    """Attention and log-sum-exps, a head and a block of queries after the other."""
    batch, heads, queries, _ = q.shape

    def one_head(row: tuple) -> tuple:
        def one_block(block: jax.Array) -> tuple:
            def fetch(page: jax.Array | int) -> tuple:
                return pages.page(page, q.dtype, row)

            return _fold_pages(block, fetch, pages.steps, with_log_sum_exp=True)

        outputs = jax.lax.map(one_block, _in_blocks(q[row], QUERY_BLOCK))
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:queries], outputs)

    rows = jnp.divmod(jnp.arange(batch * heads), heads)
    mixed, log_sum_exp = jax.lax.map(one_head, rows)
    return mixed.reshape(q.shape), log_sum_exp.reshape(q.shape[:-1])


def _in_blocks(x: jax.Array, largest: int) -> jax.Array:
    """x [Q, …] in equal blocks of at most `largest` queries; zeros fill the last."""
    blocks = -(-x.shape[0] // largest)
    size = -(-x.shape[0] // blocks)
    missing = blocks * size - x.shape[0]
    x = jnp.pad(x, ((0, missing), *((0, 0),) * (x.ndim - 1))) if missing else x
    return x.reshape(blocks, size, *x.shape[1:])


@jax.custom_vjp
def _by_heads(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, jax.Array]:
    """`_walk_heads` over all pages, with a backward pass of its own."""
    return _walk_heads(q, Pages(k, v))


def _by_heads_forward(*qkv: jax.Array) -> tuple:
    outputs = _by_heads(*qkv)
    # Outside of this function a name would not be seen by what keeps the backward pass's inputs.
    outputs = jax.tree.map(lambda x: checkpoint_name(x, SAVED_NAME), outputs)
    return outputs, (*qkv, *outputs)


def _by_heads_backward(kept: tuple, upstream: tuple) -> tuple:
    q, k, v, mixed, log_sum_exp = kept
    of_mixed, of_log_sum_exp = upstream
    # What every score of a query gets besides: the softmax's own term, and the log-sum-exp's.
    shift = of_log_sum_exp - (mixed.astype(jnp.float32) * of_mixed).sum(axis=-1)
    rows = (x.reshape(-1, *x.shape[2:]) for x in (q, of_mixed, log_sum_exp, shift, k, v))
    gradients = jax.lax.map(lambda row: _one_head_backward(*row), tuple(rows))
    return tuple(g.reshape(x.shape) for g, x in zip(gradients, (q, k, v), strict=True))


def _one_head_backward(
    q: jax.Array,
    of_mixed: jax.Array,
    log_sum_exp: jax.Array,
    shift: jax.Array,
    k: jax.Array,
    v: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Gradients for q [Q, K], k and v [S, M, K], page by page and in each block by block."""
    scale = q.shape[-1] ** -0.5
    blocks = (q * scale, of_mixed, log_sum_exp, shift)
    blocks = tuple(_in_blocks(x, BACKWARD_BLOCK) for x in blocks)

    def one_page(of_q: jax.Array, page: tuple) -> tuple:
        k, v = page

        def one_block(carry: tuple, block: tuple) -> tuple:
            q, of_mixed, log_sum_exp, shift = block
            weights = jnp.exp(_dot(q, k, (1, 1)) - log_sum_exp[:, None])
            of_scores = weights * (_dot(of_mixed, v, (1, 1)) + shift[:, None])
            weights, of_scores = weights.astype(q.dtype), of_scores.astype(q.dtype)
            # As [K, M]: a narrow matrix on the left is twice as fast as one on the right.
            of_k, of_v = carry
            carry = of_k + _dot(q, of_scores, (0, 0)), of_v + _dot(of_mixed, weights, (0, 0))
            return carry, _dot(of_scores, k, (1, 0))

        zeros = jnp.zeros(k.shape[::-1], jnp.float32)
        (of_k, of_v), of_blocks = jax.lax.scan(one_block, (zeros, zeros), blocks)
        return of_q + of_blocks, (of_k.T.astype(k.dtype), of_v.T.astype(v.dtype))

    of_q, (of_k, of_v) = jax.lax.scan(one_page, jnp.zeros(blocks[0].shape, jnp.float32), (k, v))
    of_q = (of_q * scale).astype(q.dtype).reshape(-1, q.shape[-1])[: q.shape[0]]
    return of_q, of_k, of_v


def _dot(a: jax.Array, b: jax.Array, contracted: tuple[int, int]) -> jax.Array:
    dimensions = (((contracted[0],), (contracted[1],)), ((), ()))
    return jax.lax.dot_general(a, b, dimensions, preferred_element_type=jnp.float32)


_by_heads.defvjp(_by_heads_forward, _by_heads_backward)


def _fold_pages(
    q: jax.Array,
    fetch: Callable[[jax.Array | int], tuple],
    steps: jax.Array | int,
    with_log_sum_exp: bool,
) -> tuple[jax.Array, jax.Array | None]:
    """Attention of q [..., Q, K] over `steps` pages, by the online softmax if there are several."""
    q = q * q.shape[-1] ** -0.5

    def scores_of(k: jax.Array) -> jax.Array:
        return jnp.matmul(q, jnp.swapaxes(k, -1, -2), preferred_element_type=jnp.float32)

    def mix(weights: jax.Array, v: jax.Array) -> jax.Array:
        return jnp.matmul(weights.astype(v.dtype), v, preferred_element_type=jnp.float32)

    def peak_of(scores: jax.Array, highest: jax.Array | float = -jnp.inf) -> jax.Array:
        # No result depends on the subtracted maximum, so neither does a gradient.
        return jax.lax.stop_gradient(jnp.maximum(highest, scores.max(axis=-1, keepdims=True)))

    if isinstance(steps, int) and steps == 1:
        k, v = fetch(0)
        scores = scores_of(k)
        peak = peak_of(scores)
        weights = jnp.exp(scores - peak)
        total = weights.sum(axis=-1, keepdims=True)
        log_sum_exp = (peak + jnp.log(total))[..., 0] if with_log_sum_exp else None
        return mix(weights / total, v).astype(q.dtype), log_sum_exp

    def fold(page: jax.Array | int, carry: tuple) -> tuple:
        highest, total, mixed = carry
        k, v = fetch(page)
        scores = scores_of(k)
        peak = peak_of(scores, highest)
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
    highest, total, mixed = jax.lax.fori_loop(0, steps, fold, start)
    log_sum_exp = (highest + jnp.log(total))[..., 0] if with_log_sum_exp else None
    return (mixed / total).astype(q.dtype), log_sum_exp
