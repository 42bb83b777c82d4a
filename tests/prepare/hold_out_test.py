"""Held-out scenes and frames: chosen alike every time, recorded, and never trained on."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from capture_writers import nerfstudio, prepared
from five_cameras import five_cameras

from data_pipeline.batches.pipeline import training_batches
from data_pipeline.batches.settings import DataConfig
from data_pipeline.captures.export import CaptureWriter
from data_pipeline.formats import open_scenes
from data_pipeline.formats.array_record import HoldOut, hold_out_of
from data_pipeline.posed_scenes import FOLDER
from data_pipeline.prepare import data_set
from data_pipeline.prepare.__main__ import main
from data_pipeline.prepare.data_set import Preparation, prepare, verify
from data_pipeline.prepare.shards import held_out
from data_pipeline.read_options import ReadOptions
from efficient_lvsm_jax.errors import InputError

FRAMES, HELD = 24, (4, 12, 20)
TRAIN, TEST = ReadOptions(split="train"), ReadOptions(split="test")


def capture(folder: Path) -> Path:
    """A capture of 24 grey frames in a row; 10 × the brightness is the frame."""
    with CaptureWriter(folder) as writer:
        for index in range(FRAMES):
            c2w = np.eye(4)
            c2w[:3, 3] = index, index % 3, 0
            writer.add(np.full((16, 16, 3), 10 * index, np.uint8), c2w, np.array([16.0, 16, 8, 8]))
    return folder


@pytest.fixture(scope="module")
def frames_held_out(tmp_path_factory) -> tuple[Preparation, Path]:
    """A capture of which an eighth of the frames is held out, and how it was prepared."""
    folder = tmp_path_factory.mktemp("frames")
    preparation = Preparation(str(capture(folder / "walk")), size=16, hold_out=0.125)
    prepare(preparation, folder / "out")
    return preparation, folder / "out"


@pytest.fixture(scope="module")
def scenes_held_out(tmp_path_factory) -> Path:
    """Ten scenes of which two are held out."""
    folder = tmp_path_factory.mktemp("scenes")
    scenes = [five_cameras(seed=seed) for seed in range(10)]
    source = prepared.write(folder / "source", scenes[0], others=scenes[1:])
    prepare(Preparation(str(source), size=48, hold_out=0.2), folder / "out")
    return folder / "out"


def frames_of(scene) -> list[int]:
    """Which frames of `capture` a scene has, by their pictures."""
    return [round(frame.image().mean() / 10) for frame in scene.frames]


@pytest.mark.parametrize(
    ("count", "fraction", "expected"),
    [(24, 0.125, [4, 12, 20]), (10, 0.5, [1, 3, 5, 7, 9]), (5, 0.01, [2]), (2, 0.1, [1])],
)
def test_what_is_held_out_is_spread_evenly(count, fraction, expected):
    assert held_out(count, fraction) == expected


def test_held_out_frames_are_a_split_that_opens_as_the_whole_capture(frames_held_out):
    _, out = frames_held_out
    kept = open_scenes(out, TRAIN)[0]
    assert frames_of(kept) == [i for i in range(FRAMES) if i not in HELD] and not kept.held_out
    whole = open_scenes(out, TEST)[0]
    assert frames_of(whole) == list(range(FRAMES)) and whole.held_out == HELD
    np.testing.assert_array_equal(whole.c2w[:, 0, 3], range(FRAMES))
    assert hold_out_of(out) == hold_out_of(out, "test") == HoldOut("train", "test", HELD)
    assert verify(out) == []


def test_held_out_scenes_are_a_split(scenes_held_out):
    held = open_scenes(scenes_held_out, TEST)
    kept = open_scenes(scenes_held_out, TRAIN)
    assert held.names == ("scene-2", "scene-7")
    assert {*held.names, *kept.names} == {f"scene-{i}" for i in range(10)} and len(kept) == 8
    assert hold_out_of(scenes_held_out, "train") == HoldOut("train", "test", ())
    assert held[0].held_out == () and len(held[0].frames) == 5


def test_tfds_reads_both_splits(frames_held_out):
    program = (
        "import tensorflow_datasets as tfds\n"
        "for split in ('train', 'test'):\n"
        "    source = tfds.data_source('posed_scenes', split=split, data_dir="
        f"{str(frames_held_out[1])!r})\n"
        "    print(len(source), source[0]['scene'].decode(), source[0]['image'][:2].hex())"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.stdout.splitlines() == ["21 walk ffd8", "3 walk ffd8"], result.stderr


def test_the_same_command_leaves_it_and_another_fraction_is_refused(frames_held_out, tmp_path):
    preparation, out = frames_held_out
    files = {path: path.read_bytes() for path in (out / FOLDER).glob("*[0-9n]")}
    prepare(preparation, out)
    for other in (0.2, 0.0):
        with pytest.raises(InputError, match=rf"hold_out 0\.125 is now {other}"):
            prepare(dataclasses.replace(preparation, hold_out=other), out)
    with pytest.raises(InputError, match="split 'train' is now 'test'"):
        prepare(dataclasses.replace(preparation, split="test", hold_out=0.0), out)
    prepare(preparation, tmp_path)
    for path, content in files.items():
        assert path.read_bytes() == content == (tmp_path / FOLDER / path.name).read_bytes()


@pytest.mark.parametrize("published", [0, 1])
def test_stopped_between_its_splits_it_goes_on(frames_held_out, tmp_path, monkeypatch, published):
    preparation, out = frames_held_out
    publish, calls = data_set._publish, []

    def stopped(*arguments):
        if len(calls) == published:
            raise KeyboardInterrupt
        calls.append(arguments)
        publish(*arguments)

    monkeypatch.setattr(data_set, "_publish", stopped)
    with pytest.raises(KeyboardInterrupt):
        prepare(preparation, tmp_path)
    monkeypatch.undo()
    prepare(preparation, tmp_path)
    for split in ("train", "test"):
        name = f"manifest-{split}.json"
        assert (tmp_path / FOLDER / name).read_text() == (out / FOLDER / name).read_text()
    assert verify(tmp_path) == []


def test_data_prepared_before_there_were_hold_outs_is_still_complete(tmp_path):
    preparation = Preparation(str(capture(tmp_path / "walk")), size=16)
    prepare(preparation, tmp_path / "out")
    path = tmp_path / "out" / FOLDER / "manifest-train.json"
    manifest = json.loads(path.read_text())
    del manifest["plan"]["settings"]["hold_out"]
    path.write_text(json.dumps(manifest))
    assert prepare(preparation, tmp_path / "out") == manifest
    with pytest.raises(InputError, match=r"hold_out 0\.0 is now 0\.125"):
        prepare(dataclasses.replace(preparation, hold_out=0.125), tmp_path / "out")
    assert [*path.parent.glob("manifest-*")] == [path]  # nothing was held out beside it


@pytest.mark.parametrize("change", [{"threads": 1}, {"threads": 4}, {"workers": 2}])
@pytest.mark.parametrize("max_distance", [0, 12])
def test_held_out_frames_are_never_in_a_batch(frames_held_out, change, max_distance):
    config = DataConfig(
        path=str(frames_held_out[1]),
        size=16,
        batch_size=4,
        num_targets=3,
        min_distance=6,
        max_distance=max_distance,
        permute_colours=False,
        **change,
    )
    batches = training_batches(config, seed=0)
    seen = set()
    for _ in range(40):
        batch = next(batches)
        for side in (batch.inputs, batch.targets):
            seen |= {*np.round(side.image.mean(axis=(2, 3, 4)) / 10).astype(int).ravel().tolist()}
    batches.close()
    assert seen == {*range(FRAMES)} - {*HELD}


def test_a_held_out_split_is_not_trained_on(frames_held_out, scenes_held_out):
    for out in (frames_held_out[1], scenes_held_out):
        with pytest.raises(InputError, match=r"data\.split='test': was held out .* train on 'tra"):
            training_batches(DataConfig(path=str(out), split="test"), seed=0)


def test_held_out_frames_do_not_become_training_data_by_preparing_again(frames_held_out, tmp_path):
    again = Preparation(str(frames_held_out[1]), source_split="test", size=16)
    with pytest.raises(InputError, match=r"every scene was rejected.*3 of its frames are held out"):
        prepare(again, tmp_path)


def test_an_unreadable_frame_that_is_held_out_keeps_its_place(tmp_path):
    source = capture(tmp_path / "walk")
    (picture,) = source.glob("images/*0012.*")
    picture.write_bytes(picture.read_bytes()[:60])
    prepare(Preparation(str(source), size=16, hold_out=0.125), tmp_path / "out")
    whole = open_scenes(tmp_path / "out", TEST)[0]
    assert whole.holes == (12,) and whole.held_out == HELD
    assert 13 in whole.usable and round(whole.frames[13].image().mean() / 10) == 13


def test_a_split_prepared_otherwise_is_not_taken_for_the_rest(frames_held_out, tmp_path):
    preparation, out = frames_held_out
    shutil.copytree(out, tmp_path, dirs_exist_ok=True)
    for path in (tmp_path / FOLDER).glob("*train*"):
        path.unlink()
    with pytest.raises(InputError, match="no split 'train'; it has test"):
        open_scenes(tmp_path, TEST)
    prepare(dataclasses.replace(preparation, hold_out=0.0), tmp_path)  # of all frames
    with pytest.raises(InputError, match=r"test was held out of train, but .*manifest-train\.json"):
        training_batches(DataConfig(path=str(tmp_path)), seed=0)
    with pytest.raises(InputError, match="delete both splits and prepare them again"):
        open_scenes(tmp_path, TEST)


@pytest.mark.parametrize(
    "held",
    [
        5,
        {"of": "train", "split": "test"},
        {"of": "test", "split": "test", "frames": []},
        {"of": "train", "split": "val", "frames": [4, 12, 20]},
        {"of": "train", "split": "test", "frames": [-1, 4, 12]},
        {"of": "train", "split": "test", "frames": [12, 4, 20]},
        {"of": "train", "split": "test", "frames": [4, 12]},
        {"of": "train", "split": "test", "frames": [4, 12, 24]},
    ],
)
def test_a_hold_out_that_cannot_be_is_named(frames_held_out, tmp_path, held):
    shutil.copytree(frames_held_out[1], tmp_path, dirs_exist_ok=True)
    for path in (tmp_path / FOLDER).glob("manifest-*.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"held_out": held}))
    with pytest.raises(InputError, match=r"manifest-test\.json: .*prepare (both )?again"):
        open_scenes(tmp_path, TEST)[0]


def test_too_few_frames_for_both_leave_nothing_behind(tmp_path):
    source = nerfstudio.write(tmp_path / "capture", five_cameras())
    with pytest.raises(InputError, match=r"every scene was rejected.*4 readable frames"):
        prepare(Preparation(str(source), hold_out=0.2, min_frames=5), tmp_path / "out")
    left = sorted(path.name for path in (tmp_path / "out" / FOLDER).iterdir())
    assert left == [".lock-test", ".lock-train"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hold_out": 0.6}, r"hold_out=0\.6: expected a number, at least 0 and at most 0\.5"),
        ({"hold_out": 0.1, "split": "test"}, "split 'test': is what the held-out part is called"),
    ],
)
def test_hold_outs_that_cannot_be_are_named(settings, message):
    with pytest.raises(InputError, match=message):
        Preparation("source", **settings)


def test_the_command_says_what_is_held_out(tmp_path, monkeypatch, capsys):
    source = capture(tmp_path / "walk")
    arguments = ["prepare", str(source), "--out", str(tmp_path / "out"), "--size", "16"]
    monkeypatch.setattr(sys, "argv", [*arguments, "--hold-out", "0.125", "--workers", "1"])
    assert main() == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "held out as split test: 3 of 24 frames; in split train are:"
    assert json.loads(said[1])["frames"] == 21
