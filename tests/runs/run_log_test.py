import json
import struct
import sys
import types

import numpy as np
import pytest
from PIL import Image
from tensorboardX.proto.event_pb2 import Event

from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.runs import run_log
from efficient_lvsm_jax.runs.run_log import RunLog, Status, picture_path, read_status
from efficient_lvsm_jax.runs.settings import LogConfig

PICTURE = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)


class FakeTime:
    now = 1_800_000_000.0

    def __call__(self):
        return self.now


def open_log(workdir, since=0, *, tensorboard=False, wandb="", **options):
    return RunLog(
        workdir, since, LogConfig(tensorboard=tensorboard, wandb=wandb), steps=8, **options
    )


def rows(workdir, name="metrics.jsonl"):
    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    lines = (workdir / name).read_text().splitlines()
    return [json.loads(line, parse_constant=refuse) for line in lines]


def test_rows_past_the_restored_step_are_dropped_and_written_again(tmp_path):
    with open_log(tmp_path) as log:
        for step in (2, 4, 6):
            log.scalars(step, {"loss": float(step)}, {"step_s": 0.1})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "lo')  # cut off when the run was killed
    with open_log(tmp_path, since=4) as log:
        assert [row["step"] for row in rows(tmp_path)] == [2, 4]
        assert [row["step"] for row in rows(tmp_path, "speed.jsonl")] == [2, 4]
        log.scalars(6, {"loss": 0.5})
    assert rows(tmp_path)[2] == {"step": 6, "loss": 0.5}
    assert not [path for path in tmp_path.rglob("*") if "partial" in path.name]


def test_equal_runs_have_equal_metrics_whatever_time_they_took(tmp_path):
    for name, seconds in (("a", 1.0), ("b", 2.0)):
        (tmp_path / name).mkdir()
        with open_log(tmp_path / name) as log:
            log.scalars(2, {"loss": np.float32(0.1), "skipped": 0}, {"step_s": seconds})
    assert (tmp_path / "a/metrics.jsonl").read_bytes() == (
        tmp_path / "b/metrics.jsonl"
    ).read_bytes()
    assert rows(tmp_path / "a") == [{"step": 2, "loss": float(np.float32(0.1)), "skipped": 0}]


def test_not_a_number_is_valid_json_that_float_reads(tmp_path):
    with open_log(tmp_path) as log:
        log.scalars(
            2, {"loss": np.float32("nan"), "grad_norm": float("-inf")}, {"mfu": float("inf")}
        )
    assert rows(tmp_path) == [{"step": 2, "loss": "nan", "grad_norm": "-inf"}]
    assert np.isnan(float(rows(tmp_path)[0]["loss"]))
    assert rows(tmp_path, "speed.jsonl")[0]["mfu"] == "inf"


def test_pictures_are_kept_and_those_past_the_restored_step_removed(tmp_path):
    with open_log(tmp_path) as log:
        log.picture(2, PICTURE)
        log.picture(4, PICTURE)
    with open_log(tmp_path, since=2):
        assert [path.name for path in (tmp_path / "pictures").iterdir()] == ["step_00000002.png"]
    np.testing.assert_array_equal(np.asarray(Image.open(picture_path(tmp_path, 2))), PICTURE)


@pytest.mark.parametrize(
    ("step", "error", "state", "reason"),
    [
        (8, None, "finished", ""),
        (6, None, "interrupted", ""),
        (6, KeyboardInterrupt(), "interrupted", ""),
        (6, SystemExit(75), "interrupted", ""),
        (6, ValueError("the loss is gone\nmore"), "failed", "the loss is gone"),
    ],
)
def test_the_status_says_how_the_run_ended(tmp_path, step, error, state, reason):
    def run():
        with open_log(tmp_path) as log:
            assert read_status(tmp_path).state == "running"
            log.flush(step)
            if error:
                raise error

    if error:
        with pytest.raises(type(error)):
            run()
    else:
        run()
    status = read_status(tmp_path)
    assert (status.state, status.step, status.steps, status.reason) == (state, step, 8, reason)


