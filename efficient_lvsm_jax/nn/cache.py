"""The view cache: what the decoder reads of the input views, as a value.

One view is one page: its keys (after their norm) and values at every decoder layer, in `Pages` with
a leading axis L; a view that may be condensed later lies in several short pages (`nn.condense`). A
page lies in a slot, and `used` says which slots hold one; what lies in the
others is never read. Every function takes a cache and returns the new one; the old one may be
donated, so keep only the result. Shapes never depend on the number of views: nothing recompiles
while they come and go.

Axes: L layer, B scene, H head, S page slot, N patch token of a view, K head dim.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.nn.paged import BITS, PRECISIONS, Pages, from_bits

# The largest number that can be stored, to which a scale brings values.
LARGEST = {jnp.dtype(jnp.int8): 127.0, jnp.dtype(jnp.float8_e4m3fn): 448.0}


def store(cache: Pages, precision: str) -> Pages:
    """The same views, stored in another of PRECISIONS.

    int8 and fp8 (e4m3) numbers have a scale for each page of a head, which brings the largest
    value to the largest number there is. What changes its precision has no gradient any more, and
    asking for one is an error.

    Raises:
      InputError: there is no such precision.
    """
    if precision not in PRECISIONS:
        raise InputError(f"precision {precision!r}: expected one of {', '.join(PRECISIONS)}")
    return _stored_as(cache, jnp.dtype(PRECISIONS[precision]))


@functools.partial(jax.jit, static_argnums=1)
def _stored_as(cache: Pages, dtype: jnp.dtype) -> Pages:
    if cache.k.dtype == dtype:
        return cache
    k, k_scale = _encoded(_without_gradient(_numbers(cache.k, cache.k_scale)), dtype)
    v, v_scale = _encoded(_without_gradient(_numbers(cache.v, cache.v_scale)), dtype)
    kept = {"log_size": cache.log_size, "digest": cache.digest}
    return Pages(k, v, cache.used, k_scale, v_scale, **kept)


@jax.custom_jvp
def _without_gradient(x: jax.Array) -> jax.Array:
    """x; rounded numbers and bits would silently have gradients of zero."""
    return x


@_without_gradient.defjvp
def _refuse_gradient(*_: object) -> None:
    raise InputError("a cache in another precision has no gradient; set model.cache='computed'")


def _encoded(x: jax.Array, dtype: jnp.dtype) -> tuple[jax.Array, jax.Array | None]:
    """Values [L, B, H, S, N, K] as `dtype`, and their scales [L, B, H, S] if it has them."""
    number, scale = jnp.dtype(BITS.get(dtype, dtype)), None
    if number in LARGEST:
        largest = jnp.abs(x).max(axis=(-2, -1))
        scale = jnp.maximum(largest / LARGEST[number], jnp.finfo(jnp.float32).tiny)  # NaN stays NaN
        x = x / scale[..., None, None]
    x = (jnp.round(x) if number == jnp.int8 else x).astype(number)
    return (jax.lax.bitcast_convert_type(x, dtype) if dtype in BITS else x), scale


def _numbers(stored: jax.Array, scale: jax.Array | None) -> jax.Array:
    """Float32 values of what is stored."""
    x = from_bits(stored).astype(jnp.float32)
    return x if scale is None else x * scale[..., None, None]


def empty(capacity: int, page: Pages) -> Pages:
    """A cache without views, with room for `capacity` pages like those of `page`.

    `page` gives every other size and how it is stored; it may be abstract (`jax.eval_shape`). Where
    it is bound to a device, as what comes of restored weights is, so is the cache: an update would
    bind it, and what reads it would compile once more.
    """
    if capacity < 1:
        raise InputError(f"cache capacity {capacity}: expected at least 1 page")

    # Separate buffers: the same zeros for k and v could not be donated.
    def room(x: jax.Array) -> jax.Array:
        dtype = jnp.uint16 if x.dtype == jnp.bfloat16 else x.dtype
        return jnp.zeros((*x.shape[:3], capacity, *x.shape[4:]), dtype, device=place)

    bound = isinstance(page.k, jax.Array) and _known(page.k) and page.k.committed
    place = page.k.sharding if bound and len(page.k.devices()) == 1 else None
    pages = jax.tree.map(room, dataclasses.replace(page, used=None))
    return dataclasses.replace(pages, used=jnp.zeros(capacity, bool, device=place))


def append(cache: Pages, page: Pages) -> Pages:
    """The cache with the pages of a view added, mostly one, in the first free slots.

    Raises:
      InputError: they do not fit the cache's shapes, or too few slots are free (`grow` it first).
        Under `jit` the number of views is not known and a full cache is the caller's to avoid.
    """
    cache = _with_slots(cache)
    _check_page(cache, page, page.capacity)
    if _known(cache.used) and np.count_nonzero(cache.used) + page.capacity > cache.capacity:
        raise InputError(
            f"too few of the {cache.capacity} slots of the cache are free for {page.capacity} "
            "pages; grow() it first"
        )
    return _append(cache, page)


def remove(cache: Pages, slot: jax.Array | int) -> Pages:
    """The cache without the page in `slot`; the others stay in theirs.

    Nothing of the page is read any more. Its numbers stay in memory until the slot is used again.
    The old cache and the new one share keys and values, which a later update of either donates.

    Raises:
      InputError: there is no such page (checked outside `jit`).
    """
    cache = _with_slots(cache)
    return dataclasses.replace(cache, used=_without(cache.used, _checked_slot(cache, slot)))


def replace(cache: Pages, slot: jax.Array | int, page: Pages) -> Pages:
    """The cache with the view of `page` in place of that in `slot`. Errors as in `remove`."""
    cache = _with_slots(cache)
    _check_page(cache, page, 1)
    return _write(cache, _checked_slot(cache, slot), page)


def grow(cache: Pages, capacity: int) -> Pages:
    """The same views in a cache with `capacity` slots. The new shape compiles its readers anew."""
    if capacity < cache.capacity:
        raise InputError(f"cannot grow a cache of {cache.capacity} pages to {capacity}")
    cache = _with_slots(cache)
    room = capacity - cache.capacity

    def grown(x: jax.Array) -> jax.Array:
        return jnp.pad(x, [(0, room) if axis == 3 else (0, 0) for axis in range(x.ndim)])

    pages = jax.tree.map(grown, dataclasses.replace(cache, used=None))
    return dataclasses.replace(pages, used=jnp.pad(cache.used, (0, room)))


def reading(cache: Pages, chosen: jax.Array | np.ndarray) -> Pages:
    """The cache with only those views in `used` that are chosen, for reading alone.

    Args:
      cache: is not changed, and shares its pages.
      chosen: bool, slots to be read: [S] by all targets, or [B, T, S] by each of T targets of each
        scene. What reads the cache compiles once for each of both forms, never for what is chosen.
        Of slots without a page none is read; a target that reads nothing renders as NaN.
    """
    used = jnp.asarray(chosen) if cache.used is None else _both(cache.used, chosen)
    return dataclasses.replace(cache, used=used)


def bounded(cache: Pages) -> Pages:
    """The cache with `most`: the views read, rounded up to a power of two or to all slots.

    Of targets that read different views the one that reads most of them counts.

    For readers that want all keys in one piece, as cuDNN does. They compile once for each such
    number, log2(capacity) + 1 times at most, and what they gather follows the views in use. It is
    for reading alone; a cache that is changed has no `most`. Under `jit` the number of views is not
    known, and the cache comes back as it is.
    """
    if cache.used is None or not _known(cache.used):
        return cache
    return bounded_by(cache, int(np.count_nonzero(cache.used, axis=-1).max()))


def bounded_by(cache: Pages, views: int) -> Pages:
    """`bounded`, the number of views being known; the cache may be abstract."""
    most = 2 ** max(views - 1, 0).bit_length()
    return dataclasses.replace(cache, most=min(most, cache.capacity))


def lower_append(cache: Pages, page: Pages) -> jax.stages.Lowered:
    """The program that `append` runs, to be compiled, for arguments that may be abstract."""
    return _append.lower(cache, page)


@functools.partial(jax.jit, donate_argnums=0)
def _append(cache: Pages, page: Pages) -> Pages:
    return written(cache, jnp.argsort(cache.used, stable=True)[: page.capacity], page)


@functools.partial(jax.jit, donate_argnums=0)
def _write(cache: Pages, slot: jax.Array, page: Pages) -> Pages:
    return written(cache, slot[None], page)


def written(cache: Pages, slots: jax.Array, page: Pages) -> Pages:
    """The cache with the pages of `page` in so many slots [P]; for use inside a jitted function."""

    def put(pool: jax.Array, new: jax.Array) -> jax.Array:
        for index in range(page.capacity):
            one = jax.lax.slice_in_dim(new, index, index + 1, axis=3)
            pool = jax.lax.dynamic_update_slice_in_dim(pool, one, slots[index], axis=3)
        return pool

    pages = jax.tree.map(
        put,
        dataclasses.replace(cache, used=None),
        dataclasses.replace(_stored_as(page, cache.k.dtype), used=None),
    )
    return dataclasses.replace(pages, used=cache.used.at[slots].set(True))


@jax.jit
def _both(used: jax.Array, chosen: jax.Array) -> jax.Array:
    return used & chosen


@jax.jit
def _without(used: jax.Array, slot: jax.Array) -> jax.Array:
    return used.at[slot].set(False)


def _check_page(cache: Pages, page: Pages, count: int) -> None:
    """Raises InputError unless `page` is so many pages of the kind that the cache has."""
    expected = (*cache.k.shape[:3], count, *cache.k.shape[4:])
    if page.k.shape != expected or page.v.shape != expected:
        raise InputError(
            f"page of shape {page.k.shape} does not fit the cache: expected {expected}"
            " (a view of the same model and image size)"
        )
    if (page.digest is None) != (cache.digest is None):
        raise InputError(
            "page and cache differ in digest: model.attention_sparsity names cross for one alone"
        )
    if (page.log_size is None) != (cache.log_size is None):
        raise InputError(
            "page and cache differ in log_size: both or none are of views that can be condensed"
        )


def _checked_slot(cache: Pages, slot: jax.Array | int) -> jax.Array | np.ndarray:
    """`slot` as an int32, after a look whether a page is in it if that is known."""
    if not _known(slot):
        return slot.astype(jnp.int32)
    used = np.flatnonzero(cache.used).tolist() if _known(cache.used) else None
    if used is not None and int(slot) not in used:
        raise InputError(f"no page in slot {int(slot)} of the cache: there are in {used}")
    return np.asarray(slot, np.int32)


def _with_slots(cache: Pages) -> Pages:
    """The cache with `used` as an array, as the updates need it."""
    if cache.used is not None:
        return cache
    return dataclasses.replace(cache, used=jnp.ones(cache.capacity, bool))


def _known(value: jax.Array | int) -> bool:
    """Whether `value` is there now, not a tracer."""
    return not isinstance(value, jax.core.Tracer)
