import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import SMALL
from noise_views import SIZE, TARGETS, VIEWS, session_of, targets, view

from data_pipeline.scenes import Frame
from efficient_lvsm_jax import InputError, SceneFrame, Session
from efficient_lvsm_jax.convert.conversion import convert
from efficient_lvsm_jax.files.manifest import write_manifest
from efficient_lvsm_jax.models.model import Model, _call
from efficient_lvsm_jax.weights.folder import save_weights
from efficient_lvsm_jax.weights.load import load
from efficient_lvsm_jax.weights.workdir import STEPS_FOLDER, claim_workdir


def test_renders_one_picture_or_many(small_model):
    session, _ = session_of(small_model, [0, 1])
    many = session.render(*targets(11))
    assert many.shape == (11, 16, 24, 3) and many.dtype == np.float32
    for index in (0, 7, 8, 10):
        one = session.render(TARGETS.c2w[0, index], TARGETS.fxfycxcy[0, index], SIZE)
        assert one.shape == (16, 24, 3)
        np.testing.assert_allclose(one, many[index], atol=1e-6)
    assert session.render(*targets(0)).shape == (0, 16, 24, 3)


def test_equals_the_model_on_poses_normalised_over_the_inputs(small_model):
    session, _ = session_of(small_model, range(3))
    frame = SceneFrame.from_cameras(VIEWS.c2w[0, :3])
    pick = jax.tree.map(lambda x: x[:, :3], VIEWS)
    inputs = type(VIEWS)(pick.image, frame.apply(pick.c2w), pick.fxfycxcy)
    cameras = type(TARGETS.cameras)(frame.apply(TARGETS.c2w), TARGETS.fxfycxcy, *SIZE)
    expected = small_model.decode(small_model.encode(inputs), cameras)[0]
    np.testing.assert_allclose(session.render(*targets(11)), expected, atol=1e-5)


def test_order_before_the_first_render_does_not_matter(small_model):
    a, _ = session_of(small_model, [0, 1, 2])
    b, _ = session_of(small_model, [2, 0, 1])
    np.testing.assert_allclose(a.render(*targets()), b.render(*targets()), atol=1e-5)


@pytest.mark.parametrize("render_first", [False, True])
def test_remove_equals_never_added(small_model, render_first):
    frame = SceneFrame.from_cameras(VIEWS.c2w[0]) if render_first else None
    session, ids = session_of(small_model, [0, 1, 2, 3], frame=frame)
    if render_first:
        session.render(*targets())
    session.remove(ids[1])
    never, _ = session_of(small_model, [0, 2, 3], frame=frame)
    np.testing.assert_allclose(session.render(*targets()), never.render(*targets()), atol=1e-5)
    assert session.views == [ids[0], ids[2], ids[3]]
    session.remove(ids[3])  # the id still finds its page after the last one moved
    two, _ = session_of(small_model, [0, 2], frame=session.frame)
    np.testing.assert_allclose(session.render(*targets()), two.render(*targets()), atol=1e-5)


@pytest.mark.parametrize("render_first", [False, True])
def test_replace_keeps_the_id(small_model, render_first):
    frame = SceneFrame.from_cameras(VIEWS.c2w[0])
    session, ids = session_of(small_model, [0, 1], frame=frame if render_first else None)
    session.replace(ids[0], *view(4))
    other, _ = session_of(small_model, [1, 4], frame=session.frame)
    np.testing.assert_allclose(session.render(*targets()), other.render(*targets()), atol=1e-5)
    assert session.views == ids


def test_frame_is_frozen_at_the_first_render(small_model):
    session, _ = session_of(small_model, [0, 1])
    assert session.frame is None
    session.render(*targets())
    frame = session.frame
    session.add(*view(2))
    session.render(*targets())
    assert session.frame is frame


def test_another_frame_encodes_all_views_anew(small_model):
    pictures = []
    for image, *camera in (view(0), view(1)):
        image = np.uint8(255 * image)
        height, width = image.shape[:2]
        pictures.append(Frame("", *camera, width, height, lambda x=image: x))
    wide = SceneFrame.from_cameras(VIEWS.c2w[0])
    session, other = Session(small_model), Session(small_model, frame=wide)
    ids = [session.add(picture) for picture in pictures]
    session.render(*targets())
    with pytest.raises(InputError, match=rf"reframe: no picture of view\(s\) \[{ids[1]}\]"):
        session.reframe(wide, {ids[0]: pictures[0]})
    session.reframe(wide, dict(zip(ids, pictures, strict=True)))
    for picture in pictures:
        other.add(picture)
    np.testing.assert_allclose(session.render(*targets()), other.render(*targets()), atol=1e-5)
    assert session.views == ids and session.frame is wide


