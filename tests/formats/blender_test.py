"""Blender's synthetic scenes: splits, names without suffix, and what is refused."""

import json

import numpy as np
import pytest
from capture_writers import blender
from five_cameras import assert_reads_as, five_cameras
from PIL import Image

from data_pipeline.formats import blender as reader
from data_pipeline.formats import open_scenes
from data_pipeline.read_options import ReadOptions
from efficient_lvsm_jax.errors import InputError

TRUTH = five_cameras(centred=True)


def read(path, **options):
    return reader.read_scene(path, ReadOptions(**options))


def edit(path, change):
    description = json.loads(path.read_text())
    change(description, description["frames"])
    path.write_text(json.dumps(description))


@pytest.fixture
def scene_folder(tmp_path):
    return blender.write(tmp_path / "lego", TRUTH)


def test_the_only_split_reads_as_written(scene_folder):
    scenes = open_scenes(scene_folder)
    assert (scenes.format, scenes.names) == ("blender", ("lego",))
    assert_reads_as(scenes[0], TRUTH)
    assert scenes[0].frames[0].name == "train/r_0.png"


def test_names_may_have_a_suffix(tmp_path):
    assert_reads_as(read(blender.write(tmp_path, TRUTH, suffix=".png")), TRUTH)


def test_frames_keep_the_order_of_the_file(tmp_path):
    folder = blender.write(tmp_path, TRUTH, first=8)  # r_8, r_9, r_10: not sorted as text
    assert_reads_as(read(folder), TRUTH)


def test_a_choice_between_splits_must_be_made(scene_folder):
    test = five_cameras(seed=1, centred=True)
    blender.write(scene_folder, test, split="test")
    with pytest.raises(InputError, match=r"lego: holds the splits train, test; name one"):
        read(scene_folder)
    assert_reads_as(read(scene_folder, split="train"), TRUTH)
    assert_reads_as(read(scene_folder, split="test"), test)
    assert_reads_as(open_scenes(scene_folder / "transforms_test.json")[0], test)


def test_a_split_that_is_not_there_is_refused(scene_folder):
    with pytest.raises(InputError, match=r"no split 'val' in it, only train"):
        read(scene_folder, split="val")
    with pytest.raises(InputError, match=r"transforms_train\.json: this is not split 'test'"):
        read(scene_folder / "transforms_train.json", split="test")
    with pytest.raises(InputError, match=r"expected transforms_train\.json or"):
        read(scene_folder / "train")


def test_scenes_in_folders_open_together(tmp_path):
    for name in ("chair", "lego"):
        blender.write(tmp_path / name, TRUTH)
        blender.write(tmp_path / name, TRUTH, split="test")
    scenes = open_scenes(tmp_path, ReadOptions(split="test"))
    assert scenes.names == ("chair", "lego")
    assert_reads_as(scenes[1], TRUTH)


def test_alpha_is_blended_over_white(scene_folder):
    picture = Image.fromarray(TRUTH.image[0]).convert("RGBA")
    alpha = np.full(TRUTH.image.shape[1:3], 51, np.uint8)  # a fifth
    picture.putalpha(Image.fromarray(alpha))
    picture.save(scene_folder / "train" / "r_0.png")
    blended = read(scene_folder).frames[0].image()
    np.testing.assert_allclose(blended, TRUTH.image[0] * 0.2 + 255 * 0.8, atol=0.51)


def test_absent_pictures_are_named_or_refused(scene_folder):
    (scene_folder / "train" / "r_3.png").unlink()
    scene = read(scene_folder)
    assert len(scene.frames) == 4
    assert scene.absent == ("train/r_3.png",)
    with pytest.raises(InputError, match=r"train/r_3\.png .*strict"):
        read(scene_folder, strict=True)


def test_one_picture_under_two_names_is_refused(scene_folder):
    description = scene_folder / "transforms_train.json"
    edit(description, lambda _, frames: frames[1].update(file_path="train/r_0.png"))
    with pytest.raises(
        InputError, match=r"transforms_train\.json, frame 1 .*r_0\.png; list it once"
    ):
        read(scene_folder)


def test_paths_and_links_out_of_the_scene_are_refused(scene_folder, tmp_path):
    (tmp_path / "secret.png").write_bytes((scene_folder / "train" / "r_0.png").read_bytes())
    (scene_folder / "train" / "r_1.png").unlink()
    (scene_folder / "train" / "r_1.png").symlink_to(tmp_path / "secret.png")
    with pytest.raises(InputError, match=r"transforms_train\.json, frame 1 .*leads out"):
        read(scene_folder)
    description = scene_folder / "transforms_train.json"
    edit(description, lambda _, frames: frames[0].update(file_path="../secret"))
    with pytest.raises(InputError, match=r"transforms_train\.json, frame 0 .*leads out"):
        read(scene_folder)


@pytest.mark.parametrize("angle", [None, "0.6", True, 0, -1, 3.2, float("nan"), 10**400, [0.6]])
def test_angles_of_view_that_cannot_be_are_refused(scene_folder, angle):
    edit(scene_folder / "transforms_train.json", lambda d, _: d.update(camera_angle_x=angle))
    with pytest.raises(InputError, match=r"transforms_train\.json, frame 0 .*camera_angle_x"):
        read(scene_folder)


def test_a_file_without_angle_is_refused(scene_folder):
    edit(scene_folder / "transforms_train.json", lambda d, _: d.pop("camera_angle_x"))
    with pytest.raises(InputError, match=r"frame 0 .*neither fl_x nor camera_angle_x"):
        read(scene_folder)