def test_signs_of_life_are_written_while_running(tmp_path):
    time = FakeTime()
    with open_log(tmp_path, clock=time) as log:
        time.now += 60
        log.scalars(2, {"loss": 1.0})
        time.now += 1
        log.scalars(3, {"loss": 1.0})  # so soon after the last one it is not written
        assert read_status(tmp_path) == Status(
            "running", 2, 8, FakeTime.now, FakeTime.now + 60, 60.0, ""
        )


@pytest.mark.parametrize("content", ["{", "[]", '{"state": "running"}', '{"state": 3}'])
def test_a_damaged_status_is_named(tmp_path, content):
    (tmp_path / "status.json").write_text(content)
    with pytest.raises(InputError, match=r"status\.json"):
        read_status(tmp_path)


def test_processes_but_the_first_write_nothing(tmp_path):
    with open_log(tmp_path, process=1, tensorboard=True, wandb="project") as log:
        log.scalars(2, {"loss": 1.0})
        log.picture(2, PICTURE)
        log.flush(2)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_one_message_that_says_what_to_do(tmp_path):
    with pytest.raises(InputError, match=r"cannot be written .*newest checkpoint"):
        with open_log(tmp_path) as log:
            log._metrics.close()
            log._metrics = open("/dev/full", "w")
            log.scalars(2, {"loss": 1.0})


# --- TensorBoard ---------------------------------------------------------------------------------


def events(workdir):
    """The events of all files, in the order TensorBoard reads them: by name."""
    for path in sorted((workdir / "tensorboard").iterdir()):
        content = path.read_bytes()
        while content:
            (length,) = struct.unpack("<Q", content[:8])
            yield Event.FromString(content[12 : 12 + length])
            content = content[16 + length :]


def shown(workdir):
    """(step, tag, value) as TensorBoard keeps them: a start makes it forget from its step on."""
    kept = []
    for event in events(workdir):
        if event.HasField("session_log"):
            kept = [row for row in kept if row[0] < event.step]
        for value in event.summary.value:
            kept.append((event.step, value.tag, value))
    return kept


def test_tensorboard_has_every_step_once_after_resuming(tmp_path):
    for since, steps in ((0, (2, 4, 6)), (4, (6, 8))):
        with open_log(tmp_path, since, tensorboard=True) as log:
            for step in steps:
                log.scalars(step, {"loss": step / 8}, {"step_s": 0.1})
    losses = [(step, row.simple_value) for step, tag, row in shown(tmp_path) if tag == "train/loss"]
    assert losses == [(2, 0.25), (4, 0.5), (6, 0.75), (8, 1.0)]
    assert {tag for _, tag, _ in shown(tmp_path)} == {"train/loss", "speed/step_s"}


def test_tensorboard_has_the_pictures(tmp_path):
    with open_log(tmp_path, tensorboard=True) as log:
        log.picture(2, PICTURE)
    ((_, _, row),) = shown(tmp_path)
    assert (row.image.height, row.image.width) == PICTURE.shape[:2]
    assert row.image.encoded_image_string == picture_path(tmp_path, 2).read_bytes()


# --- Weights & Biases ----------------------------------------------------------------------------


def test_a_missing_wandb_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(InputError, match=r"log\.wandb='rooms'.*\[wandb\]"):
        open_log(tmp_path, wandb="rooms")


def test_wandb_goes_on_with_the_same_run(tmp_path, monkeypatch):
    calls = []

    def init(**options):
        calls.append(options)
        return types.SimpleNamespace(
            log=lambda values, step: calls.append((step, values)),
            finish=lambda exit_code: calls.append(exit_code),
        )

    library = types.SimpleNamespace(init=init, Error=RuntimeError, Settings=dict, Image=np.shape)
    monkeypatch.setitem(sys.modules, "wandb", library)
    for since in (0, 2):
        with open_log(tmp_path, since, wandb="rooms", config={"seed": 0}) as log:
            log.scalars(since + 2, {"loss": 1.0})
            log.picture(since + 2, PICTURE)
    first, second = calls[0], calls[4]
    assert first["id"] == second["id"] and first["resume"] == "allow"
    assert first["project"] == "rooms" and first["config"] == {"seed": 0}
    assert calls[1:4] == [(2, {"train/loss": 1.0}), (2, {"heldout/scenes": PICTURE.shape}), 0]


def test_wandb_is_not_imported_unless_asked_for(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with open_log(tmp_path):
        pass
    assert not (tmp_path / run_log.WANDB_FILE).exists()
