"""Depth of generated places: the same surfaces, whichever camera looks at them."""

import numpy as np
import pytest

from data_pipeline.formats import open_scenes
from data_pipeline.procedural import __main__ as command
from data_pipeline.procedural.furnished_room import furnished_room
from data_pipeline.procedural.rooms import (
    ProceduralScenes,
    SceneRecipe,
    render_depth,
    scene_parameters,
)
from data_pipeline.procedural.walk import LENSES, draw_depth, walk, write_walk
from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.geometry.cameras import Cameras
from efficient_lvsm_jax.geometry.points import unproject

RECIPE = SceneRecipe(size=16, views=6)


@pytest.fixture(scope="module")
def room():
    return ProceduralScenes(2, seed=5, recipe=RECIPE, depth=True)[1]


def seen_from(c2w, points):
    """Points [P, 3] in a camera's axes."""
    return (points - c2w[:3, 3]) @ c2w[:3, :3]


def through_a_pixel_centre(points, focal):
    """Intrinsics [P, 4] of cameras whose top left pixel has each of these points, in their axes,
    at its centre."""
    x, y, z = points.T
    focal = np.full_like(x, focal)
    return np.stack([focal, focal, 0.5 - focal * x / z, 0.5 - focal * y / z], -1)


def exact_or_hidden(found, distances, tolerance):
    """Every point is where it was said to be, or something else is before it."""
    behind = distances - found
    assert (behind > -tolerance).all()
    visible = behind < tolerance
    assert 0.4 < visible.mean() < 1
    assert (behind[~visible] > 20 * tolerance).mean() > 0.95


def test_what_one_camera_of_a_room_measures_another_finds_there(room):
    one, other = 0, 4
    cameras = Cameras(room["c2w"][one], room["fxfycxcy"][one], 16, 16)
    points = np.asarray(unproject(room["depth"][one], cameras)).reshape(-1, 3)
    local = seen_from(room["c2w"][other].astype(np.float64), points)
    local = local[local[:, 2] > 0.5]
    scene = scene_parameters(RECIPE, seed=5, split="train", index=1)
    scene["c2w"] = np.repeat(scene["c2w"][other : other + 1], len(local), axis=0)
    scene["fxfycxcy"] = through_a_pixel_centre(local, 15.0).astype(np.float32)
    recipe = SceneRecipe(size=8, views=6)
    batch = {name: value[None] for name, value in scene.items()}
    found = np.asarray(render_depth(batch, recipe))[0, :, 0, 0]
    exact_or_hidden(found, local[:, 2], 1e-4)


def test_what_one_camera_of_a_walk_measures_another_finds_there():
    place, (one, other) = furnished_room(0), walk(40, 0)[[10, 18]]
    size, fxfycxcy = (12, 16), np.array([11.4, 11.4, 8, 6])
    depth = draw_depth(place, one, fxfycxcy, size)
    points = np.asarray(
        [
            (one @ [(x + 0.5 - 8) / 11.4 * z, (y + 0.5 - 6) / 11.4 * z, z, 1])[:3]
            for (y, x), z in np.ndenumerate(depth)
        ]
    )
    local = seen_from(other, points)
    local = local[local[:, 2] > 0.2]
    cameras = through_a_pixel_centre(local, 11.4)
    found = np.array([draw_depth(place, other, camera, (1, 1))[0, 0] for camera in cameras])
    exact_or_hidden(found, local[:, 2], 1e-9)


def test_depth_changes_no_picture(room):
    plain = ProceduralScenes(2, seed=5, recipe=RECIPE)[1]
    assert set(room) - set(plain) == {"depth"}
    for name in plain:
        np.testing.assert_array_equal(plain[name], room[name])
    assert room["depth"].shape == (6, 16, 16) and room["depth"].dtype == np.float32


def test_the_command_writes_depth_that_the_reader_gives_back(tmp_path):
    out = tmp_path / "walk"
    arguments = ["--out", str(out), "--frames", "2", "--size", "9x12", "--seed", "3", "--depth"]
    assert command.main(arguments) == 0
    frames = open_scenes(out)[0].frames
    for frame in frames:
        expected = draw_depth(furnished_room(3), frame.c2w, frame.fxfycxcy, (9, 12))
        np.testing.assert_allclose(frame.depth(), expected, rtol=1e-6)
    write_walk(tmp_path / "without", frames=1, size=(9, 12), seed=3)
    assert open_scenes(tmp_path / "without")[0].frames[0].depth is None


def test_depth_through_a_lens_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"lens that bends.*leave out --depth or --lens"):
        write_walk(tmp_path / "walk", frames=1, lens=LENSES["opencv"], depth=True)
    assert list(tmp_path.iterdir()) == []
