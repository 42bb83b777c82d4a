"""Training from data on disk: who gets which rows, and what happens when data is bad."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from capture_writers import prepared
from five_cameras import five_cameras
from PIL import Image

from data_pipeline.batches.pipeline import training_batches, training_dataset
from data_pipeline.batches.settings import DataConfig
from data_pipeline.batches.workers import how_to_go_on
from data_pipeline.formats import open_scenes
from data_pipeline.posed_scenes import FOLDER
from data_pipeline.prepare.data_set import Preparation, prepare
from data_pipeline.scenes import scene_of_arrays
from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.geometry.cameras import Batch


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Nine scenes of five views, 48-pixel crops."""
    folder = tmp_path_factory.mktemp("data")
    scenes = [five_cameras(seed=seed) for seed in range(9)]
    source = prepared.write(folder / "source", scenes[0], others=scenes[1:])
    prepare(Preparation(str(source), size=48), folder / "out")
    return folder / "out"


@pytest.fixture
def config(data) -> DataConfig:
    return DataConfig(path=str(data), size=48, batch_size=4, num_inputs_cycle=(2, 1), num_targets=2)


class Films:
    """Films of the given lengths; red is the film, green the frame."""

    def __init__(self, *lengths: int, holes: dict[int, tuple[int, ...]] | None = None):
        self.lengths, self.holes = lengths, holes or {}

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int):
        frames = self.lengths[index]
        image = np.zeros((frames, 16, 16, 3), np.uint8)
        image[..., 0], image[..., 1] = index, np.arange(frames)[:, None, None]
        c2w = np.tile(np.eye(4), (frames, 1, 1))
        c2w[:, 0, 3] = np.arange(frames)
        scene = scene_of_arrays(str(index), image, c2w, np.tile([16.0, 16, 8, 8], (frames, 1)))
        return dataclasses.replace(scene, holes=self.holes.get(index, ()))


FILMS = DataConfig(
    path="films",
    size=16,
    batch_size=4,
    num_inputs_cycle=(2,),
    num_targets=6,
    max_distance=192,
    mirror=False,
    permute_colours=False,
)


def numbers(batch: Batch, channel: int) -> np.ndarray:
    """What Films wrote into the inputs and targets of a batch, [B, V]."""
    sides = [side.image[..., 0, 0, channel] for side in (batch.inputs, batch.targets)]
    return np.concatenate(sides, axis=1).astype(int)


def assert_equal(a, b) -> None:
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_batches_have_the_documented_arrays(config):
    batch = next(training_batches(config, seed=0))
    assert batch.inputs.image.shape == (4, 2, 48, 48, 3)
    assert batch.targets.image.dtype == np.uint8
    assert batch.targets.c2w.shape == (4, 2, 4, 4)


@pytest.mark.parametrize("count", [2, 4])
def test_processes_share_the_batch_of_one(config, count):
    whole = training_batches(config, seed=3)
    shares = [training_batches(config, seed=3, process=(i, count)) for i in range(count)]
    for _ in range(5):
        parts = [next(share) for share in shares]
        assert_equal(jax.tree.map(lambda *rows: np.concatenate(rows), *parts), next(whole))


def test_workers_and_threads_give_the_same_batches_from_any_position(config):
    batches = training_batches(config, seed=0)
    expected = [next(batches) for _ in range(6)]
    assert batches.get_state() == {"next_index": 6}
    for change in ({"threads": 3}, {"workers": 2}):
        other = training_batches(dataclasses.replace(config, **change), seed=0)
        other.set_state({"next_index": 2})
        for batch in expected[2:]:
            assert_equal(next(other), batch)
        assert other.get_state() == {"next_index": 6}
        other.set_state({"next_index": 5})
        assert_equal(next(other), expected[5])
        other.close()


