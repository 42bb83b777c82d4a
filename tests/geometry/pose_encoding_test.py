"""Cameras as VGGT tells them, and the points that their pixels see."""

import jax
import numpy as np
from small_depth_anything3 import recorded as recorded_da3
from small_vggt import cameras_of, recorded

from efficient_lvsm_jax.geometry.cameras import Cameras, rays
from efficient_lvsm_jax.geometry.points import unproject
from efficient_lvsm_jax.geometry.pose_encoding import decode, encode

encode = jax.jit(encode, static_argnames="c2w")
decode = jax.jit(decode, static_argnums=1, static_argnames="c2w")


def size():
    return tuple(map(int, recorded("geometry")["image_size_hw"]))


def test_cameras_are_encoded_as_published(parity):
    data = recorded("geometry")
    cameras = cameras_of(data["extrinsics"], data["intrinsics"], size())
    parity("pose encodings", encode(cameras), data["pose_encoding"], 2e-6)


def test_encodings_are_decoded_as_published(parity):
    data = recorded("geometry")
    got = decode(data["random_encoding"], size())
    expected = cameras_of(data["decoded_extrinsics"], data["decoded_intrinsics"], size())
    parity("decoded poses", got.c2w, expected.c2w, 1e-5)
    parity("decoded intrinsics", got.fxfycxcy, expected.fxfycxcy, 1e-5, relative=True)


def test_camera_to_world_is_encoded_and_decoded_as_published(parity):
    """Among the encodings are fields of view of 0 and above π, whose tangents are cut off."""
    data = recorded_da3("geometry")
    size = tuple(map(int, data["encode_hw"]))
    cameras = cameras_of(data["encode_extrinsics"][:, :3], data["encode_intrinsics"], size)
    parity("DA3 pose encodings", encode(cameras, c2w=True), data["pose_encoding"], 2e-6)
    size = tuple(map(int, data["decode_hw"]))
    got = decode(data["decode_encoding"], size, c2w=True)
    expected = cameras_of(data["decode_extrinsics"], data["decode_intrinsics"], size)
    parity("DA3 decoded poses", got.c2w, expected.c2w, 1e-5)
    parity("DA3 decoded intrinsics", got.fxfycxcy, expected.fxfycxcy, 1e-5, relative=True)


def test_encoding_undoes_decoding_whatever_the_turn():
    """All four quaternion entries are the largest of some camera, and half turns are among them."""
    rng = np.random.default_rng(0)
    quaternions = np.concatenate([np.eye(4), rng.normal(size=(200, 4))])
    quaternions *= np.where(quaternions[:, 3:] < 0, -1, 1)
    rest = rng.uniform(0.2, 2, (204, 5))
    encodings = np.concatenate([rest[:, :3], quaternions, rest[:, 3:]], axis=-1).astype(np.float32)
    got = np.asarray(encode(decode(encodings, (56, 70))))
    encodings[:, 3:7] /= np.linalg.norm(encodings[:, 3:7], axis=-1, keepdims=True)
    np.testing.assert_allclose(got, encodings, atol=3e-6)


def test_a_field_of_view_of_zero_is_an_infinite_focal_length():
    fx, fy, *_ = decode(np.float32([0, 0, 0, 0, 0, 0, 1, 0, 1]), (56, 70)).fxfycxcy
    assert np.isfinite(fx)
    assert np.isinf(fy)


def test_points_of_pixels_equal_the_published_ones(parity):
    data = recorded("geometry")
    depth = data["unproject_depth"]
    cameras = cameras_of(
        data["unproject_extrinsics"], data["unproject_intrinsics"], depth.shape[1:]
    )
    got = unproject(depth, cameras, centre=0)
    parity("unprojected points", got, data["unproject_points"], 2e-6)


def test_points_lie_on_the_rays_of_their_pixels():
    data = recorded("geometry")
    cameras = cameras_of(data["unproject_extrinsics"], data["unproject_intrinsics"], (12, 17))
    origins, directions = rays(Cameras(cameras.c2w, cameras.fxfycxcy, 12, 17))
    points = unproject(data["unproject_depth"], cameras)
    along = points - origins[:, None, None]
    along /= np.linalg.norm(along, axis=-1, keepdims=True)
    np.testing.assert_allclose(along, directions, atol=2e-6)
