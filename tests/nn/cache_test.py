import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import one_view, random_views

from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.models.model import Model
from efficient_lvsm_jax.nn import cache as pages
from efficient_lvsm_jax.nn.paged import PRECISIONS, Pages
from efficient_lvsm_jax.parallel.sharding import make_mesh, put_cache

VIEWS = random_views(6, seed=1)
TARGETS = random_views(2, seed=2).cameras


@pytest.fixture(scope="module", params=["none", "prope"])
def small_model(request, small_model):
    """As published, and with keys and values that depend on their cameras; the same must hold."""
    config = dataclasses.replace(small_model.config, positions=request.param)
    return dataclasses.replace(small_model, config=config)


def copy(cache):
    """A cache of its own buffers: updates donate theirs."""
    return jax.tree.map(lambda x: x.copy(), cache)


def filled(model, indices, capacity=6, views=VIEWS):
    cache = pages.empty(capacity, model.encode(one_view(views, 0)))
    for index in indices:
        cache = pages.append(cache, model.encode(one_view(views, index)))
    return cache


def render(model, cache):
    return np.asarray(model.decode(cache, TARGETS))


def test_one_by_one_equals_all_at_once(small_model):
    together = render(small_model, small_model.encode(VIEWS))
    np.testing.assert_allclose(
        render(small_model, filled(small_model, range(6))), together, atol=1e-6
    )


def test_order_of_inputs_does_not_matter(small_model):
    forward = render(small_model, filled(small_model, [0, 1, 2, 3]))
    np.testing.assert_allclose(
        render(small_model, filled(small_model, [2, 0, 3, 1])), forward, atol=1e-6
    )


def test_every_view_changes_the_picture(small_model):
    fewer = render(small_model, filled(small_model, [0, 1]))
    assert np.abs(render(small_model, filled(small_model, [0, 1, 2])) - fewer).max() > 1e-3


@pytest.mark.parametrize("index", [0, 1, 3])
def test_remove_equals_never_added(small_model, index):
    removed = pages.remove(filled(small_model, [0, 1, 2, 3]), index)
    rest = [view for view in range(4) if view != index]
    never = filled(small_model, rest)
    np.testing.assert_allclose(render(small_model, removed), render(small_model, never), atol=1e-6)


@pytest.mark.parametrize("implementation", ["cpu", "xla"])
@pytest.mark.parametrize("size", [(24, 24), (256, 256)])
def test_a_removed_page_leaves_no_trace(small_model, implementation, size):
    """Not even one of NaN, which any reading of it would spread."""
    views = random_views(3, size=size)
    config = dataclasses.replace(small_model.config, attention=implementation)
    model = Model(small_model.family, config, small_model.params)
    cache = filled(model, [0, 1, 2], views=views)
    poisoned = jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), model.encode(one_view(views, 0)))
    cache = pages.replace(cache, 1, poisoned)
    assert np.isnan(render(model, cache)).all()
    never = filled(model, [0, 2], views=views)
    removed = render(model, pages.remove(cache, 1))
    np.testing.assert_allclose(removed, render(model, never), atol=1e-6)


def test_replace_equals_remove_then_add(small_model):
    page = small_model.encode(one_view(VIEWS, 5))
    replaced = pages.replace(filled(small_model, [0, 1, 2]), 1, page)
    other = pages.append(pages.remove(filled(small_model, [0, 1, 2]), 1), page)
    np.testing.assert_allclose(render(small_model, replaced), render(small_model, other), atol=1e-6)


def test_targets_together_equal_targets_apart(small_model):
    cache = small_model.encode(VIEWS)
    together = render(small_model, cache)
    for index in range(2):
        alone = small_model.decode(cache, one_view(random_views(2, seed=2), index).cameras)
        np.testing.assert_allclose(alone[:, 0], together[:, index], atol=1e-6)


def test_growing_keeps_the_views(small_model):
    cache = filled(small_model, [0, 1], capacity=2)
    before = render(small_model, cache)
    grown = pages.grow(cache, 5)
    assert grown.capacity == 5
    np.testing.assert_allclose(render(small_model, grown), before, atol=1e-6)


