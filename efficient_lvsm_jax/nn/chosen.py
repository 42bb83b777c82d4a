"""Attention to chosen blocks of keys: what is not chosen costs nothing.

`nn.sparse_linear` says what is chosen. As a loop over them: for every block of queries the chosen
blocks are fetched from where they lie in the pages, a few at a time, and folded in by the online
softmax of `nn.paged`, so stored precisions, stacks of layers and sizes of keys are read as there.
Several blocks of queries go together, each with keys of its own. On TPUs, by the splash kernel,
whose lists of blocks are those that were chosen.

Axes: B scene, H head, I block of queries, U of those computed together, Q query of a block, S page,
M token of a page, J block of keys of a page, C chosen, G read together, K head dim.
"""

from __future__ import annotations

import dataclasses
import functools
import logging

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.nn import kernels
from efficient_lvsm_jax.nn.attention import IMPLEMENTATIONS
from efficient_lvsm_jax.nn.paged import QUERY_BLOCK, Pages, decoded, fold, in_blocks
from efficient_lvsm_jax.nn.sparsity import Sparsity
from efficient_lvsm_jax.parallel import sharding

# Keys that are fetched at a time; more are no faster on a CPU, and of the last more are in vain.
FETCHED_KEYS = 256
# Of lists of blocks in one call of a kernel: half of what a TPU has for scalars.
LIST_BYTES = 2**19
# Blocks of queries come in multiples of it, as bfloat16 lies in a TPU's memory.
SUBLANES = 16


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


@functools.lru_cache
def choose(name: str, sparsity: Sparsity, platform: str, *, sized: bool = False) -> str:
    """How chosen blocks are attended to, "gather" or "splash"; logged, once for equal arguments.

    Args:
      name: "gather", or of `model.attention`: "auto" is "splash" on TPUs if it can; whatever else
        there is for dense attention is "gather".
      sparsity: of the place.
      platform: as `parallel.sharding.platform` names it.
      sized: whether keys stand for more than one token or for none, see `Pages.log_size`.

    Raises:
      InputError: no such name, or "splash" cannot run; says why.
    """
    if name not in ("auto", "gather", *IMPLEMENTATIONS):
        known = ", ".join(("gather", *IMPLEMENTATIONS))
        raise InputError(f"sparse attention: {name!r}: expected auto or one of {known}")
    if name not in ("auto", "splash") or (name == "auto" and platform != "tpu"):
        return "gather"
    if problem := _problem(sparsity, platform, sized):
        if name == "splash":
            raise InputError(
                f"model.attention='splash': sparse attention: {problem}; or choose "
                "model.attention=auto"
            )
        logging.warning("sparse attention: gather, slower than splash, for this: %s", problem)
        return "gather"
    logging.info("sparse attention: splash on %s", platform)
    return "splash"


def _problem(sparsity: Sparsity, platform: str, sized: bool) -> str:
    """Why the splash kernel cannot run, and what to do about it."""
    if platform != "tpu":
        return f"splash runs on TPUs only and this is {platform}"
    if sized:
        return "its kernel has no sizes of keys"
    if sparsity.by == "token":
        return "its kernel reads blocks, not single tokens; set block64x128 in their place"
    if sparsity.query_block % SUBLANES or sparsity.key_block % kernels.SPLASH_LANES:
        return (
            f"its kernel reads blocks of a multiple of {SUBLANES} queries and of "
            f"{kernels.SPLASH_LANES} keys, not of {sparsity.query_block} and "
            f"{sparsity.key_block}; set block64x128 or larger in model.attention_sparsity"
        )
    return ""


