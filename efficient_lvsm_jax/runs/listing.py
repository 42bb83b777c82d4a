"""What the files of training runs say, as a table, curves and a page.

A run is a folder with model.json, at any depth.

States: running; finished; interrupted (stopped by a person or the machine); failed (with the
reason); silent, which says it runs but has given no sign for long: it was killed, or hangs; not
known, of a run without status.json.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.files.writing import read_json
from efficient_lvsm_jax.media.curves import MOST_CURVES, Panel, draw_curves
from efficient_lvsm_jax.media.page import data_uri, write_page
from efficient_lvsm_jax.media.plots import png
from efficient_lvsm_jax.media.progress import duration
from efficient_lvsm_jax.runs.provenance import RUN_FILE, read_starts
from efficient_lvsm_jax.runs.run_log import (
    METRICS_FILE,
    PICTURES_FOLDER,
    SPEED_FILE,
    Status,
    read_status,
    utc,
)
from efficient_lvsm_jax.weights.workdir import MODEL_FILE, STEPS_FOLDER, saved_steps

# Without a sign for so long a run counts as silent: at least this many seconds, and this many times
# the longest silence it had before.
PATIENCE, TIMES = 900.0, 3.0
COLUMNS = (
    "run", "model", "step", "saved", "state", "loss", "PSNR", "held-out", "skipped", "scenes/s",
    "last sign",
)  # fmt: skip
NOTHING = "-"


@dataclasses.dataclass(frozen=True)
class Run:
    """What the files of a run say.

    Attributes:
      name: its path below the folder that was looked through. workdir: its path.
      model: family, layers and width.
      step, steps: done and planned; steps is None where no file says.
      saved: newest step with a checkpoint, from which it would go on; None if there is none.
      state: see the module's docstring.
      seen: when it last gave a sign, seconds since 1970.
      metrics, speed: rows of metrics.jsonl and speed.jsonl.
      made_with: revision and devices of its newest start, "" where no file says.
      remarks: what a person should know: why it failed, damaged files.
    """

    name: str
    workdir: Path
    model: str
    step: int
    steps: int | None
    saved: int | None
    state: str
    seen: float
    metrics: list[dict[str, Any]]
    speed: list[dict[str, Any]]
    made_with: str
    remarks: tuple[str, ...] = ()

    def curve(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Steps and values of a metric, [N] each, where it was logged."""
        pairs = [(row["step"], row[name]) for row in self.metrics if name in row]
        return tuple(np.array(pairs, np.float64).reshape(-1, 2).T)

    def newest(self, name: str) -> float | None:
        """The last value of a metric or rate; None if it was never logged."""
        rows = [row for row in [*self.speed, *self.metrics] if name in row]
        return rows[-1][name] if rows else None

    def picture(self) -> Path | None:
        """The newest picture of held-out scenes."""
        return max((self.workdir / PICTURES_FOLDER).glob("step_*.png"), default=None)


def find_runs(folder: Path, *, now: float) -> list[Run]:
    """The runs in a folder, newest sign first.

    Raises:
      InputError: there is no such folder, or no run in it.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    runs = [read_run(path, _name(path, folder), now=now) for path in _workdirs(folder)]
    if not runs:
        raise InputError(
            f"{folder}: no run in it; train.py writes one to its --workdir, with {MODEL_FILE}"
        )
    return sorted(runs, key=lambda run: -run.seen)


def _workdirs(folder: Path) -> Iterator[Path]:
    for path, below, files in os.walk(folder):
        if MODEL_FILE in files:
            below.clear()
            yield Path(path)
        below[:] = sorted(name for name in below if not name.startswith("."))


def _name(path: Path, folder: Path) -> str:
    below = path.relative_to(folder).as_posix()
    return _printable(folder.resolve().name if below == "." else below)


def read_run(workdir: Path, name: str, *, now: float) -> Run:
    """What the files of a run say; what is wrong with them becomes a remark."""
    remarks: list[str] = []

    def attempt(read, otherwise):
        try:
            return read()
        except InputError as error:
            remarks.append(str(error))
            return otherwise

    status = attempt(lambda: read_status(workdir), None)
    starts = attempt(lambda: read_starts(workdir) if (workdir / RUN_FILE).exists() else [], [])
    start = starts[-1] if starts else {}
    metrics, speed = (_read_rows(workdir / file, remarks) for file in (METRICS_FILE, SPEED_FILE))
    state = state_of(status, now)
    if status and status.reason:
        remarks.insert(0, status.reason)
    if state == "silent":
        remarks.append(f"no sign for {duration(now - status.updated)}: killed, or it hangs")
    saved = next(iter(saved_steps(workdir / STEPS_FOLDER)), None)
    planned = _planned(start) if status is None else status.steps
    return Run(
        name=name,
        workdir=workdir,
        model=attempt(lambda: _describe_model(read_json(workdir / MODEL_FILE)), "?"),
        step=max(
            [status.step if status else 0, saved or 0, *(row["step"] for row in metrics[-1:])]
        ),
        steps=planned,
        saved=saved,
        state=state,
        seen=status.updated if status else _last_written(workdir),
        metrics=metrics,
        speed=speed,
        made_with=_made_with(start),
        remarks=tuple(_printable(remark) for remark in remarks),
    )


def state_of(status: Status | None, now: float) -> str:
    """The state of a run, see the module's docstring."""
    if status is None:
        return "not known"
    patience = max(PATIENCE, TIMES * status.longest_silence)
    if status.state == "running" and now - status.updated > patience:
        return "silent"
    return status.state


