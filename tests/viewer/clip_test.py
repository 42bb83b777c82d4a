"""Clips in the viewer: keyframes join the scene as they are seen, and what a clip lacks is said."""

import dataclasses
import itertools
import threading
import types

import jax
import numpy as np
import pytest

pytest.importorskip("viser", reason="the extra [viewer] is not installed")
from noise_capture import DEPTH, SIZE, noise_clip, noise_scene
from PIL import Image
from small_depth_anything3 import FILE as SMALL_DA3
from small_vggt import seeing_wide

from efficient_lvsm_jax import InputError, SceneFrame, Session
from efficient_lvsm_jax.viewer import __main__ as command
from efficient_lvsm_jax.viewer import server, worker
from efficient_lvsm_jax.viewer.clip import open_clip
from efficient_lvsm_jax.viewer.scene import POINTS, Settings
from efficient_lvsm_jax.viewer.server import Viewer
from efficient_lvsm_jax.weights.folder import save_weights

SECONDS = 60  # of a wait that should be over soon


@pytest.fixture
def viewing(small_model):
    """Viewers of clips, which are stopped in the end."""
    begun = []

    def view(clip, **options):
        options = {"photos": 64, "settings": Settings(size=SIZE), **options}
        begun.append(Viewer(**options))
        begun[-1].begin(small_model, clip)
        return begun[-1]

    yield view
    for viewer in begun:
        viewer.worker.stop()


def read(viewer):
    """Waits until the clip is over, and all of it done."""
    while not viewer.worker.call(None, lambda: viewer.clip.over):
        pass
    viewer.worker.call(None, lambda: None)  # what failed in the last frame is told
    return viewer


def test_keyframes_become_inputs_of_a_scene_whose_frame_the_first_four_fix(small_model, viewing):
    made, photos = threading.Event(), []

    def before():
        assert made.wait(SECONDS)
        photos.append(None if viewer.scene is None else len(viewer.scene.photos))

    viewer = viewing(noise_clip([0, 0, 1, 2, 3, 3, 4, 5], before=before, count=8))
    made.set()
    scene, truth = read(viewer).scene, noise_scene(count=6)
    assert photos == [None, None, None, None, None, 4, 4, 5]
    fixed = SceneFrame.from_cameras(truth.c2w[:4])
    np.testing.assert_allclose(scene.frame.frame_from_world, fixed.frame_from_world)
    assert scene.frame.scale == fixed.scale and scene.chosen == [0, 1, 2, 3, 4, 5]
    assert str(viewer.clip) == "8 frames" and viewer.trouble is None
    # Where things are shown stays; the cameras have left that frame, and the views are in another.
    assert scene.encoded_in is not scene.frame
    poses = [photo.c2w for photo in scene.photos]
    assert viewer.clip.keyframes.outgrown(scene.encoded_in, poses) is None
    session = Session(small_model, frame=scene.encoded_in, size=SIZE)
    for frame in truth.frames:
        session.add(frame)
    shown = viewer.worker.call(None, lambda: scene.compare(5)[0].image)
    np.testing.assert_array_equal(shown, np.round(session.render(truth.frames[5]) * 255))


def test_points_lie_in_the_scene_frame_where_the_frames_saw_them(viewing):
    scene = read(viewing(noise_clip())).scene
    clouds = scene.clouds()
    assert len(clouds) == 6 and sum(len(each.points) for each in clouds) <= POINTS
    for frame, cloud in zip(scene.photos, clouds, strict=True):
        w2c = np.linalg.inv(scene.frame.apply(frame.c2w).astype(np.float64))
        points = cloud.points @ w2c[:3, :3].T + w2c[:3, 3]
        np.testing.assert_allclose(points[:, 2], scene.frame.scale * DEPTH, rtol=1e-5)
        fx, fy, cx, cy = frame.fxfycxcy
        column, row = points[:, 0] / points[:, 2] * fx + cx, points[:, 1] / points[:, 2] * fy + cy
        np.testing.assert_allclose([column % 1, row % 1], 0.5, atol=1e-3)
        seen = frame.image()[row.astype(int), column.astype(int)]
        np.testing.assert_array_equal(seen, cloud.colours)


@pytest.mark.parametrize(
    ("together", "first"),
    [
        (False, "looking for where they were taken"),
        (True, "this model sees all at once, and shows nothing before"),
    ],
)
def test_it_is_said_what_the_first_picture_waits_for(monkeypatch, viewing, together, first):
    said = []
    monkeypatch.setattr(Viewer, "say", lambda viewer, doing: said.append((viewer.clip.seen, doing)))
    read(viewing(noise_clip(together=together)))
    assert said == [(0, first), (4, "compiling what shows them")]


def test_fewer_inputs_than_keyframes_and_fewer_keyframes_than_frames(viewing):
    viewer = read(viewing(noise_clip(), inputs=2))
    assert viewer.scene.chosen == [0, 1] and len(viewer.scene.photos) == 6
    viewer = read(viewing(noise_clip(most=5)))
    assert len(viewer.scene.photos) == 5 and viewer.clip.seen == 5
    assert str(viewer.trouble) == "noise: 5 of 6 pictures were read, as 5 are enough (--photos)"


def test_between_frames_others_have_their_turn(viewing):
    viewer = viewing(noise_clip(itertools.repeat(0)))
    assert [viewer.worker.call(None, lambda: 7) for _ in range(5)] == [7] * 5
    assert viewer.clip.seen > 1 and not viewer.clip.over


