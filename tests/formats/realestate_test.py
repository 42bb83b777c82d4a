"""RealEstate10K's own text files."""

import logging
import shutil

import numpy as np
import pytest
from capture_writers import realestate
from capture_writers.realestate import SCENE, TIMESTAMPS
from five_cameras import assert_reads_as, five_cameras

from data_pipeline.formats import open_scenes
from data_pipeline.formats import realestate as reader
from data_pipeline.read_options import ReadOptions
from efficient_lvsm_jax.errors import InputError


def replace_line(path, number, change):
    lines = path.read_text().split("\n")
    lines[number] = change(lines[number])
    path.write_text("\n".join(lines))


@pytest.fixture
def truth():
    return five_cameras()


@pytest.mark.parametrize("split", ["test", ""])
@pytest.mark.parametrize("pictures", ["frames", "images", ""])
def test_scene_reads_as_written_in_every_layout(tmp_path, truth, split, pictures):
    scenes = open_scenes(realestate.write(tmp_path, truth, split=split, pictures=pictures))
    assert (scenes.format, scenes.names) == ("realestate10k", (SCENE,))
    assert_reads_as(scenes[0], truth)
    assert tuple(frame.timestamp for frame in scenes[0].frames) == TIMESTAMPS


def test_frames_are_in_order_of_time_whatever_the_files_order(tmp_path, truth):
    path = realestate.write(tmp_path, truth) / f"test/{SCENE}.txt"
    address, *lines = path.read_text().split("\n")
    path.write_text("\n".join([address, *lines[4::-1]]))
    assert_reads_as(open_scenes(tmp_path)[0], truth)


def test_split_must_be_named_where_there_are_two(tmp_path, truth):
    realestate.write(tmp_path, truth)
    realestate.write(tmp_path, five_cameras(seed=1), name="f" * 16, split="train")
    with pytest.raises(InputError, match="name one"):
        open_scenes(tmp_path)
    assert open_scenes(tmp_path, ReadOptions(split="train")).names == ("f" * 16,)


def test_split_that_is_not_there_is_refused(tmp_path, truth):
    realestate.write(tmp_path, truth, split="")
    with pytest.raises(InputError, match="no split 'test'"):
        open_scenes(tmp_path, ReadOptions(split="test"))


def test_absent_frame_keeps_its_place(tmp_path, truth, caplog):
    realestate.write(tmp_path, truth)
    (tmp_path / f"frames/test/{SCENE}/{TIMESTAMPS[2]}.png").unlink()
    with caplog.at_level(logging.WARNING):
        scene = open_scenes(tmp_path)[0]
    assert (scene.holes, scene.absent) == ((2,), (str(TIMESTAMPS[2]),))
    assert len(scene.frames) == 5 and "1 of 5" in caplog.text
    np.testing.assert_allclose(scene.fxfycxcy, truth.fxfycxcy, atol=1e-6)
    np.testing.assert_allclose(scene.c2w, truth.c2w, atol=1e-6)
    with pytest.raises(InputError, match=f"{TIMESTAMPS[2]}.jpg: no such"):
        scene.frames[2].image()
    with pytest.raises(InputError, match="strict"):
        open_scenes(tmp_path, ReadOptions(strict=True))[0]


def test_scene_without_any_picture_says_where_they_belong(tmp_path, truth):
    shutil.rmtree(realestate.write(tmp_path, truth) / "frames")
    with pytest.raises(InputError, match=r"none of its 5 frames is in .*frames/test"):
        open_scenes(tmp_path)[0]


@pytest.mark.parametrize(
    ("number", "change", "message"),
    [
        (0, lambda line: "1 2 3", "line 1: expected the film's address"),
        (3, lambda line: line + " 0", "line 4: 20 fields, expected 19"),
        (2, lambda line: "", "line 3: 0 fields"),
        (2, lambda line: line.replace(" ", " x", 1), "line 3: could not convert"),
        (1, lambda line: "-5" + line[line.index(" ") :], "line 2: the timestamp -5"),
        (2, lambda line: f"{TIMESTAMPS[0]} " + line.split(" ", 1)[1], "line 3: a second frame"),
        (1, lambda line: line.rsplit(" ", 1)[0] + " nan", f"frame {TIMESTAMPS[0]}.*not finite"),
        (1, lambda line: " ".join([*line.split()[:7], *["0"] * 12]), "has no inverse"),
    ],
)
def test_damaged_line_is_named(tmp_path, truth, number, change, message):
    path = realestate.write(tmp_path, truth) / f"test/{SCENE}.txt"
    replace_line(path, number, change)
    with pytest.raises(InputError, match=message) as error:
        open_scenes(tmp_path)[0]
    assert f"{SCENE}.txt" in str(error.value)


def test_picture_behind_a_link_out_of_the_folder_is_refused(tmp_path, truth):
    root = realestate.write(tmp_path / "set", truth)
    folder = root / f"frames/test/{SCENE}"
    folder.rename(tmp_path / "elsewhere")
    folder.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="leads out of"):
        open_scenes(root)[0]


def test_other_text_files_are_no_cameras(tmp_path):
    (tmp_path / "full_list.txt").write_text("a\n")
    assert not reader.detect(tmp_path)
    assert not reader.detect(tmp_path / "absent")
