"""Frames without cameras become views where they are worth one, in a frame that fits them all."""

import dataclasses

import numpy as np
import pytest
from PIL import Image
from small_vggt import seeing_wide

import efficient_lvsm_jax as elvsm
from data_pipeline.unposed.photos import Photo
from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.sessions.unposed import GROWN, START, Keyframes, SeenFrame, fitted

NOISE = np.random.default_rng(0).integers(0, 256, (6, 42, 56, 3), dtype=np.uint8)


def seen(place=0.0, degrees=0.0, confidence=2.0, depth=1.0):
    """What is said of a frame that stands to the right and looks aside."""
    angle = np.deg2rad(degrees)
    c2w = np.eye(4)
    c2w[:3, :3] = [[np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]]
    c2w[0, 3] = place
    maps = (np.full((3, 4), value, np.float32) for value in (depth, confidence))
    photo = Photo("a.png", np.zeros((42, 56, 3), np.uint8))
    return SeenFrame(photo, c2w, np.array([50.0, 50, 28, 21]), *maps)


def test_keyframes_are_taken_from_elsewhere_and_well_seen():
    for frames, taken in (
        ([seen(), seen(0.04), seen(0.06), seen(0.0)], [1, 0, 1, 0]),
        ([seen(depth=10), seen(0.06, depth=10), seen(0.6, depth=10)], [1, 0, 1]),
        ([seen(), seen(degrees=10), seen(degrees=16)], [1, 0, 1]),
        ([seen(), seen(0.1), seen(0.2, confidence=0.9), seen(0.2)], [1, 1, 0, 1]),
    ):
        keyframes = Keyframes()
        assert [keyframes.take(frame) for frame in frames] == taken
        assert len(keyframes.poses) == sum(taken)


def test_a_scene_frame_is_outgrown_when_cameras_have_gone_a_quarter_further():
    keyframes, frame, made = Keyframes(), None, []
    for place in np.arange(24) * 0.1:  # to the right, all in a row
        keyframes.take(seen(place))
        grown = keyframes.outgrown(frame, keyframes.poses) if frame else keyframes.frame
        if grown is not None:
            frame, made = grown, [*made, len(keyframes.poses)]
    assert made[0] == START and 4 < len(made) <= 12
    far = np.abs(frame.apply(np.stack(keyframes.poses))[:, :3, 3]).max()
    assert far < GROWN / 1.35  # the published normalisation has 1 / 1.35
    assert keyframes.outgrown(frame, keyframes.poses) is None
    # When the first views have left, the others are further apart in a frame of their own.
    last = keyframes.poses[-8:]
    narrow = keyframes.outgrown(frame, last)
    assert narrow.scale == elvsm.SceneFrame.from_cameras(np.stack(last)).scale > frame.scale
    assert keyframes.outgrown(frame, last[: START - 1]) is None
    assert keyframes.outgrown(frame, [last[0]] * START) is None  # says nothing of the scale


def test_networks_see_pictures_at_the_size_and_in_the_patches_they_were_trained_with():
    model = seeing_wide()
    assert fitted(model, NOISE[0], 42).shape == (28, 42, 3)
    trained = dataclasses.replace(model, trained_sizes=((28, 28), (28, 42)))
    assert fitted(trained, NOISE[0]).shape == (28, 42, 3)
    of_eight = dataclasses.replace(model.config, patch=8)
    assert fitted(dataclasses.replace(trained, config=of_eight), NOISE[0]).shape == (32, 40, 3)


@pytest.fixture(scope="module")
def scene(small_model):
    """A scene of noise, and what `add` said of its frames."""
    scene = elvsm.UnposedScene(
        small_model,
        elvsm.Stream(seeing_wide(), capacity=3, when_full="window"),
        side=56,
        size=(32, 40),
        capacity=8,
    )
    return scene, [scene.add(frame) for frame in NOISE]


def test_frames_become_views_in_a_frame_that_no_camera_has_left(scene, small_model):
    scene, views = scene
    kept = [view for view in views if view is not None]
    assert scene.session.views == kept and kept[0] == 0 and len(scene.stream) == 6
    assert scene.newest.photo.name == "000005" and len(kept) >= START
    poses = scene._keyframes.poses
    assert scene._keyframes.outgrown(scene.session.frame, poses) is None
    picture = scene.session.render(scene.newest.posed)
    again = elvsm.Session(small_model, frame=scene.session.frame, size=(32, 40))
    for posed in scene._posed.values():
        again.add(posed)
    np.testing.assert_allclose(picture, again.render(scene.newest.posed), atol=1e-5)


def test_a_frame_that_was_given_stays(small_model):
    given = elvsm.SceneFrame(np.eye(4), 1e3)  # in which everything is far outside
    stream = elvsm.Stream(seeing_wide(), capacity=3, when_full="window")
    scene = elvsm.UnposedScene(small_model, stream, side=56, size=(32, 40), frame=given)
    for frame in NOISE:
        scene.add(frame)
    assert len(scene.session.views) >= START and scene.session.frame is given


def test_what_is_no_frame_changes_nothing(scene):
    scene, _ = scene
    views = scene.session.views
    for frame, words in (
        (NOISE[0].astype(np.float32), r"float32 \(42, 56, 3\): expected uint8"),
        (NOISE[0][:1], "crop it"),
        (NOISE[0][:0], r"\(0, 56, 3\): expected uint8"),
        (Image.fromarray(np.ascontiguousarray(NOISE[0].swapaxes(0, 1))), "in a stream of 42x56"),
    ):
        with pytest.raises(InputError, match=words):
            scene.add(frame)
    assert scene.session.views == views and len(scene.stream) == 6
