import contextlib
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.nn import paged as attention_pages
from efficient_lvsm_jax.nn.attention import attend, combine
from efficient_lvsm_jax.nn.paged import Pages
from efficient_lvsm_jax.parallel.sharding import make_mesh


def arrays(queries: int, pages: int, tokens: int, *, batch: int = 2, heads: int = 2) -> list:
    keys = jax.random.split(jax.random.key(queries), 3)
    shapes = [(batch, heads, queries, 8)] + [(batch, heads, pages, tokens, 8)] * 2
    return [jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True)]


@jax.jit
def reference(q, k, v):
    k, v = (x.reshape(*x.shape[:2], -1, x.shape[-1]) for x in (k, v))
    scores = jnp.einsum("BHQK,BHSK->BHQS", q, k) / np.sqrt(q.shape[-1])
    return jnp.einsum("BHQS,BHSK->BHQK", jax.nn.softmax(scores, axis=-1), v)


def attend_to(q, k, v, *, used=None, scales=(None, None), layer=None, **how):
    layer = None if layer is None else jnp.int32(layer)
    return attend(q, Pages(k, v, used, *scales, layer), **how)


# Small: one einsum. Long rows: heads one by one. Many pages: folded one after another. Short ones:
# several at a time, the last chunk reaching back. Long ones: in parts, by heads and in one einsum.
SIZES = [(6, 3, 5), (1100, 2, 100), (90, 5, 1024), (200, 5, 400), (70, 2, 2048), (6, 2, 1026)]


@pytest.mark.parametrize("size", SIZES)
def test_equals_softmax_attention_and_its_gradients(size):
    args = arrays(*size)

    def results(function):
        def loss(*args):
            found = function(*args)
            return jnp.sum(jnp.sin(3 * found)), found

        gradients, found = jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))(*args)
        return found, *gradients

    both = zip(results(attend_to), results(reference), strict=True)
    for (got, expected), bound in zip(both, (2e-6, 2e-5, 2e-5, 2e-5), strict=True):
        np.testing.assert_allclose(got, expected, atol=bound)


@functools.partial(jax.jit, static_argnums=0)
def weighted_gradients(implementation, weights, *args):
    def loss(*args):
        found = attend_to(*args, implementation=implementation, with_log_sum_exp=True)
        return sum(jnp.sum(x * w) for x, w in zip(found, weights, strict=True))

    return jax.grad(loss, (0, 1, 2))(*args)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_gradients_of_result_and_log_sum_exp_are_those_of_whole_scores(size, dtype):
    args = [x.astype(dtype) for x in arrays(*size)]
    weights = [jax.random.normal(jax.random.key(i), args[0].shape[: 4 - i]) for i in (0, 1)]
    gradients = weighted_gradients("cpu", weights, *args)
    exact = weighted_gradients("xla", weights, *(x.astype(jnp.float32) for x in args))
    bound = {"float32": 2e-6, "bfloat16": 2e-2}[dtype]
    for got, expected in zip(gradients, exact, strict=True):
        assert got.dtype == dtype
        np.testing.assert_allclose(
            got.astype(jnp.float32), expected, atol=bound * np.abs(expected).max()
        )


def test_gradients_hold_two_blocks_of_scores_at_most():
    q, k, v = arrays(4096, 8, 1024, batch=1, heads=4)
    compiled = jax.jit(jax.grad(lambda *a: attend_to(*a).sum(), (0, 1, 2))).lower(q, k, v).compile()
    block = attention_pages.QUERY_BLOCK * 1024 * 4
    held = 2 * (q.nbytes + k.nbytes + v.nbytes)  # results, and what leads to them
    assert compiled.memory_analysis().temp_size_in_bytes < 4 * block + held


@pytest.mark.parametrize("size", SIZES)
def test_used_pages_of_a_stack_equal_only_those_pages(size):
    q, k, v = arrays(*size)
    stack = [jnp.stack([jnp.full_like(x, jnp.nan), x]) for x in (k, v)]
    some = jax.jit(lambda used: attend_to(q, *stack, used=used, layer=jnp.int32(1)))
    for number in range(1, 2 ** size[1]):
        used = (number >> np.arange(size[1])) % 2 == 1
        expected = reference(q, k[:, :, used], v[:, :, used])
        np.testing.assert_allclose(some(jnp.array(used)), expected, atol=2e-6)
    assert some._cache_size() == 1


