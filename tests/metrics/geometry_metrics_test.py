"""Scores of depth, cameras and clouds, on cases whose answer is known."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from efficient_lvsm_jax.metrics.clouds import brought_nearest, cloud_errors, in_its_unit, normals
from efficient_lvsm_jax.metrics.depth import depth_errors, median_scale, weiszfeld_scale
from efficient_lvsm_jax.metrics.poses import NO_DIRECTION, auc, pair_errors, path_errors

RNG = np.random.default_rng(0)


def posed(rotations, centres):
    c2w = np.tile(np.eye(4), (len(centres), 1, 1))
    c2w[:, :3, :3] = rotations.as_matrix()
    c2w[:, :3, 3] = centres
    return c2w


def path(count=6, seed=0):
    rng = np.random.default_rng(seed)
    return posed(Rotation.random(count, random_state=seed), rng.normal(size=(count, 3)))


def in_another_world(c2w, scale=3.0):
    turn = Rotation.from_rotvec([0.3, -1, 0.5]).as_matrix()
    moved = c2w.copy()
    moved[:, :3, :3] = turn @ c2w[:, :3, :3]
    moved[:, :3, 3] = scale * c2w[:, :3, 3] @ turn.T + [4, 5, 6]
    return moved


def test_depth_in_another_unit_is_right_and_a_tenth_off_is_a_tenth_off():
    truth = RNG.uniform(1, 5, (4, 6))
    valid = np.ones_like(truth, bool)
    valid[0] = False
    truth[0] = 0
    for scale in (median_scale, weiszfeld_scale):
        assert scale(truth / 3 + 100 * ~valid, truth, valid) == pytest.approx(3)
    assert depth_errors(1.1 * truth, truth, valid) == pytest.approx((0.1, 1))
    assert depth_errors(1.3 * truth, truth, valid) == pytest.approx((0.3, 0))
    half = np.where(np.arange(6) < 3, truth, truth / 1.3)
    assert depth_errors(half, truth, valid)[1] == pytest.approx(0.5)


def test_the_weiszfeld_scale_minds_no_outliers():
    truth = RNG.uniform(1, 5, 1000)
    prediction = truth / 2
    prediction[:100] *= 2
    valid = np.ones(1000, bool)
    least_squares = (prediction * truth).sum() / (prediction**2).sum()
    assert abs(least_squares - 2) > 0.3
    assert weiszfeld_scale(prediction, truth, valid) == pytest.approx(2, abs=0.01)


def test_cameras_in_another_world_are_right():
    truth = path()
    rotation, translation = pair_errors(in_another_world(truth), truth)
    assert rotation.shape == translation.shape == (15,)
    assert rotation.max() < 1e-5 and translation.max() < 1e-5
    assert max(path_errors(in_another_world(truth), truth).values()) < 1e-6


def test_a_camera_that_is_turned_and_one_that_is_moved_are_found():
    truth = posed(Rotation.identity(3), np.eye(3))
    wrong = truth.copy()
    wrong[2, :3, :3] = Rotation.from_euler("z", 20, degrees=True).as_matrix()
    rotation, translation = pair_errors(wrong, truth)  # of 01, 02, 12
    np.testing.assert_allclose(rotation, [0, 20, 20], atol=1e-6)
    np.testing.assert_allclose(translation, 0, atol=1e-6)
    truth = posed(Rotation.identity(2), np.array([[0, 0, 0], [1.0, 0, 0]]))
    wrong = posed(Rotation.identity(2), np.array([[0, 0, 0], [1.0, 1, 0]]))
    np.testing.assert_allclose(pair_errors(wrong, truth), [[0], [45]], atol=1e-6)
    np.testing.assert_allclose(pair_errors(wrong[[0, 0]], truth)[1], NO_DIRECTION)
    np.testing.assert_allclose(pair_errors(wrong, truth[[0, 0]])[1], 0)


def test_the_area_counts_whole_degrees():
    assert auc(np.zeros(4), 30) == 1
    assert auc(np.full(4, 31.0), 30) == 0
    assert auc(np.array([14.5]), 30) == pytest.approx(16 / 30)  # below 15, 16, …, 30
    assert auc(np.array([0.5, 90]), 30) == pytest.approx(0.5)


def test_errors_of_a_path_are_in_the_unit_of_the_truth():
    truth = path(40)
    noise = np.random.default_rng(1).normal(0, 0.01, (40, 3))
    wrong = truth.copy()
    wrong[:, :3, 3] += noise
    found = path_errors(in_another_world(wrong, 0.2), truth)
    expected = np.sqrt(np.square(noise).sum(-1).mean())
    assert 0.9 * expected < found["ate"] < expected
    assert found["rpe_translation"] == pytest.approx(2**0.5 * expected, rel=0.15)
    assert found["rpe_rotation"] < 1e-5


def test_somebody_who_stands_still_is_as_wrong_as_the_path_is_wide():
    truth = path(5)
    still = np.tile(np.eye(4), (5, 1, 1))
    spread = truth[:, :3, 3] - truth[:, :3, 3].mean(0)
    expected = np.sqrt(np.square(spread).sum(-1).mean())
    assert path_errors(still, truth)["ate"] == pytest.approx(expected)
    steps = np.linalg.norm(np.diff(truth[:, :3, 3], axis=0), axis=-1)
    assert path_errors(still, truth)["rpe_translation"] == pytest.approx(
        np.sqrt(np.square(steps).mean())
    )
    line = truth.copy()
    line[:, :3, 3] = np.arange(5)[:, None] * [1.0, 2, 3]  # fixes no turn about itself
    assert path_errors(in_another_world(line), line)["ate"] < 1e-6


def plane(count, seed=0):
    points = np.random.default_rng(seed).uniform(-1, 1, (count, 3))
    points[:, 2] = 2.0
    return points


def test_a_plane_beside_another_is_as_far_as_they_are_apart():
    truth = plane(4000)
    found = cloud_errors(truth + np.array([0, 0, 0.25]), truth)
    for name in ("accuracy", "accuracy_median", "completeness", "completeness_median"):
        assert found[name] == pytest.approx(0.25, abs=1e-9)
    assert found["normals"] == pytest.approx(1)
    np.testing.assert_allclose(abs(normals(truth)), np.tile([0, 0, 1.0], (4000, 1)), atol=1e-9)


def test_what_is_missing_counts_for_completeness_alone():
    truth = plane(4000)
    half = truth[truth[:, 0] < 0]
    found = cloud_errors(half, truth)
    assert found["accuracy"] == 0 and found["completeness"] == pytest.approx(0.25, abs=0.02)
    assert found["completeness_median"] < 0.05
    turned = cloud_errors(truth @ Rotation.from_euler("x", 60, degrees=True).as_matrix(), truth)
    assert turned["normals"] == pytest.approx(0.5, abs=1e-6)


def test_a_cloud_is_brought_to_the_others_unit_and_place():
    rng = np.random.default_rng(2)
    truth = rng.normal(size=(100, 3)) + np.array([0, 0, 4])
    ours, theirs = in_its_unit(truth / 7, truth)
    np.testing.assert_allclose(ours, theirs, atol=1e-12)
    assert np.median(theirs[:, 2]) == pytest.approx(0, abs=1e-12)
    motion = Rotation.from_rotvec([0.003, 0.006, -0.003]).as_matrix()
    found = brought_nearest(truth @ motion.T + [0.01, 0, -0.02], truth, limit=0.3)
    np.testing.assert_allclose(found, truth, atol=1e-6)
    far = truth + 10
    np.testing.assert_array_equal(brought_nearest(far, truth, limit=0.1), far)
