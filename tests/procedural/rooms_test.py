"""Generated scenes: reproducible, disjoint between splits, and seen by right cameras."""

from __future__ import annotations

import numpy as np
import pytest

from data_pipeline.procedural.rooms import NOISE, ProceduralScenes, SceneRecipe, scene_parameters
from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.geometry.cameras import check_cameras

RECIPE = SceneRecipe(size=32, views=5)


@pytest.fixture(scope="module")
def scenes() -> ProceduralScenes:
    return ProceduralScenes(20, seed=3, recipe=RECIPE)


def parameters(index: int, *, seed: int = 3, split: str = "train") -> dict[str, np.ndarray]:
    return scene_parameters(RECIPE, seed=seed, split=split, index=index)


def project(points: np.ndarray, c2w: np.ndarray, fxfycxcy: np.ndarray) -> np.ndarray:
    """World points [P, 3] in pixels of every view, [V, P, 2]."""
    x, y, z = np.moveaxis(np.linalg.inv(c2w)[:, :3] @ np.c_[points, np.ones(len(points))].T, 1, 0)
    fx, fy, cx, cy = fxfycxcy.T[..., None]
    return np.stack([fx * x / z + cx, fy * y / z + cy], -1)


def test_an_example_has_the_documented_arrays(scenes):
    example = scenes[4]
    assert example["image"].shape == (5, 32, 32, 3) and example["image"].dtype == np.uint8
    assert example["c2w"].shape == (5, 4, 4) and example["c2w"].dtype == np.float32
    assert example["fxfycxcy"].shape == (5, 4) and example["fxfycxcy"].dtype == np.float32
    assert isinstance(example["scene"], str)
    assert len({scenes[i]["scene"] for i in range(len(scenes))}) == len(scenes) == 20


def test_the_same_seed_gives_the_same_scenes_bit_for_bit(scenes):
    again = ProceduralScenes(20, seed=3, recipe=RECIPE)
    for key in ("image", "c2w", "fxfycxcy"):
        for i in (7, 0, 19):
            np.testing.assert_array_equal(again[i][key], scenes[i][key])


def test_a_scene_does_not_depend_on_how_many_are_drawn(scenes):
    recipe = SceneRecipe(size=48, views=8)  # a few scenes a call, so that 7 need a padded call
    few, more = (ProceduralScenes(count, seed=1, recipe=recipe) for count in (3, 7))
    for i in range(3):
        np.testing.assert_array_equal(few[i]["image"], more[i]["image"])
    assert not np.array_equal(more[6]["image"], more[4]["image"])  # padding is cut off


@pytest.mark.parametrize("other", [{"seed": 4}, {"split": "heldout"}])
def test_another_seed_or_split_shares_no_scene(scenes, other):
    here = [parameters(i) for i in range(50)]
    there = [parameters(i, **other) for i in range(50)]
    for name in ("c2w", "centre", "colours", "light"):
        mine = {scene[name].tobytes() for scene in here}
        assert len(mine) == 50
        assert not mine & {scene[name].tobytes() for scene in there}
    drawn = ProceduralScenes(5, recipe=RECIPE, **({"seed": 3} | other))
    assert not any(np.array_equal(drawn[i]["image"], scenes[i]["image"]) for i in range(5))


def test_cameras_are_rigid_and_look_at_the_middle_of_the_room(scenes):
    for i in range(len(scenes)):
        c2w, fxfycxcy = scenes[i]["c2w"], scenes[i]["fxfycxcy"]
        check_cameras(c2w, fxfycxcy)
        middle = project(np.array([[0, 0, 0.35]]), c2w, fxfycxcy)
        np.testing.assert_allclose(middle, 16, atol=1e-4)
        assert (c2w[:, 2, 1] < 0).all()  # image down is world down


def test_cameras_are_in_order_along_an_arc_of_the_asked_length():
    for i in range(30):
        c2w = parameters(i)["c2w"]
        bearing = np.unwrap(np.arctan2(c2w[:, 1, 3], c2w[:, 0, 3]))
        steps = np.diff(bearing)
        np.testing.assert_allclose(steps, steps[0], atol=1e-5)
        assert 60 <= np.rad2deg(abs(bearing[-1] - bearing[0])) <= 100


