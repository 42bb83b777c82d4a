"""The scene behind the viewer: inputs that come and go, what is shown, how it is kept."""

import numpy as np
import pytest
from noise_capture import SIZE, noise_scene

from efficient_lvsm_jax import InputError, SceneFrame, Session
from efficient_lvsm_jax.viewer.scene import Settings, ViewedScene


@pytest.fixture(scope="module")
def capture():
    return noise_scene()


def viewed(model, capture, **options):
    options = {"inputs": [0, 2], "settings": Settings(size=SIZE), **options}
    return ViewedScene(model, capture, **options)


def picture(scene, photo):
    return scene.render(scene.photos[photo].c2w, scene.intrinsics(photo)).image


def test_a_picture_is_what_a_session_of_the_chosen_photos_renders(small_model, capture):
    scene = viewed(small_model, capture)
    scene.toggle(4)
    scene.toggle(0)
    assert scene.chosen == [2, 4]
    frame = SceneFrame.from_cameras(capture.c2w[[0, 2]])
    session = Session(small_model, frame=frame, size=SIZE)
    for photo in (2, 4):
        session.add(capture.frames[photo])
    expected = np.round(session.render(capture.frames[3]) * 255)
    np.testing.assert_array_equal(picture(scene, 3), expected)


def test_a_toggle_changes_the_picture_says_what_it_took_and_a_second_undoes_it(
    small_model, capture
):
    scene = viewed(small_model, capture)
    before, held = picture(scene, 3), scene.cache_bytes
    scene.toggle(3)
    assert scene.change.startswith("+1 view ") and scene.change.endswith(" ms")
    assert scene.cache_bytes == held * 3 // 2
    assert (picture(scene, 3) != before).any()
    scene.toggle(3)
    assert scene.change.startswith("−1 view ")
    np.testing.assert_array_equal(picture(scene, 3), before)


def test_swapping_goes_back_to_the_inputs_before_and_forth_again(small_model, capture):
    scene = viewed(small_model, capture)
    scene.choose([1, 3, 4])
    assert scene.change.startswith("+3 views −2 views ")
    scene.swap()
    assert scene.chosen == [0, 2]
    scene.swap()
    assert scene.chosen == [1, 3, 4]


def test_without_inputs_it_is_black_and_says_that_nothing_was_seen(small_model, capture):
    scene = viewed(small_model, capture)
    scene.choose([])
    shown = scene.render(capture.frames[0].c2w, scene.intrinsics(0))
    assert shown.unseen and not shown.image.any() and scene.cache_bytes == 0


def test_a_camera_that_looks_away_from_all_inputs_sees_what_none_saw(small_model, capture):
    scene = viewed(small_model, capture)
    c2w = capture.frames[2].c2w
    assert not scene.render(c2w, scene.intrinsics(2)).unseen
    away = c2w @ np.diag([-1.0, 1, -1, 1])
    assert scene.render(away, scene.intrinsics(2)).unseen


def test_the_nearest_inputs_alone_can_be_read(small_model, capture):
    scene = viewed(small_model, capture, inputs=[0, 2, 4])
    camera = capture.frames[3].c2w, scene.intrinsics(3)
    nearest = scene.render(*camera, "nearest:1").image
    assert (nearest != scene.render(*camera).image).any()
    with pytest.raises(InputError, match="expected all or nearest:k"):
        scene.render(*camera, "nearest:none")


def test_truth_and_psnr_are_of_the_photo_as_it_goes_in(small_model, capture):
    scene = viewed(small_model, capture)
    shown, truth, psnr = scene.compare(1)
    np.testing.assert_array_equal(truth, capture.frames[1].image())
    error = np.mean((shown.image.astype(float) - truth) ** 2)
    assert psnr == pytest.approx(10 * np.log10(255**2 / error), abs=1e-3)


def test_the_cache_can_be_kept_otherwise_and_a_budget_too_small_changes_nothing(
    small_model, capture
):
    scene = viewed(small_model, capture)
    held = scene.cache_bytes
    scene.keep(Settings("bf16", None, SIZE))
    assert scene.precision == "bf16" and scene.cache_bytes == held // 2
    before = picture(scene, 3)
    with pytest.raises(InputError, match="max_bytes=10 holds no view"):
        scene.keep(Settings("fp32", 10, SIZE))
    assert scene.settings.max_bytes is None and scene.precision == "bf16"
    np.testing.assert_array_equal(picture(scene, 3), before)


def test_a_full_cache_is_an_error_and_keeps_the_inputs_that_are_in(small_model, capture):
    scene = viewed(small_model, capture)
    scene.keep(Settings("fp32", scene.cache_bytes, SIZE))
    with pytest.raises(InputError, match="holds 2 views"):
        scene.toggle(4)
    assert scene.chosen == [0, 2]


def test_few_of_many_photos_are_shown_and_the_first_inputs_always(small_model, capture):
    scene = viewed(small_model, capture, inputs=[1, 2], photos=2)
    names = [frame.name for frame in scene.photos]
    assert {"00001", "00002"} <= {*names} and len(names) < 5
    assert [names[photo] for photo in scene.chosen] == ["00001", "00002"]


def test_what_is_no_photo_is_refused(small_model, capture):
    with pytest.raises(InputError, match="there are 5"):
        viewed(small_model, capture).toggle(5)