@pytest.mark.parametrize("size", SIZES)
def test_log_sum_exp_is_that_of_the_scores(size):
    q, k, v = arrays(*size)
    with_sum = jax.jit(functools.partial(attend_to, with_log_sum_exp=True))
    mixed, log_sum_exp = with_sum(q, k, v)
    np.testing.assert_allclose(mixed, reference(q, k, v), atol=2e-6)
    flat = k.reshape(*k.shape[:2], -1, k.shape[-1])
    scores = jnp.einsum("BHQK,BHSK->BHQS", q, flat) / np.sqrt(q.shape[-1])
    np.testing.assert_allclose(log_sum_exp, jax.nn.logsumexp(scores, axis=-1), atol=2e-6)


def test_keys_split_in_any_way_combine_to_the_whole():
    rng = np.random.default_rng(0)
    q, k, v = arrays(6, 1, 40)
    whole, log_sum_exp = attend_to(q, k, v, with_log_sum_exp=True)
    keys, values = (np.asarray(x)[:, :, 0] for x in (k, v))
    scores = np.einsum("BHQK,BHSK->BHQS", q, keys) * q.shape[-1] ** -0.5
    for _ in range(20):
        cuts = np.sort(rng.choice(np.arange(1, 40), size=rng.integers(1, 5), replace=False))
        parts = []
        for some in np.split(rng.permutation(40), cuts):  # attention to these keys by itself
            weights = np.exp(scores[..., some])
            total = weights.sum(axis=-1)
            mixed = np.einsum("BHQS,BHSK->BHQK", weights, values[:, :, some]) / total[..., None]
            parts.append((mixed, np.log(total)))
        combined = functools.reduce(lambda a, b: combine(*a, *b), parts)
        np.testing.assert_allclose(combined[0], whole, atol=1e-6)
        np.testing.assert_allclose(combined[1], log_sum_exp, atol=2e-6)


def test_combining_with_an_empty_set_of_keys_changes_nothing():
    q, k, v = arrays(6, 1, 40)
    whole = attend_to(q, k, v, with_log_sum_exp=True)
    empty = jnp.full_like(whole[0], jnp.nan), jnp.full_like(whole[1], -jnp.inf)
    for combined in (combine(*whole, *empty), combine(*empty, *whole)):
        np.testing.assert_array_equal(combined[0], whole[0])
        np.testing.assert_array_equal(combined[1], whole[1])


def test_large_scores_combine_on_one_device_and_on_several():
    q, k, v = arrays(6, 4, 5, batch=1)
    q *= 1000
    expected = reference(q, k, v)
    halves = [
        attend_to(q, k[:, :, some], v[:, :, some], with_log_sum_exp=True)
        for some in (slice(0, 2), slice(2, 4))
    ]
    np.testing.assert_allclose(combine(*halves[0], *halves[1])[0], expected, atol=2e-4)
    with jax.set_mesh(make_mesh("context:4")):
        np.testing.assert_allclose(attend_to(q, k, v, spread="pages"), expected, atol=2e-4)


@pytest.mark.parametrize("size", [(6, 4, 5), (1100, 4, 100)])
def test_pages_spread_over_devices_equal_pages_on_one_and_so_do_gradients(size):
    args = arrays(*size)

    def gradients(*args):
        return jax.grad(
            lambda *a: jnp.sum(jnp.sin(3 * attend_to(*a, spread="pages"))), argnums=(0, 1, 2)
        )(*args)

    alone = jax.jit(attend_to)(*args), *jax.jit(gradients)(*args)
    for mesh in ("data:2,context:2", "context:4"):
        if mesh == "context:4":
            args, alone = ([x[:1] for x in xs] for xs in (args, alone))
        with jax.set_mesh(make_mesh(mesh)):
            spread = jax.jit(attend_to, static_argnames="spread")(*args, spread="pages")
            got = spread, *jax.jit(gradients)(*args)
        # Against float64, plain float32 attention is off by 0.9e-6 here, and this by 1.4e-6.
        for x, expected in zip(got, alone, strict=True):
            np.testing.assert_allclose(x, expected, atol=2e-6 * np.abs(expected).max())