KILLER = """
import gc, multiprocessing, sys
from grain._src.python.dataset.transformations.process_prefetch import (
    ProcessPrefetchDatasetIterator,
)
from data_pipeline.batches.pipeline import training_batches
from data_pipeline.batches.settings import DataConfig
from efficient_lvsm_jax.commands import main_exit

def main():
    batches = training_batches(
        DataConfig(path=sys.argv[1], size=48, num_inputs_cycle=(2,), num_targets=2, workers=1),
        seed=0,
    )
    next(batches)
    if sys.argv[2] == "with a lock":  # as if the worker held it
        batches._watch._seconds = 1.0
        (of_grain,) = (x for x in gc.get_objects() if type(x) is ProcessPrefetchDatasetIterator)
        of_grain._prefetch_should_stop._cond.acquire()
    for worker in multiprocessing.active_children():
        worker.kill()
    for _ in range(1000):
        next(batches)

if __name__ == "__main__":
    main_exit(main)
"""


@pytest.mark.parametrize(
    ("killed", "message"),
    [
        ("by itself", "Worker process was .* exit code -9"),
        ("with a lock", "ended with exit status -9"),
    ],
)
def test_a_killed_worker_is_one_clear_error(data, tmp_path, killed, message):
    (tmp_path / "killer.py").write_text(KILLER)
    ended = subprocess.run(
        [sys.executable, str(tmp_path / "killer.py"), str(data), killed],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ended.returncode == 2, ended.stderr
    said = rf"error: preparing batch \d+ failed in a worker process: {message}"
    assert re.search(said, ended.stderr)


@pytest.mark.parametrize(
    ("why", "advice"),
    [
        ("[Errno 28] No space left on device", "--shm-size, or use data.workers=0"),
        ("Worker process was terminated unexpectedly with exit code -7. Search", "/dev/shm has "),
        ("ended with exit status -7", "/dev/shm has "),
        ("[Errno 24] Too many open files: '/psm_8916ceef'", "ulimit -n"),
        ("[Errno 30] Read-only file system", "if it is of /dev/shm, where workers hand"),
        ("[Errno 13] Permission denied", "make that writable, or use data.workers=0"),
        ("ended with exit status -9", "if it was killed (out of memory?), use fewer data.workers"),
        ("terminated unexpectedly with exit code -77.", "if it was killed"),
    ],
)
def test_what_to_do_about_a_worker_follows_from_how_it_ended(why, advice):
    assert advice in how_to_go_on(why)


ENTER = ["unshare", "-rm"]
FULL = "mount -t tmpfs -o size=1m tmpfs /dev/shm; head -c 2m /dev/zero >/dev/shm/x 2>/dev/null; "


@pytest.mark.skipif(
    not shutil.which("unshare") or subprocess.run([*ENTER, "true"], capture_output=True).returncode,
    reason="needs a mount namespace of its own",
)
def test_full_shared_memory_is_one_clear_line(data, tmp_path):
    (tmp_path / "reader.py").write_text(READER)
    command = f"{FULL} exec {sys.executable} {tmp_path}/reader.py {data}"
    ended = subprocess.run(
        [*ENTER, "bash", "-c", command], capture_output=True, text=True, timeout=120
    )
    assert ended.returncode == 2, ended.stderr
    said = r"error: preparing batch 0 failed .* No space left on device; /dev/shm has 0 bytes left"
    assert re.match(said, ended.stderr) and ended.stderr.count("\n") == 1


def test_the_watch_over_workers_lets_those_live_that_wait_for_others(config, monkeypatch):
    """Killed workers of one pipeline do not end a process that waits for another."""
    ended = []
    monkeypatch.setattr(os, "_exit", ended.append)
    dying, living = (training_batches(dataclasses.replace(config, workers=1), seed=0) for _ in "ab")
    next(dying)
    for worker in multiprocessing.active_children():
        worker.kill()
    next(living)
    living._watch._seconds = 0.0
    living.set_state({"next_index": 3})  # ends its worker and starts another
    for _ in range(20):
        next(living)
    living._watch._seconds = 0.0
    with living._watched():
        living._watch._closed.wait(1.5)
    living.close()
    assert not ended


READER = """
import sys, time
from data_pipeline.batches.pipeline import training_batches
from data_pipeline.batches.settings import DataConfig
from efficient_lvsm_jax.commands import main_exit

def main():
    batches = training_batches(
        DataConfig(path=sys.argv[1], size=48, num_inputs_cycle=(2,), num_targets=2, workers=2),
        seed=0,
    )
    next(batches), next(batches)  # of either worker
    print("reading", flush=True)
    try:
        time.sleep(60)
    finally:
        batches.close()

if __name__ == "__main__":
    main_exit(main)
"""


@pytest.mark.parametrize("stop", [signal.SIGKILL, signal.SIGINT])
def test_workers_end_with_the_training_that_is_stopped(data, tmp_path, stop):
    (tmp_path / "reader.py").write_text(READER)
    with subprocess.Popen(
        [sys.executable, str(tmp_path / "reader.py"), str(data)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stdout.readline() == "reading\n"
        if stop == signal.SIGKILL:
            process.kill()
        else:
            os.killpg(process.pid, stop)
        # The pipes, which workers have too, end only when all have ended.
        _, said = process.communicate(timeout=30)
    if stop == signal.SIGINT:
        # Python may add that it removed shared memory, of batches grain's workers had ready.
        said = [line for line in said.splitlines() if "resource_tracker" not in line]
        assert process.returncode == 130 and said == ["interrupted"]


@pytest.fixture
def damaged(data, tmp_path) -> Path:
    """A copy of the data in which a record of the first shard is damaged."""
    subprocess.run(["cp", "-r", str(data), str(tmp_path / "copy")], check=True)
    shard = sorted((tmp_path / "copy" / FOLDER).glob("posed*"))[0]
    content = bytearray(shard.read_bytes())
    for position in range(300, 8000, 400):
        content[position] ^= 0xFF
    shard.write_bytes(content)
    return tmp_path / "copy"


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_record_ends_training_with_its_name(config, damaged, workers):
    config = dataclasses.replace(config, path=str(damaged), workers=workers)
    batches = training_batches(config, seed=0)
    with pytest.raises(InputError, match=r"posed_scenes-train.*00000-of.*record \d+: .*damaged"):
        for _ in range(20):
            next(batches)


def test_damaged_scenes_are_replaced_and_counted_when_allowed(config, damaged):
    config = dataclasses.replace(config, path=str(damaged), skip_unreadable=True)
    first, second = (training_batches(config, seed=0) for _ in range(2))
    for _ in range(10):
        assert_equal(next(first), next(second))
    assert first.left_out == second.left_out
    assert first.left_out["unreadable"] > 0 and first.left_out["replaced"] == 0


def test_films_too_short_give_their_place_to_others_and_are_counted():
    dataset = training_dataset(Films(60, 20, 60, 5), FILMS, seed=0)
    batches = [dataset[step] for step in range(20)]
    seen = np.concatenate([numbers(batch, 0)[:, 0] for batch, _ in batches])
    assert set(seen) == {0, 2}
    replaced = np.concatenate([left_out["replaced"] for _, left_out in batches])
    assert replaced.sum() >= 40  # half of all places, and sometimes again


def test_only_short_films_is_an_error_that_says_so():
    with pytest.raises(InputError, match=r"100 too short for 2 inputs and 6 targets"):
        training_dataset(Films(20, 5), FILMS, seed=0)[0]


@pytest.mark.parametrize(
    ("lengths", "change", "advice"),
    [
        (
            (20, 5),
            {},
            r"min_distance to at most 18 and .* above that and 8, .*=5 data\.max_dist.*=19,",
        ),
        ((60,), {"max_distance": 1000, "min_distance": 100}, r"at most 58 and .*=15 .*=59,"),
        ((100,), {"max_distance": 8, "min_distance": 1}, r"longest has 100 .* above that and 8,"),
        ((9, 3), {}, r"has 9 frames, so a window holds at most 7 views: .*max_distance=0$"),
        ((5,), {}, r"at most 3 views: lower data\.num_inputs_cycle or data\.num_targets$"),
    ],
)
def test_films_that_are_all_too_short_are_said_with_windows_that_fit(lengths, change, advice):
    config = dataclasses.replace(FILMS, **change)
    with pytest.raises(InputError, match=rf"none of 100 .* 100 too short for .*{advice}") as raised:
        training_dataset(Films(*lengths), config, seed=0)[0]
    example = re.search(
        r"instance data.min_distance=(\d+) data.max_distance=(\d+)", str(raised.value)
    )
    if example:
        fitting = {"min_distance": int(example[1]), "max_distance": int(example[2])}
        batch, _ = training_dataset(
            Films(*lengths), dataclasses.replace(config, **fitting), seed=0
        )[0]
        assert numbers(batch, 1).max() < max(lengths)


def test_a_scene_with_too_few_views_is_named():
    config = dataclasses.replace(FILMS, max_distance=0)
    with pytest.raises(InputError, match=r"^0: 2 inputs and 6 targets: .* have 7 views"):
        training_dataset(Films(7), config, seed=0)[0]


def test_views_are_drawn_from_windows():
    dataset = training_dataset(Films(100, 90), FILMS, seed=0)
    for step in range(10):
        for row in numbers(dataset[step][0], 1):
            assert len(set(row)) == 8
            assert row[1] - row[0] >= 25 and row[0] < row[2:].min() <= row[2:].max() < row[1]


def test_unreadable_frames_are_never_drawn():
    holes = tuple(range(10, 30))
    dataset = training_dataset(Films(100, holes={0: holes}), FILMS, seed=0)
    drawn = {frame for step in range(20) for frame in numbers(dataset[step][0], 1).ravel()}
    assert len(drawn) > 60 and drawn.isdisjoint(holes)


def test_frames_of_another_size_are_cropped_to_the_square(tmp_path):
    source = prepared.write(tmp_path, five_cameras())
    config = DataConfig(
        path=str(source), size=32, batch_size=1, num_inputs_cycle=(2,), num_targets=2, mirror=False
    )
    batch = next(training_batches(config, seed=0))
    assert batch.inputs.image.shape == (1, 2, 32, 32, 3)
    assert (np.abs(batch.inputs.fxfycxcy[..., 2:] - 16) < 3).all()


def test_a_batch_that_processes_do_not_divide_is_refused(config):
    with pytest.raises(InputError, match="batch_size=4: not divisible by the 3 processes"):
        training_batches(config, seed=0, process=(0, 3))


@pytest.mark.parametrize("source", ["capture", "prepared"])
def test_windows_are_of_the_film_where_names_are_not(tmp_path, source):
    """Frame n shows the colour n, and is named n.png: sorted by name, 10 follows 1."""
    folder, count = tmp_path / "capture", 40
    (folder / "images").mkdir(parents=True)
    frames = []
    for number in range(count):
        image = np.full((32, 32, 3), number, np.uint8)
        Image.fromarray(image).save(folder / f"images/{number}.png")
        c2w = np.eye(4)
        c2w[0, 3] = number
        frames.append({"file_path": f"images/{number}.png", "transform_matrix": c2w.tolist()})
    lens = {"fl_x": 30, "fl_y": 30, "cx": 16, "cy": 16, "w": 32, "h": 32}
    (folder / "transforms.json").write_text(json.dumps(lens | {"frames": frames}))
    scene = open_scenes(folder)[0]
    assert [frame.name for frame in scene.frames[:3]] == [f"images/{x}.png" for x in (0, 1, 10)]
    if source == "prepared":
        prepare(Preparation(str(folder)), tmp_path / "out")
        folder = tmp_path / "out"
        assert open_scenes(folder)[0].film == scene.film != ()
    config = DataConfig(
        path=str(folder),
        size=32,
        batch_size=8,
        num_inputs_cycle=(2,),
        num_targets=3,
        min_distance=6,
        max_distance=9,
        mirror=False,
        permute_colours=False,
    )
    batch = next(training_batches(config, seed=0))
    views = (batch.inputs.image, batch.targets.image)
    shown = np.concatenate([side[:, :, 16, 16, 0] for side in views], 1).astype(int)
    distance = shown[:, 1] - shown[:, 0]
    assert (distance >= 5).all() and (distance <= 10).all()  # JPEG may be a level off
    assert (shown >= shown[:, :1] - 1).all() and (shown <= shown[:, 1:2] + 1).all()
