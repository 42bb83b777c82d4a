"""The view cache: what the decoder reads of the input views, as a value.

One view is one page: its keys and values at every decoder layer. Pages 0 … count-1 are in use, the
rest is zero. Every function takes a cache and returns the new one; the old one is donated, so
keep only the result. Shapes never depend on `count`: nothing recompiles while views come and go.

Axes: L layer, B scene, H head, S page slot, N patch token of a view, K head dim.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp

from efficient_lvsm_jax.errors import InputError


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=("k", "v", "count"), meta_fields=()
)
@dataclasses.dataclass(frozen=True)
class ViewCache:
    """Keys (after their norm) and values of the input views.

    Attributes:
      k, v: [L, B, H, S, N, K].
      count: int32 scalar, the number of pages in use; None means all S of them, as `encode`
        returns it (then gradients can flow through).
    """

    k: jax.Array
    v: jax.Array
    count: jax.Array | None = None

    @property
    def capacity(self) -> int:
        """Number of page slots."""
        return self.k.shape[3]


def empty(capacity: int, page: ViewCache) -> ViewCache:
    """A cache without views and room for `capacity` pages like those of `page`.

    `page` gives every other size and the dtype; it may be abstract (`jax.eval_shape`).
    """
    if capacity < 1:
        raise InputError(f"cache capacity {capacity}: expected at least 1 page")
    shape = (*page.k.shape[:3], capacity, *page.k.shape[4:])
    # Two separate buffers: the same zeros for k and v could not be donated.
    return ViewCache(
        jnp.zeros(shape, page.k.dtype), jnp.zeros(shape, page.v.dtype), jnp.zeros((), jnp.int32)
    )


def append(cache: ViewCache, page: ViewCache) -> ViewCache:
    """The cache with the one view of `page` added as page number `count`.

    Raises:
      InputError: the page does not fit the cache's shapes, or no slot is free (`grow` it first).
        Under `jit` the number of views is not known and a full cache is the caller's to avoid.
    """
    cache = _counted(cache)
    _check_page(cache, page)
    if _known(cache.count) and int(cache.count) >= cache.capacity:
        raise InputError(f"all {cache.capacity} pages of the cache are in use; grow() it first")
    return _append(cache, page)


def remove(cache: ViewCache, index: jax.Array | int) -> ViewCache:
    """The cache without page `index`; the last page takes its place and its slot is zeroed.

    Raises:
      InputError: there is no such page (checked outside `jit`).
    """
    cache = _counted(cache)
    _check_index(cache, index)
    return _remove(cache, jnp.asarray(index, jnp.int32))


def replace(cache: ViewCache, index: jax.Array | int, page: ViewCache) -> ViewCache:
    """The cache with the view of `page` in place of page `index`. Errors as in `remove`."""
    cache = _counted(cache)
    _check_page(cache, page)
    _check_index(cache, index)
    return _replace(cache, jnp.asarray(index, jnp.int32), page)


def grow(cache: ViewCache, capacity: int) -> ViewCache:
    """The same views in a cache with `capacity` slots. The new shape compiles its readers anew."""
    if capacity < cache.capacity:
        raise InputError(f"cannot grow a cache of {cache.capacity} pages to {capacity}")
    room = [(0, 0)] * 3 + [(0, capacity - cache.capacity)] + [(0, 0)] * 2
    return ViewCache(jnp.pad(cache.k, room), jnp.pad(cache.v, room), _counted(cache).count)


@functools.partial(jax.jit, donate_argnums=0)
def _append(cache: ViewCache, page: ViewCache) -> ViewCache:
    return dataclasses.replace(_write(cache, cache.count, page), count=cache.count + 1)


@functools.partial(jax.jit, donate_argnums=0)
def _replace(cache: ViewCache, index: jax.Array, page: ViewCache) -> ViewCache:
    return _write(cache, index, page)


@functools.partial(jax.jit, donate_argnums=0)
def _remove(cache: ViewCache, index: jax.Array) -> ViewCache:
    last = cache.count - 1
    # A gather, not a slice, which would bring all pages together if they are spread over devices.
    page = jax.tree.map(
        lambda x: jnp.take(x, last[None], axis=3, mode="clip"), ViewCache(cache.k, cache.v)
    )
    cache = _write(cache, index, page)
    # Zeroed second, so that removing the last page itself leaves nothing either.
    return dataclasses.replace(_write(cache, last, jax.tree.map(jnp.zeros_like, page)), count=last)


def _write(cache: ViewCache, index: jax.Array, page: ViewCache) -> ViewCache:
    k, v = (
        jax.lax.dynamic_update_slice_in_dim(pool, new.astype(pool.dtype), index, axis=3)
        for pool, new in ((cache.k, page.k), (cache.v, page.v))
    )
    return dataclasses.replace(cache, k=k, v=v)


def _check_page(cache: ViewCache, page: ViewCache) -> None:
    expected = (*cache.k.shape[:3], 1, *cache.k.shape[4:])
    if page.k.shape != expected or page.v.shape != expected:
        raise InputError(
            f"page of shape {page.k.shape} does not fit the cache: expected {expected}"
            " (one view of the same model and image size)"
        )


def _check_index(cache: ViewCache, index: jax.Array | int) -> None:
    if _known(cache.count) and _known(index) and not 0 <= int(index) < int(cache.count):
        raise InputError(f"no page {int(index)} in the cache: {int(cache.count)} pages are in use")


def _counted(cache: ViewCache) -> ViewCache:
    """The cache with its count as an array, as the updates need it."""
    if cache.count is not None:
        return cache
    return dataclasses.replace(cache, count=jnp.asarray(cache.capacity, jnp.int32))


def _known(value: jax.Array | int) -> bool:
    """Whether `value` is a number now, not a tracer."""
    return not isinstance(value, jax.core.Tracer)