def test_two_thousand_random_operations_equal_a_fresh_cache_without_recompiling(small_model):
    rng = np.random.default_rng(0)
    capacity = 8
    stock = [small_model.encode(one_view(random_views(24, seed=3), i)) for i in range(24)]
    cache, held = pages.empty(capacity, stock[0]), {}  # slot to view
    functions = (pages._append, pages._without, pages._write)

    def operate(kind):
        nonlocal cache
        if kind == "append" and len(held) < capacity:
            slot = min(set(range(capacity)) - set(held))
            held[slot] = int(rng.integers(24))
            cache = pages.append(cache, stock[held[slot]])
        elif kind == "remove" and held:
            slot = int(rng.choice(list(held)))
            cache = pages.remove(cache, slot)
            del held[slot]
        elif kind == "replace" and held:
            slot = int(rng.choice(list(held)))
            held[slot] = int(rng.integers(24))
            cache = pages.replace(cache, slot, stock[held[slot]])

    for kind in ("append", "append", "replace", "remove"):  # compiles everything once
        operate(kind)
    render(small_model, cache)
    compiled = [function._cache_size() for function in functions]

    for number in range(2000):
        operate(rng.choice(["append", "remove", "replace"]))
        if number % 250 == 249 and held:
            fresh = pages.empty(capacity, stock[0])
            for view in rng.permutation(list(held.values())):
                fresh = pages.append(fresh, stock[view])
            np.testing.assert_allclose(
                render(small_model, cache), render(small_model, fresh), atol=1e-5
            )
    assert [function._cache_size() for function in functions] == compiled
    assert set(np.flatnonzero(cache.used)) == set(held)
    for slot, view in held.items():
        np.testing.assert_array_equal(cache.k[:, :, :, slot], stock[view].k[:, :, :, 0])


def test_changing_the_number_of_views_compiles_nothing(small_model):
    decode = jax.jit(lambda cache: small_model.decode(cache, TARGETS))
    for count in (1, 3, 6, 2):
        decode(filled(small_model, range(count)))
    assert decode._cache_size() == 1


def test_updates_are_in_place_and_move_one_page_and_removing_moves_none(small_model):
    page = small_model.encode(one_view(VIEWS, 0))
    cache = pages.empty(64, page)
    page_bytes = page.k.nbytes + page.v.nbytes
    for lowered in (
        pages._append.lower(cache, page),
        pages._write.lower(cache, np.int32(0), page),
    ):
        memory = lowered.compile().memory_analysis()
        assert memory.alias_size_in_bytes >= 64 * page_bytes
        assert memory.temp_size_in_bytes <= page_bytes + 4096
    cache = pages.append(cache, page)
    removed = pages.remove(cache, 0)
    assert removed.k is cache.k and removed.v is cache.v


@pytest.mark.parametrize("precision", PRECISIONS)
def test_rendering_copies_no_cache_however_large(small_model, precision):
    views = random_views(1, size=(64, 64))
    page = pages.store(small_model.encode(views), precision)

    def temporary(capacity):
        lowered = jax.jit(small_model.decode).lower(pages.empty(capacity, page), views.cameras)
        return lowered.compile().memory_analysis().temp_size_in_bytes

    assert temporary(256) - temporary(64) < page.page_bytes


def test_an_update_consumes_the_old_cache(small_model):
    cache = filled(small_model, [0])
    pages.append(cache, small_model.encode(one_view(VIEWS, 1)))
    assert cache.k.is_deleted()


def test_a_full_cache_a_wrong_page_and_an_unknown_page_are_refused(small_model):
    cache = filled(small_model, [0, 1], capacity=2)
    with pytest.raises(InputError, match="grow"):
        pages.append(cache, small_model.encode(one_view(VIEWS, 2)))
    with pytest.raises(InputError, match=r"no page in slot 2 of the cache: there are in \[0, 1\]"):
        pages.remove(cache, 2)
    with pytest.raises(InputError, match="no page in slot -1"):
        pages.replace(cache, -1, small_model.encode(one_view(VIEWS, 2)))
    larger = small_model.encode(random_views(1, size=(32, 24)))
    with pytest.raises(InputError, match="does not fit"):
        pages.append(filled(small_model, [0]), larger)
    with pytest.raises(InputError, match="capacity 0"):
        pages.empty(0, larger)


