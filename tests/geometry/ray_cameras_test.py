"""Cameras of rays equal what Depth Anything 3's program makes of them."""

import numpy as np
import pytest
from small_depth_anything3 import recorded
from small_vggt import cameras_of

from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.geometry.cameras import Cameras, rays
from efficient_lvsm_jax.geometry.ray_cameras import (
    cameras_of_rays,
    fitted,
    image_of,
    pixel_places,
)


def size():
    return tuple(map(int, recorded("rays")["image_hw"]))


def test_cameras_equal_the_published_ones(parity):
    data = recorded("rays")
    draws = data["sample_index"].astype(int)
    got = cameras_of_rays(data["ray"], data["ray_conf"], size(), draws=draws)
    expected = cameras_of(data["extrinsics"], data["intrinsics"], size())
    parity("cameras of rays", got.c2w, expected.c2w, 1e-5)
    parity("cameras of rays", got.fxfycxcy, expected.fxfycxcy, 1e-5, relative=True)
    for view, (of_view, weights) in enumerate(zip(data["ray"], data["ray_conf"], strict=True)):
        seen, weights = image_of(np.float64(of_view.reshape(-1, 6)[:, :3]), weights.ravel())
        places = pixel_places(data["ray_conf"].shape[1:])
        matrix, agree = fitted(places, seen, weights, draws, np.random.default_rng(0))
        parity("matrices of rays", matrix, data["homography"][view], 1e-5)
        assert agree == data["inlier_count"][view]


def test_a_principal_point_off_the_middle_is_found_in_general():
    data = recorded("rays")
    draws = data["sample_index"].astype(int)
    got = cameras_of_rays(data["ray"], data["ray_conf"], size(), parts="general", draws=draws)
    half = np.array([*size()[::-1]] * 2) / 2
    np.testing.assert_allclose(got.fxfycxcy[3] / half, [1.6, 1.6, 1.25, 0.8], atol=5e-3)


@pytest.mark.parametrize("parts", ["published", "general"])
def test_rays_of_a_camera_give_it_back(parts):
    rng = np.random.default_rng(0)
    turn = np.linalg.qr(np.eye(3) + 0.2 * rng.normal(size=(3, 3)))[0]
    c2w = np.eye(4)
    c2w[:3, :3], c2w[:3, 3] = turn * np.sign(np.diag(turn)), [1, -2, 0.5]
    camera = Cameras(np.float32(c2w)[None], np.float32([[20, 24, 16, 12]]), 24, 32)
    origins, directions = rays(camera)
    origins = np.broadcast_to(origins[:, None, None], directions.shape)
    both = np.concatenate([directions, origins], axis=-1)
    got = cameras_of_rays(both, np.ones((1, 24, 32)), (24, 32), parts=parts)
    np.testing.assert_allclose(got.c2w, camera.c2w, atol=1e-5)
    np.testing.assert_allclose(got.fxfycxcy, camera.fxfycxcy, rtol=1e-5)


def test_many_rays_are_fitted_by_some_of_them():
    camera = Cameras(np.eye(4, dtype=np.float32)[None], np.float32([[100, 90, 60, 50]]), 100, 120)
    _, directions = rays(camera)
    both = np.concatenate([directions, np.zeros_like(directions)], axis=-1)
    got = cameras_of_rays(both, np.ones((1, 100, 120)), (100, 120))
    np.testing.assert_allclose(got.fxfycxcy, camera.fxfycxcy, rtol=1e-5)


def test_what_fits_no_camera_is_refused():
    noise = np.random.default_rng(0).normal(size=(1, 4, 4, 6))
    sure = np.ones((1, 4, 4))
    with pytest.raises(InputError, match=r"view 0: its rays fit no camera \(\d+ of 16 agree"):
        cameras_of_rays(noise * [1, 1, 0, 1, 1, 1], sure, (56, 56))
    with pytest.raises(InputError, match=r"expected \[R, y, x, 6\]"):
        cameras_of_rays(noise[..., :3], sure, (56, 56))
    with pytest.raises(InputError, match="at least 8 pixels"):
        cameras_of_rays(noise[:, :1], sure[:, :1], (56, 56))
    with pytest.raises(InputError, match="published, general"):
        cameras_of_rays(noise, sure, (56, 56), parts="upper")
