"""Views in fewer keys: what a full cache may do instead of forgetting one.

In every layer and head by itself a view's keys are clustered together with their values (k-means),
and each cluster becomes one key and one value, the means of those in it, which stands for as many
tokens: `Pages.log_size`. Attention to tokens that are equal stays exactly what it was.

So that a condensed view takes less memory, every view lies in several short pages from the start,
and is condensed to half, a quarter or an eighth of them. The slots of the others are free again.
Nothing of one view is mixed with another's: each still leaves without a trace.

Axes: L layer, B scene, H head, S page of the view, M token of a page, K head dim, N key of the
view, C cluster.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp

from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.nn.cache import store, written
from efficient_lvsm_jax.nn.paged import Pages

PARTS = (8, 4, 2)  # pages of a view that can be condensed; the first that divides its tokens
STEPS = 4  # of k-means


def parts_of(tokens: int) -> int:
    """How many pages a view of so many tokens lies in to be condensed; 1 if it cannot be."""
    return next((parts for parts in PARTS if tokens % parts == 0), 1)


@functools.partial(jax.jit, static_argnums=1)
def in_parts(page: Pages, parts: int) -> Pages:
    """The page of one view, [L, B, H, 1, M, K], as `parts` pages of keys for one token each."""

    def cut(x: jax.Array) -> jax.Array:
        return x.reshape(*x.shape[:3], parts, -1, x.shape[-1])

    k, v, scales = cut(page.k), cut(page.v), (page.k_scale, page.v_scale)
    k_scale, v_scale = jax.tree.map(lambda x: jnp.repeat(x, parts, axis=-1), scales)
    sizes = jnp.zeros(k.shape[:-1], jnp.float32)
    return Pages(k, v, k_scale=k_scale, v_scale=v_scale, log_size=sizes)


@functools.partial(jax.jit, static_argnums=1)
def condense(view: Pages, pages: int) -> Pages:
    """One view in fewer pages, of as many keys each.

    Deterministic, in float32; the same numbers where `pages` are as many as there are. A view that
    was condensed before can be once more: its keys then weigh what they stand for.

    Args:
      view: [L, B, H, S, M, K], stored in any precision, which stays.
      pages: from 1 to S.

    Raises:
      InputError: there are fewer pages.
    """
    layers, batch, heads, slots, page_tokens, head_dim = view.k.shape
    if not 1 <= pages <= slots:
        raise InputError(f"{slots} pages condensed to {pages}: expected from 1 to {slots}")
    if pages == slots:
        return view
    plain, rows = store(view, "fp32"), (layers * batch * heads, slots * page_tokens)
    sizes = jnp.ones(rows) if view.log_size is None else jnp.exp(view.log_size).reshape(rows)
    keys_values = (x.reshape(*rows, head_dim) for x in (plain.k, plain.v))
    cluster = functools.partial(_clustered, clusters=pages * page_tokens)
    # A layer after the other: the distances of its keys from all clusters are large enough.
    of_all = (*keys_values, sizes)
    k, v, sizes = jax.lax.map(lambda row: cluster(*row), of_all, batch_size=heads)
    k, v = (x.reshape(layers, batch, heads, pages, page_tokens, head_dim) for x in (k, v))
    condensed = Pages(k, v, log_size=jnp.log(sizes).reshape(k.shape[:-1]))
    return store(condensed, view.precision)


def _clustered(
    k: jax.Array, v: jax.Array, sizes: jax.Array, clusters: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Means of keys [C, K] and values [C, K] and sums of sizes [C], of keys, values and sizes [N].

    An empty cluster has zeros. Sizes are 0 or at least 1.
    """
    product = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)
    share = (sizes / sizes.sum())[:, None]
    tokens = jnp.concatenate([_normed(k, share), _normed(v, share)], axis=-1)  # equal say for both

    def members(centres: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The share [C, N] of each token in the cluster whose centre is nearest, and sizes [C]."""
        nearness = product(tokens, centres.T) - jnp.square(centres).sum(-1) / 2
        theirs = nearness.argmax(-1) == jnp.arange(clusters)[:, None]
        weights = jnp.where(theirs, sizes, 0)
        total = weights.sum(-1)
        return weights / jnp.maximum(total, 1)[:, None], total

    def move(_: int, centres: jax.Array) -> jax.Array:
        means, total = members(centres)
        return jnp.where(total[:, None] > 0, product(means, tokens), centres)

    def take(index: int, carry: tuple) -> tuple:
        taken, distances = carry
        farthest = distances.argmax()
        away = squares + squares[farthest] - 2 * products[farthest]
        return taken.at[index].set(farthest), jnp.minimum(distances, away)

    # Start from the token farthest from their mean, then always the one farthest from all taken:
    # what is rare in a picture keeps a key of its own.
    squares, products = jnp.square(tokens).sum(-1), product(tokens, tokens.T)
    distances = jnp.where(sizes > 0, squares, -1)
    start = jnp.zeros(clusters, jnp.int32), distances
    taken, _ = jax.lax.fori_loop(0, clusters, take, start)
    means, total = members(jax.lax.fori_loop(0, STEPS - 1, move, tokens[taken]))
    return product(means, k), product(means, v), total


def _normed(x: jax.Array, share: jax.Array) -> jax.Array:
    """x [N, K] less its mean, over its deviation; `share` [N, 1] is the weight of each row."""
    centred = x - (share * x).sum(0)
    variance = (share * jnp.square(centred)).sum()
    return centred * jax.lax.rsqrt(jnp.maximum(variance, jnp.finfo(jnp.float32).tiny))


def halve(cache: Pages, slots: jax.Array) -> Pages:
    """The cache with the view in `slots` [P] in the first half of them; the others are free then.

    The old cache is donated. Compiles once for each P.
    """
    return _halved(cache, jnp.asarray(slots, jnp.int32))


@functools.partial(jax.jit, donate_argnums=0)
def _halved(cache: Pages, slots: jax.Array) -> Pages:
    pages = dataclasses.replace(cache, used=None)
    view = jax.tree.map(lambda pool: jnp.take(pool, slots, axis=3, mode="clip"), pages)
    half = len(slots) // 2
    cache = written(cache, slots[:half], condense(view, half))
    return dataclasses.replace(cache, used=cache.used.at[slots[half:]].set(False))