def attend_to_chosen(
    q: jax.Array,
    pages: Pages,
    index: jax.Array,
    count: jax.Array | int,
    size: int,
    *,
    implementation: str = "gather",
) -> jax.Array:
    """Softmax attention of blocks of queries to the keys of chosen blocks.

    Args:
      q: [B, H, I, Q, K].
      pages: [B, H, S, M, K], or of all layers with its `layer`. Those that are not used must not be
        among the chosen.
      index: [B, H, I, C] int32, blocks among the S * J of all pages.
      count: how many of them, from the first, are attended to; with an integer gradients flow.
      size: keys of a block; of a page of fewer it is all of them.
      implementation: as `choose` gives it. "splash" knows no `log_size`.

    Returns:
      As q, float32. With nothing to attend to: NaN.
    """
    if implementation == "gather":
        return _gathered(q, pages, index, count, size)
    pages = dataclasses.replace(pages, used=None, digest=None)  # the index knows
    if pages.is_plain and isinstance(count, int):
        return _by_kernel(count, size, q, *pages.whole_layer(q.dtype), index)
    return _in_kernel(count, size, q, *pages.whole_layer(q.dtype), index)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _by_kernel(
    count: int, size: int, q: jax.Array, k: jax.Array, v: jax.Array, index: jax.Array
) -> jax.Array:
    """`_in_kernel` with the gradients of `_gathered`, which computes it once more for them."""
    return _in_kernel(count, size, q, k, v, index)


def _by_kernel_forward(count: int, size: int, *arrays: jax.Array) -> tuple:
    return _in_kernel(count, size, *arrays), arrays


def _by_kernel_backward(count: int, size: int, arrays: tuple, upstream: jax.Array) -> tuple:
    *qkv, index = arrays
    _, pull = jax.vjp(lambda q, k, v: _gathered(q, Pages(k, v), index, count, size), *qkv)
    return *pull(upstream), None


_by_kernel.defvjp(_by_kernel_forward, _by_kernel_backward)


def _in_kernel(
    count: jax.Array | int, size: int, q: jax.Array, k: jax.Array, v: jax.Array, index: jax.Array
) -> jax.Array:
    """`attend_to_chosen` to k and v [B, H, S, M, K] by calls of the splash kernel."""
    slots, page_tokens = k.shape[2:4]
    missing = -page_tokens % size
    counts = None
    if missing:
        k, v = (jnp.pad(x, (*((0, 0),) * 3, (0, missing), (0, 0))) for x in (k, v))
        there = np.arange(page_tokens + missing) < page_tokens
        counts = np.tile(there.reshape(-1, size), (slots, 1))
    reads = jnp.arange(index.shape[-1]) < count
    index = jnp.where(reads, index, index[..., :1])  # what is not read is not fetched anew

    def here(
        q: jax.Array, k: jax.Array, v: jax.Array, index: jax.Array, reads: jax.Array
    ) -> jax.Array:
        shape = q.shape
        q, index = (x.reshape(-1, *x.shape[2:]) for x in (q, index))
        k, v = (x.reshape(-1, x.shape[2] * x.shape[3] // size, size, x.shape[4]) for x in (k, v))
        together = max(1, LIST_BYTES // (index.size // index.shape[1] * (index.itemsize + 1)))

        def some(blocks: tuple) -> jax.Array:
            q, index = (jnp.moveaxis(x, 0, 1) for x in blocks)
            return jnp.moveaxis(kernels.splash_to_blocks(q, k, v, index, reads, counts), 1, 0)

        of_rows = (in_blocks(jnp.moveaxis(x, 1, 0), together) for x in (q, index))
        mixed = jax.lax.map(some, tuple(of_rows))
        mixed = mixed.reshape(-1, *mixed.shape[2:])[: shape[2]]
        return jnp.moveaxis(mixed, 1, 0).reshape(shape).astype(jnp.float32)

    mesh, scenes = sharding.mesh_in_use(), P(sharding.AXES)
    if mesh is None:
        return here(q, k, v, index, reads)
    sharding.check_divides(mesh, "scenes", q.shape[0], sharding.AXES)
    return jax.shard_map(
        here,
        mesh=mesh,
        in_specs=(*(scenes,) * 4, P()),
        out_specs=scenes,
        check_vma=False,  # as in `nn.attention`
    )(q, k, v, index, reads)


def _gathered(
    q: jax.Array, pages: Pages, index: jax.Array, count: jax.Array | int, size: int
) -> jax.Array:
    """`attend_to_chosen` as a loop."""
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
    return mixed.reshape(q.shape).astype(jnp.float32)
