import dataclasses
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import jax
import numpy as np
import pytest
from cameras_around import ring
from conftest import GOLDENS, SMALL, random_views
from PIL import Image

from data_pipeline.captures.export import CaptureWriter
from data_pipeline.formats import open_scenes
from data_pipeline.pictures.transforms import fit
from efficient_lvsm_jax import InputError, SceneFrame, Session
from efficient_lvsm_jax.convert.conversion import convert
from efficient_lvsm_jax.files.manifest import write_manifest
from efficient_lvsm_jax.models.model import Model, _call
from efficient_lvsm_jax.weights.folder import save_weights
from efficient_lvsm_jax.weights.load import load
from efficient_lvsm_jax.weights.workdir import STEPS_FOLDER, claim_workdir

VIEWS = random_views(5, seed=11)
TARGETS = random_views(11, seed=12)
SIZE = (16, 24)


def view(index):
    return VIEWS.image[0, index], VIEWS.c2w[0, index], VIEWS.fxfycxcy[0, index]


def targets(count=2):
    return TARGETS.c2w[0, :count], TARGETS.fxfycxcy[0, :count], SIZE


def session_of(model, indices, **options):
    session = Session(model, **options)
    return session, [session.add(*view(index)) for index in indices]


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
Session(Model("efficient_lvsm", SMALL, params)).warm_up((16, 24))
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
    assert coarse._cache.page_bytes == page * share + scales


def test_a_budget_refuses_what_it_does_not_hold(small_model):
    page = 2 * 2 * 6 * 32 * 4
    with pytest.raises(InputError, match=f"one takes {page} bytes as fp32"):
        session_of(small_model, [0], max_bytes=page - 1)
    session, ids = session_of(small_model, [0, 1, 2], max_bytes=3 * page + 1, capacity=2)
    with pytest.raises(InputError, match="holds 3 views of this size and has them"):
        session.add(*view(3))
    session.render(*targets())
    assert session._cache.capacity == 3
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


@pytest.fixture
def capture(tmp_path):
    """Five pictures of noise, 64x36, from a ring."""
    rng = np.random.default_rng(0)
    with CaptureWriter(tmp_path / "capture") as writer:
        for c2w in ring(np.array([-30.0, -25, 0, 10, 30])):
            image = rng.integers(0, 256, (36, 64, 3), dtype=np.uint8)
            writer.add(image, c2w, [60.0, 60, 33, 18])
    return tmp_path / "capture"


def trained_at(model, *sizes):
    return dataclasses.replace(model, trained_sizes=sizes)


def test_a_frame_a_pil_image_and_a_file_are_the_same_view(capture, small_model):
    frame = open_scenes(capture)[0].frames[2]
    camera = frame.c2w, frame.fxfycxcy
    target = open_scenes(capture)[0].frames[3]
    (file,) = capture.rglob("*00002.png")
    image, fxfycxcy = fit(frame.image(), frame.fxfycxcy, (24, 40))
    pictures = []
    for added in (
        (frame,),
        (Image.fromarray(frame.image()), *camera),
        (str(file), *camera),
        (file, *camera),
        (image, frame.c2w, fxfycxcy),
    ):
        session = Session(trained_at(small_model, (32, 32)), frame=SceneFrame.identity())
        session.add(*added)
        assert session.size == (24, 40)  # 16 tokens, as nearly as 64x36 allows
        pictures.append(session.render(target))
    assert pictures[0].shape == (24, 40, 3)
    for picture in pictures:
        np.testing.assert_array_equal(picture, pictures[0])


def test_a_photo_that_says_it_is_rotated_is_used_as_stored_with_a_warning(tmp_path, small_model):
    image, exif = Image.new("RGB", (32, 16)), Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "phone.jpg", exif=exif)
    session = Session(small_model)
    with pytest.warns(UserWarning, match=r"phone.jpg: .* \(EXIF orientation 6\)"):
        session.add(tmp_path / "phone.jpg", np.eye(4), [30, 30, 16, 8])
    assert session.size[1] > session.size[0]


def test_photos_of_all_shapes_are_fitted_to_the_sessions_size(capture, small_model):
    session = Session(small_model, size=16)
    session.add(open_scenes(capture)[0].frames[0])
    session.add(Image.new("L", (30, 50)), np.eye(4), [40, 40, 15, 25])
    assert session.size == (16, 16)
    with pytest.raises(InputError, match="image of 24x24 in a session of 16x16"):
        session.add(np.zeros((24, 24, 3), np.float32), np.eye(4), [40, 40, 12, 12])