def test_a_cache_from_encode_can_be_updated_too(small_model):
    encoded = small_model.encode(VIEWS)
    removed = pages.remove(copy(encoded), 5)
    five = filled(small_model, range(5))
    np.testing.assert_allclose(render(small_model, removed), render(small_model, five), atol=1e-6)


@pytest.mark.parametrize("precision", ["bf16", "int8", "fp8"])
def test_stored_keys_and_values_are_near_the_exact_ones(small_model, precision):
    exact = small_model.encode(VIEWS)
    stored = pages.store(exact, precision)
    assert stored.precision == precision
    for got, expected in zip(
        jax.tree.leaves(pages.store(stored, "fp32")), jax.tree.leaves(exact), strict=True
    ):
        largest = np.abs(expected).max(axis=(-2, -1), keepdims=True)
        steps = {"bf16": 2**-8 * np.abs(expected), "int8": largest / 254, "fp8": largest / 28}
        assert (np.abs(got - expected) <= steps[precision] * 1.001).all()


@pytest.mark.parametrize("precision", ["bf16", "int8", "fp8"])
def test_a_cache_stores_what_is_added_as_it_stores_the_rest(small_model, precision):
    """One by one, replaced and removed, partly filled: the same picture as all at once."""
    # Of views encoded alone here, too: between two numbers of bfloat16 the last bit decides.
    together = render(small_model, pages.store(filled(small_model, range(6)), precision))
    first = pages.store(small_model.encode(one_view(VIEWS, 0)), precision)
    cache = pages.empty(8, first)
    for index in (5, 0, 1, 2, 3, 4, 4):
        cache = pages.append(cache, small_model.encode(one_view(VIEWS, index)))
    cache = pages.remove(cache, 0)
    cache = pages.replace(cache, 6, small_model.encode(one_view(VIEWS, 5)))
    assert cache.precision == precision
    np.testing.assert_allclose(render(small_model, cache), together, atol=2e-6)
    grown = pages.grow(cache, 11)
    np.testing.assert_allclose(render(small_model, grown), together, atol=2e-6)


@pytest.mark.parametrize("precision", ["int8", "fp8"])
@pytest.mark.parametrize("value", [0.0, 1e-42, np.nan])
def test_pages_of_odd_values_come_back_as_they_are(precision, value):
    page = jnp.full((2, 1, 2, 1, 6, 16), value)
    back = pages.store(pages.store(Pages(page, page), precision), "fp32")
    np.testing.assert_allclose(back.k, page, atol=1e-38)


def test_an_unknown_precision_and_a_gradient_through_a_stored_cache_are_refused(small_model):
    cache = small_model.encode(VIEWS)
    with pytest.raises(InputError, match="'int4': expected one of fp32, bf16, int8, fp8"):
        pages.store(cache, "int4")
    for precision in ("bf16", "int8"):
        with pytest.raises(InputError, match="has no gradient"):
            jax.grad(lambda k, p=precision: pages.store(Pages(k, k), p).k.sum() * 1.0)(cache.k)


def chosen_alone(model, cache, chosen, cameras):
    """Pictures [B, T, …] of each target from a fresh cache of only what it chose."""
    pictures = []
    for index, slots in enumerate(chosen):
        only = dataclasses.replace(cache, used=jnp.array(slots))
        camera = jax.tree.map(lambda x, at=index: x[:, at : at + 1], cameras)
        pictures.append(np.asarray(model.decode(only, camera)))
    return np.concatenate(pictures, axis=1)


CHOSEN = np.array([[1, 0, 0, 1, 0, 0], [0, 0, 1, 1, 1, 0]], bool)


@pytest.mark.parametrize(
    ("size", "implementation", "precision"),
    [
        *(((16, 24), "cpu", precision) for precision in ("computed", *PRECISIONS)),
        *(((16, 24), "xla", precision) for precision in ("computed", "int8")),
        *(((192, 192), "cpu", precision) for precision in ("computed", "bf16", "int8")),
        ((192, 192), "xla", "computed"),
    ],
)
def test_targets_read_what_each_chose_and_nothing_else(
    small_model, size, implementation, precision
):
    """Views that nobody chose are NaN; of long ones each target is decoded by itself."""
    config = dataclasses.replace(small_model.config, cache=precision, attention=implementation)
    model = dataclasses.replace(small_model, config=config)
    cache = filled(model, range(6), views=random_views(6, seed=1, size=size))
    if cache.k.dtype == jnp.float32:
        unread = ~CHOSEN.any(axis=0)[:, None, None]
        k, v = (jnp.where(unread, jnp.nan, x) for x in (cache.k, cache.v))
        cache = dataclasses.replace(cache, k=k, v=v)
    cameras = random_views(2, seed=2, size=size).cameras
    got = np.asarray(model.decode(pages.reading(cache, CHOSEN[None]), cameras))
    np.testing.assert_allclose(got, chosen_alone(model, cache, CHOSEN, cameras), atol=2e-6)
    assert np.isfinite(got).all()


