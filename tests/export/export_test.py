"""Exported captures: read back as they were, and never half there."""

import json

import numpy as np
import pytest
from five_cameras import assert_reads_as, five_cameras

from data_pipeline.captures.export import CaptureWriter
from data_pipeline.formats import open_scenes
from data_pipeline.pictures.distortion import FISHEYE, PERSPECTIVE, Distortion
from efficient_lvsm_jax.errors import InputError


def export(folder, truth):
    with CaptureWriter(folder) as capture:
        for view in zip(truth.image, truth.c2w, truth.fxfycxcy, strict=True):
            capture.add(*view)


@pytest.mark.parametrize("same_intrinsics", [False, True])
def test_capture_reads_back_with_its_cameras_and_pixels(tmp_path, same_intrinsics):
    truth = five_cameras(same_intrinsics=same_intrinsics)
    export(tmp_path / "new" / "capture", truth)
    scenes = open_scenes(tmp_path / "new" / "capture")
    assert scenes.format == "nerfstudio"
    assert_reads_as(scenes[0], truth)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["capture"]


def test_intrinsics_stand_once_if_shared_and_poses_have_opengl_axes(tmp_path):
    truth = five_cameras(same_intrinsics=True)
    export(tmp_path / "capture", truth)
    stored = json.loads((tmp_path / "capture" / "transforms.json").read_text())
    assert [stored[key] for key in ("fl_x", "fl_y", "cx", "cy")] == truth.fxfycxcy[0].tolist()
    assert (stored["w"], stored["h"]) == (96, 54)
    assert set(stored["frames"][3]) == {"file_path", "transform_matrix"}
    assert stored["frames"][3]["file_path"] == "images/00003.png"
    right, up, backward, centre = np.array(stored["frames"][3]["transform_matrix"])[:3].T
    np.testing.assert_array_equal([right, -up, -backward, centre], truth.c2w[3, :3].T)


@pytest.mark.parametrize(
    ("lens", "fields"),
    [
        (None, {"camera_model": "PINHOLE"}),
        (Distortion(PERSPECTIVE, (0, 0, 0, 0)), {"camera_model": "PINHOLE"}),
        (
            Distortion(PERSPECTIVE, (0.1, 0.2, 0.3, 0.4, 0.5)),
            {"camera_model": "OPENCV", "k1": 0.1, "k2": 0.2, "p1": 0.3, "p2": 0.4, "k3": 0.5},
        ),
        (
            Distortion(FISHEYE, (0.1, 0.2, 0.3, 0.4)),
            {"camera_model": "OPENCV_FISHEYE", "k1": 0.1, "k2": 0.2, "k3": 0.3, "k4": 0.4},
        ),
    ],
)
def test_the_lens_stands_in_the_file(tmp_path, lens, fields):
    truth = five_cameras(same_intrinsics=True)
    with CaptureWriter(tmp_path / "capture", lens=lens) as capture:
        capture.add(truth.image[0], truth.c2w[0], truth.fxfycxcy[0])
    stored = json.loads((tmp_path / "capture" / "transforms.json").read_text())
    shared = {"fl_x", "fl_y", "cx", "cy", "w", "h", "frames"}
    assert {key: stored[key] for key in stored if key not in shared} == fields


def test_folder_that_exists_is_left_alone(tmp_path):
    (tmp_path / "capture").mkdir()
    with pytest.raises(InputError, match="capture already exists"):
        export(tmp_path / "capture", five_cameras())
    assert list((tmp_path / "capture").iterdir()) == []


def test_interrupted_capture_leaves_nothing(tmp_path):
    truth = five_cameras()
    with pytest.raises(KeyboardInterrupt), CaptureWriter(tmp_path / "capture") as capture:
        capture.add(truth.image[0], truth.c2w[0], truth.fxfycxcy[0])
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("image", "scale", "message"),
    [
        (np.zeros((8, 8, 3)), 1, "picture 0, float64.*expected uint8"),
        (np.zeros((8, 8, 3), np.uint8), 2, "camera of picture 0: c2w is not rigid"),
    ],
)
def test_unusable_picture_is_refused(tmp_path, image, scale, message):
    c2w = np.diag([scale, scale, scale, 1.0])
    with pytest.raises(InputError, match=message), CaptureWriter(tmp_path / "capture") as capture:
        capture.add(image, c2w, np.ones(4))
    assert list(tmp_path.iterdir()) == []


def test_capture_of_no_pictures_is_refused(tmp_path):
    with pytest.raises(InputError, match="no picture"), CaptureWriter(tmp_path / "capture"):
        pass
    assert list(tmp_path.iterdir()) == []
