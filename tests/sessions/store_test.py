"""Full caches: views that are condensed or leave by their cameras; `session_test` has the rest."""

import dataclasses
import re
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import random_views
from session_test import count_compilations

from efficient_lvsm_jax import InputError, SceneFrame, Session
from efficient_lvsm_jax.geometry.cameras import Cameras
from efficient_lvsm_jax.models.model import Model

SIZE = (32, 32)  # 16 tokens: eight pages of two
VIEWS = random_views(40, seed=21, size=SIZE)
FRAME = SceneFrame.from_cameras(VIEWS.c2w[0])
TARGETS = random_views(3, seed=22)
# Keys and values, layers, tokens, width, bytes. Sizes: layers, heads, tokens, bytes. Scales:
# keys and values, layers, heads, pages, bytes.
DENSE = 2 * 2 * 16 * 32 * 4
PAGE = DENSE + 2 * 2 * 16 * 4
INT8_PAGE = DENSE // 4 + 2 * 2 * 16 * 4 + 2 * 2 * 2 * 8 * 4


def view(index):
    return VIEWS.image[0, index], VIEWS.c2w[0, index], VIEWS.fxfycxcy[0, index]


def session_of(model, indices, **options):
    session = Session(model, **{"frame": FRAME, **options})
    return session, [session.add(*view(index)) for index in indices]


def merging(model, indices, views=4.5, **options):
    return session_of(
        model, indices, **{"max_bytes": int(views * PAGE), "when_full": "merge", **options}
    )


def pictures(session):
    return session.render(TARGETS.c2w[0], TARGETS.fxfycxcy[0], SIZE)


def shares(session):
    """How many of eight pages each view has left, by its id."""
    return [len(session._store.slots_of(view)) for view in session.views]


def line(*places):
    """Poses on a line, all looking along z."""
    c2w = np.tile(np.eye(4), (len(places), 1, 1))
    c2w[:, 0, 3] = places
    return c2w


def seen_by(model, cache, views):
    """Pictures from nothing but these views' slots of a cache."""
    slots = jnp.array([slot for view in views for slot in view])
    few = jax.tree.map(lambda x: jnp.take(x, slots, axis=3), dataclasses.replace(cache, used=None))
    few = dataclasses.replace(few, used=jnp.ones(len(slots), bool))
    cameras = Cameras(FRAME.apply(TARGETS.c2w), TARGETS.fxfycxcy, *SIZE)
    return np.asarray(model.decode(few, cameras))[0]


@pytest.mark.parametrize(
    ("precision", "implementation"),
    [("fp32", "cpu"), ("fp32", "xla"), ("bf16", "cpu"), ("int8", "xla"), ("fp8", "cpu")],
)
def test_with_nothing_merged_pictures_are_those_of_the_plain_cache(
    small_model, precision, implementation
):
    """In any order of adding, and after one was removed and one replaced."""
    config = dataclasses.replace(small_model.config, attention=implementation)
    model = Model(small_model.family, config, small_model.params)
    plain, ids = session_of(model, [0, 1, 2, 3], precision=precision)
    merged, _ = merging(model, [0, 1, 2, 3], precision=precision)
    other, _ = merging(model, [2, 0, 3, 1], precision=precision)
    expected = pictures(plain)
    np.testing.assert_allclose(pictures(merged), expected, atol=1e-5)
    np.testing.assert_allclose(pictures(other), expected, atol=1e-5)
    for session in (plain, merged):
        session.remove(ids[1])
        session.replace(ids[2], *view(5))
    assert merged.views == plain.views and merged._store.condensed == 0
    np.testing.assert_allclose(pictures(merged), pictures(plain), atol=1e-5)


@pytest.mark.parametrize(("precision", "page"), [("fp32", PAGE), ("int8", INT8_PAGE)])
def test_forty_views_stay_within_the_bytes(small_model, precision, page):
    budget = int(3.5 * page)
    session = Session(
        small_model, frame=FRAME, precision=precision, max_bytes=budget, when_full="merge"
    )
    left = []
    for index in range(40):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            assert session.add(*view(index)) == index
        left += [int(re.search("view (.*) was taken out", str(w.message))[1]) for w in caught]
        cache = session._store.cache
        assert cache.capacity * cache.page_bytes <= budget
        assert sum(shares(session)) == np.count_nonzero(cache.used) <= cache.capacity
        assert shares(session)[-1] == 8
        assert len(session.views) + len(left) == index + 1
        assert not left or set(shares(session)[:-1]) == {1}
    assert cache.capacity == 28
    most = 28 - 7
    assert len(session.views) == most and session.views == sorted({*range(40)} - {*left})
    assert f"{most} views of 32x32, {most - 1} condensed, cache of" in repr(session)
    assert np.isfinite(pictures(session)).all()


def test_a_condensed_view_that_is_removed_leaves_no_trace(small_model):
    session, ids = merging(small_model, range(9))
    assert min(shares(session)) < 8
    condensed = [view for view in ids if len(session._store.slots_of(view)) < 8]
    for gone in (condensed[0], condensed[-1]):
        session.remove(gone)
        kept = [session._store.slots_of(view) for view in session.views]
        np.testing.assert_allclose(
            pictures(session), seen_by(small_model, session._store.cache, kept), atol=1e-6
        )
    assert len(session.views) == 7


