"""Whether matches lie on the epipolar lines of stated cameras."""

import numpy as np

from efficient_lvsm_jax.geometry.epipolar import epipolar_check, epipolar_distances


def test_distance_to_epipolar_lines_is_in_pixels():
    # Moved to the right by 1: lines are rows, so a match 3 px lower is 3 px off.
    moved = np.eye(4)
    moved[0, 3] = 1
    k = np.array([100.0, 100, 50, 50])
    pixels = np.array([[20.0, 30], [60, 70]])
    distances = epipolar_distances(pixels, pixels + np.array([7, 3]), k, k, np.eye(4), moved)
    np.testing.assert_allclose(distances, 3, atol=1e-9)
    assert np.isinf(epipolar_distances(pixels, pixels, k, k, np.eye(4), np.eye(4))).all()


def test_no_picture_is_read_where_cameras_say_nothing():
    def unread():
        raise AssertionError("read")

    for views in (1, 3):  # one view; several at one place
        c2w, fxfycxcy = np.tile(np.eye(4), (views, 1, 1)), np.full((views, 4), 50.0)
        assert epipolar_check([unread] * views, c2w, fxfycxcy).verdict == "unknown"
