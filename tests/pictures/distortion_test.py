"""Lenses that have no pinhole picture of their whole view, and strong ones that do."""

import json

import cv2
import numpy as np
import pytest
from capture_writers import colmap, nerfstudio
from capture_writers.colmap import distorted
from five_cameras import five_cameras

from data_pipeline.formats import open_scenes
from data_pipeline.pictures.distortion import FISHEYE, Distortion, perspective, undistortion
from efficient_lvsm_jax.errors import InputError

SIZE = np.array([640, 480])
CENTRE = SIZE / 2


def lens(focal, model, coefficients):
    """fxfycxcy, the lens, and what tells where it shows rays."""
    fxfycxcy = np.array([focal, focal, *CENTRE], np.float64)
    if model == "OPENCV_FISHEYE":
        made = Distortion(FISHEYE, tuple(map(float, coefficients)))
    elif model == "FULL_OPENCV":
        k1, k2, p1, p2, *rest = coefficients
        made = perspective((k1, k2, *rest), (p1, p2))
    else:
        made = perspective(coefficients)
    return fxfycxcy, made, lambda rays: distorted(rays, model, coefficients) * focal + CENTRE


def fisheye(degrees, *coefficients):
    return 320 / np.radians(degrees / 2), "OPENCV_FISHEYE", [*coefficients, 0, 0, 0, 0][:4]


HEALTHY = {
    "GoPro": (290, "RADIAL", [-0.26, 0.07]),
    "GoPro, tangential": (290, "FULL_OPENCV", [-0.26, 0.07, 0.001, -0.0005, 0, 0, 0, 0]),
    "quotient": (300, "FULL_OPENCV", [1.5, 0.4, 0, 0, 0.01, 1.9, 0.7, 0.06]),
    "phone": (500, "FULL_OPENCV", [0.1, -0.3, 0, 0, 0.2, 0, 0, 0]),
    "pincushion": (300, "SIMPLE_RADIAL", [0.3]),
    "fisheye of 90": fisheye(90),
    "fisheye of 120": fisheye(120),
    "fisheye of 120, bent": fisheye(120, -0.03, 0.01, -0.006, 0.001),
    "fisheye of 150": fisheye(150),
    "fisheye of 170": fisheye(170),
}
NOT_INVERTIBLE = {
    "fisheye of 180": fisheye(180),
    "fisheye of 185": fisheye(185),
    "fisheye of 220": fisheye(220),
    "fisheye that turns back": fisheye(120, 0.1, -0.4),
    "fisheye that turns back, longer": fisheye(120, 0, -0.2, 0.05, -0.03),
    "radial fold": (320, "SIMPLE_RADIAL", [-0.35]),
    "radial fold in the corners": (350, "SIMPLE_RADIAL", [-0.15]),
    "radial fold of two": (300, "RADIAL", [-0.2, -0.05]),
    "denominator of zero": (300, "FULL_OPENCV", [0.1, 0, 0, 0, 0, -1.5, 0, 0]),
    "denominator close to zero": (300, "FULL_OPENCV", [0.1, 0, 0, 0, 0, -0.8, 0, 0]),
    "tangential": (300, "FULL_OPENCV", [0, 0, 0.3, 0.3, 0, 0, 0, 0]),
}
HOPELESS = {
    "folds at the centre": (300, "SIMPLE_RADIAL", [-90.0]),
    "fisheye that never grows": fisheye(120, -90),
}


def border_and_within(fxfycxcy):
    """Rays of the pinhole picture, from its axis to its border: [steps, N, 2]."""
    along = np.linspace(0, 1, 101)
    zero, one = 0 * along, 0 * along + 1
    sides = [(along, zero), (one, along), (1 - along, one), (zero, 1 - along)]
    border = np.concatenate([np.stack(side, 1) for side in sides]) * SIZE
    rays = (border - fxfycxcy[2:]) / fxfycxcy[:2]
    return np.linspace(0.01, 1, 100)[:, None, None] * rays