@pytest.mark.parametrize("positions", ["none", "prope"])
def test_a_choice_reads_all_pages_of_condensed_views_and_of_no_others(small_model, positions):
    config = dataclasses.replace(small_model.config, positions=positions)
    session, _ = merging(dataclasses.replace(small_model, config=config), range(12))
    some = session.views[-4:]
    assert {len(session._store.slots_of(view)) for view in some} >= {2, 8}
    got = session.render(TARGETS.c2w[0], TARGETS.fxfycxcy[0], SIZE, views=some)
    by_one = session.render(TARGETS.c2w[0, 0], TARGETS.fxfycxcy[0, 0], SIZE, views="nearest:2")
    assert np.isfinite(by_one).all()
    assert np.abs(got - pictures(session)).max() > 1e-3
    for view in set(session.views) - set(some):
        session.remove(view)
    np.testing.assert_allclose(pictures(session), got, atol=1e-6)


def test_a_condensed_view_that_is_replaced_comes_whole_and_keeps_its_id(small_model):
    session, ids = merging(small_model, range(9))
    changed = next(view for view in ids if len(session._store.slots_of(view)) < 8)
    session.replace(changed, *view(20))
    slots = session._store.slots_of(changed)
    assert session.views == ids and len(slots) == 8
    found = dataclasses.replace(session._store.cache, used=None)
    found = jax.tree.map(lambda x: x[:, :, :, np.array(slots)], found)
    image, c2w, fxfycxcy = (x[None, None] for x in view(20))
    page = small_model.encode(type(VIEWS)(image, FRAME.apply(c2w), fxfycxcy))
    np.testing.assert_allclose(found.k.reshape(page.k.shape), page.k, atol=1e-6)
    assert not np.asarray(found.log_size).any()


@pytest.mark.parametrize(("precision", "page"), [("fp32", PAGE), ("int8", INT8_PAGE)])
def test_after_warm_up_merging_compiles_nothing(small_model, precision, page):
    session, _ = merging(small_model, [], precision=precision, max_bytes=4 * page)
    session.warm_up(SIZE)
    compiled = count_compilations()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for index in range(30):
            session.add(*view(index))
            pictures(session)
    assert min(shares(session)) == 1 and len(set(shares(session))) > 1
    for changed in session.views[:2]:
        session.replace(changed, *view(35))
        session.remove(changed)
    pictures(session)
    assert not compiled


def test_views_near_others_are_halved_first_and_the_earlier_of_two_stays(small_model):
    session = Session(small_model, frame=FRAME, max_bytes=4 * PAGE, when_full="merge", capacity=4)
    image, _, fxfycxcy = view(0)
    found = []
    for c2w in line(0, 10, 11, 30, 60, 61.5):
        session.add(image, c2w, fxfycxcy)
        found.append(shares(session))
    # 10 and 11 lie 1 apart: with one page each they count for as much as 8 with eight.
    assert found[3:] == [[8] * 4, [8, 4, 4, 8, 8], [4, 1, 1, 8, 8, 8]]


@pytest.mark.parametrize("when_full", ["spread", "merge"])
def test_a_slow_stream_keeps_an_even_cover(small_model, when_full):
    page, most = (DENSE, 6) if when_full == "spread" else (PAGE, 9)
    session = Session(
        small_model, frame=FRAME, max_bytes=page * (6 if most == 6 else 2), when_full=when_full
    )
    image, _, fxfycxcy = view(0)
    places = np.arange(40) * 0.1
    for c2w in line(*places):
        with warnings.catch_warnings(record=True):
            session.add(image, c2w, fxfycxcy)
    kept = places[session.views]
    assert len(kept) == most and kept[-1] == places[-1]
    gaps = np.diff([0, *kept])
    assert gaps.max() < 2.5 * places[-1] / (most - 1)


def test_more_views_than_fit_may_wait_for_the_frame(small_model):
    session, ids = merging(small_model, range(8), frame=None)
    first = pictures(session)
    assert session.views == ids and session._store.condensed > 0
    later, _ = merging(small_model, range(8), frame=session.frame)
    np.testing.assert_allclose(first, pictures(later), atol=1e-6)
    session, _ = merging(small_model, [], frame=None, views=1.25)  # ten pages: 1 + 1 + 8
    for index in range(3):
        session.add(*view(index))
    with pytest.warns(UserWarning, match=r"view . was taken out.*'merge'.*holds 3 views"):
        session.add(*view(3))
    assert len(session.views) == 3 and np.isfinite(pictures(session)).all()
    assert shares(session) == [1, 1, 8]


def test_what_cannot_be_condensed_or_held_is_refused(small_model):
    odd = random_views(1, size=(24, 24))
    session = Session(small_model, frame=FRAME, max_bytes=10**6, when_full="merge")
    with pytest.raises(InputError, match=r"24x24.*has 9 patches: choose a size with an even"):
        session.add(odd.image[0, 0], odd.c2w[0, 0], odd.fxfycxcy[0, 0])
    with pytest.raises(InputError, match=f"one takes {PAGE} bytes as fp32"):
        merging(small_model, [0], views=0.99)
    with pytest.raises(InputError, match="when_full='merge' needs max_bytes"):
        Session(small_model, when_full="merge")
