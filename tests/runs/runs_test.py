import base64
import contextlib
import dataclasses
import io
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from PIL import Image

import efficient_lvsm_jax
from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.files.writing import write_json
from efficient_lvsm_jax.media.curves import Panel, draw_curves
from efficient_lvsm_jax.media.plots import COLOURS, png
from efficient_lvsm_jax.models.efficient_lvsm import EfficientLVSMConfig
from efficient_lvsm_jax.runs.listing import draw_runs, find_runs, listing, read_run, state_of
from efficient_lvsm_jax.runs.provenance import record_start
from efficient_lvsm_jax.runs.run_log import RunLog, Status
from efficient_lvsm_jax.runs.settings import LogConfig
from efficient_lvsm_jax.weights.workdir import claim_workdir

ROOT = Path(efficient_lvsm_jax.__file__).parents[1]
NOW = 1_800_000_000.0
RUNNING = Status("running", 40, 100, NOW - 600, NOW - 10, 60.0)


def make_run(workdir, *, steps=8, until=8, error=None):
    """A run as train.py would leave it."""
    claim_workdir(workdir, "efficient_lvsm", EfficientLVSMConfig(width=64, head_dim=16, layers=3))
    record_start(workdir, {"steps": steps}, step=0, arguments=["train.py"])
    with (
        contextlib.suppress(type(error)) if error else contextlib.nullcontext(),
        RunLog(workdir, 0, LogConfig(tensorboard=False), steps=steps) as log,
    ):
        for step in range(2, until + 1, 2):
            values = {"loss": 0.5 / step, "psnr": 20.0 + step, "skipped": 1}
            log.scalars(step, values, {"scenes_per_s": 30.0})
        log.scalars(until, {"heldout/psnr": 21.5})
        log.picture(until, np.full((8, 8, 3), 200, np.uint8))
        if error:
            raise error


@pytest.fixture
def runs_folder(tmp_path):
    make_run(tmp_path / "done")
    make_run(tmp_path / "sweep" / "stopped", until=6, error=KeyboardInterrupt())
    make_run(tmp_path / "sweep" / "broken", until=4, error=ValueError("3 updates skipped in a row"))
    return tmp_path


def test_every_run_is_found_with_its_state(runs_folder):
    found = {run.name: run for run in find_runs(runs_folder, now=NOW)}
    assert {name: (run.state, run.step, run.steps) for name, run in found.items()} == {
        "done": ("finished", 8, 8),
        "sweep/stopped": ("interrupted", 6, 8),
        "sweep/broken": ("failed", 4, 8),
    }
    assert found["sweep/broken"].remarks == ("3 updates skipped in a row",)
    assert found["done"].model == "efficient_lvsm 3x64"
    assert "cpu" in found["done"].made_with


def test_a_run_is_found_when_it_is_named_itself(runs_folder):
    (run,) = find_runs(runs_folder / "done", now=NOW)
    assert run.name == "done"


@pytest.mark.parametrize(
    ("status", "state"),
    [
        (None, "not known"),
        (RUNNING, "running"),
        (dataclasses.replace(RUNNING, updated=NOW - 3600), "silent"),
        # A run that once was silent for as long, when compiling, may be so again.
        (dataclasses.replace(RUNNING, updated=NOW - 3600, longest_silence=1800), "running"),
        (dataclasses.replace(RUNNING, state="finished", updated=0), "finished"),
    ],
)
def test_the_state_follows_from_status_and_time(status, state):
    assert state_of(status, NOW) == state


def test_a_killed_run_is_silent_and_says_since_when(tmp_path):
    make_run(tmp_path / "killed")
    write_json(
        tmp_path / "killed/status.json",
        dataclasses.asdict(dataclasses.replace(RUNNING, updated=NOW - 7200)),
    )
    (run,) = find_runs(tmp_path, now=NOW)
    assert run.remarks == ("no sign for 2h00m: killed, or it hangs",)