def test_objects_stand_on_the_floor_and_do_not_overlap():
    counts = set()
    for index in range(100):
        scene = parameters(index)
        half, centre = scene["half"][:-2], scene["centre"][:-2]
        present = half[:, 2] > 0
        half, centre = half[present], centre[present]
        counts.add(len(half))
        np.testing.assert_allclose(centre[:, 2], half[:, 2])
        # Reach in the plane: a sphere's radius, half a box's diagonal.
        box = scene["box"][:-2][present] > 0
        reach = np.where(box, np.linalg.norm(half[:, :2], axis=-1), half[:, 0])
        for i in range(len(half)):
            for j in range(i):
                assert np.linalg.norm(centre[i, :2] - centre[j, :2]) > reach[i] + reach[j]
    assert counts == {1, 2, 3}


def in_sight(points: np.ndarray, scene: dict[str, np.ndarray]) -> np.ndarray:
    """Which points [P, 3] no object comes near to hiding from any camera, [P]."""
    free = np.ones(len(points), bool)
    for eye in scene["c2w"][:, :3, 3]:
        ray = points - eye
        for centre, half in zip(scene["centre"][:-2], scene["half"][:-2], strict=True):
            along = np.clip((ray @ (centre - eye)) / (ray**2).sum(-1), 0, 1)
            miss = np.linalg.norm(eye + along[:, None] * ray - centre, axis=-1)
            free &= miss > np.linalg.norm(half) + 0.05
    return free


def test_a_floor_point_has_the_same_colour_in_every_view(scenes):
    """Ties pictures to poses and intrinsics: a wrong axis or offset would mix colours up."""
    grid = np.linspace(-2, 2, 41)
    floor = np.stack([*np.meshgrid(grid, grid), np.zeros((41, 41))], -1).reshape(-1, 3)
    right, flipped, view = [], [], np.arange(5)[:, None]
    for i in range(len(scenes)):
        scene = parameters(i)
        if scene["pattern"][-2] != NOISE:
            continue  # at the edge of a tile, half a pixel is another colour
        points = floor[in_sight(floor, scene)]
        pixels = project(points, scenes[i]["c2w"], scenes[i]["fxfycxcy"])
        pixels = pixels[:, ((pixels > 1) & (pixels < 31)).all((0, 2))]
        x, y = np.moveaxis(pixels.astype(int), -1, 0)
        image = scenes[i]["image"].astype(int)
        for spread, column in ((right, x), (flipped, 31 - x)):
            spread.append(np.ptp(image[view, y, column], axis=0))
    right, flipped = np.concatenate(right), np.concatenate(flipped)
    assert len(right) > 500
    assert np.percentile(right, 95) < 20 < np.median(flipped)


def test_pictures_are_neither_flat_nor_clipped(scenes):
    images = np.stack([scenes[i]["image"] for i in range(len(scenes))])
    assert (images.std((1, 2, 3, 4)) > 10).all()
    assert ((images == 0) | (images == 255)).mean() < 0.01


def test_examples_are_read_only(scenes):
    with pytest.raises(ValueError, match="read-only"):
        scenes[0]["image"][0] = 0


def test_negative_indices_count_from_the_end_and_others_are_errors(scenes):
    assert scenes[-1]["scene"] == scenes[19]["scene"]
    for index in (20, -21):
        with pytest.raises(IndexError):
            scenes[index]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"count": 0, "seed": 0}, "count=0"),
        ({"count": 1, "seed": -1}, "seed=-1"),
        ({"count": 1, "seed": 2**32}, "seed=4294967296"),
        ({"count": 1, "seed": 0, "split": "test"}, "split='test'.*'train', 'heldout'"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(InputError, match=message):
        ProceduralScenes(**arguments)


@pytest.mark.parametrize(
    "setting",
    [{"size": 4}, {"views": 0}, {"objects": (2, 1)}, {"camera_radius": (2.0, 3.5)}],
)
def test_bad_recipes_are_named(setting):
    with pytest.raises(InputError, match=next(iter(setting))):
        SceneRecipe(**setting)
