"""Rendering from a cache with cuDNN, for whose kernel plain JAX stands in: what it is given."""

import dataclasses

import jax
import numpy as np
import pytest
from conftest import random_views

from efficient_lvsm_jax import Session
from efficient_lvsm_jax.geometry.cameras import SceneFrame
from efficient_lvsm_jax.models import model as models
from efficient_lvsm_jax.nn import cache as pages

SIZE = (16, 24)
VIEWS = random_views(9, seed=3, size=SIZE)
TARGETS = random_views(2, seed=4, size=SIZE)


@pytest.fixture
def fused(small_model, keys_read):
    """The small model as a GPU would compute it, keys and values turned by their cameras."""
    settings = {"compute_dtype": "bfloat16", "attention": "cudnn", "positions": "prope"}
    config = dataclasses.replace(small_model.config, **settings)
    return dataclasses.replace(small_model, config=config)


def view(index):
    return VIEWS.image[0, index], VIEWS.c2w[0, index], VIEWS.fxfycxcy[0, index]


def test_what_is_gathered_follows_the_views_in_use_not_the_room_for_them(fused, keys_read):
    tokens = 2 * 3
    session = Session(fused, frame=SceneFrame.identity(), capacity=64)
    ids = []
    for views, gathered in ((1, 1), (2, 2), (3, 4), (5, 8)):
        while len(ids) < views:
            ids.append(session.add(*view(len(ids))))
        keys_read.clear()
        session.render(TARGETS.c2w[0], TARGETS.fxfycxcy[0], SIZE)
        assert max(keys_read) == gathered * tokens
    keys_read.clear()
    for index in ids[2:]:
        session.remove(index)
        session.render(TARGETS.c2w[0], TARGETS.fxfycxcy[0], SIZE)
    assert keys_read == []  # all these numbers of views were compiled for


@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_random_changes_render_as_a_fresh_cache_would_and_compile_for_few_numbers(fused, precision):
    fused = dataclasses.replace(fused, config=dataclasses.replace(fused.config, cache=precision))
    session = Session(fused, frame=SceneFrame.identity(), capacity=4)
    session.warm_up(SIZE, targets=(2,))
    compiled = models._call._cache_size()
    rng = np.random.default_rng(0)
    held = {}
    for _ in range(60):
        if held and (len(held) == 4 or rng.random() < 0.4):
            leaving = rng.choice(list(held))
            session.remove(leaving)
            del held[leaving]
        else:
            index = int(rng.integers(9))
            held[session.add(*view(index))] = index
        if held:
            picture = session.render(TARGETS.c2w[0], TARGETS.fxfycxcy[0], SIZE)
    assert models._call._cache_size() == compiled
    fresh = Session(fused, frame=SceneFrame.identity(), capacity=4)
    for index in held.values():
        fresh.add(*view(index))
    expected = fresh.render(TARGETS.c2w[0], TARGETS.fxfycxcy[0], SIZE)
    np.testing.assert_allclose(picture, expected, atol=2e-3)  # bfloat16, other order of pages


def test_what_is_gathered_for_each_target_follows_the_most_that_one_chose(fused, keys_read):
    tokens = 2 * 3
    cache = pages.grow(fused.encode(jax.tree.map(lambda x: x[:, :8], VIEWS)), 64)
    chosen = np.zeros((1, 2, 64), bool)
    chosen[0, 0, 5] = chosen[0, 1, [0, 2, 7]] = True
    cameras = TARGETS.cameras
    expected = []
    for at, slots in enumerate(chosen[0]):
        camera = jax.tree.map(lambda x, at=at: x[:, at : at + 1], cameras)
        expected.append(fused.decode(pages.reading(cache, slots), camera))
    keys_read.clear()
    got = fused.decode(pages.reading(cache, chosen), cameras)
    assert max(keys_read) == 4 * tokens
    np.testing.assert_allclose(got, np.concatenate(expected, axis=1), atol=2e-3)


def test_a_bound_is_for_reading_alone(small_model):
    page = small_model.encode(jax.tree.map(lambda x: x[:, :1], VIEWS))
    cache = pages.empty(6, page)
    assert pages.bounded(cache).most == 1  # with nothing in use a page is read that counts nothing
    for most in (1, 2, 4, 4, 6, 6):
        cache = pages.append(cache, page)
        assert pages.bounded(cache).most == most and cache.most is None
    assert jax.jit(lambda cache: pages.bounded(cache))(cache).most is None
    assert pages.bounded(page).most is None
