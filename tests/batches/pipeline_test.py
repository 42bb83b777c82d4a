"""Batches: what is in them, and that they can be had again."""

from __future__ import annotations

import dataclasses

import grain
import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from data_pipeline.batches.pipeline import InMemory, training_batches, training_dataset
from data_pipeline.batches.settings import DataConfig
from data_pipeline.procedural.rooms import ProceduralScenes, SceneRecipe
from data_pipeline.scenes import Scene, scene_of_arrays
from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.geometry.cameras import Batch, Views

CONFIG = DataConfig(scenes=12, views=6, size=16, batch_size=3, num_targets=2)
PLAIN = dataclasses.replace(CONFIG, mirror=False, permute_colours=False)


@pytest.fixture(scope="module")
def scenes() -> ProceduralScenes:
    return ProceduralScenes(12, seed=0, recipe=SceneRecipe(size=16, views=6))


class NumberedScenes:
    """Scenes whose pictures say which they are: red is the scene's number, green the view's."""

    def __init__(self, count: int, views: int = 6):
        self.count, self.views = count, views

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Scene:
        image = np.zeros((self.views, 16, 16, 3), np.uint8)
        image[..., 0] = index
        image[..., 1] = np.arange(self.views)[:, None, None]
        c2w = np.tile(np.eye(4, dtype=np.float32), (self.views, 1, 1))
        c2w[:, 0, 3] = np.arange(self.views)
        fxfycxcy = np.tile(np.float32([16, 16, 8, 8]), (self.views, 1))
        return scene_of_arrays(str(index), image, c2w, fxfycxcy)


def numbers(side: Views, channel: int) -> np.ndarray:
    """What NumberedScenes wrote into the pictures, [B, V]."""
    return side.image[..., 0, 0, channel].astype(int)


def assert_equal_batches(a: Batch, b: Batch) -> None:
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_a_batch_has_the_documented_arrays(scenes):
    batch, left_out = training_dataset(InMemory(scenes), CONFIG, seed=0)[1]
    assert left_out.keys() == {"replaced", "unreadable"}
    assert all(x.shape == (3,) and x.dtype == np.int32 for x in left_out.values())
    for side, views in ((batch.inputs, 4), (batch.targets, 2)):
        shapes = {key: value.shape for key, value in vars(side).items()}
        assert shapes == {
            "image": (3, views, 16, 16, 3),
            "c2w": (3, views, 4, 4),
            "fxfycxcy": (3, views, 4),
        }
        for key, value in vars(side).items():
            assert value.dtype == (np.uint8 if key == "image" else np.float32)
            assert value.flags.c_contiguous
        assert side.image.min() < 128 < side.image.max()


def test_the_number_of_inputs_follows_the_cycle(scenes):
    dataset = training_dataset(InMemory(scenes), CONFIG, seed=0)
    inputs = [dataset[step][0].inputs.image.shape[1] for step in range(9)]
    assert inputs == [2, 4, 2, 1, 2, 4, 2, 1, 2]


def test_a_batch_is_a_function_of_seed_and_step(scenes):
    batches = iter(training_batches(CONFIG, seed=5))
    in_order = [next(batches) for _ in range(9)]
    source = ProceduralScenes(12, seed=5, recipe=SceneRecipe(size=16, views=6))
    dataset = training_dataset(InMemory(source), CONFIG, seed=5)
    for step in (8, 2, 5, 0):
        assert_equal_batches(dataset[step][0], in_order[step])
    other = training_dataset(InMemory(source), CONFIG, seed=6)[0][0]
    assert not np.array_equal(other.inputs.image, in_order[0].inputs.image)


def test_a_restored_iterator_gives_the_same_batches(scenes):
    batches = training_batches(CONFIG, seed=0)
    for _ in range(5):
        next(batches)
    state = batches.get_state()
    expected = [next(batches) for _ in range(3)]
    batches.set_state(state)
    fresh = training_batches(CONFIG, seed=0)
    fresh.set_state(state)
    for batch in expected:
        assert_equal_batches(next(batches), batch)
        assert_equal_batches(next(fresh), batch)


def test_the_iterator_goes_into_an_orbax_checkpoint(tmp_path):
    batches = training_batches(CONFIG, seed=0)
    for _ in range(5):
        next(batches)
    with ocp.CheckpointManager(tmp_path) as manager:
        manager.save(5, args=ocp.args.Composite(data=grain.checkpoint.CheckpointSave(batches)))
        manager.wait_until_finished()
        expected = [next(batches) for _ in range(3)]
        fresh = training_batches(CONFIG, seed=0)
        manager.restore(5, args=ocp.args.Composite(data=grain.checkpoint.CheckpointRestore(fresh)))
    for batch in expected:
        assert_equal_batches(next(fresh), batch)


