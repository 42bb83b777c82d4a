"""The walk: a capture like others, whose pictures, poses and lens belong together."""

import hashlib
import json

import numpy as np
import pytest
from capture_writers.colmap import distorted

from data_pipeline.formats import open_scenes
from data_pipeline.inspect.pose_checks import check_poses
from data_pipeline.pictures.distortion import PERSPECTIVE, Distortion
from data_pipeline.procedural import __main__ as command
from data_pipeline.procedural.furnished_room import furnished_room
from data_pipeline.procedural.walk import LENSES, SAMPLES, draw, pixel_rays, walk, write_walk
from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.shipped import example

SMALL = {"frames": 3, "size": (48, 64)}


def pictures(folder):
    """Hash of every file of a capture."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_the_same_arguments_give_the_same_files_and_another_seed_others(tmp_path):
    write_walk(tmp_path / "a", **SMALL, lens=LENSES["opencv"], exposure=0.5)
    furnished_room.cache_clear()
    write_walk(tmp_path / "b", **SMALL, lens=LENSES["opencv"], exposure=0.5)
    write_walk(tmp_path / "c", **SMALL, lens=LENSES["opencv"], exposure=0.5, seed=1)
    first, again, other = (pictures(tmp_path / name) for name in "abc")
    assert len(first) == 4 and first == again
    assert not set(first.values()) & set(other.values())


@pytest.mark.parametrize(
    ("lens", "size"), [("pinhole", (144, 256)), ("opencv", (256, 144)), ("fisheye", (208, 208))]
)
def test_poses_pictures_and_lens_belong_together(tmp_path, lens, size):
    frames = 12
    write_walk(tmp_path / "walk", frames=frames, size=size, lens=LENSES[lens], exposure=0.5)
    scenes = open_scenes(tmp_path / "walk")
    assert scenes.format == "nerfstudio"
    scene = scenes[0]
    assert [(frame.height, frame.width) for frame in scene.frames] == [size] * frames
    np.testing.assert_allclose(scene.c2w, walk(frames, 0), atol=1e-12)
    check = check_poses(scene)
    assert check.verdict == "good" and check.median < 0.3 and check.count > 300


@pytest.mark.parametrize("lens", ["opencv", "fisheye"])
def test_the_undistorted_picture_is_that_of_a_pinhole_camera(tmp_path, lens):
    size = (192, 256)
    write_walk(tmp_path / "bent", frames=2, size=size, lens=LENSES[lens])
    frame = open_scenes(tmp_path / "bent")[0].frames[1]
    room = furnished_room(0)
    straight = draw(room, frame.c2w, frame.fxfycxcy, size).astype(float)
    assert abs(frame.image() - straight).mean() < 6
    shifted = draw(room, frame.c2w, frame.fxfycxcy * [1, 1, 1, 1.03], size).astype(float)
    assert abs(frame.image() - shifted).mean() > 12


@pytest.mark.parametrize(
    ("lens", "model"), [("pinhole", "PINHOLE"), ("opencv", "OPENCV"), ("fisheye", "OPENCV_FISHEYE")]
)
def test_rays_are_those_that_the_lens_bends_to_the_samples_of_pixels(lens, model):
    height, width = 12, 16
    x, y, z = pixel_rays((13.0, 14.0, 7.5, 6.5), (height, width), LENSES[lens])
    bent = distorted(np.stack([x / z, y / z], -1), model, LENSES[lens].coefficients)
    pixels = (bent * [13, 14] + [7.5, 6.5]).reshape(height, SAMPLES, width, SAMPLES, 2)
    middles = np.stack(np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5), -1)
    np.testing.assert_allclose(pixels.mean((1, 3)), middles, atol=1e-9)
    np.testing.assert_allclose(np.ptp(pixels, axis=(1, 3)), 1 - 1 / SAMPLES, atol=1e-9)


def test_brightness_strays_by_the_exposure_and_no_more(tmp_path):
    means = {}
    for stops in (0.0, 1.0):
        write_walk(tmp_path / str(stops), frames=8, size=(24, 32), exposure=stops)
        frames = open_scenes(tmp_path / str(stops))[0].frames
        means[stops] = np.array([frame.image().mean() for frame in frames])
    ratio = means[1.0] / means[0.0]
    assert ratio.min() < 0.9 and ratio.max() > 1.15
    assert 2 ** (-1 / 2.2) - 0.02 < ratio.min() and ratio.max() < 2 ** (1 / 2.2) + 0.02


@pytest.mark.parametrize("seed", range(4))
def test_nobody_walks_through_furniture(seed):
    room, centres = furnished_room(seed), walk(200, seed)[:, :3, 3]
    assert (abs(centres - room.centre[0]) < room.half[0] - 0.3).all()
    for centre, half in zip(room.centre[1:], room.half[1:], strict=True):
        away = np.linalg.norm((centres - centre)[:, :2], axis=-1)
        assert (away > np.hypot(half[0], half[1])).all() or half[2] > 0.45


def test_a_picture_has_the_texture_that_features_are_found_in():
    picture = draw(furnished_room(3), walk(90, 3)[40], np.array([90.0, 90, 64, 48]), (96, 128))
    grey = picture.astype(float).mean(-1)
    assert grey.std() > 25 and abs(np.diff(grey)).mean() > 5
    assert ((picture == 0) | (picture == 255)).mean() < 0.02


def test_the_command_writes_a_capture_once(tmp_path, capsys):
    out = tmp_path / "captures" / "walk"
    arguments = ["--out", str(out), "--frames", "2", "--size", "32x24", "--lens", "fisheye"]
    assert command.main(arguments) == 0
    assert f"{out}: 2 pictures" in capsys.readouterr().out
    stored = json.loads((out / "transforms.json").read_text())
    assert (stored["h"], stored["w"], stored["camera_model"]) == (32, 24, "OPENCV_FISHEYE")
    before = pictures(out)
    with pytest.raises(InputError, match="walk already exists; name a new folder"):
        command.main([*arguments[:-1], "pinhole"])
    assert pictures(out) == before
    assert set(command.LENSES) == set(LENSES)


def test_the_command_draws_the_room_that_ships(tmp_path, capsys):
    out = tmp_path / "room"
    assert command.main(["--room", "--out", str(out), "--seed", "7"]) == 0
    assert f"{out}: 24 pictures of a room" in capsys.readouterr().out
    drawn, shipped = (open_scenes(str(folder))[0] for folder in (out, example("room")))
    for one, other in zip(drawn.frames, shipped.frames, strict=True):
        np.testing.assert_array_equal(one.c2w, other.c2w)
        apart = np.abs(one.image().astype(int) - other.image())
        assert (apart > 2).mean() < 2e-3  # on another machine a ray may just miss an edge


@pytest.mark.parametrize("flags", [["--lens", "fisheye"], ["--exposure", "1"], ["--size", "32x24"]])
def test_a_room_is_square_and_without_a_lens(tmp_path, flags):
    with pytest.raises(SystemExit):
        command.main(["--room", "--out", str(tmp_path / "room"), *flags])
    assert not (tmp_path / "room").exists()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"frames": 0}, "frames=0.*at least 1 frame"),
        ({"size": (4, 64)}, "size=4x64.*sides of 8 to 2048"),
        ({"size": (64, 100_000)}, "size=64x100000"),
        ({"exposure": float("nan")}, "exposure=nan"),
        ({"seed": -1}, "seed=-1"),
        ({"seed": 2**32}, "seed=4294967296"),
        ({"lens": Distortion(PERSPECTIVE, (-0.9, 0, 0, 0))}, "shows nothing in parts"),
        ({"lens": Distortion(PERSPECTIVE, (0, 0, 0, 0, 0, 0.1, 0, 0))}, "holds k1, k2, p1, p2, k3"),
    ],
)
def test_what_makes_no_walk_is_refused_and_leaves_nothing(tmp_path, changed, message):
    with pytest.raises(InputError, match=message):
        write_walk(tmp_path / "walk", **SMALL | changed)
    assert list(tmp_path.iterdir()) == []


def test_a_camera_outside_of_the_room_is_refused():
    c2w = np.eye(4)
    c2w[0, 3] = 9
    with pytest.raises(InputError, match=r"\[9.0, 0.0, 0.0\]: outside of the room"):
        draw(furnished_room(0), c2w, np.ones(4), (8, 8))
