"""Attention as plain JAX: chunk of keys after chunk, and on CPUs head by head and block by block.

A CPU is fastest with scores that stay in its cache. So the loops walk the heads, and in each blocks
of queries; their backward pass does the same, from the log-sum-exps that the forward pass keeps
(the backward pass of FlashAttention, arXiv:2205.14135). `nn.attention.attend` chooses.

Axes: B batch, H head, Q query, S page, M token of a page, C chunk, T token of a chunk, G page of a
chunk, K head dim, L layer, R target that reads.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec as P

from efficient_lvsm_jax.nn.kernels import SAVED_NAME

# Up to this many scores per head one batched einsum over all heads is fastest; above it loops are.
SMALL_SCORES = 2**16
# Queries at most whose scores exist at a time, and in the backward pass, which holds them twice.
QUERY_BLOCK, BACKWARD_BLOCK = 1024, 512
# Keys that are folded in at a time, if pages allow: short ones together, long ones in parts. As
# fast on a CPU as whole rows, and leaner.
CHUNK_KEYS = 1024
# What arrays of unsigned integers are the bits of.
BITS = {jnp.dtype(jnp.uint16): jnp.bfloat16, jnp.dtype(jnp.uint8): jnp.float8_e4m3fn}
# How keys and values are stored; "bf16" and "fp8" (e4m3) as BITS: to slice an array of such numbers
# a CPU would convert all of it.
PRECISIONS = {"fp32": jnp.float32, "bf16": jnp.uint16, "int8": jnp.int8, "fp8": jnp.uint8}


def from_bits(x: jax.Array) -> jax.Array:
    """Bits as the numbers they are, anything else as it is."""
    return jax.lax.bitcast_convert_type(x, BITS[x.dtype]) if x.dtype in BITS else x


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("k", "v", "used", "k_scale", "v_scale", "layer", "log_size", "digest"),
    meta_fields=("most",),
)
@dataclasses.dataclass(frozen=True)
class Pages:
    """Keys and values in pages as they are stored, and which of them are read.

    Those of all decoder layers, [L, B, H, S, M, K], are the view cache, see `nn.cache`.

    Attributes:
      k, v: [B, H, S, M, K] of any dtype, or BITS; a view axis may follow B. With `layer`, and in a
        cache, [L, B, H, S, M, K].
      used: which slots hold a page, [S] bool; the others are never read. None means all of them:
        gradients can then flow through. The work follows the chunks of some 1,024 keys in which a
        page is used, not S, and changing them compiles nothing. Targets that read different slots
        have it [B, R, S]: queries are then R groups, walked one by one.
      k_scale, v_scale: what stored numbers are multiplied by, [B, H, S] or [L, B, H, S] float32:
        one scale for each page of a head; None if they are stored as they are.
      layer: which layer to read. Chunks are fetched from the stack one by one, so that a large,
        mostly empty cache is never copied. Not meant for gradients.
      most: with `used`, how many pages are in use at most, known when a reader is compiled; None is
        all. cuDNN alone asks: it wants its keys in one piece, for which so many pages are gathered.
        More pages in use than that would not be read: callers own that check.
      log_size: [B, H, S, M] or [L, B, H, S, M] float32: the logarithm of how many tokens a key
        stands for, which is added to its scores, see `nn.condense`; -inf: of none, it never counts.
        None: one each. No kernel of an accelerator knows it. Not meant for gradients.
      digest: what sparse attention needs of each page beside its keys, see
        `nn.sparse_linear.Digest`; None where attention is dense.
    """

    k: jax.Array
    v: jax.Array
    used: jax.Array | None = None
    k_scale: jax.Array | None = None
    v_scale: jax.Array | None = None
    layer: jax.Array | None = None
    most: int | None = None
    log_size: jax.Array | None = None
    digest: Any = None

    @property
    def capacity(self) -> int:
        """Number of page slots, S."""
        return self.k.shape[-3]

    @property
    def page_tokens(self) -> int:
        """M."""
        return self.k.shape[-2]

    @property
    def precision(self) -> str:
        """In which of PRECISIONS keys and values are stored."""
        stored = jnp.uint16 if self.k.dtype == jnp.bfloat16 else self.k.dtype
        known = (name for name, dtype in PRECISIONS.items() if stored == dtype)
        return next(known, str(self.k.dtype))

    @property
    def page_bytes(self) -> int:
        """Bytes of one page, with all layers there are."""
        arrays = jax.tree.leaves(dataclasses.replace(self, used=None, layer=None))
        return sum(x.size * x.dtype.itemsize for x in arrays) // self.capacity

    @property
    def is_plain(self) -> bool:
        """Whether all pages of the arrays are read as they are, so that gradients can flow."""
        return self.used is None and self.layer is None and self.log_size is None

    def specs(self, *axes: Any, used: P | None = None) -> Pages:
        """How arrays lie on a mesh of which `axes` are along B, V if there is one, H and S."""
        stored = P(*(None,) * (self.layer is not None), *axes)
        names = (field.name for field in dataclasses.fields(self))
        known = {"used": P() if used is None else used, "layer": P(), "most": self.most}
        return Pages(**{name: known.get(name, stored) for name in names})

    def of_scene(self, scene: jax.Array) -> Pages:
        """The pages of one of B scenes, with B = 1; `used` is not touched."""
        lead = () if self.layer is None else (self.layer,)
        if self.k.shape[len(lead)] == 1:
            return self

        def one(x: jax.Array) -> jax.Array:
            rest = x.shape[len(lead) + 1 :]
            start, size = (*lead, scene, *(0,) * len(rest)), (*(1,) * len(lead), 1, *rest)
            return jax.lax.dynamic_slice(x, start, size)

        pages = jax.tree.map(one, dataclasses.replace(self, used=None, layer=None))
        layer = None if self.layer is None else jnp.zeros_like(self.layer)
        return dataclasses.replace(pages, used=self.used, layer=layer)

    def whole_layer(self, dtype: jnp.dtype) -> tuple[jax.Array, jax.Array]:
        """Keys and values of the layer, [B, H, S, M, K]: of pages in use first, then zeros.

        With `used` only `most` pages come, and only they are decoded: a GPU's compiler makes one
        kernel of fetching, decoding and transposing them, whose cost is that of `most` pages.
        """
        pages = min(self.most or self.capacity, self.capacity)

        def read(stored: jax.Array, scale: jax.Array | None) -> jax.Array:
            if self.layer is not None:
                stored, scale = jax.tree.map(
                    lambda x: jax.lax.dynamic_index_in_dim(x, self.layer, keepdims=False),
                    (stored, scale),
                )
            if self.used is not None:
                first = _true_first(self.used)[:pages]
                stored, scale = jax.tree.map(
                    lambda x: jnp.take(x, first, axis=2, mode="clip"), (stored, scale)
                )
            x = decoded(stored, None if scale is None else scale[..., None, None], dtype)
            if self.used is None:
                return x
            in_use = jnp.arange(pages) < self.used.sum()
            return jnp.where(in_use[:, None, None], x, 0)

        return read(self.k, self.k_scale), read(self.v, self.v_scale)


@dataclasses.dataclass(frozen=True)
class Chunks:
    """Pages as they are read step after step: C chunks of T keys, of G pages or of part of one.

    Attributes:
      pages: what is read. Slices of it as it is: reshaped before, a CPU's compiler may copy it all.
      together: G. If it does not divide the pages, the last chunk reaches back into the one before.
      parts: chunks in a page; 1 if `together` is more.
      steps: how many chunks are read: those of which a page is used.
      order: the indices of these come first in it, [C]; None reads all in order.
    """

    pages: Pages
    together: int
    parts: int
    steps: jax.Array | int
    order: jax.Array | None

    @classmethod
    def of(cls, pages: Pages, together: int = 1, parts: int = 1) -> Chunks:
        """Equal chunks; `together` or `parts` is 1, and divides what it is of if `used` is None."""
        if pages.used is None:
            return cls(pages, together, parts, pages.capacity // together * parts, None)
        missing = -pages.capacity % together
        used = jnp.pad(jnp.repeat(pages.used, parts), (0, missing)).reshape(-1, together)
        used = used.any(axis=-1)
        return cls(pages, together, parts, used.sum(), _true_first(used))

    def read(
        self, step: jax.Array | int, dtype: jnp.dtype, row: tuple = ()
    ) -> tuple[jax.Array, jax.Array, jax.Array | None, jax.Array | None]:
        """Keys, values, which of them count, and for how much.

        Args:
          step: below `steps`.
          dtype: of the keys and values wanted.
          row: (batch, head); () is all of them.

        Returns:
          k, v: [B, H, T, K], or [T, K] of one row; values that do not count are 0.
          counts: [T] bool, None if all do.
          log_size: [B, H, T], or [T] of one row, as that of `Pages`.
        """
        pages, together = self.pages, self.together
        batch, heads, _, page_tokens, head_dim = pages.k.shape[-5:]
        index = step if self.order is None else self.order[step]
        tokens = page_tokens // self.parts  # of each page
        first, token = index // self.parts * together, index % self.parts * tokens
        slot = jnp.minimum(first, pages.capacity - together)
        lead = () if pages.layer is None else (pages.layer,)
        start = (*lead, *(row or (0, 0)), slot)
        size = (1,) * len(lead) + ((1, 1) if row else (batch, heads)) + (together,)
        shape = () if row else (batch, heads)

        def numbers(stored: jax.Array, scale: jax.Array | None) -> jax.Array:
            chunk = jax.lax.dynamic_slice(stored, (*start, token, 0), (*size, tokens, head_dim))
            if scale is not None:
                scale = jax.lax.dynamic_slice(scale, start, size).reshape(*shape, together, 1)
                scale = jnp.repeat(scale, tokens, axis=-2)
            return decoded(chunk.reshape(*shape, together * tokens, head_dim), scale, dtype)

        k, v, log_size = numbers(pages.k, pages.k_scale), numbers(pages.v, pages.v_scale), None
        if pages.log_size is not None:
            log_size = jax.lax.dynamic_slice(pages.log_size, (*start, token), (*size, tokens))
            log_size = log_size.reshape(*shape, together * tokens)
        if pages.used is None or together == 1:
            return k, v, None, log_size
        counts = jax.lax.dynamic_slice(pages.used, (slot,), (together,))
        counts = jnp.repeat(counts & (slot + jnp.arange(together) >= first), tokens)
        return k, jnp.where(counts[:, None], v, 0), counts, log_size


def in_chunks(pages: Pages) -> Chunks:
    """Several short pages at a time, long ones in parts."""
    return Chunks.of(
        pages, *_pages_in_a_chunk(pages.capacity, pages.page_tokens, pages.used is None)
    )


def _pages_in_a_chunk(slots: int, page_tokens: int, equal: bool) -> tuple[int, int]:
    """How many pages are read together, and in how many parts each.

    Args:
      slots, page_tokens: how many pages of how many keys there are.
      equal: whether pages read together must divide all of them.
    """
    if page_tokens > CHUNK_KEYS:
        fewest = -(-page_tokens // CHUNK_KEYS)
        # A page with few divisors is read whole rather than in many narrow parts.
        parts = (n for n in range(fewest, 4 * fewest) if page_tokens % n == 0)
        return 1, next(parts, 1)
    most = min(slots, CHUNK_KEYS // page_tokens)
    return (max(n for n in range(1, most + 1) if slots % n == 0) if equal else most), 1


def _true_first(which: jax.Array) -> jax.Array:
    """The indices of what is true, ascending, then of the rest."""
    return jnp.argsort(~which, stable=True)


def decoded(stored: jax.Array, scale: jax.Array | None, dtype: jnp.dtype) -> jax.Array:
    x = from_bits(stored)
    return x.astype(dtype) if scale is None else (x.astype(jnp.float32) * scale).astype(dtype)


def whole_scores(
    q: jax.Array, pages: Pages, *, with_log_sum_exp: bool
) -> tuple[jax.Array, jax.Array | None]:
    """Attention of all heads at once, chunk after chunk.

    Args:
      q: [B, H, Q, K].
      pages: of the same B, H and K.
      with_log_sum_exp: whether the log-sum-exps of the scores, [B, H, Q] float32, are wanted.
    """
    if pages.is_plain:
        pages = Pages(*pages.whole_layer(q.dtype))
    mixed, log_sum_exp = fold(q, in_chunks(pages), (), with_log_sum_exp)
    return checkpoint_name(mixed, SAVED_NAME), log_sum_exp


def loops(
    q: jax.Array, pages: Pages, *, with_log_sum_exp: bool
) -> tuple[jax.Array, jax.Array | None]:
    """`whole_scores`, head by head unless the scores of a head are few.

    Head by head the log-sum-exps come unasked: the backward pass needs them, and a compiler drops
    what is not used.
    """
    if q.shape[2] * pages.capacity * pages.page_tokens <= SMALL_SCORES:
        return whole_scores(q, pages, with_log_sum_exp=with_log_sum_exp)
    if pages.is_plain:
        return _by_heads(q, *(_merged(x) for x in pages.whole_layer(q.dtype)))
    return _walk_heads(q, in_chunks(pages))


def _merged(x: jax.Array) -> jax.Array:
    """Pages [B, H, S, M, K] as chunks [B, H, C, T, K]."""
    slots, page_tokens, head_dim = x.shape[2:]
    together, parts = _pages_in_a_chunk(slots, page_tokens, equal=True)
    return x.reshape(*x.shape[:2], -1, together * page_tokens // parts, head_dim)


def _walk_heads(q: jax.Array, chunks: Chunks) -> tuple[jax.Array, jax.Array]:
    """Attention and log-sum-exps, a head and a block of queries after the other."""
    batch, heads, queries, _ = q.shape

    def one_head(row: tuple) -> tuple:
        def one_block(block: jax.Array) -> tuple:
            return fold(block, chunks, row, with_log_sum_exp=True)

        outputs = jax.lax.map(one_block, in_blocks(q[row], QUERY_BLOCK))
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:queries], outputs)

    rows = jnp.divmod(jnp.arange(batch * heads), heads)
    mixed, log_sum_exp = jax.lax.map(one_head, rows)
    return mixed.reshape(q.shape), log_sum_exp.reshape(q.shape[:-1])


def in_blocks(x: jax.Array, largest: int) -> jax.Array:
    """x [Q, …] in equal blocks of at most `largest` queries; zeros fill the last."""
    blocks = -(-x.shape[0] // largest)
    size = -(-x.shape[0] // blocks)
    missing = blocks * size - x.shape[0]
    x = jnp.pad(x, ((0, missing), *((0, 0),) * (x.ndim - 1))) if missing else x
    return x.reshape(blocks, size, *x.shape[1:])


@jax.custom_vjp
def _by_heads(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, jax.Array]:
    """`_walk_heads` over all of k and v [B, H, C, T, K], with a backward pass of its own."""
    return _walk_heads(q, Chunks.of(Pages(k, v)))


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
    """Gradients for q [Q, K], k and v [C, T, K], chunk by chunk and in each block by block."""
    scale = q.shape[-1] ** -0.5
    blocks = (q * scale, of_mixed, log_sum_exp, shift)
    blocks = tuple(in_blocks(x, BACKWARD_BLOCK) for x in blocks)

    def one_chunk(of_q: jax.Array, chunk: tuple) -> tuple:
        k, v = chunk

        def one_block(carry: tuple, block: tuple) -> tuple:
            q, of_mixed, log_sum_exp, shift = block
            weights = jnp.exp(_dot(q, k, (1, 1)) - log_sum_exp[:, None])
            of_scores = weights * (_dot(of_mixed, v, (1, 1)) + shift[:, None])
            weights, of_scores = weights.astype(q.dtype), of_scores.astype(q.dtype)
            # As [K, T]: a narrow matrix on the left is twice as fast as one on the right.
            of_k, of_v = carry
            carry = of_k + _dot(q, of_scores, (0, 0)), of_v + _dot(of_mixed, weights, (0, 0))
            return carry, _dot(of_scores, k, (1, 0))

        zeros = jnp.zeros(k.shape[::-1], jnp.float32)
        (of_k, of_v), of_blocks = jax.lax.scan(one_block, (zeros, zeros), blocks)
        return of_q + of_blocks, (of_k.T.astype(k.dtype), of_v.T.astype(v.dtype))

    of_q, (of_k, of_v) = jax.lax.scan(one_chunk, jnp.zeros(blocks[0].shape, jnp.float32), (k, v))
    of_q = (of_q * scale).astype(q.dtype).reshape(-1, q.shape[-1])[: q.shape[0]]
    return of_q, of_k, of_v


def _dot(a: jax.Array, b: jax.Array, contracted: tuple[int, int]) -> jax.Array:
    dimensions = (((contracted[0],), (contracted[1],)), ((), ()))
    return jax.lax.dot_general(a, b, dimensions, preferred_element_type=jnp.float32)


_by_heads.defvjp(_by_heads_forward, _by_heads_backward)


def fold(
    q: jax.Array, chunks: Chunks | Any, row: tuple, with_log_sum_exp: bool, *, rest: Any = None
) -> tuple[jax.Array, jax.Array | None]:
    """Attention of q [..., Q, K] to chunks, by the online softmax if there are several.

    `row` is the (batch, head) of q; () if it has all of them as its leading axes. `rest` is more to
    read, after the chunks; either may be `nn.chosen.Chosen`.
    """
    q = q * q.shape[-1] ** -0.5

    def read(chunks: Chunks | Any, step: jax.Array | int) -> tuple[jax.Array, jax.Array]:
        """Scores and values."""
        k, v, counts, log_size = chunks.read(step, q.dtype, row)
        scores = jnp.matmul(q, jnp.swapaxes(k, -1, -2), preferred_element_type=jnp.float32)
        if log_size is not None:
            scores = scores + log_size[..., None, :]
        return scores if counts is None else jnp.where(counts, scores, -jnp.inf), v

    def mix(weights: jax.Array, v: jax.Array) -> jax.Array:
        return jnp.matmul(weights.astype(v.dtype), v, preferred_element_type=jnp.float32)

    # Finite, as a chunk may hold nothing but keys that stand for no token.
    lowest = jnp.finfo(jnp.float32).min

    def peak_of(scores: jax.Array, highest: jax.Array | float = lowest) -> jax.Array:
        # No result depends on the subtracted maximum, so neither does a gradient.
        return jax.lax.stop_gradient(jnp.maximum(highest, scores.max(axis=-1, keepdims=True)))

    if isinstance(chunks.steps, int) and chunks.steps == 1 and rest is None:
        scores, v = read(chunks, 0)
        peak = peak_of(scores)
        weights = jnp.exp(scores - peak)
        total = weights.sum(axis=-1, keepdims=True)
        log_sum_exp = (peak + jnp.log(total))[..., 0] if with_log_sum_exp else None
        return mix(weights / total, v).astype(q.dtype), log_sum_exp

    def fold_in(chunks: Chunks | Any, step: jax.Array | int, carry: tuple) -> tuple:
        highest, total, mixed = carry
        scores, v = read(chunks, step)
        peak = peak_of(scores, highest)
        weights = jnp.exp(scores - peak)
        shrink = jnp.exp(highest - peak)
        total = total * shrink + weights.sum(axis=-1, keepdims=True)
        return peak, total, mixed * shrink + mix(weights, v)

    row_shape = q.shape[:-1]
    carry = (
        jnp.full((*row_shape, 1), lowest, jnp.float32),
        jnp.zeros((*row_shape, 1), jnp.float32),
        jnp.zeros(q.shape, jnp.float32),
    )
    for part in (chunks,) if rest is None else (chunks, rest):
        carry = jax.lax.fori_loop(0, part.steps, functools.partial(fold_in, part), carry)
    highest, total, mixed = carry
    log_sum_exp = (highest + jnp.log(total))[..., 0] if with_log_sum_exp else None
    return (mixed / total).astype(q.dtype), log_sum_exp
