"""Attention to chosen blocks of keys by kernels of accelerators, `nn.chosen` says of what.

Splash, of TPUs, takes lists of blocks: those that were chosen. cuDNN, of NVIDIA GPUs, takes
sequences: the keys that a block of queries reads are laid side by side in one, which is read from
memory three times where dense attention reads its keys once for many queries; so it pays where many
queries share what is chosen.

Axes: B scene, H head, R both, I block of queries, U of those computed together, Q query of a block,
S page, M token of a page, J block of keys of a page, C chosen, K head dim.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from efficient_lvsm_jax.nn import kernels
from efficient_lvsm_jax.nn.chosen_loops import gathered
from efficient_lvsm_jax.nn.paged import Pages, decoded, in_blocks
from efficient_lvsm_jax.parallel import sharding

# Of lists of blocks in one call of splash: half of what a TPU has for scalars.
LIST_BYTES = 2**19
# Of keys and values that lie side by side for cuDNN in one call.
FETCHED_BYTES = 2**31
# Sequences of several lengths are a multiple of it, as cuDNN's backward pass has had faults.
LENGTHS_IN = 128


def by_splash(
    q: jax.Array, pages: Pages, index: jax.Array, count: jax.Array | int, size: int
) -> jax.Array:
    """`nn.chosen.attend_to_chosen` by calls of splash.

    Gradients are those of `gathered`, which computes it once more for them.
    """
    pages = dataclasses.replace(pages, used=None)  # the index knows
    call = _splash_with_gradients if pages.is_plain and isinstance(count, int) else _splash
    return call(count, size, q, *pages.whole_layer(q.dtype), index)


def _splash(
    count: jax.Array | int, size: int, q: jax.Array, k: jax.Array, v: jax.Array, index: jax.Array
) -> jax.Array:
    """`by_splash` to k and v [B, H, S, M, K]."""
    slots, page_tokens = k.shape[2:4]
    missing = -page_tokens % size
    counts = None
    if missing:
        k, v = (jnp.pad(x, (*((0, 0),) * 3, (0, missing), (0, 0))) for x in (k, v))
        there = np.arange(page_tokens + missing) < page_tokens
        counts = np.tile(there.reshape(-1, size), (slots, 1))

    def here(q: jax.Array, pages: Pages, index: jax.Array, reads: jax.Array) -> jax.Array:
        k, v = (
            x.reshape(-1, x.shape[2] * x.shape[3] // size, size, x.shape[4])
            for x in (pages.k, pages.v)
        )
        rows = index.shape[0] * index.shape[1]
        together = max(1, LIST_BYTES // (rows * index.shape[3] * (index.itemsize + 1)))

        def some(q: jax.Array, index: jax.Array) -> jax.Array:
            return kernels.splash_to_blocks(q, k, v, index, reads, counts)

        return _some_at_a_time(some, together, q, index)

    return _on_every_device(here, q, Pages(k, v), index, count)


_splash_with_gradients = jax.custom_vjp(_splash, nondiff_argnums=(0, 1))


def _splash_forward(count: int, size: int, *arrays: jax.Array) -> tuple:
    return _splash(count, size, *arrays), arrays


def _splash_backward(count: int, size: int, arrays: tuple, upstream: jax.Array) -> tuple:
    *qkv, index = arrays
    _, pull = jax.vjp(lambda q, k, v: gathered(q, Pages(k, v), index, count, size), *qkv)
    return *pull(upstream), None


_splash_with_gradients.defvjp(_splash_forward, _splash_backward)


def by_cudnn(
    q: jax.Array, pages: Pages, index: jax.Array, count: jax.Array | int, size: int
) -> jax.Array:
    """`nn.chosen.attend_to_chosen` by calls of cuDNN, each block of queries a sequence of its own.

    With an integer as its count gradients flow.
    """
    pages = dataclasses.replace(pages, used=None, digest=None)  # the index knows
    size = min(size, pages.page_tokens)
    unit = 1 if pages.page_tokens % size else size  # what lies together is fetched together
    static = isinstance(count, int)
    index = index[..., :count] if static else index

    def here(q: jax.Array, pages: Pages, index: jax.Array, reads: jax.Array) -> jax.Array:
        scene, head = jnp.divmod(jnp.arange(q.shape[0] * q.shape[1])[:, None, None], q.shape[1])
        lead = (*(() if pages.layer is None else (pages.layer,)), scene, head)

        # The backward pass fetches them once more.
        @functools.partial(jax.checkpoint, policy=kernels.saves())
        def some(q: jax.Array, index: jax.Array) -> jax.Array:
            if unit == size:
                slot, part = jnp.divmod(index, pages.page_tokens // size)  # [R, U, C]
                length = None if static else reads.sum() * size
            else:
                slot, part, length = _token_by_token(index, reads, pages.page_tokens, size)

            def fetched(stored: jax.Array, scale: jax.Array | None) -> jax.Array:
                parts = stored.reshape(*stored.shape[:-2], -1, unit, stored.shape[-1])
                parts = parts.at[*lead, slot, part].get(mode="clip")
                if scale is not None:
                    scale = scale.at[*lead, slot].get(mode="clip")[..., None, None]
                parts = decoded(parts, scale, q.dtype)  # [R, U, C or T, unit, K]
                return parts.reshape(-1, 1, parts.shape[2] * unit, parts.shape[-1])

            queries = q.reshape(-1, 1, *q.shape[2:])
            k, v = fetched(pages.k, pages.k_scale), fetched(pages.v, pages.v_scale)
            if length is None:
                return kernels.cudnn(queries, k, v).reshape(q.shape)
            # A kernel that is told to read nothing may do anything, as in `nn.attention`.
            length = jnp.maximum(jnp.broadcast_to(length, q.shape[:2]), 1).reshape(-1)
            mixed = kernels.cudnn(queries, k, v, length=length)
            return jnp.where(reads.any(), mixed, jnp.nan).reshape(q.shape)

        fetched = 2 * scene.size * index.shape[-1] * size * q.shape[-1] * q.dtype.itemsize
        return _some_at_a_time(some, max(1, FETCHED_BYTES // fetched), q, index)

    return _on_every_device(here, q, pages, index, count)


def _token_by_token(
    index: jax.Array, reads: jax.Array, page_tokens: int, size: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Where the T keys of chosen blocks lie, one after the other, if last ones of pages are short.

    Args:
      index: [R, U, C], blocks among those of all pages.
      reads: [C], which of them.
      page_tokens, size: tokens of a page, and of a block.

    Returns:
      Slot and token of each key, [R, U, T], and how many there are, [R, U]; what follows these is
      one of them over again.
    """
    slot, block = jnp.divmod(index, -(-page_tokens // size))
    sizes = jnp.where(reads, jnp.minimum(page_tokens - block * size, size), 0)
    ends = jnp.cumsum(sizes, axis=-1)
    tokens = index.shape[-1] * size
    at = jnp.minimum(jnp.arange(tokens + -tokens % LENGTHS_IN), ends[..., -1:] - 1)  # [R, U, T]
    search = functools.partial(jnp.searchsorted, side="right", method="scan_unrolled")
    which = jax.vmap(jax.vmap(search))(ends, at)

    def of_block(x: jax.Array) -> jax.Array:
        return jnp.take_along_axis(x, which, axis=-1)

    return of_block(slot), at - of_block(ends - sizes - block * size), ends[..., -1]


def _on_every_device(
    here: Callable, q: jax.Array, pages: Pages, index: jax.Array, count: jax.Array | int
) -> jax.Array:
    """`here(q, pages, index, reads)`, on a mesh with the scenes of each device.

    `reads` [C] says which of the index are attended to; the others repeat the first of them.
    """
    reads = jnp.arange(index.shape[-1]) < count
    index = jnp.where(reads, index, index[..., :1])  # what is not read is not fetched anew
    mesh, scenes = sharding.mesh_in_use(), P(sharding.AXES)
    if mesh is None:
        return here(q, pages, index, reads)
    sharding.check_divides(mesh, "scenes", q.shape[0], sharding.AXES)
    return jax.shard_map(
        here,
        mesh=mesh,
        in_specs=(scenes, pages.specs(sharding.AXES), scenes, P()),
        out_specs=scenes,
        check_vma=False,  # as in `nn.attention`
    )(q, pages, index, reads)


def _some_at_a_time(function: Callable, at_once: int, q: jax.Array, index: jax.Array) -> jax.Array:
    """`function` of some blocks of queries of all rows, [R, U, Q, K] and [R, U, C], after others.

    Args:
      function: returns [R, U, Q, K].
      at_once: U at most.
      q: [B, H, I, Q, K].
      index: [B, H, I, C].

    Returns:
      As q.
    """

    def some(blocks: tuple) -> jax.Array:
        return jnp.moveaxis(function(*(jnp.moveaxis(x, 0, 1) for x in blocks)), 1, 0)

    rows = (x.reshape(-1, *x.shape[2:]) for x in (q, index))
    mixed = jax.lax.map(some, tuple(in_blocks(jnp.moveaxis(x, 1, 0), at_once) for x in rows))
    mixed = mixed.reshape(-1, *mixed.shape[2:])[: q.shape[2]]
    return jnp.moveaxis(mixed, 1, 0).reshape(q.shape)
