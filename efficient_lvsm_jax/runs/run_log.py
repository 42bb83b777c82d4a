"""What a training run writes while it trains, so that a person can see how it is doing.

    WORKDIR/metrics.jsonl    what training computed, a row per logged step
    WORKDIR/speed.jsonl      what the machine took for it, a row per logged step
    WORKDIR/status.json      whether it runs, how far it is, when it last gave a sign
    WORKDIR/pictures/        step_00001000.png: held-out scenes as predicted at that step
    WORKDIR/tensorboard/     the same for TensorBoard

Two equal runs, or one interrupted and resumed, have equal metrics.jsonl; times are in speed.jsonl,
which no two runs share. JSON has no NaN and no infinity: they are the strings "nan", "inf" and
"-inf" there, which Python's float() reads.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import io
import json
import logging
import os
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

import jax
import numpy as np
from PIL import Image

from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.files.writing import json_safe, read_json, write_json, written_whole
from efficient_lvsm_jax.runs.settings import LogConfig

METRICS_FILE, SPEED_FILE, STATUS_FILE = "metrics.jsonl", "speed.jsonl", "status.json"
PICTURES_FOLDER, TENSORBOARD_FOLDER = "pictures", "tensorboard"
WANDB_FILE = "wandb_run.json"
STATES = ("running", "finished", "interrupted", "failed")
SIGN_EVERY = 10.0  # seconds at least between two writes of status.json

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Status:
    """What status.json says.

    Attributes:
      state: "running" until the run ends by itself: "finished" (all steps done), "interrupted"
        (stopped by a person or the machine), or "failed". A killed run stays "running".
      step, steps: done and planned.
      started, updated: of this start, and of the last sign of life; seconds since 1970.
      longest_silence: between two signs so far, seconds; compiling counts.
      reason: why it failed, else "".
    """

    state: str
    step: int
    steps: int
    started: float
    updated: float
    longest_silence: float = 0.0
    reason: str = ""


def read_status(workdir: Path) -> Status | None:
    """The status of a run; None if it has none.

    Raises:
      InputError: status.json is damaged.
    """
    path = workdir / STATUS_FILE
    if not path.exists():
        return None
    stored = read_json(path)
    kinds = {"int": int, "float": (int, float), "str": str}
    for field in dataclasses.fields(Status):
        if not isinstance(stored.get(field.name), kinds[field.type]):
            raise InputError(f"{path}: damaged: {field.name} is {stored.get(field.name)!r}")
    if set(stored) != {field.name for field in dataclasses.fields(Status)}:
        raise InputError(f"{path}: of another version of this program")
    if stored["state"] not in STATES:
        raise InputError(f"{path}: state is {stored['state']!r}, not one of {', '.join(STATES)}")
    return Status(**stored)


class RunLog:
    """Writes everything above, in process 0 alone; in other processes its methods do nothing.

    A context manager: leaving it says in status.json how the run ended. Leave it only after the
    last checkpoint is on disk, or a run that lost it says "finished".
    """

    def __init__(
        self,
        workdir: Path,
        since_step: int,
        settings: LogConfig,
        *,
        steps: int,
        config: Mapping[str, Any] | None = None,
        process: int | None = None,
        clock: Callable[[], float] = time.time,
    ):
        """Opens the files. What an interrupted run wrote past `since_step` is dropped.

        Rows past it are removed (written beside and renamed). TensorBoard is told to forget events
        past it. Weights & Biases keeps the first value of a step that comes twice; a resumed run
        repeats its numbers, so that is the same value.

        Args:
          workdir: exists.
          since_step: where training starts or goes on.
          settings: where to write besides. The library of Weights & Biases sends what is logged,
            the settings, the list of packages and what it gathers about the machine (its name
            among it); code and git state are switched off.
          steps: planned in all.
          config: settings to show there.
          process: index of this process; None asks JAX.
          clock: seconds since 1970.

        Raises:
          InputError: nothing can be written there, or wandb is not installed or refuses.
        """
        self._workdir, self._steps, self._clock = workdir, steps, clock
        self._writes = (jax.process_index() if process is None else process) == 0
        self.step = since_step
        self._started = self._last_sign = self._last_write = clock()
        self._longest_silence = 0.0
        self._events: _Events | None = None
        self._wandb: _WeightsAndBiases | None = None
        if not self._writes:
            return
        if settings.wandb:
            self._wandb = _WeightsAndBiases(settings.wandb, workdir, config)
        with _reporting_writes(workdir):
            self._metrics = open_rows(workdir / METRICS_FILE, since_step)
            self._speed = open_rows(workdir / SPEED_FILE, since_step)
            for path in (workdir / PICTURES_FOLDER).glob("step_*.png"):
                if path.stem[5:].isdecimal() and int(path.stem[5:]) > since_step:
                    path.unlink()
            if settings.tensorboard:
                self._events = _Events(workdir / TENSORBOARD_FOLDER, since_step)
            self._write_status("running")

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, _: object) -> None:
        if not self._writes:
            return
        reason = ""
        if error is None:
            state = "finished" if self.step >= self._steps else "interrupted"
        elif isinstance(error, (KeyboardInterrupt, SystemExit)):
            state = "interrupted"
        else:
            state = "failed"
            reason = (str(error).splitlines() or [""])[0][:300] or kind.__name__
        try:
            with _reporting_writes(self._workdir):
                self._write_status(state, reason)
                self._metrics.close()
                self._speed.close()
                if self._events:
                    self._events.close()
        except InputError as second:
            if error is None:
                raise
            log.warning("%s", second)  # the first error says more
        if self._wandb:
            self._wandb.close(failed=state == "failed")

    def scalars(
        self,
        step: int,
        values: Mapping[str, Any],
        measured: Mapping[str, float] | None = None,
    ) -> None:
        """A row of numbers that training computed, and one of what it took.

        Args:
          step: after which they hold.
          values: name to number; arrays of one element become floats, which waits for them.
          measured: times and rates, which differ between equal runs.

        Raises:
          InputError: the disk is full.
        """
        self.step = step
        if not self._writes:
            return
        row = {n: v if isinstance(v, int) else float(v) for n, v in values.items()}
        tagged = {name if "/" in name else f"train/{name}": value for name, value in row.items()}
        now = self._clock()
        with _reporting_writes(self._workdir):
            _append(self._metrics, {"step": step} | row)
            if measured:
                _append(self._speed, {"step": step, "time": utc(now)} | dict(measured))
                tagged |= {f"speed/{name}": value for name, value in measured.items()}
            if self._events:
                self._events.scalars(step, tagged, now)
            self._sign(now)
        if self._wandb:
            self._wandb.log(step, tagged)

    def picture(self, step: int, picture: np.ndarray) -> None:
        """Keeps a picture of how far the model is, uint8 [Y, X, 3].

        Raises:
          InputError: the disk is full.
        """
        self.step = step
        if not self._writes:
            return
        encoded = io.BytesIO()
        Image.fromarray(picture).save(encoded, "PNG")
        path = picture_path(self._workdir, step)
        with _reporting_writes(self._workdir):
            path.parent.mkdir(exist_ok=True)
            with written_whole(path) as partial:
                partial.write_bytes(encoded.getvalue())
            if self._events:
                self._events.picture(step, picture.shape, encoded.getvalue(), self._clock())
            self._sign(self._clock())
        if self._wandb:
            self._wandb.picture(step, picture)

    def flush(self, step: int) -> None:
        """Puts all rows on disk; to be called before the checkpoint of `step` is written.

        Otherwise a machine that goes down could come back with a checkpoint and without the rows
        before it.
        """
        self.step = step
        if not self._writes:
            return
        with _reporting_writes(self._workdir):
            for file in (self._metrics, self._speed):
                file.flush()
                os.fsync(file.fileno())
            self._sign(self._clock())

    def _sign(self, now: float) -> None:
        """Notes a sign of life, and writes it down unless that was done a moment ago."""
        self._longest_silence = max(self._longest_silence, now - self._last_sign)
        self._last_sign = now
        if now - self._last_write >= SIGN_EVERY:
            self._write_status("running")

    def _write_status(self, state: str, reason: str = "") -> None:
        self._last_write = now = self._clock()
        status = Status(
            state,
            self.step,
            self._steps,
            round(self._started, 3),
            round(now, 3),
            round(self._longest_silence, 3),
            reason,
        )
        write_json(self._workdir / STATUS_FILE, dataclasses.asdict(status))


def picture_path(workdir: Path, step: int) -> Path:
    """Where the picture of a step is kept."""
    return workdir / PICTURES_FOLDER / f"step_{step:08d}.png"


def utc(seconds: float) -> str:
    """Seconds since 1970 as 2026-01-31T12:00:00+00:00."""
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).isoformat(timespec="seconds")


def open_rows(path: Path, since: int) -> TextIO:
    """A file of JSON rows to append to, without those an interrupted run wrote past step `since`.

    A row cut off in the middle is dropped as well.
    """
    if path.exists():
        lines = path.read_text(encoding="utf-8").splitlines()
        kept = [line for line in lines if _step_of(line) <= since]
        with written_whole(path) as partial:
            partial.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
    return path.open("a", encoding="utf-8")


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")


def _append(file: TextIO, row: Mapping[str, Any]) -> None:
    file.write(json.dumps(json_safe(row), allow_nan=False) + "\n")
    file.flush()  # for whoever looks on


@contextlib.contextmanager
def _reporting_writes(workdir: Path) -> Iterator[None]:
    """Turns a failed write into an InputError that names the file."""
    try:
        yield
    except OSError as error:
        raise InputError(
            f"{error.filename or workdir}: cannot be written ({error.strerror or error}); free "
            "space or mend permissions, and start again: training goes on from its newest "
            "checkpoint"
        ) from error


class _Events:
    """An event file of TensorBoard.

    tensorboardX encodes; its `SummaryWriter` is not used: it writes from a thread of its own, and
    when that dies of a full disk the program waits for it forever.
    """

    def __init__(self, folder: Path, since: int):
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto import event_pb2, summary_pb2

        self._proto, self._summary = event_pb2, summary_pb2
        folder.mkdir(exist_ok=True)
        self._writer = EventsWriter(str(folder / "events"), f".{since:08d}")
        # A start at this step makes TensorBoard forget what earlier files have from it on.
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._write(event_pb2.Event(wall_time=time.time(), step=since + 1, session_log=start))

    def scalars(self, step: int, values: Mapping[str, float], now: float) -> None:
        value = self._summary.Summary.Value
        summary = [value(tag=tag, simple_value=float(number)) for tag, number in values.items()]
        self._write_summary(step, summary, now)

    def picture(self, step: int, shape: tuple[int, ...], png: bytes, now: float) -> None:
        height, width, channels = shape
        image = self._summary.Summary.Image(
            height=height, width=width, colorspace=channels, encoded_image_string=png
        )
        value = self._summary.Summary.Value(tag="heldout/scenes", image=image)
        self._write_summary(step, [value], now)

    def _write_summary(self, step: int, values: list, now: float) -> None:
        summary = self._summary.Summary(value=values)
        self._write(self._proto.Event(wall_time=now, step=step, summary=summary))

    def _write(self, event: Any) -> None:
        self._writer.write_event(event)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class _WeightsAndBiases:
    """The same run of a project whenever training goes on."""

    def __init__(self, project: str, workdir: Path, config: Mapping[str, Any] | None):
        try:
            import wandb
        except ImportError as error:
            raise InputError(
                f"log.wandb={project!r}: Weights & Biases is not installed; "
                "pip install -e '.[wandb]', or leave log.wandb empty"
            ) from error
        path = workdir / WANDB_FILE
        if not path.exists():
            write_json(path, {"id": uuid.uuid4().hex[:12]})
        self._library = wandb
        try:
            self._run = wandb.init(
                project=project,
                id=str(read_json(path).get("id")),
                name=workdir.name,
                dir=str(workdir),
                resume="allow",
                config=dict(config or {}),
                settings=wandb.Settings(save_code=False, disable_git=True, console="off"),
            )
        except wandb.Error as error:
            raise InputError(f"log.wandb={project!r}: {error}; see `wandb login`") from error

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def picture(self, step: int, picture: np.ndarray) -> None:
        self._run.log({"heldout/scenes": self._library.Image(picture)}, step=step)

    def close(self, *, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))