def test_views_by_themselves_equal_views_one_after_another():
    q, k, v = arrays(6, 1, 6, batch=3)
    together = attend_to(q[None], k[None], v[None])
    np.testing.assert_allclose(together[0], attend_to(q, k, v), atol=1e-6)
    with jax.set_mesh(make_mesh("data:2,context:2")):
        two = [jnp.stack([x[:2], x[1:]]) for x in (q, k, v)]
        spread = attend_to(*two, spread="views")
    np.testing.assert_allclose(spread[0], together[0, :2], atol=1e-6)
    np.testing.assert_allclose(spread[1], together[0, 1:], atol=1e-6)


@pytest.mark.parametrize("implementation", ["cpu", "xla"])
@pytest.mark.parametrize("size", [(6, 4, 5), (1100, 4, 100), (70, 4, 300), (70, 4, 2048)])
@pytest.mark.parametrize("mesh", [None, "context:4"])
def test_stored_pages_with_scales_equal_their_values(implementation, size, mesh):
    """Of a layer in a stack with and without free slots, and of all pages there are."""
    q, k, _ = arrays(*size, batch=1)
    rng = np.random.default_rng(0)
    scales = [jnp.asarray(rng.uniform(0.01, 0.03, (3, 1, 2, 4)), jnp.float32) for _ in "kv"]
    stored = [jnp.asarray(rng.integers(-127, 128, (3, *k.shape)), jnp.int8) for _ in "kv"]
    values = [x * scale[..., None, None] for x, scale in zip(stored, scales, strict=True)]

    def check(layer, used, got):
        expected = reference(q, *(x[layer][:, :, used] for x in values))
        np.testing.assert_allclose(got, expected, atol=5e-6)

    compiled = jax.jit(functools.partial(attend_to, implementation=implementation, spread="pages"))
    with jax.set_mesh(make_mesh(mesh)) if mesh else contextlib.nullcontext():
        check(1, slice(None), compiled(q, *stored, scales=scales, layer=1))
        used = np.array([True, False, True, True])
        check(1, used, compiled(q, *stored, scales=scales, layer=1, used=jnp.array(used)))
        plain = compiled(q, *(x[2] for x in stored), scales=[x[2] for x in scales])
        check(2, slice(None), plain)


def test_used_pages_and_views_by_themselves_go_together():
    q, k, v = arrays(6, 3, 5)
    got = attend_to(q[None], k[None], v[None], used=jnp.array([True, False, True]))
    np.testing.assert_allclose(got[0], attend_to(q, k[:, :, ::2], v[:, :, ::2]), atol=1e-6)


@pytest.mark.parametrize("implementation", ["cpu", "xla"])
@pytest.mark.parametrize("size", [(6, 4, 5), (1100, 4, 100), (70, 4, 2048)])
@pytest.mark.parametrize("mesh", [None, "context:4"])
def test_a_key_that_stands_for_several_counts_as_so_many(implementation, size, mesh):
    """And one that stands for none never, be it a whole page, and the first."""
    q, k, v = arrays(*size, batch=1)
    sizes = np.random.default_rng(0).integers(0, 4, (2, *k.shape[:-1]))  # layers 0 and 1
    sizes[:, :, :, 0] = 0
    scores = jnp.einsum("BHQK,BHSMK->BHQSM", q, k) / np.sqrt(q.shape[-1])

    def check(layer, used, found):
        weights = jnp.exp(scores) * (sizes[layer] * used[:, None])[:, :, None]
        total = weights.sum((-2, -1))
        mixed = jnp.einsum("BHQSM,BHSMK->BHQK", weights, v) / total[..., None]
        np.testing.assert_allclose(found[0], mixed, atol=5e-6)
        np.testing.assert_allclose(found[1], jnp.log(total), atol=5e-6)

    how = {"implementation": implementation, "spread": "pages", "with_log_sum_exp": True}
    compiled = jax.jit(functools.partial(attend, **how))
    with np.errstate(divide="ignore"):
        log_size = jnp.log(jnp.asarray(sizes, jnp.float32))
    stack = [jnp.stack([jnp.full_like(x, jnp.nan), x]) for x in (k, v)]
    with jax.set_mesh(make_mesh(mesh)) if mesh else contextlib.nullcontext():
        check(0, np.ones(4, bool), compiled(q, Pages(k, v, log_size=log_size[0])))
        used = np.array([True, False, True, True])
        pages = Pages(*stack, jnp.array(used), layer=jnp.int32(1), log_size=log_size)
        check(1, used, compiled(q, pages))