def test_world_units_do_not_matter(small_model):
    plain, _ = session_of(small_model, [0, 1, 2])
    scaled = Session(small_model)
    move = np.linalg.inv(VIEWS.c2w[0, 4]).astype(np.float64)

    def moved(c2w):
        c2w = move @ c2w
        c2w[..., :3, 3] *= 7
        return c2w

    for index in range(3):
        image, c2w, fxfycxcy = view(index)
        scaled.add(image, moved(c2w), fxfycxcy)
    c2w, fxfycxcy, size = targets()
    np.testing.assert_allclose(
        scaled.render(moved(c2w), fxfycxcy, size), plain.render(*targets()), atol=1e-4
    )


def test_a_single_camera_cannot_tell_the_scale_and_says_so(small_model):
    session, _ = session_of(small_model, [0])
    with pytest.warns(UserWarning, match="single camera"):
        session.render(*targets())
    session, _ = session_of(small_model, [0], frame=SceneFrame.identity())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        session.render(*targets())


def test_capacity_grows_and_bytes_and_floats_agree(small_model):
    frame = SceneFrame.identity()
    session, _ = session_of(small_model, range(5), frame=frame, capacity=1)
    roomy, _ = session_of(small_model, range(5), frame=frame, capacity=8)
    np.testing.assert_allclose(session.render(*targets()), roomy.render(*targets()), atol=1e-6)
    image, c2w, fxfycxcy = view(0)
    levels = np.round(image * 255).astype(np.uint8)
    pictures = []
    for pixels in (levels, levels.astype(np.float32) / 255):
        session = Session(small_model, frame=frame)
        session.add(pixels, c2w, fxfycxcy)
        pictures.append(session.render(*targets()))
    np.testing.assert_array_equal(*pictures)


def test_steady_use_compiles_nothing(small_model):
    session, ids = session_of(small_model, [0, 1], frame=SceneFrame.identity())
    session.render(*targets(11))  # groups of 8, 2, 1
    session.render(*targets(7))  # and 4
    session.replace(ids[0], *view(2))
    session.remove(ids[1])
    before = _call._cache_size()
    for count in (1, 2, 3, 5, 11):
        session.render(*targets(count))
        new = session.add(*view(3))
        session.render(*targets(count))
        session.remove(new)
    assert _call._cache_size() == before


def test_errors_say_what_to_do(small_model):
    session = Session(small_model)
    image, c2w, fxfycxcy = view(0)
    with pytest.raises(InputError, match="no view yet"):
        session.render(*targets())
    with pytest.raises(InputError, match="no view 7"):
        session.remove(7)
    with pytest.raises(InputError, match=r"15x24.*resize or crop to 8x24"):
        session.add(image[:15], c2w, fxfycxcy)
    with pytest.raises(InputError, match=r"expected \[H, W, 3\]"):
        session.add(image[..., :1], c2w, fxfycxcy)
    with pytest.raises(InputError, match="divide 8-bit values by 255"):
        session.add(image * 255, c2w, fxfycxcy)
    with pytest.raises(InputError, match="expected finite values"):
        session.add(np.full_like(image, np.nan), c2w, fxfycxcy)
    with pytest.raises(InputError, match="int64"):
        session.add((image * 255).astype(np.int64), c2w, fxfycxcy)
    nan = c2w.copy()
    nan[0, 3] = np.nan
    with pytest.raises(InputError, match="finite"):
        session.add(image, nan, fxfycxcy)
    with pytest.raises(InputError, match="rigid"):
        session.add(image, c2w @ np.diag([2.0, 1, 1, 1]), fxfycxcy)
    with pytest.raises(InputError, match="focal"):
        session.add(image, c2w, [0, 20, 12, 8])
    assert session.views == []
    session.add(*view(0))
    with pytest.raises(InputError, match=r"8x24 in a session of 16x24"):
        session.add(image[:8], c2w, fxfycxcy)
    with pytest.raises(InputError, match="render size"):
        session.render(c2w, fxfycxcy, (250, 256))
    with pytest.raises(InputError, match="finite"):
        session.render(nan, fxfycxcy, SIZE)


def test_a_view_id_is_never_given_twice(small_model):
    session, ids = session_of(small_model, [0, 1])
    session.remove(ids[1])
    assert session.add(*view(2)) not in ids
    with pytest.raises(InputError, match="no view"):
        session.remove(ids[1])


