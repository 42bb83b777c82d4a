"""Cameras: parity with recorded rays and poses; geometry; and refusals."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from cameras_around import random_cameras, random_rotations
from conftest import golden

from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.geometry.cameras import (
    Cameras,
    SceneFrame,
    Views,
    camera_distances,
    check_cameras,
    nearest_camera,
    normalise_poses,
    plucker,
    rays,
    spread,
)

# Rays


@pytest.mark.parametrize("name", ["square", "wide_compiled"])
def test_rays_equal_the_published_ones(name, parity):
    reference = golden(name)
    height, width = reference["image"].shape[-2:]
    cameras = Cameras(reference["c2w"], reference["fxfycxcy"], height, width)
    origins, directions = jax.jit(rays)(cameras)
    parity("rays", np.moveaxis(directions, -1, 2), reference["ray_d"], 1e-5)
    recorded = reference["ray_o"]  # the same at every pixel
    np.testing.assert_array_equal(
        np.broadcast_to(np.asarray(origins)[..., None, None], recorded.shape), recorded
    )


def test_projection_undoes_ray_casting():
    c2w, fxfycxcy = random_cameras(0)
    origins, directions = rays(Cameras(c2w, fxfycxcy, 24, 40))
    assert directions.shape == (4, 24, 40, 3)
    np.testing.assert_allclose(np.linalg.norm(directions, axis=-1), 1, atol=1e-6)
    depth = np.random.default_rng(1).uniform(0.5, 5, (4, 24, 40, 1))
    points = np.asarray(origins)[:, None, None] + depth * np.asarray(directions)
    w2c = np.linalg.inv(c2w)
    seen = np.einsum("Vij,VYXj->VYXi", w2c[:, :3, :3], points) + w2c[:, None, None, :3, 3]
    focal, principal = fxfycxcy[:, None, None, :2], fxfycxcy[:, None, None, 2:]
    pixels = seen[..., :2] / seen[..., 2:] * focal + principal
    rows, columns = np.mgrid[:24, :40] + 0.5  # pixel centres
    expected = np.broadcast_to(np.stack([columns, rows], -1), pixels.shape)
    np.testing.assert_allclose(pixels, expected, atol=1e-3)


def test_identity_camera_looks_along_z_with_x_right_and_y_down():
    _, directions = rays(Cameras(np.eye(4), np.array([10.0, 10.0, 3.5, 2.5]), 5, 7))
    np.testing.assert_array_equal(directions[2, 3], [0, 0, 1])
    assert directions[2, 6, 0] > 0 and directions[4, 3, 1] > 0


def test_image_and_intrinsics_scaled_together_keep_the_rays():
    c2w, fxfycxcy = random_cameras(2)
    _, small = rays(Cameras(c2w, fxfycxcy, 24, 40))
    _, large = rays(Cameras(c2w, 3 * fxfycxcy, 72, 120))
    np.testing.assert_allclose(large[:, 1::3, 1::3], small, atol=1e-6)  # centres coincide


def test_rays_of_a_crop_are_the_crop_of_the_rays():
    c2w, fxfycxcy = random_cameras(3)
    _, whole = rays(Cameras(c2w, fxfycxcy, 24, 40))
    _, crop = rays(Cameras(c2w, fxfycxcy - [0, 0, 5, 8], 10, 20))
    np.testing.assert_allclose(crop, whole[:, 8:18, 5:25], atol=1e-6)


def test_leading_axes_of_cameras_are_kept():
    c2w, fxfycxcy = random_cameras(4, count=6)
    _, flat = rays(Cameras(c2w, fxfycxcy, 8, 16))
    nested = Cameras(c2w.reshape(2, 3, 4, 4), fxfycxcy.reshape(2, 3, 4), 8, 16)
    origins, directions = rays(nested)
    assert origins.shape == (2, 3, 3) and directions.shape == (2, 3, 8, 16, 3)
    np.testing.assert_array_equal(directions.reshape(flat.shape), flat)


@pytest.mark.parametrize("jitted", [False, True])
def test_bf16_parity_rounds_where_the_published_program_does(jitted):
    c2w, fxfycxcy = (x.astype(np.float32) for x in random_cameras(5))
    height, width = 24, 40
    bfloat16, float32 = ml_dtypes.bfloat16, np.float32
    fx, fy, cx, cy = fxfycxcy.T[:, :, None, None]
    x = (np.arange(width, dtype=float32) + float32(0.5) - cx) / fx
    y = (np.arange(height, dtype=float32)[:, None] + float32(0.5) - cy) / fy
    camera = np.stack(np.broadcast_arrays(x, y, float32(1)), -1).astype(bfloat16)
    rotation = c2w[:, :3, :3].astype(bfloat16)
    world = np.einsum("Vij,VYXj->VYXi", rotation.astype(float32), camera.astype(float32))
    world = world.astype(bfloat16).astype(float32)
    expected = world / np.linalg.norm(world, axis=-1, keepdims=True)

    cast = jax.jit(rays, static_argnums=1) if jitted else rays
    origins, directions = cast(Cameras(c2w, fxfycxcy, height, width), "bf16_parity")
    off = np.abs(np.asarray(directions) - expected).max(-1)
    # The order of the float32 sum may tip a value on the edge between two bfloat16 numbers.
    assert (off > 1e-6).mean() < 1e-3 and off.max() < 8e-3
    np.testing.assert_array_equal(origins, c2w[:, :3, 3])
    exact = rays(Cameras(c2w, fxfycxcy, height, width))[1]
    assert 1e-3 < np.abs(directions - exact).max() < 2e-2


def test_unknown_ray_dtype_is_refused():
    with pytest.raises(InputError, match=r"'float16'.*float32, bf16_parity"):
        rays(Cameras(np.eye(4), np.array([8.0, 8, 4, 4]), 8, 8), "float16")


def test_plucker_puts_the_moment_first_and_forgets_the_point_on_the_ray():
    c2w, fxfycxcy = random_cameras(6)
    origins, directions = rays(Cameras(c2w, fxfycxcy, 6, 9))
    coordinates = plucker(origins, directions)
    assert coordinates.shape == (4, 6, 9, 6)
    np.testing.assert_array_equal(coordinates[..., 3:], directions)
    o, d = np.asarray(origins)[1], np.asarray(directions)[1, 2, 3]
    np.testing.assert_allclose(coordinates[1, 2, 3, :3], np.cross(o, d), atol=1e-6)
    moved = plucker(o + 2.5 * d, directions[1])
    np.testing.assert_allclose(moved[2, 3], coordinates[1, 2, 3], atol=1e-6)


def test_cameras_and_views_pass_through_jit_with_a_static_size():
    c2w, fxfycxcy = random_cameras(7)
    views = Views(jnp.zeros((4, 24, 40, 3)), jnp.asarray(c2w), jnp.asarray(fxfycxcy))
    cameras = jax.jit(lambda v: v.cameras)(views)
    assert (cameras.height, cameras.width) == (24, 40)
    np.testing.assert_array_equal(cameras.fxfycxcy, views.fxfycxcy)
    assert len(jax.tree.leaves(cameras)) == 2 and len(jax.tree.leaves(views)) == 3


# Scene frames


@pytest.mark.parametrize("case", [0, 1])
def test_pose_normalisation_equals_the_published_one(case, parity):
    reference = golden("poses_frames")
    poses = normalise_poses(reference[f"pose{case}_in"])
    parity("pose normalisation", poses, reference[f"pose{case}_out"], 1e-5)


def test_normalised_poses_are_centred_scaled_and_rigid():
    c2w = random_cameras(8)[0]
    poses = normalise_poses(c2w)
    assert poses.dtype == np.float32
    np.testing.assert_allclose(poses[:, :3, 3].mean(0), 0, atol=1e-6)
    np.testing.assert_allclose(np.abs(poses[:, :3, 3]).max(), 1 / 1.35, rtol=1e-6)
    forward = poses[:, :3, 2].mean(0)
    np.testing.assert_allclose(forward[:2], 0, atol=1e-6)
    assert forward[2] > 0
    rotation = poses[:, :3, :3]
    np.testing.assert_allclose(
        np.swapaxes(rotation, 1, 2) @ rotation, np.tile(np.eye(3), (4, 1, 1)), atol=1e-6
    )


def test_normalisation_forgets_where_the_world_is_and_its_unit():
    c2w = random_cameras(9)[0]
    rng = np.random.default_rng(10)
    moved = np.eye(4)
    moved[:3, :3] = random_rotations(rng, 1)[0]
    moved[:3, 3] = 100 * rng.standard_normal(3)
    elsewhere = moved @ c2w
    elsewhere[:, :3, 3] *= 7.0
    np.testing.assert_allclose(normalise_poses(elsewhere), normalise_poses(c2w), atol=1e-6)


def test_a_target_changes_the_frame():
    c2w = random_cameras(11)[0]
    inputs_only = SceneFrame.from_cameras(c2w[:3]).apply(c2w[:3])
    assert np.abs(normalise_poses(c2w)[:3] - inputs_only).max() > 1e-2


def test_identity_frame_keeps_poses_of_any_shape():
    c2w = random_cameras(12, count=6)[0]
    for poses in (c2w[0], c2w, c2w.reshape(2, 3, 4, 4)):
        np.testing.assert_array_equal(SceneFrame.identity().apply(poses), poses.astype(np.float32))


def test_undoing_a_frame_gives_the_poses_of_the_world_back():
    c2w, _ = random_cameras(4)
    frame = SceneFrame.from_cameras(c2w)
    np.testing.assert_allclose(frame.undo(frame.apply(c2w)), c2w, atol=1e-6)


def test_frame_leaves_the_poses_it_is_given_alone():
    c2w = random_cameras(13)[0]
    before = c2w.copy()
    normalise_poses(c2w)
    np.testing.assert_array_equal(c2w, before)


@pytest.mark.parametrize(
    ("centres", "message"),
    [
        ([[1.0, 2, 3]], "1 camera.*scale"),
        ([[0.1, 0.2, 0.3]] * 3, r"3 camera.*\[0.1, 0.2, 0.3\].*scale"),
        ([[0.0, 0, 0]] * 2, "scale"),
    ],
)
def test_cameras_in_one_place_define_no_frame(centres, message):
    c2w = np.tile(np.eye(4), (len(centres), 1, 1))
    c2w[:, :3, 3] = centres
    with pytest.raises(InputError, match=message):
        normalise_poses(c2w)


def test_cameras_looking_in_opposite_directions_define_no_frame():
    c2w = np.tile(np.eye(4), (2, 1, 1))
    c2w[1, :3, :3] = np.diag([-1.0, 1, -1])
    c2w[1, :3, 3] = 1
    with pytest.raises(InputError, match="viewing directions cancel out"):
        normalise_poses(c2w)


@pytest.mark.parametrize("shape", [(4, 4), (3, 3, 4), (0, 4, 4)])
def test_frame_of_something_else_than_a_list_of_poses_is_refused(shape):
    with pytest.raises(InputError, match="expected"):
        SceneFrame.from_cameras(np.zeros(shape))


# Checks


def test_usable_cameras_pass_the_check_alone_or_in_any_arrangement():
    c2w, fxfycxcy = random_cameras(14, count=6)
    check_cameras(c2w, fxfycxcy)
    check_cameras(c2w[0], fxfycxcy[0])
    check_cameras(c2w.reshape(2, 3, 4, 4), fxfycxcy.reshape(2, 3, 4))
    check_cameras(c2w[:0], fxfycxcy[:0])
    check_cameras(c2w.astype(np.float32), fxfycxcy.astype(np.float32))


def _with(index, value):
    def edit(array):
        array[index] = value

    return edit


def _times(matrix):
    def edit(c2w):
        c2w[2, :3, :3] = c2w[2, :3, :3] @ matrix

    return edit


def _nothing(_):
    pass


@pytest.mark.parametrize(
    ("edit_pose", "edit_intrinsics", "message"),
    [
        (_with((2, 0, 3), np.nan), _nothing, r"photo\[2\]: c2w .*nan.*not finite"),
        (_with((2, 1, 1), np.inf), _nothing, r"photo\[2\]: c2w .*inf.*not finite"),
        (_times(np.diag([-1.0, 1, 1])), _nothing, r"photo\[2\]: c2w mirrors, det R = -1"),
        (_times([[1, 0.2, 0], [0, 1, 0], [0, 0, 1]]), _nothing, r"photo\[2\]: .*not rigid.*0\.2"),
        (_times(2.0 * np.eye(3)), _nothing, r"photo\[2\]: .*not rigid.* 3 > 0.001"),
        (_with((2, 3), [1.0, 2, 3, 1]), _nothing, r"photo\[2\]: last row .*\[1.0, 2.0, 3.0, 1.0\]"),
        (_nothing, _with((2, 0), 0.0), r"photo\[2\]: focal.*\[0.0, "),
        (_nothing, _with((2, 1), -7.0), r"photo\[2\]: focal.*-7.0"),
        (_nothing, _with((2, 2), np.nan), r"photo\[2\]: fxfycxcy .*nan.*not finite"),
    ],
)
def test_unusable_camera_is_named_with_its_value(edit_pose, edit_intrinsics, message):
    c2w, fxfycxcy = random_cameras(15)
    edit_pose(c2w)
    edit_intrinsics(fxfycxcy)
    with pytest.raises(InputError, match=message):
        check_cameras(c2w, fxfycxcy, "photo")


def test_position_of_an_unusable_camera_follows_the_arrangement():
    c2w, fxfycxcy = random_cameras(16, count=6)
    fxfycxcy[4, 0] = -1
    with pytest.raises(InputError, match=r"cameras\[1, 1\]: focal"):
        check_cameras(c2w.reshape(2, 3, 4, 4), fxfycxcy.reshape(2, 3, 4))
    with pytest.raises(InputError, match=r"^camera: focal"):
        check_cameras(c2w[4], fxfycxcy[4], "camera")


@pytest.mark.parametrize(
    ("c2w", "fxfycxcy", "message"),
    [
        (np.zeros((2, 3, 4)), np.ones((2, 4)), r"\(2, 3, 4\).*expected \[..., 4, 4\]"),
        (np.zeros(3), np.ones(4), "expected"),
        (np.tile(np.eye(4), (2, 1, 1)), np.ones((3, 4)), r"\(3, 4\).*expected \(2, 4\)"),
        (np.eye(4), np.ones((3, 3)), r"\(3, 3\).*expected \(4,\)"),
        ([[1, 2], [3]], np.ones(4), "array of numbers"),
        (np.eye(4), "wide", "array of numbers"),
    ],
)
def test_camera_arrays_of_a_wrong_shape_or_kind_are_refused(c2w, fxfycxcy, message):
    with pytest.raises(InputError, match=message):
        check_cameras(c2w, fxfycxcy)


def test_nearest_camera_compares_centres_only():
    c2w = random_cameras(21)[0]
    target = np.eye(4)
    target[:3, 3] = c2w[2, :3, 3] + 1e-3
    assert nearest_camera(c2w, target) == 2


def test_a_camera_absurdly_far_away_is_refused():
    c2w = np.eye(4)
    c2w[0, 3] = 1e300
    with pytest.raises(InputError, match=r"farther than 1e\+12"):
        check_cameras(c2w, np.array([100.0, 100, 50, 50]))


def test_spread_takes_the_first_and_then_the_farthest():
    line = np.tile(np.eye(4), (6, 1, 1))
    line[:, 0, 3] = [0, 1, 2, 7, 9, 10]
    assert [spread(line, count) for count in (1, 2, 3, 4)] == [
        [0],
        [0, 5],
        [0, 3, 5],
        [0, 2, 3, 5],
    ]
    assert spread(line, 6) == list(range(6))
    assert spread(np.tile(np.eye(4), (3, 1, 1)), 3) == [0, 1, 2]


def test_distances_of_cameras_count_places_and_directions_in_any_world():
    c2w = np.tile(np.eye(4), (4, 1, 1))
    c2w[:, 0, 3] = [0, 3, 6, 6]
    c2w[3, :3, :3] = np.diag([-1, 1, -1])  # looks back
    distances = camera_distances(c2w)
    extent = np.std([0, 3, 6, 6])
    expected = [0, 3 / extent, 6 / extent, np.hypot(6 / extent, 2)]
    np.testing.assert_allclose(distances[0], expected)
    assert distances[2, 3] == 2
    np.testing.assert_array_equal(distances, distances.T)
    moved = random_cameras(0)[0][0] @ c2w
    moved[:, :3, 3] *= 7
    np.testing.assert_allclose(camera_distances(moved), distances, atol=1e-7)


def test_of_cameras_in_one_place_directions_alone_tell_the_distance():
    c2w = np.tile(np.eye(4), (3, 1, 1))
    c2w[:, :3, 3] = [0.1 + 0.2, 5, 7]
    c2w[1, 0, 3] = 0.3
    c2w[2, :3, :3] = np.diag([-1, 1, -1])
    expected = [[0, 0, 2], [0, 0, 2], [2, 2, 0]]
    np.testing.assert_array_equal(camera_distances(c2w), expected)
    np.testing.assert_array_equal(camera_distances(c2w[:1]), [[0]])


def turned(degrees, x=0.0):
    a = np.deg2rad(degrees)
    pose = np.eye(4)
    pose[:3, 0], pose[:3, 2] = [np.cos(a), 0, -np.sin(a)], [np.sin(a), 0, np.cos(a)]
    pose[0, 3] = x
    return pose


def test_spread_takes_other_directions_from_the_same_places():
    c2w = np.stack([turned(0), turned(0, 0.1), turned(0, 1), turned(180, 0.1), turned(0, 1.1)])
    assert spread(c2w, 3) == [0, 3, 4]
    one_place = 1e6 + np.stack([turned(angle) for angle in (0, 10, 20, 180, 90)])
    one_place[:, :3, :3] -= 1e6
    one_place[:, 3] = 0, 0, 0, 1
    assert spread(one_place, 3) == [0, 3, 4]


def test_spread_knows_no_unit_origin_or_axes():
    c2w, _ = random_cameras(7, 12)
    motion = np.eye(4)
    motion[:3, :3], motion[:3, 3] = random_rotations(np.random.default_rng(1), 1)[0], [5, 6, 7]
    moved = motion @ c2w
    moved[:, :3, 3] *= 40
    for count in range(1, 13):
        assert spread(moved, count) == spread(c2w, count)
        assert set(spread(c2w, count)) <= set(spread(c2w, min(count + 1, 12)))