def test_sizes_of_one_each_change_nothing_and_others_shapes_are_refused():
    q, k, v = arrays(6, 3, 5)
    ones = Pages(k, v, log_size=jnp.zeros(k.shape[:-1]))
    np.testing.assert_allclose(attend(q, ones), attend_to(q, k, v), atol=1e-6)
    by_views = Pages(k[None], v[None], log_size=ones.log_size[None])
    np.testing.assert_allclose(attend(q[None], by_views)[0], attend_to(q, k, v), atol=1e-6)
    with pytest.raises(InputError, match="differ in keys"):
        attend(q, Pages(k, v, log_size=jnp.zeros(k.shape[:-2])))


@pytest.mark.parametrize("implementation", ["cpu", "xla"])
@pytest.mark.parametrize("size", [(6, 3, 5), (1100, 3, 100), (70, 3, 2050), (200, 7, 400)])
def test_pages_that_are_not_used_are_never_read(size, implementation):
    q, k, v = arrays(*size)
    used = np.array([True, False, True, False, False, False, True])[: size[1]]
    expected = reference(q, k[:, :, used], v[:, :, used])
    k, v = (x.at[:, :, ~used].set(jnp.nan) for x in (k, v))
    mixed = attend_to(q, k, v, used=jnp.array(used), implementation=implementation)
    np.testing.assert_allclose(mixed, expected, atol=2e-6)


def test_a_whole_layer_has_used_pages_first_and_then_zeros():
    """What kernels get that read so many leading keys."""
    stored = np.random.default_rng(0).integers(-127, 128, (2, 3, 1, 2, 5, 4, 8)).astype(np.int8)
    scales = np.random.default_rng(1).uniform(0.5, 2, (2, 3, 1, 2, 5)).astype(np.float32)
    used = np.array([False, True, False, True, True])
    scales[..., 0] = np.nan
    pages = Pages(*stored, jnp.array(used), *scales, jnp.int32(1))
    for got, x, scale in zip(pages.whole_layer(jnp.float32), stored, scales, strict=True):
        expected = (x * scale[..., None, None])[1][:, :, used]
        np.testing.assert_array_equal(got[:, :, :3], expected)
        np.testing.assert_array_equal(got[:, :, 3:], 0)
    for most in (3, 4, 9):
        few = dataclasses.replace(pages, most=most)
        both = few.whole_layer(jnp.float32), pages.whole_layer(jnp.float32)
        for got, whole in zip(*both, strict=True):
            np.testing.assert_array_equal(got, whole[:, :, :most])


def test_pages_are_read_in_chunks_of_about_a_thousand_keys():
    sizes = {
        (64, 64): (16, 1),
        (17, 64): (16, 1),
        (5, 1024): (1, 1),
        (2, 4096): (1, 4),
        (2, 2560): (1, 4),
        (3, 8100): (1, 9),
        (2, 2053): (1, 1),
    }
    for (slots, page_tokens), expected in sizes.items():
        found = attention_pages._pages_in_a_chunk(slots, page_tokens, equal=False)
        assert found == expected, (slots, page_tokens)
    assert attention_pages._pages_in_a_chunk(6, 400, equal=True) == (2, 1)


def test_used_that_does_not_fit_the_pages_is_refused():
    with pytest.raises(InputError, match="differ in pages"):
        attend_to(*arrays(6, 3, 5), used=jnp.array([True, False]))


@pytest.mark.parametrize("bad", [(2, 4, 3), (1, 2, 3), (2, 3), (2, 0, 3)])
def test_choices_that_do_not_fit_the_queries_are_refused(bad):
    with pytest.raises(InputError, match=r"expected \[S\], or \[B,R,S\]"):
        attend_to(*arrays(6, 3, 5), used=jnp.ones(bad, bool))
    q, k, v = arrays(6, 3, 5)
    with pytest.raises(InputError, match=r"expected \[S\], or \[B,R,S\]"):
        attend_to(q[None], k[None], v[None], used=jnp.ones((1, 2, 3), bool))


