import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.nn import cache as pages
from efficient_lvsm_jax.nn.attention import attend
from efficient_lvsm_jax.nn.cache import store
from efficient_lvsm_jax.nn.condense import condense, halve, in_parts, parts_of
from efficient_lvsm_jax.nn.paged import Pages

TOKENS = 64


def view(seed=0, *, distinct=TOKENS, layers=2, batch=1):
    """A view of noise in eight pages, with tokens of `distinct` kinds."""
    keys = jax.random.split(jax.random.key(seed))
    shape = (layers, batch, 2, 1, distinct, 8)
    k, v = (jnp.repeat(jax.random.normal(key, shape), TOKENS // distinct, -2) for key in keys)
    return in_parts(Pages(k, v), 8)


def shuffled(whole, seed):
    order = np.random.default_rng(seed).permutation(TOKENS)

    def moved(x):
        flat = x.reshape(*x.shape[:3], TOKENS, *x.shape[5:])
        return flat[:, :, :, order].reshape(x.shape)

    return dataclasses.replace(whole, k=moved(whole.k), v=moved(whole.v))


@jax.jit
def seen(stored):
    """What queries of noise get of the first layer."""
    q = jax.random.normal(jax.random.key(9), (stored.k.shape[1], 2, 40, 8))
    of_layer = jax.tree.map(lambda x: x[0], store(stored, "fp32"))
    return attend(q, of_layer, with_log_sum_exp=True)[0]


def error(condensed, whole):
    return np.sqrt(np.square(seen(condensed) - seen(whole)).mean())


def sizes(stored):
    return np.exp(np.asarray(stored.log_size)).sum((-2, -1))


def test_pages_of_a_view_are_as_many_as_divide_its_tokens():
    assert [parts_of(tokens) for tokens in (64, 12, 6, 7)] == [8, 4, 2, 1]


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8", "fp8"])
def test_a_view_in_parts_is_the_view(precision):
    k, v = (jax.random.normal(jax.random.key(i), (2, 1, 2, 1, TOKENS, 8)) for i in (0, 1))
    page = store(Pages(k, v), precision)
    parts = in_parts(page, 8)
    assert parts.capacity == 8 and parts.precision == precision
    plain, whole = store(parts, "fp32"), store(page, "fp32")
    np.testing.assert_array_equal(plain.k.reshape(k.shape), whole.k)
    np.testing.assert_array_equal(plain.v.reshape(k.shape), whole.v)
    np.testing.assert_allclose(seen(parts), seen(page), atol=1e-6)


@pytest.mark.parametrize("distinct", [1, 8, 16, 32])
def test_equal_tokens_condense_without_error(distinct):
    """In any order, as long as there is a key for each kind; at once and one after the other."""
    halved = whole = shuffled(view(distinct=distinct), seed=distinct)
    for count in (count for count in (4, 2, 1) if count * 8 >= distinct):
        halved = condense(halved, count)
        np.testing.assert_allclose(seen(condense(whole, count)), seen(whole), atol=1e-5)
        np.testing.assert_allclose(seen(halved), seen(whole), atol=1e-5)


def test_equal_keys_of_any_values_condense_without_error():
    whole = dataclasses.replace(view(), k=jnp.ones_like(view().k))
    np.testing.assert_allclose(seen(condense(whole, 1)), seen(whole), atol=1e-5)


def test_as_many_pages_as_there_are_change_nothing():
    whole = view()
    for got, expected in zip(*map(jax.tree.leaves, (condense(whole, 8), whole)), strict=True):
        np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("distinct", [1, 4, TOKENS])
def test_sizes_sum_to_the_tokens_however_often_condensed(distinct):
    halved = whole = shuffled(view(distinct=distinct), 0)
    for count in (7, 4, 2, 1):
        halved = condense(halved, count)
        np.testing.assert_allclose(sizes(halved), TOKENS, rtol=1e-5)
        np.testing.assert_allclose(sizes(condense(whole, count)), TOKENS, rtol=1e-5)


def test_the_error_falls_with_more_keys_and_hardly_depends_on_their_order():
    whole = view()
    errors = [error(condense(whole, count), whole) for count in (1, 2, 4, 8)]
    assert errors == sorted(errors, reverse=True) and errors[-1] == 0
    for count, expected in zip((1, 2, 4), errors, strict=False):
        found = [error(condense(shuffled(whole, seed), count), whole) for seed in range(5)]
        np.testing.assert_allclose(found, expected, rtol=0.4)


def test_condensing_twice_is_about_as_good_as_once():
    whole = view()
    once, twice = condense(whole, 2), condense(condense(whole, 4), 2)
    assert error(twice, whole) < 1.3 * error(once, whole)


def test_clusters_of_one_pages_layers_heads_and_scenes_are_their_own():
    together = condense(view(layers=3, batch=2), 2)
    alone = jax.tree.map(lambda x: x[1:2, 1:2, 1:], view(layers=3, batch=2))
    alone = condense(alone, 2)
    for got, expected in zip(*map(jax.tree.leaves, (together, alone)), strict=True):
        np.testing.assert_allclose(got[1:2, 1:2, 1:], expected, atol=1e-6)


@pytest.mark.parametrize("precision", ["bf16", "int8", "fp8"])
def test_a_stored_view_condenses_to_about_the_same(precision):
    whole = view()
    stored = condense(store(whole, precision), 4)
    assert stored.precision == precision
    again = condense(store(stored, precision), 2)
    np.testing.assert_allclose(sizes(again), TOKENS, rtol=1e-5)
    assert error(stored, whole) < 1.2 * error(condense(whole, 4), whole)


def test_fewer_pages_than_one_or_more_than_there_are_are_refused():
    for count in (0, 9):
        with pytest.raises(InputError, match=f"condensed to {count}: expected from 1 to 8"):
            condense(view(), count)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_view_in_a_cache_is_halved_in_place_and_no_other_is_touched(precision):
    views = [store(view(seed), precision) for seed in range(3)]
    cache = pages.empty(40, views[0])
    for each in views:
        cache = pages.append(cache, each)
    kept = np.asarray(cache.k)[:, :, :, [*range(8), *range(16, 24)]]
    slots = np.arange(8, 16, dtype=np.int32)
    memory = jax.jit(halve, donate_argnums=0).lower(cache, slots).compile().memory_analysis()
    assert memory.alias_size_in_bytes >= cache.k.nbytes + cache.v.nbytes
    cache = halve(cache, slots)
    assert np.flatnonzero(cache.used).tolist() == [*range(12), *range(16, 24)]
    expected = condense(views[1], 4)
    stored = dataclasses.replace(cache, used=None)
    for got, x in zip(*map(jax.tree.leaves, (stored, expected)), strict=True):
        np.testing.assert_array_equal(got[:, :, :, 8:12], x)
    np.testing.assert_array_equal(np.asarray(cache.k)[:, :, :, [*range(8), *range(16, 24)]], kept)
    cache = pages.append(cache, pages.store(condense(view(5), 4), precision))
    assert np.flatnonzero(cache.used).tolist() == list(range(24))


def test_pages_with_and_without_sizes_do_not_mix():
    cache = pages.empty(16, view())
    with pytest.raises(InputError, match="differ in log_size"):
        pages.append(cache, dataclasses.replace(view(), log_size=None))
    cache = pages.append(pages.append(cache, view(0)), view(1))
    with pytest.raises(InputError, match=r"too few of the 16 slots.*for 8 pages; grow"):
        pages.append(cache, view(2))
