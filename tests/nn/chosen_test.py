"""Sparse attention to pages: which blocks are read, and that nothing else is."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.nn import cache as pages
from efficient_lvsm_jax.nn.attention import attend
from efficient_lvsm_jax.nn.paged import Pages
from efficient_lvsm_jax.nn.sparse_linear import Digest, KeySums, SparseLinear, attend_by
from efficient_lvsm_jax.nn.sparsity import Sparsity, in_strips
from efficient_lvsm_jax.parallel import sharding

LAYERS, SCENES, HEADS, TARGETS, SLOTS, TOKENS, WIDTH = 2, 2, 2, 2, 4, 10, 8
SPARSITY = Sparsity(0.4, "block", 3, 4)  # of the last block of a page there are two keys


@functools.cache
def drawn():
    """Queries of some targets, a stack of pages with digests, and P."""
    draw = np.random.default_rng(0)
    q = draw.normal(size=(SCENES, HEADS, TARGETS * TOKENS, WIDTH)).astype(np.float32)
    shape = (LAYERS, SCENES, HEADS, SLOTS, TOKENS, WIDTH)
    k, v = (jnp.asarray(draw.normal(size=shape), jnp.float32) for _ in range(2))
    projection = draw.normal(size=(WIDTH, WIDTH)).astype(np.float32)
    return q, Pages(k, v, digest=Digest.of(k, v, SPARSITY)), projection


@functools.partial(jax.jit, static_argnames=("sparsity", "targets"))
def computed(q, cache, projection, layer, sparsity=SPARSITY, targets=TARGETS):
    sparse = SparseLinear(WIDTH, sparsity)
    sparse.kernel[...] = projection
    return attend_by(sparse, q, dataclasses.replace(cache, layer=layer), targets=targets)


def expected(q, k, v, projection, used):
    """The same, one block of queries after the other, from whole scores of pages [S, M, K]."""
    size, kept = SPARSITY.key_block, SPARSITY.kept(3 * int(used.sum()))
    starts = itertools.product(np.flatnonzero(used), range(0, TOKENS, size))
    blocks = [(k[s, t : t + size], v[s, t : t + size]) for s, t in starts]
    sums = KeySums.of(k[used].reshape(-1, WIDTH), v[used].reshape(-1, WIDTH), SPARSITY, np.True_)
    rows = []
    for target in np.split(q, TARGETS):
        for first in range(0, TOKENS, SPARSITY.query_block):
            queries = target[first : first + SPARSITY.query_block]
            scores = [queries.mean(0) @ keys.mean(0) for keys, _ in blocks]
            best = [blocks[index] for index in np.argsort(scores)[-kept:]]
            keys, values = (np.concatenate(x) for x in zip(*best, strict=True))
            weights = jax.nn.softmax(queries @ keys.T / WIDTH**0.5, axis=-1)
            rows.append(weights @ values + sums.read(queries, SPARSITY) @ projection)
    return np.concatenate(rows)


USED = [[True] * 4, [False, True, False, True], [False, False, True, False]]


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_blocks_of_pages_in_use_are_chosen_and_read_wherever_they_lie(precision):
    q, cache, projection = drawn()
    cache = pages.store(cache, precision)
    numbers = pages.store(cache, "fp32")
    k, v = np.asarray(numbers.k), np.asarray(numbers.v)
    # Not of the numbers before they were rounded: choosing could differ.
    cache = dataclasses.replace(cache, digest=Digest.of(numbers.k, numbers.v, SPARSITY))
    before = computed._cache_size()
    for used in map(np.array, USED):
        found = computed(q, dataclasses.replace(cache, used=used), projection, jnp.int32(1))
        for scene, head in np.ndindex(SCENES, HEADS):
            here = expected(q[scene, head], k[1, scene, head], v[1, scene, head], projection, used)
            np.testing.assert_allclose(found[scene, head], here, atol=1e-5)
    assert computed._cache_size() == before + 1


def test_an_accelerator_computes_all_heads_at_once_and_the_same(monkeypatch):
    q, cache, projection = drawn()
    cache = dataclasses.replace(cache, used=np.array(USED[1]))
    head_by_head = computed(q, cache, projection, jnp.int32(0))
    monkeypatch.setattr(sharding, "platform", lambda: "cuda")
    at_once = jax.jit(computed.__wrapped__, static_argnames=("sparsity", "targets"))
    found = at_once(q, cache, projection, jnp.int32(0))
    np.testing.assert_allclose(found, head_by_head, atol=1e-5)


def test_what_lies_in_free_slots_is_never_read():
    q, cache, projection = drawn()
    used = np.array(USED[1])

    def spoiled(x):
        return jnp.where(used.reshape(-1, *(1,) * (x.ndim - 4)), x, jnp.nan)

    spoilt = jax.tree.map(spoiled, cache)
    clean, found = (
        computed(q, dataclasses.replace(cache, used=used), projection, jnp.int32(0))
        for cache in (cache, spoilt)
    )
    np.testing.assert_array_equal(found, clean)


def test_targets_read_slots_of_their_own():
    q, cache, projection = drawn()
    used = np.array([USED[:2], USED[1:]])  # of both scenes
    found = computed(q, dataclasses.replace(cache, used=used), projection, jnp.int32(0))
    for scene, target in np.ndindex(SCENES, TARGETS):
        alone = dataclasses.replace(cache, used=used[scene, target])
        rows = slice(target * TOKENS, (target + 1) * TOKENS)
        here = computed(q[:, :, rows], alone, projection, jnp.int32(0), targets=1)
        np.testing.assert_allclose(found[scene, :, rows], here[scene], atol=1e-6)


def test_with_nothing_in_use_the_result_is_nan():
    q, cache, projection = drawn()
    nothing = dataclasses.replace(cache, used=np.zeros(SLOTS, bool))
    assert np.isnan(computed(q, nothing, projection, jnp.int32(0))).all()


def test_fewer_keys_than_asked_for_are_read_as_dense_attention_does():
    q, cache, projection = drawn()
    sparsity = dataclasses.replace(SPARSITY, from_keys=2 * TOKENS)
    for used, equal in ((USED[2], True), (USED[1], False)):
        read = dataclasses.replace(cache, used=np.array(used))
        found = computed(q, read, projection, jnp.int32(0), sparsity)
        dense = attend(q, dataclasses.replace(read, layer=jnp.int32(0), digest=None))
        assert np.allclose(found, dense, atol=1e-6) == equal
    k, v = cache.k[0], cache.v[0]  # known when the program is made
    sparsity = dataclasses.replace(SPARSITY, from_keys=SLOTS * TOKENS + 1)
    found = attend_by(SparseLinear(WIDTH, sparsity), q, Pages(k, v))
    np.testing.assert_allclose(found, attend(q, Pages(k, v)), atol=1e-6)


@pytest.mark.parametrize(
    ("rows", "columns", "block"), [(8, 12, 16), (6, 6, 4), (5, 7, 9), (3, 2, 64)]
)
def test_blocks_of_a_picture_lie_close_together(rows, columns, block):
    order = in_strips(rows, columns, block)
    assert sorted(order) == list(range(rows * columns))
    side = int(block**0.5)
    if rows % side == columns % side == 0:
        for tokens in order.reshape(-1, side * side):
            y, x = np.divmod(tokens, columns)
            assert np.ptp(y) == np.ptp(x) == side - 1
    steps = np.abs(np.diff(np.stack(np.divmod(order, columns)), axis=1)).max()
    assert steps <= side  # from one column of a strip to the next, or into the next strip


def test_sparse_attention_refuses_a_mesh_that_spreads_views():
    q, cache, _ = drawn()
    mesh = sharding.make_mesh("context:2", jax.devices()[:2])
    with jax.set_mesh(mesh), pytest.raises(InputError, match="use context:1"):
        attend_by(SparseLinear(WIDTH, SPARSITY), q, Pages(cache.k[0], cache.v[0]))