def test_all_views_chosen_by_all_targets_is_the_whole_cache_in_either_form(small_model):
    cache = pages.remove(filled(small_model, [0, 1, 2, 3], capacity=8), 1)
    whole = render(small_model, cache)
    np.testing.assert_array_equal(
        render(small_model, pages.reading(cache, np.ones(8, bool))), whole
    )
    each = render(small_model, pages.reading(cache, np.ones((1, 2, 8), bool)))
    np.testing.assert_allclose(each, whole, atol=1e-6)
    assert np.isnan(render(small_model, pages.reading(cache, np.arange(8) == 1))).all()


def test_scenes_of_a_batch_choose_by_themselves_also_of_a_cache_from_encode(small_model):
    views, cameras = random_views(6, seed=5, batch=3), random_views(2, seed=6, batch=3).cameras
    encoded = small_model.encode(views)
    chosen = np.random.default_rng(0).random((3, 2, 6)) < 0.5
    chosen[..., 0] |= ~chosen.any(axis=-1)
    got = np.asarray(small_model.decode(pages.reading(encoded, chosen), cameras))
    for scene in range(3):
        only = jax.tree.map(lambda x, at=scene: x[:, at : at + 1], encoded)
        of_scene = jax.tree.map(lambda x, at=scene: x[at : at + 1], cameras)
        expected = chosen_alone(small_model, only, chosen[scene], of_scene)
        np.testing.assert_allclose(got[scene : scene + 1], expected, atol=2e-6)


def test_other_choices_compile_nothing_and_copy_no_page(small_model):
    cache = filled(small_model, range(6))
    decode = jax.jit(lambda cache: small_model.decode(cache, TARGETS))
    decode(cache)
    for seed in range(4):
        slots = np.random.default_rng(seed).permutation(6) < 2
        read = pages.reading(cache, slots)
        assert read.k is cache.k and read.v is cache.v
        decode(read)
    assert decode._cache_size() == 1
    for seed in range(4):
        decode(pages.reading(cache, np.random.default_rng(seed).random((1, 2, 6)) < 0.5))
    assert decode._cache_size() == 2
    page = small_model.encode(random_views(1, size=(64, 64)))
    cameras = random_views(2, size=(64, 64)).cameras

    def temporary(capacity):
        read = pages.reading(pages.empty(capacity, page), np.ones((1, 2, capacity), bool))
        lowered = jax.jit(small_model.decode).lower(read, cameras)
        return lowered.compile().memory_analysis().temp_size_in_bytes

    assert temporary(256) - temporary(64) < page.page_bytes


@pytest.mark.parametrize("spec", ["context:4", "data:2,context:2"])
def test_choices_of_a_cache_spread_over_devices_render_as_on_one(small_model, spec):
    mesh, batch = make_mesh(spec), 1 if spec == "context:4" else 2
    views, targets = random_views(4, batch=batch), random_views(2, seed=1, batch=batch).cameras
    cache = pages.grow(small_model.encode(views), 8)
    chosen = np.zeros((batch, 2, 8), bool)
    chosen[:, 0, 3] = chosen[:, 1, [0, 1]] = chosen[-1, 1, 2] = True
    alone = small_model.decode(pages.reading(cache, chosen), targets)
    same = small_model.decode(pages.reading(cache, chosen[-1, 1]), targets)
    with jax.set_mesh(mesh):
        cache = put_cache(mesh, cache)
        got = small_model.decode(pages.reading(cache, chosen), targets)
        got_same = small_model.decode(pages.reading(cache, chosen[-1, 1]), targets)
    np.testing.assert_allclose(got, alone, atol=1e-6)
    np.testing.assert_allclose(got_same, same, atol=1e-6)
