"""Preparing data: nothing lost or twice, whatever stops it, and every rejection with its reason."""

from __future__ import annotations

import fcntl
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from capture_writers import nerfstudio, prepared, torch_chunks
from capture_writers.torch_chunks import chunk_scene, write_chunk
from five_cameras import five_cameras
from PIL import Image

from data_pipeline.formats import open_scenes
from data_pipeline.pictures.transforms import resize_and_crop
from data_pipeline.posed_scenes import FOLDER
from data_pipeline.prepare.__main__ import main
from data_pipeline.prepare.data_set import Preparation, prepare, verify
from data_pipeline.read_options import ReadOptions
from efficient_lvsm_jax.errors import InputError

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """Twenty scenes in the prepared layout."""
    folder = tmp_path_factory.mktemp("source")
    scenes = [five_cameras(seed=seed) for seed in range(20)]
    return prepared.write(folder, scenes[0], others=scenes[1:])


@pytest.fixture(scope="module")
def complete(source, tmp_path_factory) -> tuple[Path, dict]:
    """The source as 48-pixel crops, prepared without interruption, and its manifest."""
    out = tmp_path_factory.mktemp("complete")
    return out, prepare(Preparation(str(source), size=48), out)


def command(source: Path, out: Path, *options: str) -> list[str]:
    return [sys.executable, "-m", "data_pipeline.prepare", str(source), "--out", str(out), *options]


def run(arguments: list[str], **options) -> subprocess.CompletedProcess:
    return subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, **options)


def test_crops_are_the_published_ones_up_to_jpeg(source, complete):
    out, _ = complete
    read, original = open_scenes(out)[3], open_scenes(source)[3]
    for frame, source_frame in zip(read.frames, original.frames, strict=True):
        image, fxfycxcy = resize_and_crop(source_frame.image(), source_frame.fxfycxcy, 48)
        np.testing.assert_array_equal(frame.fxfycxcy, fxfycxcy)
        assert np.abs(frame.image().astype(int) - image).mean() < 4


def test_jpeg_frames_are_kept_byte_for_byte(tmp_path):
    truth = five_cameras()
    scene = chunk_scene(truth, picture="jpeg")
    write_chunk(tmp_path / "0.torch", [scene])
    prepare(Preparation(str(tmp_path / "0.torch")), tmp_path / "out")
    stored = [frame.encoded() for frame in open_scenes(tmp_path / "out")[0].frames]
    assert stored == [image.tobytes() for image in scene["images"]]


@pytest.mark.parametrize("size", [0, 48])
def test_pictures_that_decoders_warn_of_and_of_other_kinds_are_prepared(tmp_path, size):
    truth, names = (
        five_cameras(same_intrinsics=True),
        ["0.jpg", "1.jpg", "2.webp", "3.tif", "4.png"],
    )
    folder = nerfstudio.write(tmp_path / "source", truth, names=names)
    for name, image in zip(names, truth.image, strict=True):
        Image.fromarray(image).save(folder / "images" / name, quality=95)
    junk = folder / "images/1.jpg"
    junk.write_bytes(junk.read_bytes()[:-2] + bytes(range(200)) + b"\xff\xd9")
    manifest = prepare(Preparation(str(folder), size=size), tmp_path / "out")
    assert manifest["counts"]["frames"] == 5 and not manifest["rejected"]
    for read, frame in zip(
        open_scenes(tmp_path / "out")[0].frames, open_scenes(folder)[0].frames, strict=True
    ):
        image = frame.image()
        if size:
            image, _ = resize_and_crop(image, frame.fxfycxcy, size)
        assert np.abs(read.image().astype(int) - image).mean() < 4
        assert size or not frame.encoded or read.encoded() == frame.encoded()


def test_tfds_reads_the_result_without_tensorflow(complete):
    program = (
        "import sys, tensorflow_datasets as tfds\n"
        f"source = tfds.data_source('posed_scenes', split='train', data_dir={str(complete[0])!r})\n"
        "print(len(source), source[7]['scene'].decode(), source[7]['image'][:2].hex(), "
        "'tensorflow' in sys.modules)"
    )
    result = run([sys.executable, "-c", program])
    assert result.stdout.split() == ["100", "scene-1", "ffd8", "False"], result.stderr


def test_the_manifest_counts_and_hashes(complete):
    out, manifest = complete
    assert manifest["counts"]["scenes"] == 20 and manifest["counts"]["frames"] == 100
    assert sum(shard["frames"] for shard in manifest["shards"]) == 100
    assert len({shard["sha256"] for shard in manifest["shards"]}) == len(manifest["shards"]) > 1
    assert verify(out) == []
    assert "/" not in manifest["plan"]["settings"]["source"]  # the data may move