def count_compilations():
    """A list that grows by one for every program compiled from now on."""
    seen = []

    def listen(event, duration, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            seen.append(duration)

    jax.monitoring.register_event_duration_secs_listener(listen)
    return seen


def test_after_warm_up_nothing_is_compiled(small_model):
    frame = SceneFrame.from_cameras(VIEWS.c2w[0])
    session = Session(small_model, frame=frame, capacity=3)
    session.warm_up(SIZE, render_sizes=[SIZE, (24, 16)])
    compiled = count_compilations()
    ids = [session.add(*view(index)) for index in (0, 1, 2)]
    pictures = session.render(*targets(11))
    session.render(*targets(7))
    session.remove(ids[1])
    session.add(*view(3))
    session.replace(ids[0], *view(4))
    session.render(*targets(3)[:2], (24, 16))
    assert not compiled
    fresh, _ = session_of(small_model, [0, 1, 2], frame=frame)
    np.testing.assert_allclose(pictures, fresh.render(*targets(11)), atol=1e-6)


STARTING = """
import jax
from conftest import SMALL
from efficient_lvsm_jax import Session
from efficient_lvsm_jax.models.model import Model, init_params

seen = []
jax.monitoring.register_event_listener(lambda event, **_: seen.append(event))
params = init_params("efficient_lvsm", SMALL, jax.random.key(0))
Session(Model("efficient_lvsm", SMALL, params)).warm_up((16, 24), targets=(1, 2))
print(*(seen.count(f"/jax/compilation_cache/cache_{kind}") for kind in ("hits", "misses")))
"""


def test_a_second_start_finds_all_programs_of_the_first(tmp_path):
    where = {
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "PYTHONPATH": str(Path(__file__).parents[1]),
    }
    found = [
        subprocess.run(
            [sys.executable, "-c", STARTING],
            env=os.environ | where,
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.split()
        for _ in range(2)
    ]
    (_, compiled), (hits, misses) = found
    assert int(compiled) > 5 and int(hits) >= int(compiled) and misses == "0"


@pytest.fixture(params=["folder", "workdir", "published file", "on a device"])
def restored(request, small_model, tmp_path):
    """The small model from whatever models come from; none is as arrays just computed are."""
    params = small_model.params
    if request.param == "on a device":
        return Model("efficient_lvsm", SMALL, jax.device_put(params, jax.devices()[0]))
    info = {"family": "efficient_lvsm", "config": SMALL.architecture}
    folder = tmp_path / "weights"
    save_weights(folder, params, info)
    if request.param == "published file":
        convert(folder, tmp_path / "model.safetensors")
        return load(tmp_path / "model.safetensors")
    if request.param == "workdir":
        claim_workdir(tmp_path / "run", "efficient_lvsm", SMALL)
        step = tmp_path / "run" / STEPS_FOLDER / "1"
        step.mkdir(parents=True)
        shutil.copytree(folder / "params", step / "params")
        write_manifest(step, {"step": 1})
        return load(tmp_path / "run")
    return load(folder)


def test_warm_up_covers_models_from_every_kind_of_source(restored, caplog):
    assert not caplog.records  # nothing to say about healthy files
    session = Session(restored, capacity=2)
    session.warm_up(SIZE, targets=(1, 2))
    compiled = count_compilations()
    for index in range(2):
        session.add(*view(index))
    session.render(*targets())
    session.replace(session.views[0], *view(2))
    session.render(TARGETS.c2w[0, 0], TARGETS.fxfycxcy[0, 0], SIZE)
    session.remove(session.views[0])
    session.add(*view(3))
    session.render(*targets())
    assert not compiled


def test_warm_up_comes_first_and_leaves_the_frame_open(small_model):
    session = Session(small_model)
    session.warm_up(SIZE, targets=[2])
    assert session.frame is None and session.views == []
    assert session.add(*view(0)) == 0
    with pytest.raises(InputError, match="before the first add"):
        session.warm_up(SIZE)
    with pytest.raises(InputError, match="expected some of"):
        Session(small_model).warm_up(SIZE, targets=[3])


@pytest.mark.parametrize(("precision", "share"), [("bf16", 0.5), ("int8", 0.25), ("fp8", 0.25)])
def test_stored_with_fewer_bits_pictures_stay_near(small_model, precision, share):
    frame = SceneFrame.from_cameras(VIEWS.c2w[0])
    exact, _ = session_of(small_model, range(3), frame=frame)
    coarse, _ = session_of(small_model, range(3), frame=frame, precision=precision)
    difference = np.abs(coarse.render(*targets(5)) - exact.render(*targets(5))).max()
    assert 0 < difference < 0.02
    page = 2 * 2 * 6 * 32 * 4  # keys and values, layers, tokens, width, bytes
    scales = 2 * 2 * 2 * 4 if share == 0.25 else 0
    assert coarse._store.cache.page_bytes == page * share + scales


def test_a_budget_refuses_what_it_does_not_hold(small_model):
    page = 2 * 2 * 6 * 32 * 4
    with pytest.raises(InputError, match=f"one takes {page} bytes as fp32"):
        session_of(small_model, [0], max_bytes=page - 1)
    session, ids = session_of(small_model, [0, 1, 2], max_bytes=3 * page + 1, capacity=2)
    with pytest.raises(InputError, match="holds 3 views of this size and has them"):
        session.add(*view(3))
    session.render(*targets())
    assert session._store.cache.capacity == 3
    with pytest.raises(InputError, match="when_full='oldest'"):
        session.add(*view(3))
    session.remove(ids[0])
    session.add(*view(3))


@pytest.mark.parametrize("when_full", ["oldest", "farthest"])
@pytest.mark.parametrize("render_first", [False, True])
def test_a_full_budget_takes_a_view_out_and_says_so(small_model, when_full, render_first):
    frame = SceneFrame.from_cameras(VIEWS.c2w[0])
    page = 2 * 2 * 6 * 32 * 4
    session, ids = session_of(
        small_model, [0, 1, 2], frame=frame, max_bytes=3 * page, when_full=when_full
    )
    if render_first:
        session.render(*targets())
    distances = np.linalg.norm(VIEWS.c2w[0, :3, :3, 3] - VIEWS.c2w[0, 3, :3, 3], axis=-1)
    leaving = 0 if when_full == "oldest" else int(np.argmax(distances))
    with pytest.warns(UserWarning, match=f"view {leaving} was taken out"):
        new = session.add(*view(3))
    assert session.views == sorted({*ids, new} - {leaving})
    kept = [index for index in range(4) if index != leaving]
    expected, _ = session_of(small_model, kept, frame=frame)
    np.testing.assert_allclose(session.render(*targets()), expected.render(*targets()), atol=1e-5)


@pytest.mark.parametrize("frame", [None, SceneFrame.identity()])
def test_a_view_that_cannot_be_encoded_changes_nothing(small_model, monkeypatch, frame):
    page = 2 * 2 * 6 * 32 * 4
    session, ids = session_of(
        small_model, [0, 1], frame=frame, max_bytes=2 * page, when_full="oldest"
    )
    before = session.render(*targets())

    def fails(*_):
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(Session, "_encode", fails)
        for call in (session.add, lambda *new: session.replace(ids[0], *new)):
            with pytest.raises(RuntimeError, match="out of memory"):
                call(*view(2))
    assert session.views == ids
    np.testing.assert_array_equal(session.render(*targets()), before)
    with pytest.warns(UserWarning, match=f"view {ids[0]} was taken out"):
        session.add(*view(2))


def test_a_full_budget_counts_views_that_wait_for_the_frame(small_model):
    page = 2 * 2 * 6 * 32 * 4
    session, _ = session_of(small_model, [0, 1], max_bytes=2 * page, when_full="oldest")
    with pytest.warns(UserWarning, match="view 0 was taken out"):
        session.add(*view(2))
    expected, _ = session_of(small_model, [1, 2])
    np.testing.assert_allclose(session.render(*targets()), expected.render(*targets()), atol=1e-6)


def test_an_interrupted_warm_up_leaves_an_empty_session(small_model, monkeypatch):
    session = Session(small_model)

    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Session, "render", interrupted)
        session.warm_up(SIZE)
    assert session.frame is None and session.views == []
    assert session.add(*view(0)) == 0


def test_options_of_a_cache_are_checked(small_model):
    for options, problem in (
        ({"max_bytes": 2e9}, "max_bytes=2000000000.0: expected a positive integer"),
        ({"max_bytes": 0}, "max_bytes=0: expected a positive integer"),
        ({"when_full": "oldest"}, "needs max_bytes"),
        ({"precision": "int4"}, "expected computed or fp32 or bf16 or int8 or fp8"),
        ({"when_full": "newest"}, "expected refuse, oldest, farthest"),
    ):
        with pytest.raises(InputError, match=problem):
            Session(small_model, **options)


def test_a_session_and_a_model_say_what_they_are_in_a_line(small_model):
    assert repr(small_model) == "Model(efficient_lvsm, 78,016 parameters, computes in float32)"
    session = Session(small_model)
    assert repr(session) == "Session(0 views; efficient_lvsm)"
    session.add(*view(0))
    session.add(*view(1))
    assert repr(session) == "Session(2 views of 16x24; efficient_lvsm)"
    session.render(*targets())
    cache = "cache of 0.0 MiB with room for 4 (fp32)"
    assert repr(session) == f"Session(2 views of 16x24, {cache}; efficient_lvsm)"
