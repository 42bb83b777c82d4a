"""Pictures of some of a session's views: the same as if the others were not there."""

import jax
import jax.monitoring
import numpy as np
import pytest
from noise_views import SIZE, TARGETS, VIEWS, session_of, targets, view

from efficient_lvsm_jax import InputError, SceneFrame, Session
from efficient_lvsm_jax.geometry.cameras import Cameras
from efficient_lvsm_jax.geometry.choice import most_useful
from efficient_lvsm_jax.models.lvsm import DecoderOnlyConfig
from efficient_lvsm_jax.models.model import Model, _call, init_params

FRAME = SceneFrame.from_cameras(VIEWS.c2w[0])


def nearest(count, views, cameras=11):
    """Which of `views` each of so many targets should read, [T, V] bool."""
    c2w, fxfycxcy, size = targets(cameras)
    inputs = Cameras(VIEWS.c2w[0, views], VIEWS.fxfycxcy[0, views], *SIZE)
    return most_useful(Cameras(c2w, fxfycxcy, *size), inputs, count)


def alone(model, views, target, **options):
    """A target's picture by a session of these views only."""
    session, _ = session_of(model, views, frame=FRAME, **options)
    return session.render(TARGETS.c2w[0, target], TARGETS.fxfycxcy[0, target], SIZE)


@pytest.mark.parametrize("precision", [None, "bf16", "int8"])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_each_target_is_rendered_from_its_nearest_views_alone(small_model, count, precision):
    session, _ = session_of(small_model, range(5), frame=FRAME, precision=precision)
    got = session.render(*targets(11), views=f"nearest:{count}")
    chosen = nearest(count, range(5))
    assert len({row.tobytes() for row in chosen}) > 1
    for at in (0, 5, 10):
        views = np.flatnonzero(chosen[at])
        expected = alone(small_model, views, at, precision=precision)
        np.testing.assert_allclose(got[at], expected, atol=2e-6)
        one = session.render(
            TARGETS.c2w[0, at], TARGETS.fxfycxcy[0, at], SIZE, views=f"nearest:{count}"
        )
        np.testing.assert_allclose(one, got[at], atol=2e-6)


@pytest.mark.parametrize("views", ["all", "nearest:5", "nearest:99", "ids"])
def test_all_views_in_any_spelling_are_all_views(small_model, views):
    session, ids = session_of(small_model, range(5), frame=FRAME)
    expected = session.render(*targets(3))
    got = session.render(*targets(3), views=ids if views == "ids" else views)
    np.testing.assert_array_equal(got, expected)


def test_ids_are_read_in_any_order_and_others_are_not(small_model):
    session, ids = session_of(small_model, range(5), frame=FRAME)
    for chosen in ([3], [4, 1], [1, 4], np.array([1, 4])):
        got = session.render(*targets(1), views=[ids[at] for at in chosen])
        np.testing.assert_allclose(got[0], alone(small_model, sorted(chosen), 0), atol=2e-6)


@pytest.mark.parametrize("settled", [False, True])
def test_choices_follow_views_that_come_go_and_change(small_model, settled):
    session, ids = session_of(small_model, [0, 1, 2, 3], frame=FRAME if settled else None)
    session.remove(ids[1])
    session.replace(ids[3], *view(4))
    session.add(*view(3))
    held = [0, 2, 4, 3]
    got = session.render(*targets(11), views="nearest:2")
    fresh, _ = session_of(small_model, held, frame=session.frame)
    np.testing.assert_allclose(got, fresh.render(*targets(11), views="nearest:2"), atol=5e-6)
    chosen = nearest(2, held)
    for at in (0, 10):
        rest = [held[v] for v in np.flatnonzero(chosen[at])]
        few, _ = session_of(small_model, rest, frame=session.frame)
        expected = few.render(TARGETS.c2w[0, at], TARGETS.fxfycxcy[0, at], SIZE)
        np.testing.assert_allclose(got[at], expected, atol=5e-6)


def test_one_target_compiles_nothing_whatever_it_reads_and_several_once(small_model):
    session, ids = session_of(small_model, range(5), frame=FRAME, capacity=7)
    session.render(*targets(1))
    programs = _call._cache_size()
    for views in ("nearest:1", "nearest:3", ids[1:3], [ids[0]]):
        session.render(*targets(1), views=views)
    assert _call._cache_size() == programs
    session.render(*targets(8))
    programs = _call._cache_size()
    for views in (ids[1:3], "nearest:1", "nearest:2", "nearest:4"):
        session.render(*targets(8), views=views)
    assert _call._cache_size() == programs + 1


def test_after_warm_up_no_choice_compiles_anything(small_model):
    session = Session(small_model, frame=FRAME, capacity=4)
    session.warm_up(SIZE)
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, *_, **__: compiled.append(event) if "backend_compile" in event else None
    )
    ids = [session.add(*view(at)) for at in range(4)]
    for count in (1, 7, 11):
        for views in ("nearest:1", "nearest:2", "nearest:3", ids[::2], "all"):
            session.render(*targets(count), views=views)
    session.remove(ids[0])
    session.render(*targets(11), views="nearest:2")
    assert not compiled


@pytest.mark.parametrize(
    "views", ["near", "nearest", "nearest:", "nearest:0", "nearest:-1", "nearest:2.5", "nearest:²"]
)
def test_what_is_no_choice_is_refused_and_settles_nothing(small_model, views):
    session, _ = session_of(small_model, range(2))
    with pytest.raises(InputError, match=rf"views='{views}': expected all or nearest:k"):
        session.render(*targets(1), views=views)
    assert session.frame is None


def test_ids_that_are_none_are_refused(small_model):
    session, ids = session_of(small_model, range(2), frame=FRAME)
    for views, message in (
        ([7], r"no view 7 in this session; it has \[0, 1\]"),
        ([ids[0], ids[0]], "names a view twice"),
        ([], "expected all, nearest:k or the ids"),
        (3, "expected all, nearest:k or the ids"),
        (None, "expected all, nearest:k or the ids"),
    ):
        with pytest.raises(InputError, match=message):
            session.render(*targets(1), views=views)


def test_a_model_without_a_cache_reads_all_or_refuses():
    config = DecoderOnlyConfig(width=32, head_dim=16, patch=8, mlp_ratio=2, layers=2)
    params = init_params("lvsm_decoder_only", config, jax.random.key(0))
    model = Model("lvsm_decoder_only", config, params)
    session, ids = session_of(model, range(2), frame=FRAME)
    session.render(*targets(1), views="all")
    for views in ("nearest:1", ids[:1]):
        with pytest.raises(InputError, match="lvsm_decoder_only has no cache"):
            session.render(*targets(1), views=views)