def test_every_epoch_visits_every_scene_once_in_another_order():
    dataset = training_dataset(NumberedScenes(12), PLAIN, seed=0)
    seen = [numbers(dataset[step][0].inputs, 0)[:, 0] for step in range(8)]
    first, second = np.concatenate(seen[:4]), np.concatenate(seen[4:])
    assert sorted(first) == sorted(second) == list(range(12))
    assert not np.array_equal(first, second) and not np.array_equal(first, np.arange(12))


def test_views_are_drawn_anew_for_every_scene_and_epoch():
    dataset = training_dataset(NumberedScenes(3), PLAIN, seed=0)
    drawn = [numbers(dataset[step][0].inputs, 1) for step in range(0, 40, 4)]
    drawn = {tuple(row) for rows in drawn for row in rows}
    assert len(drawn) > 10  # of 30 ordered pairs


@pytest.mark.parametrize("allowed", [False, True])
def test_targets_are_inputs_only_when_allowed(allowed):
    config = dataclasses.replace(PLAIN, target_has_input=allowed)
    dataset = training_dataset(NumberedScenes(12), config, seed=0)
    shared = 0
    for step in range(12):
        batch, _ = dataset[step]
        inputs, targets = numbers(batch.inputs, 1), numbers(batch.targets, 1)
        shared += (inputs[:, :, None] == targets[:, None]).sum()
        assert all(len(set(row)) == 2 for row in targets)
    assert (shared > 0) == allowed


def test_a_batch_of_one_scene_has_a_scene_axis():
    config = dataclasses.replace(CONFIG, batch_size=1)
    batch, _ = training_dataset(NumberedScenes(4), config, seed=0)[0]
    assert batch.inputs.image.shape == (1, 2, 16, 16, 3)


def test_poses_are_normalised_over_inputs_and_targets_together(scenes):
    dataset = training_dataset(InMemory(scenes), PLAIN, seed=0)
    for step in range(4):
        batch, _ = dataset[step]
        poses = np.concatenate([batch.inputs.c2w, batch.targets.c2w], 1)
        np.testing.assert_allclose(poses[..., :3, 3].mean(1), 0, atol=1e-6)
        np.testing.assert_allclose(np.abs(poses[..., :3, 3]).max((1, 2)), 1 / 1.35, atol=1e-6)


def test_poses_stay_in_the_source_s_frame_if_so_set(scenes):
    config = dataclasses.replace(PLAIN, normalise_poses=False)
    batch, _ = training_dataset(InMemory(scenes), config, seed=0)[0]
    source = np.concatenate([scenes[i]["c2w"] for i in range(12)])
    for side in (batch.inputs, batch.targets):
        for c2w in side.c2w.reshape(-1, 4, 4):
            assert np.abs(source - c2w).max(axis=(1, 2)).min() < 1e-6


def test_without_variations_pictures_are_the_source_s(scenes):
    known = {scenes[i]["image"][v].tobytes() for i in range(12) for v in range(6)}
    plain, varied = (
        training_dataset(InMemory(scenes), config, seed=0)[1][0] for config in (PLAIN, CONFIG)
    )
    views = plain.inputs.image.reshape(-1, 16, 16, 3)
    assert all(view.tobytes() in known for view in views)
    views = varied.inputs.image.reshape(-1, 16, 16, 3)
    assert not all(view.tobytes() in known for view in views)


def test_a_scene_is_varied_alike_in_inputs_and_targets(scenes):
    """Each varied scene is one mirror and one order of colours away from the source."""
    plain, varied = (
        training_dataset(InMemory(scenes), config, seed=0) for config in (PLAIN, CONFIG)
    )
    mirrored = set()
    for step in range(4):
        for row in range(3):
            before, after = (
                np.concatenate([batch.inputs.image[row], batch.targets.image[row]])
                for batch, _ in (plain[step], varied[step])
            )
            ways = [
                flip
                for flip in (1, -1)
                for order in np.ndindex(3, 3, 3)
                if np.array_equal(before[:, :, ::flip][..., list(order)], after)
            ]
            assert ways
            mirrored.update(ways)
    assert mirrored == {1, -1}


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"batch_size": 0}, "batch_size=0"),
        ({"num_inputs_cycle": ()}, "num_inputs_cycle"),
        ({"num_inputs_cycle": (2, 0)}, r"\(2, 0\): expected a tuple, each an integer, at least 1"),
        ({"num_inputs_cycle": (2, 7)}, "7 inputs and 4 targets.*8 views"),
        ({"num_targets": 5}, "4 inputs and 5 targets.*8 views"),
    ],
)
def test_settings_that_cannot_be_are_named(setting, message):
    with pytest.raises(InputError, match=message):
        DataConfig(**setting)


def test_an_unsuitable_source_fails_at_once():
    with pytest.raises(InputError, match=r"4 inputs and 2 targets.*5 views"):
        training_dataset(NumberedScenes(3, views=5), CONFIG, seed=0)[1]
    with pytest.raises(InputError, match="empty"):
        training_dataset(NumberedScenes(0), CONFIG, seed=0)
    with pytest.raises(InputError, match="seed=-1"):
        training_dataset(NumberedScenes(3), CONFIG, seed=-1)
