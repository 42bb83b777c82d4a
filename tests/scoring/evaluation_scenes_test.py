"""Which scenes and frames are scored, and how they are prepared."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from capture_writers import objects
from five_cameras import five_cameras
from PIL import Image

from data_pipeline.evaluation.index import ChosenFrames, EvaluationIndex
from data_pipeline.evaluation.scenes import (
    Preparation,
    generated_scenes,
    held_out_views,
    indexed_scenes,
    same_views,
)
from data_pipeline.formats import open_scenes
from data_pipeline.pictures.transforms import preprocess_frame
from data_pipeline.procedural.rooms import ProceduralScenes, SceneRecipe
from data_pipeline.scenes import Frame, Scene, Scenes
from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.geometry.cameras import normalise_poses

PREPARE = Preparation(size=16)


def scene(name: str, seed: int = 0, **fields) -> Scene:
    truth = five_cameras(seed=seed)
    frames = tuple(
        Frame(
            f"{i:05d}.png", c2w, fxfycxcy, image.shape[1], image.shape[0], lambda image=image: image
        )
        for i, (image, c2w, fxfycxcy) in enumerate(
            zip(truth.image, truth.c2w, truth.fxfycxcy, strict=True)
        )
    )
    return dataclasses.replace(Scene(name, frames), **fields)


def data_set(*scenes: Scene) -> Scenes:
    names = [scene.name for scene in scenes]
    return Scenes("handmade", Path("set"), names, lambda index: scenes[index])


def index(*names: str, context=(0, 4), target=(1, 3, 4), null=()) -> EvaluationIndex:
    views = {name: context for name in names}, {name: target for name in names}
    return EvaluationIndex(Path("index.json"), "0" * 64, *views, null)


def indexed(scenes: Scenes, index: EvaluationIndex, **counts):
    counts = {"num_inputs": 2, "num_targets": 3} | counts
    return indexed_scenes(scenes, index, **counts, prepare=PREPARE)


def test_a_scene_has_its_frames_prepared_and_its_poses_normalised_together():
    (item,) = indexed(data_set(scene("a")), index("a"))
    truth = five_cameras()
    order = [0, 4, 1, 3, 4]
    prepared = [preprocess_frame(truth.image[i], truth.fxfycxcy[i], 16) for i in order]
    c2w = normalise_poses(truth.c2w[order])
    assert item.chosen == ChosenFrames((0, 4), (1, 3, 4))
    assert item.target_names == ("00001.png", "00003.png", "00004.png")
    for i, (side, at) in enumerate(
        [
            (item.inputs, 0),
            (item.inputs, 1),
            (item.targets, 0),
            (item.targets, 1),
            (item.targets, 2),
        ]
    ):
        np.testing.assert_array_equal(side.image[at], prepared[i][0])
        np.testing.assert_array_equal(side.fxfycxcy[at], prepared[i][1])
        np.testing.assert_array_equal(side.c2w[at], c2w[i])


def test_scenes_come_in_the_order_of_the_data_and_differences_are_counted():
    data = data_set(scene("d"), scene("b"), scene("a"), scene("null"))
    scenes = indexed(data, index("a", "b", "c", null=("null",)))
    assert scenes.names == ("b", "a")
    coverage = scenes.coverage
    assert (coverage.listed, coverage.null) == (3, 1)
    assert (coverage.missing, coverage.unlisted) == (("c",), ("d",))


def test_a_scene_that_is_too_short_is_refused():
    with pytest.raises(InputError, match=r"scene a: frame 5 .*frames 0 to 4"):
        indexed(data_set(scene("a")), index("a", target=(1, 3, 5)))[0]


def test_absent_frames_that_would_shift_the_others_are_refused():
    scenes = indexed(data_set(scene("a", absent=("00002.png",))), index("a"))
    with pytest.raises(InputError, match=r"1 frames are absent \(00002.png\)"):
        scenes[0]


def test_frames_that_cannot_be_read_but_keep_their_place_do_no_harm():
    scenes = indexed(data_set(scene("a", absent=("00002.png",), holes=(2,))), index("a"))
    assert scenes[0].chosen.targets == (1, 3, 4)


def test_without_targets_all_other_views_are_targets():
    (item,) = same_views(data_set(scene("a")), inputs=(0, 3), targets=(), prepare=PREPARE)
    assert item.chosen == ChosenFrames((0, 3), (1, 2, 4))


def held(scene: Scene, *, num_inputs: int = 2, num_targets: int = 0):
    """The views chosen of a held-out scene whose cameras stand in a row, from 0 on."""
    for at, frame in enumerate(scene.frames):
        frame.c2w[:3, 3] = at, 0, 0
    counts = {"num_inputs": num_inputs, "num_targets": num_targets}
    return held_out_views(data_set(scene), **counts, prepare=PREPARE)[0].chosen


def test_held_out_frames_are_targets_of_inputs_spread_over_the_others():
    assert held(scene("a", held_out=(0, 2))) == ChosenFrames((1, 4), (0, 2))
    assert held(scene("a", held_out=(0, 2)), num_inputs=3) == ChosenFrames((1, 3, 4), (0, 2))
    assert held(scene("a", held_out=(0, 1, 2)), num_targets=2) == ChosenFrames((3, 4), (0, 2))


def test_of_a_scene_held_out_whole_all_but_the_inputs_are_targets():
    assert held(scene("a")) == ChosenFrames((0, 4), (1, 2, 3))
    assert held(scene("a"), num_targets=2) == ChosenFrames((0, 4), (1, 3))


def test_frames_that_cannot_be_read_are_neither_inputs_nor_targets_of_a_hold_out():
    chosen = held(scene("a", held_out=(1, 2), holes=(2, 4)))
    assert chosen == ChosenFrames((0, 3), (1,))
    with pytest.raises(InputError, match=r"scene a: some targets asked for, .* it has 0 readable"):
        held(scene("a", held_out=(2,), holes=(2,)))


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ({"num_inputs": 4}, "scene a: 4 inputs asked for, it has 3 readable"),
        ({"num_targets": 3}, "3 targets asked for, beside 2 inputs it has 2 readable"),
    ],
)
def test_a_hold_out_with_too_few_frames_is_named(counts, message):
    with pytest.raises(InputError, match=message):
        held(scene("a", held_out=(0, 2)), **counts)


def test_targets_that_are_trained_on_are_refused():
    data = data_set(scene("a", held_out=(0, 2)))
    with pytest.raises(InputError, match="scene a: target 1 is trained on; held out are 0, 2:"):
        same_views(data, inputs=(3,), targets=(0, 1), prepare=PREPARE)[0]
    with pytest.raises(InputError, match="target 1 is trained on"):
        indexed(data, index("a"))[0]
    (item,) = same_views(data, inputs=(1, 3), targets=(), prepare=PREPARE)
    assert item.chosen.targets == (0, 2)


def test_poses_stay_as_they_are_where_they_are_not_normalised():
    prepare = dataclasses.replace(PREPARE, normalise=False)
    (item,) = same_views(data_set(scene("a")), inputs=(0, 3), targets=(), prepare=prepare)
    truth = five_cameras()
    np.testing.assert_array_equal(item.inputs.c2w, truth.c2w[[0, 3]].astype(np.float32))
    np.testing.assert_array_equal(item.targets.c2w, truth.c2w[[1, 2, 4]].astype(np.float32))


def test_frames_of_several_sizes_in_a_scene_are_refused():
    tall = scene("a")
    frame = dataclasses.replace(
        tall.frames[0], width=48, height=96, read=lambda: np.zeros((96, 48, 3), np.uint8)
    )
    mixed = dataclasses.replace(tall, frames=(frame, *tall.frames[1:]))
    with pytest.raises(InputError, match=r"several sizes \(height x width\): 8x8, 16x16"):
        same_views(data_set(mixed), inputs=(0,), targets=(1,), prepare=PREPARE)[0]


def test_a_bad_frame_is_named():
    broken = scene("a")
    frames = (dataclasses.replace(broken.frames[0], width=95), *broken.frames[1:])
    scenes = indexed(data_set(dataclasses.replace(broken, frames=frames)), index("a"))
    with pytest.raises(
        InputError, match=r"scene a, frame 0: 00000\.png: 96x54 pixels, expected 95x54"
    ):
        scenes[0]


@pytest.mark.parametrize(
    "views, message",
    [
        ({"inputs": (), "targets": (1,)}, r"evaluation\.inputs=\(\): must name"),
        ({"inputs": (1, 1), "targets": (0,)}, "names a view twice"),
    ],
)
def test_views_that_make_no_evaluation_are_refused(views, message):
    with pytest.raises(InputError, match=message):
        same_views(data_set(scene("a")), **views, prepare=PREPARE)


def test_all_views_as_inputs_leave_nothing_to_score():
    scenes = same_views(data_set(scene("a")), inputs=range(5), targets=(), prepare=PREPARE)
    with pytest.raises(InputError, match="all 5 views are inputs"):
        scenes[0]


@pytest.fixture(scope="module")
def rooms() -> ProceduralScenes:
    return ProceduralScenes(3, seed=0, recipe=SceneRecipe(size=16, views=6))


def test_generated_scenes_have_the_views_named_in_the_order_given(rooms):
    scenes = generated_scenes(rooms, inputs=(2, 4), targets=(0, 5, 1))
    assert list(scenes.names) == [rooms[i]["scene"] for i in range(3)]
    item, room = scenes[1], rooms[1]
    np.testing.assert_array_equal(item.targets.image * 255, room["image"][[0, 5, 1]])
    c2w = normalise_poses(room["c2w"][[2, 4, 0, 5, 1]])
    np.testing.assert_array_equal(np.concatenate([item.inputs.c2w, item.targets.c2w]), c2w)


@pytest.mark.parametrize("wrong", [6, -1])
def test_generated_views_that_are_not_there_fail_at_once(rooms, wrong):
    with pytest.raises(InputError, match=f"targets: no view {wrong}.*0 to 5"):
        generated_scenes(rooms, inputs=(2, 4), targets=(0, wrong))


def test_views_of_a_capture_may_count_the_frames_that_are_there():
    data = data_set(scene("a", absent=("gone.png",)))
    views = {"inputs": (0, 4), "targets": (2,), "prepare": PREPARE}
    with pytest.raises(InputError, match=r"1 frames are absent.*missing=report"):
        same_views(data, **views)[0]
    item = same_views(data, **views, without_absent=True)[0]
    assert item.target_names == ("00002.png",)


def test_portraits_of_a_capture_become_squares_when_asked():
    upright = dataclasses.replace(scene("a"), frames=tuple(map(turned, scene("a").frames)))
    views = {"inputs": (0, 4), "targets": (2,)}
    shapes = {
        squares: same_views(
            data_set(upright),
            **views,
            prepare=Preparation(size=16, portraits_to_squares=squares),
        )[0].targets.image.shape
        for squares in (False, True)
    }
    assert shapes == {False: (1, 8, 8, 3), True: (1, 16, 16, 3)}


def turned(frame: Frame) -> Frame:
    """The frame as a portrait."""
    read = lambda: frame.image().transpose(1, 0, 2)  # noqa: E731 - one expression
    return dataclasses.replace(frame, width=frame.height, height=frame.width, read=read)


def test_the_foreground_is_what_is_opaque_even_if_it_is_white(tmp_path):
    truth = five_cameras(centred=True)
    truth.image[:, 20:30, 40:50] = 255  # a white part of the object
    opaque = np.zeros(truth.image.shape[1:3], np.uint8)
    opaque[10:40, 30:70] = 255
    folder = objects.write(tmp_path / "chair", truth)
    for number, image in enumerate(truth.image):
        rgba = np.dstack([image, opaque])
        Image.fromarray(rgba).save(folder / f"{number:03d}.png")
    views = {"inputs": (0, 1), "targets": (2, 3)}
    prepare = Preparation(size=54 // 8 * 8, square_crop=False, foreground=True)
    item = same_views(open_scenes(folder), **views, prepare=prepare)[0]
    scale = 48 / 54
    assert item.foreground.shape == item.targets.image.shape[:3]
    inside = item.foreground[:, int(10 * scale) + 1 : int(40 * scale), 28:61]
    assert inside.all() and item.foreground.mean() < 0.35


def test_without_alpha_the_foreground_is_what_is_not_white():
    upright = scene("a")
    prepare = Preparation(size=16, foreground=True)
    item = same_views(data_set(upright), inputs=(0, 1), targets=(2,), prepare=prepare)[0]
    expected = (item.targets.image < 254.5 / 255).any(axis=-1)
    np.testing.assert_array_equal(item.foreground, expected)
