"""Camera paths: parity of the published one; where orbits and spirals go; and refusals."""

import numpy as np
import pytest
from cameras_around import FOCUS, WORLD, looking_at, random_cameras, ring
from conftest import golden

from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.geometry.cameras import check_cameras, nearest_camera
from efficient_lvsm_jax.geometry.paths import camera_path, orbit, spiral


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


def test_one_camera_makes_no_path():
    c2w, fxfycxcy = random_cameras(19, count=1)
    with pytest.raises(InputError, match="two cameras or more"):
        camera_path(c2w, fxfycxcy, 3)


def test_nearest_first_visits_every_camera_once():
    c2w, fxfycxcy = random_cameras(17)
    path, _ = camera_path(c2w, fxfycxcy, 5, nearest_first=True)
    visited = [*path[::5], path[-1]]
    assert sorted(nearest_camera(c2w, pose) for pose in visited) == [0, 1, 2, 3]


def test_path_of_no_steps_is_refused():
    with pytest.raises(InputError, match="steps=0"):
        camera_path(*random_cameras(20), 0)


# Orbits and spirals


def local(path):
    """Centres as (east, north, up) of FOCUS."""
    return (path[:, :3, 3] - FOCUS) @ WORLD


def azimuths(path):
    east, north, _ = local(path).T
    return np.rad2deg(np.arctan2(north, east))


def seen_at(path, point):
    """Where each camera sees the point, tangents of angles right and down from its axis."""
    x, y, z = np.moveaxis(np.einsum("Fji,Fj->Fi", path[:, :3, :3], point - path[:, :3, 3]), -1, 0)
    assert (z > 0).all()
    return np.stack([x / z, y / z], axis=-1)


ARC = [-10.0, -40, 0, 25, 40, 5]
FLIGHTS = {
    "orbit": lambda: orbit(ring(ARC), 48),
    "whole orbit": lambda: orbit(ring(ARC), 48, full_circle=True),
    "spiral": lambda: spiral(ring(ARC), 96),
}


@pytest.mark.parametrize("flight", FLIGHTS)
def test_flight_is_rigid_level_and_keeps_the_focus_at_the_principal_point(flight):
    path = FLIGHTS[flight]()
    assert path.dtype == np.float64
    rotations = path[:, :3, :3]
    unit = np.swapaxes(rotations, 1, 2) @ rotations
    np.testing.assert_allclose(unit, np.broadcast_to(np.eye(3), unit.shape), atol=1e-12)
    np.testing.assert_allclose(np.linalg.det(rotations), 1, atol=1e-12)
    np.testing.assert_allclose(seen_at(path, FOCUS), 0, atol=1e-9)
    np.testing.assert_allclose(rotations[:, :, 0] @ WORLD[:, 2], 0, atol=0.02)  # no roll
    assert (rotations[:, :, 1] @ WORLD[:, 2] < -0.9).all()


@pytest.mark.parametrize("flight", FLIGHTS)
def test_flight_repeats_without_a_jump(flight):
    centres = FLIGHTS[flight]()[:, :3, 3]
    steps = np.linalg.norm(centres - np.roll(centres, 1, axis=0), axis=-1)
    assert steps[0] <= steps.max() and steps.max() < 0.7
    assert (np.abs(steps - np.roll(steps, 1)) < 0.15 * steps.max() + 1e-9).all()


def test_orbit_swings_over_the_arc_of_the_inputs_from_the_first():
    path = orbit(ring(ARC), 48)
    np.testing.assert_allclose(path[0], ring(ARC)[0], atol=0.03)
    angles = azimuths(path)
    np.testing.assert_allclose(angles[0], -10, atol=0.5)
    np.testing.assert_allclose([angles.min(), angles.max()], [-40, 40], atol=0.5)
    east, north, up = local(path).T
    np.testing.assert_allclose(np.hypot(east, north), 4, atol=0.02)
    np.testing.assert_allclose(up, 1.5, atol=0.05)


def test_orbit_keeps_to_the_distances_and_heights_of_the_inputs_nearby():
    east = ring([-40.0, -35, -30], radius=3.0, height=0.5)
    west = ring([30.0, 35, 40], radius=6.0, height=2.0)
    path = orbit(np.concatenate([east, west]), 64)
    distance = np.linalg.norm(local(path), axis=-1)
    assert distance.min() >= np.hypot(3, 0.5) - 1e-6 and distance.max() <= np.hypot(6, 2) + 1e-6
    angles = azimuths(path)
    assert distance[angles < -35].max() < 3.5 and distance[angles > 35].min() > 5.8


def test_up_is_that_of_level_pictures_whatever_the_pitch_of_the_cameras():
    steep = ring(np.linspace(-40, 40, 9), radius=2.0, height=4.0)
    path = orbit(steep, 16)
    assert np.abs(path[:, :3, 0] @ WORLD[:, 2]).max() < 0.02
    np.testing.assert_allclose(local(path)[:, 2], 4, atol=0.05)


