"""Chunks of exact cameras, each in a world of its own, come out in one."""

import numpy as np
import pytest

from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.geometry.alignment import Similarity
from efficient_lvsm_jax.geometry.cameras import Cameras
from efficient_lvsm_jax.models.scene_geometry import Geometry
from efficient_lvsm_jax.sessions.long_sequences import moved, observe_long

SIZE = (4, 6)
COUNT = 23


def turn(draw):
    """A rotation [3, 3]."""
    q, _ = np.linalg.qr(draw.normal(size=(3, 3)))
    return q * np.sign(np.linalg.det(q))


def walk(count=COUNT):
    """c2w [count, 4, 4], straight ahead while the camera turns."""
    draw, c2w = np.random.default_rng(1), np.tile(np.eye(4), (count, 1, 1))
    for index, pose in enumerate(c2w):
        pose[:3, :3], pose[2, 3] = turn(draw), 0.3 * index
    return c2w


class Exact:
    """Knows the cameras of frames by their brightness, and tells every clip in another world."""

    def __init__(self, c2w):
        self.c2w, self.draw, self.lengths = c2w, np.random.default_rng(2), []

    def observe(self, memory, images):
        assert memory is None
        numbers = np.rint(images[0, :, 0, 0, 0] * 255).astype(int)
        self.lengths.append(len(numbers))
        c2w = self.c2w[numbers].astype(np.float32)[None]
        shape = (1, len(numbers), *SIZE)
        cameras = Cameras(c2w, np.full((*shape[:2], 4), 5, np.float32), *SIZE)
        points = np.broadcast_to(c2w[:, :, None, None, :3, 3], (*shape, 3))
        rays = np.concatenate([c2w[..., 2:3, :3], c2w[..., None, :3, 3]], axis=-1)[:, :, None]
        geometry = Geometry(
            cameras,
            np.zeros((2, *shape[:2], 9), np.float32),
            np.full(shape, 2, np.float32),
            np.broadcast_to(np.float32(1 + numbers)[None, :, None, None], shape),
            points,
            rays=rays,
        )
        own = Similarity(turn(self.draw), self.draw.normal(size=3), self.draw.uniform(0.5, 2))
        return None, geometry if len(self.lengths) == 1 else moved(geometry, own)


def frames(count=COUNT):
    return [np.full((*SIZE, 3), index, np.uint8) for index in range(count)]


@pytest.mark.parametrize(("length", "overlap"), [(8, 3), (7, 2), (30, 2), (23, 4)])
def test_chunks_are_joined_exactly(length, overlap):
    model, c2w = Exact(walk()), walk()
    found = list(observe_long(model, iter(frames()), length=length, overlap=overlap))
    assert len(found) == COUNT and set(model.lengths) == {min(length, COUNT)}
    np.testing.assert_allclose([x.cameras.c2w for x in found], c2w, atol=2e-4)
    np.testing.assert_allclose([x.depth for x in found], 2, rtol=1e-4)
    np.testing.assert_array_equal([x.depth_confidence[0, 0] for x in found], 1 + np.arange(COUNT))
    np.testing.assert_allclose([x.points[0, 0] for x in found], c2w[:, :3, 3], atol=2e-4)
    np.testing.assert_allclose([x.rays[0, 0, 3:] for x in found], c2w[:, :3, 3], atol=2e-4)
    assert found[0].encodings.shape[1:] == (9,)


def test_what_cannot_be_joined_is_refused():
    with pytest.raises(InputError, match="length=3, overlap=3: expected an overlap from 2"):
        list(observe_long(Exact(walk()), frames(), length=3, overlap=3))
    still = Exact(np.tile(np.eye(4), (COUNT, 1, 1)))
    with pytest.raises(InputError, match="chunks that share 2 frames cannot be joined"):
        list(observe_long(still, frames(), length=5, overlap=2))
    other = [*frames(2), np.zeros((6, 6, 3), np.uint8)]
    with pytest.raises(InputError, match="frame of 6x6 in a sequence of 4x6"):
        list(observe_long(Exact(walk()), other, length=5, overlap=2))
