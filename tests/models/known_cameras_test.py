"""Depth with known cameras is told in their world, whatever that is."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from conftest import random_views
from small_depth_anything3 import small_da3

from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.models.known_cameras import observe_known


@pytest.fixture(scope="module")
def model():
    small = small_da3()
    return dataclasses.replace(small, config=dataclasses.replace(small.config, rays="dropped"))


@pytest.fixture(scope="module")
def scene():
    """Pictures [4, 28, 42, 3] and their cameras."""
    views = random_views(4, size=(28, 42))
    cameras = views.cameras
    return views.image[0], dataclasses.replace(
        cameras, c2w=cameras.c2w[0], fxfycxcy=cameras.fxfycxcy[0]
    )


@pytest.fixture(scope="module")
def seen(model, scene):
    return observe_known(model, *scene)


def moved(cameras, scale):
    """The cameras of a larger world that lies elsewhere."""
    turn, shift = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))[0], [1, 2, 3]
    turn *= np.linalg.det(turn)
    c2w = np.array(cameras.c2w)
    c2w[:, :3, :3] = turn @ c2w[:, :3, :3]
    c2w[:, :3, 3] = scale * c2w[:, :3, 3] @ turn.T + shift
    return dataclasses.replace(cameras, c2w=c2w)


def test_depth_has_the_unit_of_the_cameras(model, scene, seen):
    images, cameras = scene
    larger = observe_known(model, images, moved(cameras, 3))
    np.testing.assert_allclose(larger.depth, 3 * seen.depth, rtol=1e-3)
    np.testing.assert_allclose(larger.depth_confidence, seen.depth_confidence, rtol=1e-3)


def test_cameras_are_those_given(scene, seen):
    images, cameras = scene
    assert seen.cameras is cameras
    assert seen.depth.shape == images.shape[:3]
    assert seen.rays is None
    assert seen.encodings.shape == (1, 4, 9)


def test_cameras_on_a_line_have_a_unit_too(model, scene):
    images, cameras = scene
    c2w = np.array(cameras.c2w)
    c2w[:, :3, 3] = np.arange(4)[:, None] * [1, 0.5, 0.2]
    line = dataclasses.replace(cameras, c2w=c2w)
    one, three = (observe_known(model, images, moved(line, scale)) for scale in (1, 3))
    np.testing.assert_allclose(three.depth, 3 * one.depth, rtol=1e-3)
    assert jnp.isfinite(one.depth).all()


def test_cameras_without_a_unit_are_refused(model, scene):
    images, cameras = scene
    alone = dataclasses.replace(cameras, c2w=cameras.c2w[:1], fxfycxcy=cameras.fxfycxcy[:1])
    with pytest.raises(InputError, match="two or more"):
        observe_known(model, images[:1], alone)
    c2w = np.array(cameras.c2w)
    c2w[:, :3, 3] = 0
    with pytest.raises(InputError, match="at two or more places"):
        observe_known(model, images, dataclasses.replace(cameras, c2w=c2w))