def test_killed_at_any_moment_it_goes_on_without_loss(source, complete, tmp_path):
    out = tmp_path / "out"
    parts = out / FOLDER / ".parts-train"
    for wanted in (1, 6):  # shards complete when the kill comes
        process = subprocess.Popen(
            command(source, out, "--size", "48", "--workers", "1"),
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        deadline = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < deadline:
            if len(list(parts.glob("0*.json"))) >= wanted:
                break
            time.sleep(0.002)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    manifest = prepare(Preparation(str(source), size=48), out)
    assert manifest == complete[1]
    assert verify(out) == []
    assert open_scenes(out).names == open_scenes(source).names
    assert not parts.exists()


def stop_midway(arguments: list[str], parts: Path, stop: Callable[[int], None]) -> tuple[int, str]:
    """Exit status and stderr of a command that is stopped when its first shard is complete."""
    with subprocess.Popen(
        arguments, cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        deadline = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < deadline:
            if list(parts.glob("0*.json")):
                break
            time.sleep(0.002)
        stop(process.pid)
        _, said = process.communicate(timeout=30)
        return process.returncode, said


def test_workers_end_with_a_parent_that_is_killed(source, tmp_path):
    arguments = command(source, tmp_path / "out", "--workers", "2")
    # Its stderr, which workers have too, ends only when all have ended.
    status, _ = stop_midway(
        arguments,
        tmp_path / "out" / FOLDER / ".parts-train",
        lambda pid: os.kill(pid, signal.SIGKILL),
    )
    assert status == -signal.SIGKILL


def test_control_c_ends_it_with_one_word(source, tmp_path):
    status, said = stop_midway(
        command(source, tmp_path / "out", "--workers", "2"),
        tmp_path / "out" / FOLDER / ".parts-train",
        lambda pid: os.killpg(pid, signal.SIGINT),
    )
    assert status == 130
    assert said.splitlines()[-1] == "interrupted" and "Traceback" not in said


def test_a_finished_preparation_is_left_as_it_is(source, complete):
    out, manifest = complete
    before = {path: path.stat().st_mtime_ns for path in (out / FOLDER).glob("posed*")}
    assert prepare(Preparation(str(source), size=48), out) == manifest
    assert before == {path: path.stat().st_mtime_ns for path in (out / FOLDER).glob("posed*")}


def test_other_settings_are_refused(source, complete):
    with pytest.raises(InputError, match=r"manifest-train\.json: .*size 48 is now 40"):
        prepare(Preparation(str(source), size=40), complete[0])


def test_shards_of_unknown_settings_are_not_taken_over(source, complete, tmp_path):
    parts = tmp_path / FOLDER / ".parts-train"
    parts.mkdir(parents=True)
    wrong = {"frames": 0, "bytes": 0, "sha256": "", "scenes": [], "absent": []}
    (parts / "00000.json").write_text(json.dumps(wrong | {"rejected": [["scene-0", "?"]]}))
    assert prepare(Preparation(str(source), size=48), tmp_path) == complete[1]


def test_rejecting_every_scene_leaves_nothing_behind(source, tmp_path):
    with pytest.raises(InputError, match=r"every scene was rejected.*at least 6 are needed"):
        prepare(Preparation(str(source), min_frames=6), tmp_path)
    assert [path.name for path in (tmp_path / FOLDER).iterdir()] == [".lock-train"]


def test_the_source_itself_is_no_place_to_write_to(source):
    with pytest.raises(InputError, match="is the source itself"):
        prepare(Preparation(str(source)), source)


def test_no_workers_are_refused(source, tmp_path):
    with pytest.raises(InputError, match="workers=0: must be at least 1"):
        prepare(Preparation(str(source)), tmp_path, workers=0)


def test_a_second_split_joins_the_first(source, tmp_path):
    for split in ("train", "test"):
        prepare(Preparation(str(source), split=split, size=16), tmp_path)
    assert len(open_scenes(tmp_path, ReadOptions(split="test"))) == 20
    info = json.loads((tmp_path / FOLDER / "dataset_info.json").read_text())
    assert {split["name"] for split in info["splits"]} == {"test", "train"}
    with pytest.raises(InputError, match="splits test, train; name one"):
        open_scenes(tmp_path)


def test_only_one_process_writes(source, tmp_path):
    (tmp_path / FOLDER).mkdir(parents=True)
    with (tmp_path / FOLDER / ".lock-train").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(InputError, match="another process is preparing train"):
            prepare(Preparation(str(source)), tmp_path)


def test_rejected_scenes_are_listed_with_their_reason(tmp_path):
    scenes = [chunk_scene(five_cameras(seed=seed)) for seed in range(4)]
    scenes[1]["cameras"][2, 6:] *= 3  # no rotation any more
    scenes[3]["images"] = [np.frombuffer(b"no picture", np.uint8)] * 5
    write_chunk(tmp_path / "0.torch", scenes)
    manifest = prepare(Preparation(str(tmp_path / "0.torch")), tmp_path / "out")
    assert [name for name, *_ in manifest["scenes"]] == ["scene-0", "scene-2"]
    reasons = dict(manifest["rejected"])
    assert reasons.keys() == {"scene-1", "scene-3"}
    assert "00002" in reasons["scene-1"] and "not rigid" in reasons["scene-1"]
    assert "none of its 5 pictures" in reasons["scene-3"]


def test_absent_frames_left_out_are_listed(tmp_path, capsys, monkeypatch):
    capture = nerfstudio.write(tmp_path / "capture", five_cameras())
    (capture / "images" / "frame_00002.png").unlink()
    arguments = ["prepare", str(capture), "--out", str(tmp_path / "out"), "--workers", "1"]
    monkeypatch.setattr(sys, "argv", arguments)
    assert main() == 0
    assert "capture: 1 listed frames are absent" in capsys.readouterr().out
    manifest = json.loads((tmp_path / "out" / FOLDER / "manifest-train.json").read_text())
    assert manifest["absent"] == [["capture", ["images/frame_00002.png"]]]
    assert manifest["counts"]["frames"] == 4 and manifest["counts"]["absent_frames"] == 1


def test_what_the_source_leaves_open_is_read_as_said(tmp_path):
    capture = nerfstudio.write(tmp_path / "capture", five_cameras(same_intrinsics=True))
    prepare(Preparation(str(capture), axes="opencv"), tmp_path / "out")
    expected = open_scenes(capture, ReadOptions(axes="opencv"))[0].c2w
    np.testing.assert_array_equal(open_scenes(tmp_path / "out")[0].c2w, expected)


def test_an_undecodable_frame_keeps_its_place(tmp_path):
    scene = chunk_scene(five_cameras())
    scene["images"][2] = scene["images"][2][:100]
    split = torch_chunks.write(tmp_path, five_cameras(seed=1))
    write_chunk(split / "000000.torch", [scene | {"key": "scene-1"}])
    manifest = prepare(Preparation(str(split)), tmp_path / "out")
    assert manifest["counts"]["unreadable_frames"] == 1
    read = open_scenes(tmp_path / "out")[0]
    assert read.holes == (2,) and len(read.frames) == 5
    np.testing.assert_allclose(read.frames[3].c2w, five_cameras().c2w[3], atol=1e-6)
    with pytest.raises(InputError, match="unreadable when the data was prepared"):
        read.frames[2].image()
    strict = Preparation(str(split), strict=True)
    with pytest.raises(InputError, match="every scene was rejected"):
        prepare(strict, tmp_path / "strict")


def test_a_full_disk_is_said_and_nothing_wrong_remains(source, tmp_path):
    arguments = shlex.join(command(source, tmp_path / "out", "--workers", "1"))
    result = run(["bash", "-c", f"ulimit -f 48 && exec {arguments}"])  # files of 48 KiB at most
    assert result.returncode == 2
    assert "cannot be written" in result.stderr and "Traceback" not in result.stderr
    assert not list((tmp_path / "out" / FOLDER).glob("posed_scenes*"))
    assert prepare(Preparation(str(source)), tmp_path / "out")["counts"]["scenes"] == 20


def test_a_folder_that_cannot_be_written_is_named(source, tmp_path):
    arguments = shlex.join(command(source, tmp_path / "out"))
    result = run(["bash", "-c", f"ulimit -f 0 && exec {arguments} 2>&1 | cat"])
    assert f"error: {tmp_path / 'out' / FOLDER}: cannot be written" in result.stdout
    assert "Traceback" not in result.stdout


def test_flipped_bits_are_found(source, tmp_path):
    prepare(Preparation(str(source), size=16), tmp_path)
    shard = sorted((tmp_path / FOLDER).glob("posed*"))[0]
    data = bytearray(shard.read_bytes())
    data[len(data) // 4] ^= 1
    shard.write_bytes(data)
    (fault,) = verify(tmp_path)
    assert shard.name in fault and "SHA-256" in fault
    result = run([sys.executable, "-m", "data_pipeline.prepare", "--verify", str(tmp_path)])
    assert result.returncode == 1 and shard.name in result.stdout


@pytest.mark.parametrize(
    ("manifest", "message"),
    [
        ("{}", "damaged manifest"),
        ('{"shards": [{"file": "../x", "frames": 1, "bytes": 1, "sha256": ""}]}', "leads out of"),
    ],
)
def test_a_manifest_that_cannot_be_is_named(tmp_path, manifest, message):
    (tmp_path / FOLDER).mkdir(parents=True)
    (tmp_path / FOLDER / "manifest-train.json").write_text(manifest)
    with pytest.raises(InputError, match=rf"manifest-train\.json: .*{message}"):
        verify(tmp_path)


@pytest.mark.parametrize("fault", ["truncated", "gone"])
def test_a_damaged_shard_is_named_when_the_data_is_opened(source, tmp_path, fault):
    prepare(Preparation(str(source), size=16), tmp_path)
    shard = sorted((tmp_path / FOLDER).glob("posed*"))[1]
    if fault == "gone":
        shard.unlink()
    else:
        shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(InputError, match=shard.name):
        open_scenes(tmp_path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"split": "../x"}, "split '../x'"),
        ({"size": 20}, "size 20: expected a multiple"),
        ({"quality": 0}, "quality=0: expected an integer, at least 1 and at most 100"),
        ({"min_frames": 0}, "min_frames=0: expected an integer, at least 1"),
    ],
)
def test_settings_that_cannot_be_are_named(settings, message):
    with pytest.raises(InputError, match=message):
        Preparation("source", **settings)
