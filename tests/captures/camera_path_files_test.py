"""nerfstudio camera path files: round trip, what the numbers mean, and refusals."""

import json

import numpy as np
import pytest
from five_cameras import five_cameras

from data_pipeline.captures.camera_path_files import read_camera_path, write_camera_path
from efficient_lvsm_jax.errors import InputError

SIZE = (54, 96)


def centred(focal):
    """Intrinsics of square pixels with the principal point in the middle, [F, 4]."""
    return np.stack([focal, focal, np.full_like(focal, 48.0), np.full_like(focal, 27.0)], axis=-1)


def stored(**changes):
    """A file's content as the viewer writes it: one camera a unit behind the origin, turned."""
    camera = {
        "camera_to_world": [0, 0, 1, 5, 0, 1, 0, 6, -1, 0, 0, 7, 0, 0, 0, 1],
        "fov": 90,
        "aspect": 2,
    }
    return {
        "keyframes": [],
        "camera_type": "perspective",
        "render_width": 200,
        "render_height": 100,
        "seconds": 1,
        "camera_path": [camera | changes.pop("camera", {})],
    } | changes


def written(folder, content):
    path = folder / "path.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_cameras_come_back(tmp_path):
    truth = five_cameras()
    intrinsics = centred(np.array([30.0, 60.5, 100, 200, 300]))
    write_camera_path(tmp_path / "path.json", truth.c2w, intrinsics, SIZE, fps=10)
    c2w, fxfycxcy, size = read_camera_path(tmp_path / "path.json")
    np.testing.assert_allclose(c2w, truth.c2w, rtol=0, atol=1e-6)
    np.testing.assert_allclose(fxfycxcy, intrinsics, rtol=0, atol=1e-6)
    assert size == SIZE
    content = json.loads((tmp_path / "path.json").read_text())
    assert content["seconds"] == 0.5 and content["camera_type"] == "perspective"
    assert [file.name for file in tmp_path.iterdir()] == ["path.json"]


def test_axes_turn_from_opengl_and_fov_is_vertical(tmp_path):
    c2w, fxfycxcy, size = read_camera_path(written(tmp_path, stored()))
    assert size == (100, 200)
    np.testing.assert_allclose(fxfycxcy, [[50, 50, 100, 50]])
    right, down, forward, centre = c2w[0, :3].T
    np.testing.assert_array_equal(centre, [5, 6, 7])
    np.testing.assert_array_equal(right, [0, 0, -1])
    np.testing.assert_array_equal(down, [0, -1, 0])
    np.testing.assert_array_equal(forward, [-1, 0, 0])


def test_camera_type_is_perspective_if_not_stated(tmp_path):
    content = stored()
    del content["camera_type"]
    assert len(read_camera_path(written(tmp_path, content))[0]) == 1


@pytest.mark.parametrize("camera_type", ["fisheye", "equirectangular", "vr180"])
def test_other_camera_types_are_refused_by_name(tmp_path, camera_type):
    with pytest.raises(InputError, match=rf"path.json: camera_type '{camera_type}'.*perspective"):
        read_camera_path(written(tmp_path, stored(camera_type=camera_type)))


MATRIX = stored()["camera_path"][0]["camera_to_world"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not valid JSON"),
        ([], "expected a JSON object"),
        ({}, "render_height is missing"),
        (stored(render_width=0), "render_width: expected a whole number"),
        (stored(render_height="100"), "render_height: expected a number"),
        (stored(camera_path=[]), "camera_path is empty"),
        (stored(camera_path={}), "camera_path: expected a list"),
        (stored(camera_path=[3]), r"camera_path\[0\]: expected an object"),
        (stored(camera={"fov": 180}), r"camera_path\[0\].fov: 180.0 degrees"),
        (stored(camera={"fov": None}), r"camera_path\[0\].fov: expected a number"),
        (stored(camera={"camera_to_world": MATRIX[:12]}), r"\[0\].camera_to_world: expected 16"),
        (stored(camera={"camera_to_world": [float("nan"), *MATRIX[1:]]}), "finite"),
        (stored(camera={"camera_to_world": [1.0, *MATRIX[1:]]}), r"camera_path\[0\].*not rigid"),
    ],
)
def test_damaged_files_are_refused(tmp_path, content, message):
    with pytest.raises(InputError, match=message) as caught:
        read_camera_path(written(tmp_path, content))
    assert "path.json" in str(caught.value)


@pytest.mark.parametrize("change", [(0, 1.0), (2, 0.5), (3, -0.5)])
def test_intrinsics_that_the_format_does_not_hold_are_refused(tmp_path, change):
    intrinsics = centred(np.full(5, 80.0))
    intrinsics[3, change[0]] += change[1]
    with pytest.raises(InputError, match=r"path.json\[3\].*holds only fx = fy and the middle"):
        write_camera_path(tmp_path / "path.json", five_cameras().c2w, intrinsics, SIZE)
    assert not list(tmp_path.iterdir())


def test_folder_that_is_not_there_is_named(tmp_path):
    path = tmp_path / "none" / "path.json"
    with pytest.raises(InputError, match=r"none/path.json: cannot be written"):
        write_camera_path(path, five_cameras().c2w, centred(np.full(5, 80.0)), SIZE)
