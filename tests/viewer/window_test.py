"""From a browser's camera to the model's and back, and pictures padded to windows."""

import numpy as np
import pytest
from cameras_around import ring
from scipy.spatial.transform import Rotation

from efficient_lvsm_jax import SceneFrame
from efficient_lvsm_jax.viewer.window import BEHIND, Window, camera_of, fov_of, framed, stand

C2W = ring(np.array([-40.0, 0, 40]))
FRAME = SceneFrame.from_cameras(C2W)
SIZE = (16, 24)


def window_at(c2w, fov=1.0, aspect=1.6):
    pose = FRAME.apply(c2w)
    wxyz = np.roll(Rotation.from_matrix(pose[:3, :3]).as_quat(), 1)
    return Window(wxyz, pose[:3, 3], fov, aspect, 800)


@pytest.mark.parametrize("aspect", [0.46, 1.5, 2.2])
def test_a_window_that_stands_where_a_photo_was_taken_shows_that_photo(aspect):
    lens = np.array([22.0, 22, 12, 8])
    fov = fov_of(lens, SIZE, aspect)
    c2w, fxfycxcy = camera_of(window_at(C2W[1], fov, aspect), FRAME, SIZE)
    np.testing.assert_allclose(c2w, C2W[1], atol=1e-6)
    np.testing.assert_allclose(fxfycxcy, lens, rtol=1e-9)


def test_a_camera_that_stands_at_a_photo_looks_where_it_looked():
    position, look_at, up = stand(C2W[0], FRAME, C2W)
    pose = FRAME.apply(C2W[0]).astype(np.float64)
    np.testing.assert_allclose(position, pose[:3, 3])
    ahead = (look_at - position) / np.linalg.norm(look_at - position)
    np.testing.assert_allclose(ahead, pose[:3, 2], atol=1e-6)
    np.testing.assert_allclose(up, -pose[:3, 1])
    # All look at one point, around which an orbit goes.
    np.testing.assert_allclose(look_at, stand(C2W[2], FRAME, C2W)[1], atol=1e-5)


@pytest.mark.parametrize("aspect", [0.46, 1.5, 2.2])
def test_a_picture_keeps_its_shape_in_the_middle_of_any_window(aspect):
    out = framed(np.full((*SIZE, 3), 200, np.uint8), window_at(C2W[0], aspect=aspect))
    assert out.shape[1] / out.shape[0] == pytest.approx(aspect, rel=0.01)
    rows, columns = np.nonzero((out == 200).all(-1))
    inside = np.ptp(rows) + 1, np.ptp(columns) + 1
    assert inside[1] / inside[0] == pytest.approx(24 / 16, rel=0.02)
    assert abs(rows.min() + rows.max() + 1 - out.shape[0]) <= 1
    assert abs(columns.min() + columns.max() + 1 - out.shape[1]) <= 1
    assert len(rows) == inside[0] * inside[1]
    assert (out[(out != 200).any(-1)] == BEHIND).all()