@pytest.mark.parametrize("implementation", ["cpu", "xla"])
@pytest.mark.parametrize("size", [(6, 4, 5), (1100, 4, 100), (70, 4, 2050), (200, 4, 400)])
@pytest.mark.parametrize("layer", [None, 1])
@pytest.mark.parametrize("mesh", [None, "data:2,context:2"])
def test_groups_of_queries_read_pages_of_their_own(implementation, size, layer, mesh):
    """Also where a device holds none of them; pages that none of a scene's groups reads are NaN."""
    q, k, v = arrays(2 * size[0], *size[1:])
    used = np.array([[[1, 0, 1, 0], [0, 0, 1, 0]], [[1, 1, 0, 1], [0, 1, 0, 0]]], bool)
    expected = jnp.stack(
        [
            jnp.concatenate(
                [
                    reference(half[None], *(x[b : b + 1][:, :, used[b, r]] for x in (k, v)))[0]
                    for r, half in enumerate(jnp.split(q[b], 2, axis=1))
                ],
                axis=1,
            )
            for b in range(2)
        ]
    )
    unread = ~used.any(axis=1)[:, None, :, None, None]
    k, v = (jnp.where(unread, jnp.nan, x) for x in (k, v))
    if layer is not None:
        k, v = (jnp.stack([jnp.full_like(x, jnp.nan), x]) for x in (k, v))
    compiled = jax.jit(
        functools.partial(
            attend_to, implementation=implementation, spread="pages", with_log_sum_exp=True
        )
    )
    with jax.set_mesh(make_mesh(mesh)) if mesh else contextlib.nullcontext():
        mixed, log_sum_exp = compiled(q, k, v, used=jnp.array(used), layer=layer)
        np.testing.assert_allclose(mixed, expected, atol=2e-6)
        assert np.isfinite(log_sum_exp).all() and log_sum_exp.shape == q.shape[:-1]
        nothing = compiled(q, k, v, used=jnp.array(used).at[1, 0].set(False), layer=layer)[0]
    np.testing.assert_allclose(nothing[0], expected[0], atol=2e-6)
    np.testing.assert_allclose(nothing[1, :, size[0] :], expected[1, :, size[0] :], atol=2e-6)
    assert np.isnan(nothing[1, :, : size[0]]).all()
    assert compiled._cache_size() == 1


@pytest.mark.parametrize("implementation", ["cpu", "xla"])
def test_the_work_of_a_group_follows_the_chunks_that_it_reads(implementation, monkeypatch):
    """Two groups of 64 and one of two pages of 1,024 keys, counted while it runs."""
    steps, read = [], attention_pages.Chunks.read

    def counted(self, step, *rest):
        jax.debug.callback(lambda at: steps.append(int(at)), step)
        return read(self, step, *rest)

    monkeypatch.setattr(attention_pages.Chunks, "read", counted)
    q, k, v = arrays(3 * 90, 64, 1024, batch=1, heads=1)
    used = np.zeros((1, 3, 64), bool)
    used[0, 0], used[0, 1, 40], used[0, 2, [3, 50]] = True, True, True
    for groups, expected in (([0, 1, 2], 67), ([1, 2], 3), ([2], 2)):
        steps.clear()
        queries = q[:, :, : 90 * len(groups)]
        how = {"used": jnp.array(used[:, groups]), "implementation": implementation}
        jax.block_until_ready(attend_to(queries, k, v, **how))
        jax.effects_barrier()
        assert len(steps) == expected


def test_scores_of_one_block_at_most_exist_at_a_time():
    q, k, v = arrays(4096, 8, 1024, batch=1, heads=4)
    compiled = jax.jit(attend_to).lower(q, k, v).compile()
    block = attention_pages.QUERY_BLOCK * 1024 * 4
    assert compiled.memory_analysis().temp_size_in_bytes < 4 * block + 2 * q.nbytes


def test_bfloat16_stays_bfloat16_and_close():
    args = [x.astype(jnp.bfloat16) for x in arrays(90, 2, 64)]
    mixed = attend_to(*args)
    assert mixed.dtype == jnp.bfloat16
    exact = reference(*(x.astype(jnp.float32) for x in args))
    np.testing.assert_allclose(mixed.astype(jnp.float32), exact, atol=2e-2)


@pytest.mark.parametrize("change", ["heads", "head_dim", "axes"])
def test_shapes_that_do_not_belong_together_are_refused(change):
    q, k, v = arrays(6, 3, 5)
    if change == "heads":
        q = q[:, :1]
    elif change == "head_dim":
        q = q[..., :4]
    else:
        k = v = k[0]
    with pytest.raises(InputError, match="attend"):
        attend_to(q, k, v)
