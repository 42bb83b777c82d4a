"""Flights through a viewed scene, and their files."""

import io
import json
import zipfile

import numpy as np
import pytest
from noise_capture import SIZE, noise_scene
from PIL import Image

from data_pipeline.formats import open_scenes
from efficient_lvsm_jax import InputError
from efficient_lvsm_jax.viewer import flights
from efficient_lvsm_jax.viewer.flights import Camera
from efficient_lvsm_jax.viewer.scene import Settings, ViewedScene

LENS = np.array([22.0, 22, 12, 8])


@pytest.fixture(scope="module")
def scene(small_model):
    return ViewedScene(small_model, noise_scene(), inputs=[0, 2, 4], settings=Settings(size=SIZE))


def test_through_the_inputs_begins_at_the_first_and_ends_at_the_last(scene):
    path = flights.flight(flights.INPUTS, scene, LENS, 7, [])
    assert len(path) == 8  # as many between all pairs
    for camera, photo in ((path[0], 0), (path[-1], 4)):
        np.testing.assert_allclose(camera.c2w, scene.photos[photo].c2w, atol=1e-5)


def test_keyframes_are_gone_through_in_their_order_with_their_lenses(scene):
    stops = [Camera(scene.photos[photo].c2w, LENS * (1 + photo)) for photo in (4, 0, 2)]
    path = flights.flight(flights.KEYFRAMES, scene, LENS, 6, stops)
    for camera, stop in ((path[0], stops[0]), (path[2], stops[1]), (path[-1], stops[2])):
        np.testing.assert_allclose(camera.c2w, stop.c2w, atol=1e-5)
        np.testing.assert_allclose(camera.fxfycxcy, stop.fxfycxcy, rtol=1e-5)


def test_an_orbit_has_as_many_frames_as_asked(scene):
    assert len(flights.flight(flights.ORBIT, scene, LENS, 5, [])) == 5


@pytest.mark.parametrize(
    ("kind", "frames", "message"),
    [
        (flights.KEYFRAMES, 9, "0 keyframes: add two"),
        (flights.ORBIT, 0, "0 frames: expected 1 to"),
        (flights.ORBIT, 10**6, "1000000 frames: expected 1 to"),
    ],
)
def test_what_is_no_flight_is_refused(scene, kind, frames, message):
    with pytest.raises(InputError, match=message):
        flights.flight(kind, scene, LENS, frames, [])


def test_a_path_file_gives_the_flight_back(scene):
    path = flights.flight(flights.ORBIT, scene, LENS, 5, [])
    content = flights.path_file(path, SIZE, 24)
    assert json.loads(content)["fps"] == 24
    for there, back in zip(path, flights.read_flight(content, SIZE), strict=True):
        np.testing.assert_allclose(back.c2w, there.c2w, atol=1e-9)
        np.testing.assert_allclose(back.fxfycxcy, there.fxfycxcy, rtol=1e-9)


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"camera_path": []}', b"\xff"])
def test_a_file_that_is_no_path_is_refused_by_its_own_name(content):
    with pytest.raises(InputError, match=r"^path\.json: "):
        flights.read_flight(content, SIZE)


def test_a_gif_and_a_capture_hold_all_pictures(scene, tmp_path):
    path = flights.flight(flights.ORBIT, scene, LENS, 3, [])
    pictures = [np.full((*SIZE, 3), 60 * n, np.uint8) for n in range(3)]
    gif = Image.open(io.BytesIO(flights.film("film.gif", pictures, 10)))
    assert gif.n_frames == 3 and gif.size == SIZE[::-1] and gif.info["duration"] == 100
    with zipfile.ZipFile(io.BytesIO(flights.capture(path, pictures))) as file:
        file.extractall(tmp_path)
    (found,) = open_scenes(tmp_path / "capture")
    assert [frame.image()[0, 0, 0] for frame in found.frames] == [0, 60, 120]
    np.testing.assert_allclose(found.c2w, np.stack([camera.c2w for camera in path]), atol=1e-9)