@pytest.mark.parametrize("middle", [0, 90, 180, 270])  # one is across the cut of arctan
def test_orbit_never_leaves_the_arc(middle):
    angles = azimuths(orbit(ring(np.array(ARC) + middle), 100))
    assert np.cos(np.deg2rad(angles - middle)).min() >= np.cos(np.deg2rad(41))


@pytest.mark.parametrize(
    ("arc", "options"),
    [(ARC, {"full_circle": True}), (np.arange(0.0, 360, 45), {})],
)
def test_orbit_goes_around_when_asked_or_when_the_inputs_do(arc, options):
    angles = np.sort(azimuths(orbit(ring(arc), 36, **options)))
    np.testing.assert_allclose(np.diff(angles), 10, atol=1)


def test_a_camera_straight_above_does_not_break_an_orbit():
    above = looking_at([[0, 0.1, 4.3]])
    path = orbit(np.concatenate([ring(np.linspace(-40, 40, 40)), above]), 48)
    check_cameras(path, np.ones((48, 4)))
    assert np.abs(azimuths(path)).max() < 42  # its own is 90


def test_spiral_stays_in_the_range_of_the_inputs_around_their_middle():
    inputs = looking_at(np.random.default_rng(31).uniform([4, -2, 0], [5, 2, 1], (9, 3)))
    path = spiral(inputs, 96)
    axes = spiral(inputs, 1)[0, :3, :3]  # near enough the mean camera's
    low, high = (inputs[:, :3, 3] @ axes).min(0), (inputs[:, :3, 3] @ axes).max(0)
    centres = path[:, :3, 3] @ axes
    assert (centres > low - 0.1).all() and (centres < high + 0.1).all()
    np.testing.assert_allclose(path[:, :3, 3].mean(0), inputs[:, :3, 3].mean(0), atol=1e-9)
    assert np.ptp(centres[:, 0]) > 0.5


def test_spiral_of_parallel_cameras_looks_where_they_look():
    inputs = np.tile(looking_at([[5.0, 0, 1]]), (4, 1, 1))
    inputs[:, :3, 3] += np.random.default_rng(32).uniform(-1, 1, (4, 3))
    path = spiral(inputs, 12)
    np.testing.assert_allclose(path[:, :3, :3], inputs[[0] * 12, :3, :3], atol=1e-5)


@pytest.mark.parametrize("degrees", [0.2, 1.0])
def test_nearly_parallel_cameras_do_not_make_up_a_focus(degrees):
    rng = np.random.default_rng(33)
    inputs = np.tile(looking_at([[5.0, 0, 1]]), (6, 1, 1))
    inputs[:, :3, 3] += rng.uniform(-1, 1, (6, 3))
    for pose in inputs:
        shaky = pose[:3, :3] @ (np.eye(3) + np.deg2rad(degrees) * rng.uniform(-1, 1, (3, 3)))
        u, _, v = np.linalg.svd(shaky)
        pose[:3, :3] = u @ v
    with pytest.raises(InputError, match=r"in parallel.*spiral"):
        orbit(inputs, 8)
    forward = spiral(inputs, 8)[:, :3, 2]
    assert (forward @ inputs[0, :3, 2] > np.cos(np.deg2rad(3 * degrees))).all()


def outward():
    inputs = ring(np.arange(0.0, 80, 20))
    inputs[:, :3, :3] = inputs[:, :3, :3] @ np.diag([-1.0, 1, -1])
    return inputs


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (lambda: ring([10.0]), "two cameras or more"),
        (
            lambda: np.repeat(ring([10.0]), 3, axis=0),
            r"3 path cameras, all at \[.*two or more places",
        ),
        (outward, r"away from where their axes meet.*spiral"),
        (lambda: looking_at([[4, 0, 0], [4, 0.1, 2], [4, 0, -2]]), r"within 1\.4° of azimuth"),
        (lambda: ring([0.0, 90]) @ np.diag([1.0, 1, 1, np.nan]), "not finite"),
    ],
)
def test_cameras_that_define_no_orbit_are_refused(inputs, message):
    with pytest.raises(InputError, match=message):
        orbit(inputs(), 8)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (lambda: ring([10.0]), "two cameras or more"),
        (lambda: np.repeat(ring([10.0]), 3, axis=0), "all at"),
        (lambda: ring(np.arange(0.0, 360, 30)), r"viewing directions differ too much.*orbit"),
    ],
)
def test_cameras_that_define_no_spiral_are_refused(inputs, message):
    with pytest.raises(InputError, match=message):
        spiral(inputs(), 8)


@pytest.mark.parametrize("flight", [orbit, spiral])
def test_flight_of_no_frames_is_refused(flight):
    with pytest.raises(InputError, match="frames=0"):
        flight(ring(ARC), 0)
