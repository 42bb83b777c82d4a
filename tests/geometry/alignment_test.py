"""Cameras in the frame of the first, and in the frame of others, as Depth Anything 3 has them."""

import numpy as np
import pytest
from small_depth_anything3 import recorded

from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.geometry.alignment import (
    as_trained,
    ratio_of_distances,
    robust_similarity,
    similarity,
)


def c2w(extrinsics):
    """Of world to camera [R, 3 or 4, 4]."""
    whole = np.tile(np.eye(4), (len(extrinsics), 1, 1))
    whole[:, :3] = extrinsics[:, :3]
    return np.linalg.inv(whole)


@pytest.mark.parametrize("count", [1, 2, 4, 5])
def test_known_cameras_are_normalised_as_published(count, parity):
    data = recorded("geometry")
    got, unit = as_trained(c2w(data[f"normalise_in_{count}"]))
    parity("DA3 known cameras", got, c2w(data[f"normalise_out_{count}"]), 1e-5)
    assert (unit == 0.1) == (count <= 2)


@pytest.mark.parametrize("count", [5, 12])
def test_cameras_are_aligned_as_published(count, parity):
    data = recorded("geometry")
    given, predicted = (c2w(data[f"align_{name}_{count}"]) for name in ("given", "predicted"))
    found = robust_similarity(given[:, :3, 3], predicted[:, :3, 3])
    parity("DA3 alignment", found.rotation, data[f"align_rotation_{count}"], 1e-5)
    parity("DA3 alignment", found.translation, data[f"align_translation_{count}"], 1e-5)
    parity("DA3 alignment", found.scale, data[f"align_scale_{count}"], 1e-5)
    parity("DA3 alignment", found.apply(given), c2w(data[f"align_aligned_{count}"]), 1e-5)


def test_a_similarity_is_found_again():
    rng = np.random.default_rng(0)
    places = rng.normal(size=(6, 3))
    turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    turn *= np.sign(np.linalg.det(turn))
    found = similarity(places, 2.5 * places @ turn.T + [1, 2, 3])
    np.testing.assert_allclose(found.rotation, turn, atol=1e-12)
    np.testing.assert_allclose(found.translation, [1, 2, 3], atol=1e-12)
    assert found.scale == pytest.approx(2.5)
    mirrored = similarity(places, places * [1, 1, -1])
    assert np.linalg.det(mirrored.rotation) == pytest.approx(1)


@pytest.mark.parametrize(
    "places", [np.eye(3)[:2], np.arange(4)[:, None] * np.ones(3), np.ones((5, 3))]
)
def test_places_that_fix_no_turn_are_refused(places):
    with pytest.raises(InputError, match="three or more that are not on a line"):
        similarity(places, np.random.default_rng(0).normal(size=places.shape))


def test_two_places_have_a_scale():
    places = np.array([[0, 0, 0], [0, 0, 1.0]])
    assert ratio_of_distances(places, 3 * places + 1) == pytest.approx(3)
    with pytest.raises(InputError, match="scale is not known"):
        ratio_of_distances(places[:1].repeat(3, axis=0), places)
