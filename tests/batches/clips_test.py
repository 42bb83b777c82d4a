"""Clips for models of geometry: frames in the film's order, their depth, points to track."""

import dataclasses

import numpy as np
import pytest

from data_pipeline.batches.pipeline import InMemory, training_dataset
from data_pipeline.batches.settings import DataConfig
from data_pipeline.batches.views import draw_clip
from data_pipeline.pictures.transforms import crop_into, depth_through
from data_pipeline.procedural.rooms import ProceduralScenes, SceneRecipe
from efficient_lvsm_jax.errors import InputError

CLIPS = DataConfig(
    scenes=3,
    views=6,
    size=16,
    batch_size=3,
    num_inputs_cycle=(4,),
    num_targets=0,
    depth=True,
    queries=5,
    normalise_poses=False,
    permute_colours=False,
)


@pytest.fixture(scope="module")
def scenes():
    return ProceduralScenes(3, seed=0, recipe=SceneRecipe(size=16, views=6), depth=True)


@pytest.fixture(scope="module")
def batch(scenes):
    return training_dataset(InMemory(scenes), CLIPS, seed=0)[0][0]


def test_a_clip_has_frames_in_order_with_their_own_depth(scenes, batch):
    assert batch.targets is None
    assert batch.depth.shape == (3, 4, 16, 16) and batch.depth.dtype == np.float32
    mirrored = set()
    for image, depth in zip(batch.inputs.image, batch.depth, strict=True):
        found = []
        for picture, distances in zip(image, depth, strict=True):
            for scene in range(3):
                for view in range(6):
                    for flip in (1, -1):
                        if np.array_equal(scenes[scene]["image"][view][:, ::flip], picture):
                            found.append((scene, view))
                            mirrored.add(flip)
                            here = scenes[scene]["depth"][view][:, ::flip]
                            np.testing.assert_array_equal(distances, here)
        assert len(found) == 4 and len({scene for scene, _ in found}) == 1
        assert found == sorted(found)
    assert mirrored == {1, -1}


def test_poses_of_a_clip_stay_in_the_unit_of_its_depth(scenes, batch):
    distances = [np.linalg.norm(scenes[i]["c2w"][0, :3, 3]) for i in range(3)]
    found = np.linalg.norm(batch.inputs.c2w[:, 0, :3, 3], axis=-1)
    np.testing.assert_allclose(sorted(found), sorted(distances), rtol=1e-5)


def test_queries_are_pixels_of_the_first_frame_whose_depth_is_known(batch):
    assert batch.queries.shape == (3, 5, 2)
    assert (batch.queries == np.round(batch.queries)).all()
    assert batch.queries.min() >= 0 and batch.queries.max() < 16 and np.ptp(batch.queries) > 3


def test_a_clip_is_any_frames_or_a_window_of_a_film():
    rng = np.random.default_rng(0)
    for _ in range(50):
        anywhere = draw_clip(rng, 30, 4, min_distance=9, max_distance=0)
        window = draw_clip(rng, 30, 4, min_distance=9, max_distance=12)
        for clip in (anywhere, window):
            assert (np.diff(clip) > 0).all() and clip[0] >= 0 and clip[-1] < 30
        assert 9 <= window[-1] - window[0] <= 12
        assert draw_clip(rng, 5, 1, min_distance=2, max_distance=4).shape == (1,)
    shuffled = [draw_clip(rng, 9, 5, min_distance=1, max_distance=0, shuffle=True) for _ in "abc"]
    assert any((np.diff(clip) < 0).any() for clip in shuffled)
    assert draw_clip(rng, 8, 4, min_distance=9, max_distance=12) is None
    assert draw_clip(rng, 3, 4, min_distance=9, max_distance=0) is None


def test_depth_moves_along_with_a_resized_and_cropped_picture():
    # A wall whose depth is the pixel's own x and y, seen by a camera that is not in the middle.
    y, x = np.mgrid[:30, :50] + 0.5
    fxfycxcy, out = np.array([40.0, 41, 23, 16]), np.empty((16, 16, 3), np.uint8)
    moved = crop_into(np.zeros((30, 50, 3), np.uint8), fxfycxcy, out, patch=8)
    columns, rows = (depth_through(d, fxfycxcy, moved, (16, 16)) for d in (x, y))
    at = np.arange(16) + 0.5
    expected_x = (at - moved[2]) / moved[0] * 40 + 23
    expected_y = (at - moved[3]) / moved[1] * 41 + 16
    assert abs(columns - expected_x).max() <= 0.5 and abs(rows - expected_y[:, None]).max() <= 0.5
    assert set(np.unique(rows)) <= set(y[:, 0])  # no two depths are mixed


def test_frames_without_depth_are_named(scenes):
    without = ProceduralScenes(3, seed=0, recipe=scenes.recipe)
    with pytest.raises(InputError, match=r"train-0-00000\d, frame 0000\d: has no depth"):
        training_dataset(InMemory(without), CLIPS, seed=0)[0]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"num_targets": 2}, r"data.num_targets=2: data.depth and data.queries are of clips"),
        ({"normalise_poses": True}, r"would not fit the poses; set data.normalise_poses=False"),
        ({"num_inputs_cycle": (4, 7)}, "clips of 7 frames, the scenes have 6 views"),
    ],
)
def test_clips_that_cannot_be_are_refused(changed, message):
    with pytest.raises(InputError, match=message):
        dataclasses.replace(CLIPS, **changed)
