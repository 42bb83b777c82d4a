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
from efficient_lvsm_jax.sharding import platform

# How keys and values are stored. On a CPU "bf16" is the bits of bfloat16, as uint16: to slice
# bfloat16 it would make all of it float32.
PRECISIONS = {
    "fp32": jnp.float32,
    "bf16": jnp.bfloat16,
    "int8": jnp.int8,
    "fp8": jnp.float8_e4m3fn,
}
# The largest number that can be stored, to which a scale brings values.
LARGEST = {jnp.dtype(jnp.int8): 127.0, jnp.dtype(jnp.float8_e4m3fn): 448.0}


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("k", "v", "k_scale", "v_scale", "count"),
    meta_fields=(),
)
@dataclasses.dataclass(frozen=True)
class ViewCache:
    """Keys (after their norm) and values of the input views.

    Attributes:
      k, v: [L, B, H, S, N, K], stored in one of PRECISIONS.
      count: int32 scalar, the number of pages in use; None means all S of them, as `encode`
        returns it (then gradients can flow through).
      k_scale, v_scale: what stored numbers are multiplied by, [L, B, H, S] float32: one scale for
        each page of a head; None if they are stored as they are.
    """

    k: jax.Array
    v: jax.Array
    count: jax.Array | None = None
    k_scale: jax.Array | None = None
    v_scale: jax.Array | None = None

    @property
    def capacity(self) -> int:
        """Number of page slots."""
        return self.k.shape[3]

    @property
    def precision(self) -> str:
        """In which of PRECISIONS keys and values are stored."""
        if self.k.dtype == jnp.uint16:
            return "bf16"
        known = (name for name, dtype in PRECISIONS.items() if self.k.dtype == dtype)
        return next(known, str(self.k.dtype))

    @property
    def page_bytes(self) -> int:
        """Bytes of one page."""
        arrays = (self.k, self.v, self.k_scale, self.v_scale)
        return sum(x.size * x.dtype.itemsize for x in arrays if x is not None) // self.capacity


def store(cache: ViewCache, precision: str) -> ViewCache:
    """The same views, stored in another of PRECISIONS.

    int8 and fp8 (e4m3) numbers have a scale for each page of a head, which brings the largest
    value to the largest number there is. What changes its precision has no gradient any more, and
    asking for one is an error.

    Raises:
      InputError: there is no such precision.
    """
    if precision not in PRECISIONS:
        raise InputError(f"precision {precision!r}: expected one of {', '.join(PRECISIONS)}")
    dtype = _stored_dtype(jnp.dtype(PRECISIONS[precision]))
    return cache if cache.k.dtype == dtype else _stored_as(cache, dtype)


def _stored_dtype(dtype: jnp.dtype) -> jnp.dtype:
    """As which dtype one of PRECISIONS is kept here."""
    return jnp.dtype(jnp.uint16) if dtype == jnp.bfloat16 and platform() == "cpu" else dtype


@functools.partial(jax.jit, static_argnums=1)
def _stored_as(cache: ViewCache, dtype: jnp.dtype) -> ViewCache:
    if cache.k.dtype == dtype:
        return cache
    k, k_scale = _encoded(_without_gradient(_numbers(cache.k, cache.k_scale)), dtype)
    v, v_scale = _encoded(_without_gradient(_numbers(cache.v, cache.v_scale)), dtype)
    return ViewCache(k, v, cache.count, k_scale, v_scale)


@jax.custom_jvp
def _without_gradient(x: jax.Array) -> jax.Array:
    """x; rounded numbers and bits would silently have gradients of zero."""
    return x


@_without_gradient.defjvp
def _refuse_gradient(*_: object) -> None:
    raise InputError("a cache in another precision has no gradient; set model.cache='computed'")


def _encoded(x: jax.Array, dtype: jnp.dtype) -> tuple[jax.Array, jax.Array | None]:
    """Values [L, B, H, S, N, K] as `dtype`, and their scales [L, B, H, S] if it has them."""
    if dtype == jnp.uint16:
        return jax.lax.bitcast_convert_type(x.astype(jnp.bfloat16), dtype), None
    if dtype not in LARGEST:
        return x.astype(dtype), None
    largest = jnp.abs(x).max(axis=(-2, -1))
    scale = jnp.maximum(largest / LARGEST[dtype], jnp.finfo(jnp.float32).tiny)  # NaN stays NaN
    x = x / scale[..., None, None]
    return (jnp.round(x) if dtype == jnp.int8 else x).astype(dtype), scale


def _numbers(stored: jax.Array, scale: jax.Array | None) -> jax.Array:
    """Float32 values of what is stored."""
    if stored.dtype == jnp.uint16:
        stored = jax.lax.bitcast_convert_type(stored, jnp.bfloat16)
    stored = stored.astype(jnp.float32)
    return stored if scale is None else stored * scale[..., None, None]


def empty(capacity: int, page: ViewCache) -> ViewCache:
    """A cache without views, with room for `capacity` pages like those of `page`.

    `page` gives every other size and how it is stored; it may be abstract (`jax.eval_shape`).
    """
    if capacity < 1:
        raise InputError(f"cache capacity {capacity}: expected at least 1 page")

    # Separate buffers: the same zeros for k and v could not be donated.
    def room(x: jax.Array) -> jax.Array:
        return jnp.zeros((*x.shape[:3], capacity, *x.shape[4:]), _stored_dtype(x.dtype))

    pages = jax.tree.map(room, dataclasses.replace(page, count=None))
    return dataclasses.replace(pages, count=jnp.zeros((), jnp.int32))


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

    def grown(x: jax.Array) -> jax.Array:
        room = [(0, capacity - cache.capacity) if axis == 3 else (0, 0) for axis in range(x.ndim)]
        return jnp.pad(x, room)

    pages = jax.tree.map(grown, dataclasses.replace(cache, count=None))
    return dataclasses.replace(pages, count=_counted(cache).count)


@functools.partial(jax.jit, donate_argnums=0)
def _append(cache: ViewCache, page: ViewCache) -> ViewCache:
    page = _stored_as(page, cache.k.dtype)
    return dataclasses.replace(_write(cache, cache.count, page), count=cache.count + 1)


@functools.partial(jax.jit, donate_argnums=0)
def _replace(cache: ViewCache, index: jax.Array, page: ViewCache) -> ViewCache:
    return _write(cache, index, _stored_as(page, cache.k.dtype))


@functools.partial(jax.jit, donate_argnums=0)
def _remove(cache: ViewCache, index: jax.Array) -> ViewCache:
    last = cache.count - 1
    # A gather, not a slice, which would bring all pages together if they are spread over devices.
    page = jax.tree.map(
        lambda x: jnp.take(x, last[None], axis=3, mode="clip"),
        dataclasses.replace(cache, count=None),
    )
    cache = _write(cache, index, page)
    # Zeroed second, so that removing the last page itself leaves nothing either.
    return dataclasses.replace(_write(cache, last, jax.tree.map(jnp.zeros_like, page)), count=last)


def _write(cache: ViewCache, index: jax.Array, page: ViewCache) -> ViewCache:
    """The cache with one page, stored alike, in slot `index`."""
    pages = jax.tree.map(
        lambda pool, new: jax.lax.dynamic_update_slice_in_dim(pool, new, index, axis=3),
        dataclasses.replace(cache, count=None),
        dataclasses.replace(page, count=None),
    )
    return dataclasses.replace(pages, count=cache.count)


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