@pytest.mark.parametrize("name", {**HEALTHY, **NOT_INVERTIBLE})
def test_the_pinhole_picture_is_known_everywhere_and_shows_nothing_twice(name):
    healthy = name in HEALTHY
    fxfycxcy, made, shown_at = lens(*(HEALTHY if healthy else NOT_INVERTIBLE)[name])
    undone = undistortion(fxfycxcy, tuple(SIZE.tolist()), made, "a.jpg")
    ratio = undone.fxfycxcy[:2] / fxfycxcy[:2]
    assert (ratio > 0.45).all() and (ratio < 4.1).all()
    rays = border_and_within(undone.fxfycxcy)
    shown = shown_at(rays.reshape(-1, 2)).reshape(rays.shape)
    assert (np.diff(np.linalg.norm(shown - CENTRE, axis=-1), axis=0) > 0).all()
    assert (shown[-1] > -0.01 * 640).all() and (shown[-1] < SIZE + 0.01 * 640).all()


@pytest.mark.parametrize("name", HEALTHY)
def test_points_return_from_where_the_lens_shows_them(name):
    fxfycxcy, made, shown_at = lens(*HEALTHY[name])
    undone = undistortion(fxfycxcy, tuple(SIZE.tolist()), made, "a.jpg")
    rays = 0.9 * border_and_within(undone.fxfycxcy)[-1]
    back = undone.pixels(shown_at(rays))
    expected = rays * undone.fxfycxcy[:2] + undone.fxfycxcy[2:]
    known = np.isfinite(back).all(-1)
    assert known.mean() > 0.7 and np.abs(back - expected)[known].max() < 4


def test_points_beyond_a_fold_are_not_known():
    fxfycxcy, made, _ = lens(*NOT_INVERTIBLE["radial fold"])
    undone = undistortion(fxfycxcy, tuple(SIZE.tolist()), made, "a.jpg")
    back = undone.pixels(np.array([[320.0, 240], [400, 240], [2, 2], [638, 478], [1e308, -1e308]]))
    assert np.isfinite(back[:2]).all() and np.isnan(back[2:]).all()


@pytest.mark.parametrize("name", HOPELESS)
def test_a_lens_that_folds_close_to_its_centre_is_refused_with_its_name(name):
    fxfycxcy, made, _ = lens(*HOPELESS[name])
    with pytest.raises(InputError, match=r"camera 7: its lens cannot be undone .*calibrate again"):
        undistortion(fxfycxcy, tuple(SIZE.tolist()), made, "camera 7")


def test_numbers_of_opencv_are_kept_where_they_are_right():
    made = perspective((-0.26, 0.07), (0.001, -0.0005))
    matrix = np.array([[870, 0, 959.5], [0, 870, 539.5], [0, 0, 1.0]])
    size = (1920, 1080)
    expected, _ = cv2.getOptimalNewCameraMatrix(matrix, np.array(made.coefficients), size, 0)
    found = undistortion(np.array([870.0, 870, 960, 540]), size, made, "a.jpg").fxfycxcy
    np.testing.assert_allclose(found[:2], np.diag(expected)[:2])


@pytest.mark.parametrize("coefficient", [-0.35, -90.0])
def test_formats_do_the_same(tmp_path, coefficient):
    truth = five_cameras(same_intrinsics=True)
    model = {"model": "SIMPLE_RADIAL", "lens": [coefficient], "points": 0}
    folders = [
        colmap.write(tmp_path / "c", truth, **model),
        nerfstudio.write(tmp_path / "n", truth),
    ]
    path = folders[1] / "transforms.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"k1": coefficient}))
    for folder in folders:
        if coefficient < -1:
            with pytest.raises(InputError, match=r"its lens cannot be undone"):
                open_scenes(folder)[0]
        else:
            assert 0.5 < open_scenes(folder)[0].frames[0].fxfycxcy[0] / truth.fxfycxcy[0, 0] < 4