def test_saved_is_the_newest_finished_checkpoint(tmp_path):
    make_run(tmp_path)
    for name in ("4", "6", "8.unfinished"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    assert read_run(tmp_path, "run", now=NOW).saved == 6


def test_damaged_files_of_a_run_are_remarks_and_hide_no_other_run(runs_folder):
    (runs_folder / "done/status.json").write_text("{")
    with (runs_folder / "done/metrics.jsonl").open("a") as file:
        file.write('{"step": 9, "loss"\n[]\n{"step": 10, "loss": 0.1}\n{"step": 11, "lo')
    found = {run.name: run for run in find_runs(runs_folder, now=NOW)}
    assert len(found) == 3 and found["done"].state == "not known"
    assert found["done"].newest("loss") == 0.1
    status, rows = found["done"].remarks
    assert "status.json" in status
    assert rows == "metrics.jsonl: 2 of its 8 rows are damaged"


@pytest.mark.parametrize("start", [{}, {"config": 3}, {"config": {"steps": "8"}, "git": 3}])
def test_a_record_of_the_start_with_other_contents_is_passed_over(tmp_path, start):
    make_run(tmp_path)
    (tmp_path / "status.json").unlink()
    (tmp_path / "run.json").write_text(json.dumps({"starts": [start]}))
    run = read_run(tmp_path, "run", now=NOW)
    assert (run.steps, run.made_with) == (None, "")
    assert "8/-" in listing([run], NOW)


def test_the_listing_has_a_line_per_run_and_its_last_numbers(runs_folder):
    runs = find_runs(runs_folder, now=NOW)
    lines = listing(runs, NOW).splitlines()
    assert len(lines) == 1 + 3 + 1  # the heading, the runs, why one failed
    (done,) = (line for line in lines if line.startswith("done"))
    words = "done efficient_lvsm 3x64 8/8 - finished 0.0625 28.00 21.50 1 30.0"
    assert done.split()[:11] == words.split()


def test_names_and_reasons_cannot_command_a_terminal(tmp_path):
    make_run(tmp_path / "a\x1b[2J", until=4, error=ValueError("b\x1b[31m"))
    text = listing(find_runs(tmp_path, now=NOW), NOW)
    assert "\x1b" not in text and "a?[2J" in text and "b?[31m" in text


def test_a_folder_without_runs_is_refused(tmp_path):
    with pytest.raises(InputError, match="no run in it"):
        find_runs(tmp_path, now=NOW)
    with pytest.raises(InputError, match="no such folder"):
        find_runs(tmp_path / "nowhere", now=NOW)


def drawn(figure):
    """Which of COLOURS a figure has, give or take what smoothing changes."""
    pixels = np.asarray(Image.open(io.BytesIO(png(figure))).convert("RGB"), int).reshape(-1, 1, 3)
    colours = 255 * np.array([to_rgb(colour) for colour in COLOURS])
    return (np.abs(pixels - colours).max(-1) < 16).any(axis=0).tolist()


def test_every_run_with_rows_is_drawn_in_a_colour_of_its_own(runs_folder):
    (runs_folder / "done/metrics.jsonl").unlink()
    assert drawn(draw_runs(find_runs(runs_folder, now=NOW)))[:4] == [True, True, False, False]


def test_values_that_are_not_finite_are_left_out_of_curves():
    steps, values = np.arange(1.0, 5), np.array([1.0, np.nan, np.inf, 2.0])
    with_gaps = draw_curves([Panel("loss", {"a": (steps, values)}, logarithmic=True)], ["a"], [])
    without = Panel("loss", {"a": (steps[[0, 3]], values[[0, 3]])}, logarithmic=True)
    assert png(with_gaps) == png(draw_curves([without], ["a"], []))


@pytest.mark.parametrize("values", [[], [0.5], [0.5, 0.5], [np.nan], [0.0], [1e-30, 1e30]])
@pytest.mark.parametrize("logarithmic", [False, True])
def test_curves_of_any_values_can_be_drawn(values, logarithmic):
    curve = (np.arange(1.0, len(values) + 1), np.array(values))
    panel = Panel("loss", {"a": curve}, {"a": curve}, logarithmic=logarithmic)
    assert png(draw_curves([panel], ["a"], []))


def test_names_are_drawn_as_they_are():
    curve = (np.arange(3.0), np.ones(3))
    names = ["_hidden", "$\\frac$", "a\\b"]
    figure = draw_curves([Panel("loss", dict.fromkeys(names, curve))], names, ["$note"])
    assert png(figure)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [*names, "$note"]


def test_the_command_lists_draws_and_writes_a_page(runs_folder):
    done = subprocess.run(
        [sys.executable, "-m", "efficient_lvsm_jax.runs", runs_folder],
        cwd=ROOT, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-2:] == [
        str(runs_folder / "runs.png"),
        str(runs_folder / "runs.html"),
    ]
    page = (runs_folder / "runs.html").read_text()
    assert page.count('<td data-title="held-out">') == len(find_runs(runs_folder, now=NOW))
    pictures = re.findall(r'src="data:image/png;base64,([^"]*)"', page)
    assert len(pictures) == 1 + 3  # the curves and a sheet of each
    assert base64.b64decode(pictures[0])[:4] == b"\x89PNG"
    assert "3 updates skipped in a row" in page
    assert json.loads((runs_folder / "done/status.json").read_text())["state"] == "finished"