def _read_rows(path: Path, remarks: list[str]) -> list[dict[str, Any]]:
    """Rows of numbers; a last line that is being written is left for next time."""
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8", errors="replace")
    whole = text[: text.rfind("\n") + 1]
    rows, damaged = [], 0
    for line in whole.splitlines():
        try:
            row = json.loads(line)
            numbers = {key: float(value) for key, value in row.items() if key != "time"}
            rows.append(numbers | {"step": int(row["step"])})
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError):
            damaged += 1
    if damaged:
        remarks.append(f"{path.name}: {damaged} of its {damaged + len(rows)} rows are damaged")
    return rows


def _describe_model(stored: dict[str, Any]) -> str:
    config = stored.get("config")
    parts = [str(stored.get("family", "?"))]
    if isinstance(config, dict) and {"layers", "width"} <= config.keys():
        parts.append(f"{config['layers']}x{config['width']}")
    return _printable(" ".join(parts))


def _last_written(workdir: Path) -> float:
    files = [workdir / METRICS_FILE, workdir / MODEL_FILE]
    return max(path.stat().st_mtime for path in files if path.exists())


def _planned(start: dict[str, Any]) -> int | None:
    config = start.get("config")
    steps = config.get("steps") if isinstance(config, dict) else None
    return steps if isinstance(steps, int) else None


def _made_with(start: dict[str, Any]) -> str:
    git = start.get("git")
    parts = []
    if isinstance(git, dict) and isinstance(git.get("revision"), str):
        parts.append(git["revision"][:10] + (" and changes" if git.get("dirty") else ""))
    if isinstance(start.get("devices"), dict):
        parts += [f"{number} x {kind}" for kind, number in start["devices"].items()]
    return _printable(", ".join(parts))


def _printable(text: str) -> str:
    """One line without control characters, which a terminal would obey."""
    return "".join(c if c.isprintable() else "?" for c in " ".join(text.split()))


def cells(run: Run, now: float) -> list[str]:
    """A run as COLUMNS."""

    def number(name: str, digits: int) -> str:
        value = run.newest(name)
        return NOTHING if value is None else f"{value:.{digits}f}"

    return [
        run.name,
        run.model,
        f"{run.step:,}/{NOTHING if run.steps is None else format(run.steps, ',')}",
        NOTHING if run.saved is None else f"{run.saved:,}",
        run.state,
        number("loss", 4),
        number("psnr", 2),
        number("heldout/psnr", 2),
        number("skipped", 0),
        number("scenes_per_s", 1),
        f"{duration(max(now - run.seen, 0))} ago",
    ]


def listing(runs: Sequence[Run], now: float) -> str:
    """The runs as a table for a terminal, remarks below the run they are about."""
    body = [cells(run, now) for run in runs]
    widths = [max(map(len, column)) for column in zip(COLUMNS, *body, strict=True)]
    left = {"run", "model", "state"}

    def line(row: Sequence[str]) -> str:
        padded = (
            cell.ljust(width) if title in left else cell.rjust(width)
            for cell, width, title in zip(row, widths, COLUMNS, strict=True)
        )
        return "  ".join(padded).rstrip()

    lines = [line(COLUMNS)]
    for run, row in zip(runs, body, strict=True):
        lines += [line(row), *(f"    {remark}" for remark in run.remarks)]
    return "\n".join(lines)


def draw_runs(runs: Sequence[Run]) -> Figure:
    """Loss and PSNR against the step, of the first MOST_CURVES runs that have logged anything."""
    runs = [run for run in runs if run.metrics]
    shown = runs[:MOST_CURVES]
    notes = ["bold: running mean; pale: as logged"]
    if any(len(run.curve("heldout/psnr")[0]) for run in shown):
        notes[0] += "; dots: held-out scenes"
    if len(runs) > len(shown):
        notes.append(f"the {len(shown)} newest of {len(runs)} runs with something to draw")
    for run in shown:
        values = np.concatenate([run.curve(name)[1] for name in ("loss", "psnr")])
        if not np.isfinite(values).all():
            count = np.count_nonzero(~np.isfinite(values))
            notes.append(f"{run.name}: {count} values that are not finite are left out")
    panels = [
        Panel("loss", {run.name: run.curve("loss") for run in shown}, logarithmic=True),
        Panel(
            "PSNR, dB",
            {run.name: run.curve("psnr") for run in shown},
            {run.name: run.curve("heldout/psnr") for run in shown},
        ),
    ]
    return draw_curves(panels, [run.name for run in shown], notes)


def write_runs_page(path: Path, runs: Sequence[Run], curves: Figure, now: float) -> None:
    """Writes the list, the curves and the newest pictures of runs as one page."""
    about = [(run.name, remark) for run in runs for remark in (*run.remarks, run.made_with)]
    newest = [(run.name, run.picture()) for run in runs[:MOST_CURVES]]
    write_page(
        path,
        "runs/runs.html.j2",
        now=utc(now),
        columns=COLUMNS,
        rows=[cells(run, now) for run in runs],
        about=[row for row in about if row[1]],
        curves=data_uri("image/png", png(curves)),
        pictures=(
            (name, data_uri("image/png", file.read_bytes()), f"held-out scenes, {file.stem}")
            for name, file in newest
            if file is not None
        ),
        most=MOST_CURVES,
    )
