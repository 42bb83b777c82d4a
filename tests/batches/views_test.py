"""Choosing views, and the variations of a scene."""

from __future__ import annotations

import copy
import dataclasses

import jax
import numpy as np
import pytest
from conftest import random_views

from data_pipeline.batches.views import (
    check_counts,
    draw_views,
    draw_window,
    mirror,
    permute_colours,
)
from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.geometry.cameras import Views, check_cameras, normalise_poses


@pytest.fixture
def example() -> Views:
    views = random_views(6, size=(8, 12))
    fxfycxcy = views.fxfycxcy[0] + np.array([0, 0, 0.7, -0.3], np.float32)
    image = (views.image[0] * 255).astype(np.uint8)
    return Views(image, views.c2w[0], fxfycxcy)


def assert_equal_views(a: Views, b: Views) -> None:
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize("target_has_input", [False, True])
def test_drawn_views_are_distinct_and_in_range(target_has_input):
    rng = np.random.default_rng(0)
    for _ in range(100):
        inputs, targets = draw_views(rng, 8, 3, 5, target_has_input=target_has_input)
        assert len(set(inputs)) == 3 and len(set(targets)) == 5
        assert {*inputs, *targets} <= set(range(8))


def test_targets_are_other_views_unless_inputs_are_allowed():
    rng = np.random.default_rng(0)
    shared = {
        allowed: [
            len({*inputs} & {*targets})
            for inputs, targets in (
                draw_views(rng, 8, 3, 4, target_has_input=allowed) for _ in range(300)
            )
        ]
        for allowed in (False, True)
    }
    assert max(shared[False]) == 0
    assert abs(np.mean(shared[True]) - 3 * 4 / 8) < 0.2  # as if drawn on its own


def test_every_view_is_drawn_as_often_as_any_other():
    rng = np.random.default_rng(0)
    draws = [draw_views(rng, 8, 2, 4) for _ in range(2000)]
    for side, share in ((0, 2 / 8), (1, 4 / 8)):
        frequency = np.bincount(np.concatenate([draw[side] for draw in draws]), minlength=8) / 2000
        np.testing.assert_allclose(frequency, share, atol=0.05)


def test_the_same_generator_state_draws_the_same_views():
    first, second = (draw_views(np.random.default_rng(5), 8, 2, 4) for _ in range(2))
    np.testing.assert_array_equal(first[0], second[0])
    np.testing.assert_array_equal(first[1], second[1])


@pytest.mark.parametrize(
    ("counts", "allowed", "message"),
    [
        ((8, 5, 4), False, "5 inputs and 4 targets.*8 views"),
        ((8, 2, 9), True, "9 targets.*8 views"),
        ((8, 0, 4), False, "0 inputs"),
        ((8, 2, 0), False, "0 targets"),
        ((8, 1, 1), True, "1 input and 1 target"),
    ],
)
def test_impossible_counts_are_named(counts, allowed, message):
    with pytest.raises(InputError, match=message):
        check_counts(*counts, target_has_input=allowed)


def test_all_views_may_be_used():
    inputs, targets = draw_views(np.random.default_rng(0), 8, 4, 4)
    assert {*inputs, *targets} == set(range(8))
    draw_views(np.random.default_rng(0), 8, 8, 8, target_has_input=True)


def test_a_mirrored_point_lands_on_the_flipped_pixel(example):
    def project(example: Views, points: np.ndarray) -> np.ndarray:
        x, y, z = np.moveaxis(np.linalg.inv(example.c2w)[:, :3] @ points.T, 1, 0)
        fx, fy, cx, cy = example.fxfycxcy.T[..., None]
        return np.stack([fx * x / z + cx, fy * y / z + cy, z], -1)

    points = np.c_[np.random.default_rng(0).normal(size=(50, 3)) * 3, np.ones(50)]
    there = project(example, points)
    here = project(mirror(example), points * [-1, 1, 1, 1])
    np.testing.assert_allclose(here[..., 0], 12 - there[..., 0], rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(here[..., 1:], there[..., 1:], rtol=1e-3, atol=1e-3)


def test_mirroring_flips_pictures_and_keeps_cameras_rigid(example):
    mirrored = mirror(example)
    np.testing.assert_array_equal(mirrored.image, example.image[:, :, ::-1])
    check_cameras(mirrored.c2w, mirrored.fxfycxcy)
    assert mirrored.c2w.dtype == np.float32
    assert np.abs(mirrored.c2w - example.c2w).max() > 0.1


def test_mirroring_twice_gives_the_scene_back(example):
    again = mirror(mirror(example))
    np.testing.assert_allclose(again.fxfycxcy, example.fxfycxcy, atol=1e-6)
    assert_equal_views(dataclasses.replace(again, fxfycxcy=example.fxfycxcy), example)


def test_colours_are_exchanged_alike_in_all_views(example):
    permuted = permute_colours(example, (2, 0, 1))
    for view in range(6):
        np.testing.assert_array_equal(permuted.image[view], example.image[view][..., [2, 0, 1]])
    assert_equal_views(permute_colours(permuted, (1, 2, 0)), example)


def test_variations_leave_their_argument_alone(example):
    before = copy.deepcopy(example)
    mirror(example)
    permute_colours(example, (1, 0, 2))
    assert_equal_views(example, before)


def test_turning_the_world_would_change_nothing(example):
    turn = np.eye(4)
    turn[:2, :2] = [[0, -1], [1, 0]]
    turned = turn @ example.c2w
    np.testing.assert_allclose(normalise_poses(turned), normalise_poses(example.c2w), atol=1e-5)


def test_a_window_s_ends_come_first_and_the_rest_lies_between():
    rng = np.random.default_rng(0)
    for _ in range(200):
        inputs, targets = draw_window(rng, 300, 2, 6, target_has_input=False)
        assert 25 <= inputs[1] - inputs[0] <= 192
        assert len(set(targets)) == 6
        assert targets.min() > inputs[0] and targets.max() < inputs[1] < 300


def test_windows_of_every_length_and_start_are_drawn():
    rng = np.random.default_rng(0)
    drawn = [draw_window(rng, 60, 2, 6, min_distance=25, max_distance=40)[0] for _ in range(2000)]
    assert {int(last - first) for first, last in drawn} == set(range(25, 41))
    assert {first for first, last in drawn if last - first == 25} == set(range(35))


def test_targets_of_a_window_may_be_inputs():
    rng = np.random.default_rng(0)
    shared = [
        len({*inputs} & {*targets})
        for inputs, targets in (draw_window(rng, 100, 2, 6) for _ in range(500))
    ]
    assert abs(np.mean(shared) - 2 * 6 / 8) < 0.1  # six of all eight


def test_inputs_of_a_window_are_shuffled_when_asked():
    rng = np.random.default_rng(0)
    drawn = [draw_window(rng, 100, 2, 6, shuffle_inputs=True)[0] for _ in range(100)]
    assert 20 < sum(first > last for first, last in drawn) < 80


@pytest.mark.parametrize(("num_views", "fits"), [(7, False), (25, False), (26, False), (27, True)])
def test_a_film_too_short_for_a_window_is_said(num_views, fits):
    window = draw_window(np.random.default_rng(0), num_views, 2, 6)
    assert (window is not None) == fits


def test_a_short_distance_still_leaves_room_for_all_views():
    rng = np.random.default_rng(0)
    for _ in range(50):
        inputs, targets = draw_window(rng, 20, 2, 6, min_distance=1, target_has_input=False)
        assert len({*inputs, *targets}) == 8