def test_a_session_of_a_capture_chooses_spread_inputs_and_keeps_their_shape(capture, small_model):
    model = trained_at(small_model, (32, 32))
    session = Session.from_capture(model, capture, inputs=3)
    assert len(session.views) == 3 and session.size == (24, 40)
    frames = open_scenes(capture)[0].frames
    other = Session(
        model, frame=SceneFrame.from_cameras(np.stack([frames[i].c2w for i in (0, 2, 4)]))
    )
    for index in (0, 2, 4):
        other.add(frames[index])
    np.testing.assert_allclose(session.render(frames[1]), other.render(frames[1]), atol=1e-6)
    assert len(Session.from_capture(model, capture).views) == 5
    assert Session.from_capture(model, capture, inputs=(1, 3), size=(16, 32)).size == (16, 32)
    with pytest.raises(InputError, match="frames 0 to 4"):
        Session.from_capture(model, capture, inputs=(1, 5))
    with pytest.raises(InputError, match="9 inputs of scene capture, which has 5"):
        Session.from_capture(model, capture, inputs=9)


def test_a_picture_is_of_the_inputs_size_unless_told_and_one_number_is_a_square(small_model):
    session, _ = session_of(small_model, [0, 1])
    assert session.render(*targets()[:2]).shape == (2, *SIZE, 3)
    c2w, *_ = targets(1)
    assert session.render(c2w[0], [20, 20, 16, 16], size=32).shape == (32, 32, 3)


@pytest.mark.parametrize(
    ("added", "message"),
    [
        (("none.jpg", np.eye(4), [20, 20, 8, 8]), "none.jpg: no such image"),
        (("none.jpg",), "a picture without camera"),
        ((Image.new("RGB", (64, 36)),), "a picture without camera"),
        ((Image.new("RGB", (64, 36)), np.eye(4), [1, 1, 0.5, 0.5]), "divided by its width"),
        ((Image.new("RGB", (64, 36)), np.eye(4), [120, 120, 64, 36]), "2 times as large"),
        ((np.zeros((16, 24, 3)),), "image without camera"),
        ((np.zeros((16, 24, 3)), np.eye(4), [1.1, 1.1, 0.5, 0.5]), "divided by its width"),
        ((np.zeros((16, 24, 3)), np.eye(4), [400, 400, 12, 8]), "degrees across"),
    ],
)
def test_pictures_and_cameras_that_cannot_be_are_refused(small_model, added, message):
    session = Session(small_model)
    with pytest.raises(InputError, match=message):
        session.add(*added)
    assert session.views == []


def test_a_target_with_impossible_intrinsics_is_refused(small_model):
    session, _ = session_of(small_model, [0, 1])
    c2w, fxfycxcy, size = targets()
    with pytest.raises(InputError, match=r"render camera\[0\].*divided by its width and height"):
        session.render(c2w, fxfycxcy / 24, size)


def test_intrinsics_of_a_smaller_picture_are_doubted(small_model):
    image, c2w, fxfycxcy = view(0)
    with pytest.warns(UserWarning, match="the middle of a picture of 12x8"):
        Session(small_model).add(image, c2w, fxfycxcy / 2)


def test_a_size_far_from_training_is_said_once(small_model):
    session, _ = session_of(trained_at(small_model, (64, 64)), [0, 1])
    with pytest.warns(UserWarning, match="16x24 .* of a model trained at 64x64") as said:
        session.render(*targets())
        session.render(*targets())
    assert len([each for each in said if "trained at" in str(each.message)]) == 1


@pytest.mark.parametrize("wrong", [False, True])
def test_cameras_that_are_world_to_camera_are_warned_of(small_model, wrong):
    frames = open_scenes(GOLDENS / "re10k_sample" / "test")[0].frames[:4]
    session = Session(small_model, frame=SceneFrame.identity(), size=(144, 256))
    for frame in frames:
        c2w = np.linalg.inv(frame.c2w) if wrong else frame.c2w
        session.add(dataclasses.replace(frame, c2w=c2w))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        session.render(frames[0])
        session.render(frames[0])
    found = [str(each.message) for each in said if "world-to-camera" in str(each.message)]
    assert len(found) == wrong
