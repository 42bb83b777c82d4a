"""Which input views a target should read: what the rule says, and what changes nothing."""

import dataclasses

import numpy as np
import pytest
from cameras_around import random_cameras, random_rotations, ring

from efficient_lvsm_jax.geometry.cameras import Cameras
from efficient_lvsm_jax.geometry.choice import most_useful, usefulness

LENS = np.array([40.0, 40.0, 24.0, 24.0])


def cameras(c2w, fxfycxcy=LENS, size=(48, 48)):
    return Cameras(c2w, np.broadcast_to(fxfycxcy, (len(c2w), 4)), *size)


def facing(degrees, x=0.0, z=0.0):
    """A camera at (x, 0, z) that looks along z, turned around y."""
    a = np.deg2rad(degrees)
    pose = np.eye(4)
    pose[:3, 0], pose[:3, 2] = [np.cos(a), 0, -np.sin(a)], [np.sin(a), 0, np.cos(a)]
    pose[:3, 3] = x, 0, z
    return pose


TARGETS, INPUTS = cameras(ring(np.array([10.0, 130.0]))), cameras(ring(np.arange(0, 360, 17.0)))


def test_a_view_from_the_same_place_is_worth_everything_and_one_turned_away_nothing():
    inputs = cameras(np.stack([facing(180), facing(0), facing(0, x=0.3)]))
    found = usefulness(cameras(facing(0)[None]), inputs)
    np.testing.assert_allclose(found[0, :2], [0, 1], atol=1e-12)
    assert 0 < found[0, 2] < 1


@pytest.mark.parametrize(
    "others",
    [
        [facing(angle) for angle in (10, 20, 30, 60)],  # turned: less is seen
        [facing(0, x=x) for x in (0.5, 1, 2, 4)],  # aside: from another angle
        [facing(0, z=z) for z in (-1, -2, -4, -8)],  # behind: smaller
    ],
)
def test_farther_away_in_any_way_is_worth_less(others):
    found = usefulness(cameras(facing(0)[None]), cameras(np.stack([facing(0), *others])))[0]
    assert (np.diff(found) < 0).all(), found


def test_of_a_ring_the_neighbours_on_both_sides_are_taken():
    inputs = cameras(ring(np.array([0.0, 4, 40, 60, 100, 180])))
    target = cameras(ring(np.array([25.0])))
    assert np.flatnonzero(most_useful(target, inputs, 2)[0]).tolist() == [1, 2]


def test_a_second_view_of_the_same_is_worth_no_more():
    """Seen by one twice, and the other side of the picture by another alone."""
    inputs = cameras(np.stack([facing(8), facing(8.5), facing(-25)]))
    target = cameras(facing(0)[None])
    once, again, other = usefulness(target, inputs)[0]
    assert min(once, again) > other > 0
    assert np.flatnonzero(most_useful(target, inputs, 2)[0]).tolist() == [0, 2]


def test_views_that_add_nothing_are_taken_by_what_they_are_worth():
    """Beside one from the target's own place none adds anything."""
    inputs = cameras(np.stack([facing(180), facing(20), facing(0), facing(10)]))
    target = cameras(facing(0)[None])
    for count, expected in ((1, [2]), (2, [2, 3]), (3, [1, 2, 3])):
        assert np.flatnonzero(most_useful(target, inputs, count)[0]).tolist() == expected


def test_targets_choose_each_for_itself_and_fewer_are_part_of_more():
    before = np.zeros((2, len(INPUTS.c2w)), bool)
    for count in range(1, len(INPUTS.c2w) + 3):
        chosen = most_useful(TARGETS, INPUTS, count)
        assert (chosen.sum(axis=1) == min(count, len(INPUTS.c2w))).all()
        assert (chosen >= before).all()
        for at in range(2):
            alone = cameras(TARGETS.c2w[at : at + 1])
            np.testing.assert_array_equal(most_useful(alone, INPUTS, count)[0], chosen[at])
        before = chosen
    assert not (most_useful(TARGETS, INPUTS, 3)[0] & most_useful(TARGETS, INPUTS, 3)[1]).any()


@pytest.mark.parametrize("seed", range(5))
def test_the_order_of_views_changes_nothing(seed):
    order = np.random.default_rng(seed).permutation(len(INPUTS.c2w))
    c2w = INPUTS.c2w + 0.01 * np.random.default_rng(9).standard_normal((len(order), 4, 4))
    for count in (1, 4, 9):
        plain, permuted = (
            most_useful(TARGETS, cameras(poses), count) for poses in (c2w, c2w[order])
        )
        np.testing.assert_array_equal(permuted, plain[:, order])


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("scene", ["ring", "anywhere"])
def test_unit_origin_and_axes_of_the_world_change_nothing(seed, scene):
    rng = np.random.default_rng(seed)
    targets, inputs = TARGETS, INPUTS
    if scene == "anywhere":
        targets = cameras(*random_cameras(seed, 3), size=(24, 40))
        inputs = cameras(*random_cameras(seed + 5, 9), size=(24, 40))
    motion = np.eye(4)
    motion[:3, :3], motion[:3, 3] = random_rotations(rng, 1)[0], rng.standard_normal(3)
    scale = np.exp(rng.standard_normal())

    def moved(x):
        c2w = motion @ x.c2w
        c2w[:, :3, 3] *= scale
        return dataclasses.replace(x, c2w=c2w)

    expected = usefulness(targets, inputs)
    np.testing.assert_allclose(usefulness(moved(targets), moved(inputs)), expected, atol=1e-9)


def test_the_size_of_the_pictures_changes_nothing():
    """A target of twice as many pixels with the same view reads the same."""
    large = cameras(TARGETS.c2w, 2 * LENS, (96, 96))
    found = usefulness(large, INPUTS)
    np.testing.assert_allclose(found, usefulness(TARGETS, INPUTS), atol=1e-12)


def test_a_longer_lens_is_taken_for_a_longer_lens():
    target = cameras(facing(0)[None], [160.0, 160, 24, 24])
    inputs = Cameras(np.tile(np.eye(4), (2, 1, 1)), np.stack([LENS, [150.0, 150, 24, 24]]), 48, 48)
    assert np.flatnonzero(most_useful(target, inputs, 1)[0]).tolist() == [1]


def test_equal_views_are_taken_from_the_first():
    same = cameras(np.tile(facing(0), (5, 1, 1)))
    assert most_useful(cameras(facing(3)[None]), same, 3)[0].tolist() == [True] * 3 + [False] * 2
    behind = cameras(np.tile(facing(180), (3, 1, 1)))  # of what nobody sees as well
    assert most_useful(cameras(facing(0)[None]), behind, 1)[0].tolist() == [True, False, False]


@pytest.mark.parametrize("degrees", [0, 90])
def test_cameras_in_one_place_are_told_apart_by_their_directions(degrees):
    """Nothing says how far anything is, and nothing depends on it."""
    inputs = cameras(np.stack([facing(angle) for angle in range(0, 360, 30)]))
    chosen = most_useful(cameras(facing(degrees + 4)[None]), inputs, 1)[0]
    assert np.flatnonzero(chosen).tolist() == [degrees // 30]
