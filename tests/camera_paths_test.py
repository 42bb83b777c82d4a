"""Camera paths: parity of the published one; where orbits and spirals go; and refusals."""

import numpy as np
import pytest
from cameras_test import random_cameras
from conftest import golden

from efficient_lvsm_jax.camera_paths import camera_path
from efficient_lvsm_jax.cameras import check_cameras, nearest_camera
from efficient_lvsm_jax.errors import InputError


@pytest.mark.parametrize("order", [0, 1])
def test_camera_path_equals_the_published_one(order, parity):
    reference = golden("trajectory")
    c2w, fxfycxcy = camera_path(
        reference["c2w"],
        reference["fxfycxcy"],
        int(reference["steps"]),
        nearest_first=bool(order),
    )
    parity("camera path, poses", c2w[:, :3], reference[f"c2w_order{order}"], 1e-5)
    k = reference[f"K_order{order}"]
    expected = np.stack([k[:, 0, 0], k[:, 1, 1], k[:, 0, 2], k[:, 1, 2]], axis=-1)
    parity("camera path, intrinsics, pixels", fxfycxcy, expected, 1e-5)


@pytest.mark.parametrize("nearest_first", [False, True])
def test_loop_ends_where_it_began_after_all_cameras(nearest_first):
    c2w, fxfycxcy = random_cameras(17)
    path, intrinsics = camera_path(c2w, fxfycxcy, 5, nearest_first=nearest_first, loop=True)
    assert path.shape == (20, 4, 4) and intrinsics.shape == (20, 4)
    np.testing.assert_allclose(path[-1], path[0], atol=1e-6)
    starts = path[::5, :3, 3]
    assert sorted(nearest_camera(c2w, pose) for pose in path[::5]) == [0, 1, 2, 3]
    if not nearest_first:
        np.testing.assert_allclose(starts, c2w[:, :3, 3], atol=1e-6)


def test_path_passes_through_every_camera_and_stays_rigid():
    c2w, fxfycxcy = random_cameras(18)
    path, intrinsics = camera_path(c2w, fxfycxcy, 9)
    np.testing.assert_allclose(path[::9], c2w[:-1], atol=1e-6)
    np.testing.assert_allclose(path[8::9], c2w[1:], atol=1e-6)
    check_cameras(path, intrinsics)


def test_rotation_advances_evenly_along_the_shorter_arc():
    c2w = np.tile(np.eye(4), (2, 1, 1))
    turn = np.deg2rad(-80.0)
    c2w[1, :2, :2] = [[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]
    path, _ = camera_path(c2w, np.ones((2, 4)), 5)
    angles = np.rad2deg(np.arctan2(path[:, 1, 0], path[:, 0, 0]))
    np.testing.assert_allclose(angles, [0, -20, -40, -60, -80], atol=1e-4)


def test_path_between_equal_and_opposite_rotations_is_finite():
    c2w = np.tile(np.eye(4), (3, 1, 1))
    c2w[2, :3, :3] = np.diag([1.0, -1, -1])  # half a turn
    path, intrinsics = camera_path(c2w, np.ones((3, 4)), 4)
    check_cameras(path, intrinsics)
    np.testing.assert_array_equal(path[:4], np.tile(np.eye(4), (4, 1, 1)))


def test_one_camera_makes_a_path_only_with_loop():
    c2w, fxfycxcy = random_cameras(19, count=1)
    with pytest.raises(InputError, match="two cameras or more"):
        camera_path(c2w, fxfycxcy, 3)
    path, _ = camera_path(c2w, fxfycxcy, 3, loop=True)
    np.testing.assert_allclose(path, np.repeat(c2w, 3, axis=0), atol=1e-6)


def test_path_of_no_steps_is_refused():
    with pytest.raises(InputError, match="steps=0"):
        camera_path(*random_cameras(20), 0)