@pytest.mark.parametrize(
    ("frames", "photos", "said"),
    [
        ([0, 1, 2, 3, 4], 5, "noise: 5 of 6 pictures were read, the others cannot be"),
        ([0, 1, 2], 3, "noise: 3 of 6 pictures were read, the others cannot be"),
        ([0, 0, 0], None, "noise: all 3 pictures were taken from one place; expected a camera"),
        ([0, InputError("b.png: is none")], None, "b.png: is none"),
        ([0, 1, 2, 3, InputError("b.png: is none"), 4], 4, "b.png: is none"),
        ([0, 1, 2, 3, RuntimeError("out of memory\nat 0x0")], 4, "out of memory"),
    ],
)
def test_what_a_clip_lacks_is_one_line_and_what_came_before_stays(
    viewing, caplog, frames, photos, said
):
    viewer = read(viewing(noise_clip(frames)))
    assert photos == (viewer.scene and len(viewer.scene.photos))
    assert str(viewer.trouble).startswith(said)
    (record,) = caplog.records
    assert record.message.startswith(said) and "\n" not in record.message
    if photos:
        assert viewer.worker.call(None, lambda: viewer.scene.compare(0)[0].image).any()


def test_no_room_for_a_keyframe_is_said_and_it_is_a_photo_all_the_same(viewing, small_model):
    held = small_model.config.layers * 2 * 4 * small_model.config.width * 6  # bytes of a view
    settings = Settings("fp32", 4 * held, SIZE)
    viewer = read(viewing(noise_clip(), settings=settings))
    assert "holds 4 views" in str(viewer.trouble)
    assert len(viewer.scene.photos) == 6 and viewer.scene.chosen == [0, 1, 2, 3]


def arguments(monkeypatch, *words):
    """The arguments that the command would view."""
    shown = []
    monkeypatch.setattr("efficient_lvsm_jax.viewer.server.view", shown.append)
    monkeypatch.setattr(command, "keep_programs", lambda: None)
    command.main([str(word) for word in words])
    return shown[0]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Three photos, and weights of a network that finds cameras."""
    folder = tmp_path_factory.mktemp("clip") / "photos"
    folder.mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (3, 42, 56, 3), dtype=np.uint8)
    for name, image in zip("abc", noise, strict=True):
        Image.fromarray(image).save(folder / f"{name}.png")
    model = seeing_wide()
    info = {"family": model.family, "config": dataclasses.asdict(model.config)}
    save_weights(folder.parent / "weights", jax.tree.map(np.asarray, model.params), info)
    return folder


def test_arguments_that_do_not_go_together(monkeypatch, photos):
    weights = photos.parent / "weights"
    for words, said in (
        (["--geometry", weights], "of which video or folder"),
        ([photos, "--weights", "rooms", "--every", 2], "--every: is about pictures without"),
        ([photos, "--weights", "rooms", "--geometry", "colmap"], "reconstruct .*photos OUT --with"),
        ([photos, "--weights", "rooms", "--geometry", weights, "--axes", "opencv"], "leave them"),
        ([photos, "--weights", "rooms", "--geometry", weights, "--count", 1], "at least 2"),
        ([photos / "a.png", "--weights", "rooms", "--geometry", weights], "a single picture"),
        (["absent.mp4", "--weights", "rooms", "--geometry", "rooms"], "sees no cameras"),
    ):
        with pytest.raises(InputError, match=said):
            open_clip(arguments(monkeypatch, *words))


def test_who_sees_a_clip_as_a_whole_is_known(monkeypatch, photos):
    for weights, together in ((photos.parent / "weights", False), (SMALL_DA3, True)):
        asked = arguments(monkeypatch, photos, "--weights", "rooms", "--geometry", weights)
        assert open_clip(asked).together == together


@pytest.fixture
def interrupted(monkeypatch, photos):
    """Views photos until what waits for Ctrl-C gets it; gives the viewers that there were."""
    words = (photos, "--weights", "rooms", "--geometry", photos.parent / "weights", "--port", 0)
    with monkeypatch.context() as patch:
        asked, made = arguments(patch, *words), []

    class Interrupted(threading.Event):
        def wait(self, timeout=None):
            raise KeyboardInterrupt

    class Kept(Viewer):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            made.append(self)

    names = types.SimpleNamespace(**{**vars(threading), "Event": Interrupted})
    monkeypatch.setattr(server, "threading", names)
    monkeypatch.setattr(server, "Viewer", Kept)

    def view():
        with pytest.raises(KeyboardInterrupt):
            server.view(asked)
        return made

    return view


def test_interrupted_in_what_takes_long_it_ends_all_the_same(monkeypatch, interrupted, small_model):
    go = threading.Semaphore(0)
    clip = noise_clip(before=lambda: go.acquire(timeout=SECONDS))
    monkeypatch.setattr(server, "open_clip", lambda _: clip)
    monkeypatch.setattr(server, "load_renderer", lambda _, **how: small_model)
    monkeypatch.setattr(worker, "SECONDS", 0.01)
    interrupted()
    go.release(100)


def test_the_address_is_there_before_the_pictures_are_looked_through(
    monkeypatch, capsys, interrupted
):
    said = []

    def opened(_):
        said.append(capsys.readouterr().out)
        raise KeyboardInterrupt

    monkeypatch.setattr(server, "open_clip", opened)
    (viewer,) = interrupted()
    assert said[0].startswith("photos: open http://127.0.0.1:")
    assert viewer.doing.startswith("looking through the pictures")
