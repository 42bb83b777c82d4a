"""From a photo to a view: files, PIL images, frames, captures; what is refused or doubted."""

import dataclasses
import warnings

import numpy as np
import pytest
from cameras_around import ring
from conftest import GOLDENS
from noise_views import SIZE, session_of, targets, view
from PIL import Image

from data_pipeline.captures.export import CaptureWriter
from data_pipeline.formats import open_scenes
from data_pipeline.pictures.transforms import fit
from efficient_lvsm_jax import InputError, SceneFrame, Session


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
