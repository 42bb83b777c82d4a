"""Tries to lose a training run, or to make it go on from something that was never written.

    python tests/torture.py --seed 0 --kills 60 --flips 320

Runs of the smallest model are killed (kill -9) at random moments, many while a checkpoint is being
written, ended by signals, given a full disk and a read-only folder; every time they are started
again. Checkpoint files are changed on disk one by one. Prints what was tried and, for each:

    steps lost            beyond the newest committed step, on which the next start should go on
    undetected            changed checkpoints that were taken for good
    mismatching losses    rows of metrics.jsonl that differ, in any bit, from an uninterrupted run's
    other failures        tracebacks, wrong exit statuses, damage that a kill alone made

Exit status 1 unless all are 0. Needs Linux; as root the full disk is a small tmpfs and the folder a
read-only mount, otherwise files may not grow and a file stands where the folder should be.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tortured_run import COMMAND_LINE, KEEP, ROOT, Life

SAVED_WITHIN = 10  # seconds from a signal to the end
KILLED = ("starting", "stepping", "committing")  # when
CHANGES = ("bit", "cut", "zeros", "gone")
COUNTS = ("tried", "lost", "undetected", "mismatching", "failures")
HEADER = ("", "tried", "steps lost", "undetected", "mismatching losses", "other failures")


# What must hold afterwards


@dataclasses.dataclass
class Row:
    """Counts of one kind of torture, see the module."""

    tried: int = 0
    lost: int = 0
    undetected: int = 0
    mismatching: int = 0
    failures: int = 0


class Torture:
    """Runs against one uninterrupted run with the same settings.

    Attributes:
      rows: counts, by what was done.
    """

    def __init__(self, folder: Path, *, steps: int, seed: int, stand_in: bool = False):
        """Trains `steps` steps without interruption; `stand_in`: only as if."""
        self.rows: dict[str, Row] = {}
        self._folder, self._steps, self._stand_in = folder, steps, stand_in
        self._rng = np.random.default_rng(seed)
        self._cache = folder / "cache"
        self._whole = folder / "whole"
        life = self._start(self._whole)
        if life.wait():
            raise SystemExit(f"the uninterrupted run failed:\n{life.said()}")
        self._true_rows = metrics(self._whole)
        if len(self._true_rows) != steps:
            raise SystemExit(f"the uninterrupted run logged {len(self._true_rows)} rows")

    def _start(self, workdir: Path, **limits: int) -> Life:
        return Life(workdir, self._steps, self._cache, stand_in=self._stand_in, **limits)

    def _row(self, name: str) -> Row:
        row = self.rows.setdefault(name, Row())
        row.tried += 1
        return row

    def _fail(self, row: Row, what: str) -> None:
        row.failures += 1
        print(f"failure: {what}", file=sys.stderr)

    def _check(self, row: Row, life: Life, committed: int | None, *, began: bool) -> None:
        """Where a start went on (if it `began`), and every row that is there after it."""
        resumed = life.went_on_from()
        if committed is not None and resumed != committed and (began or resumed is not None):
            row.lost += committed - (resumed or 0)
            print(f"lost: {committed} was committed, went on from {resumed}", file=sys.stderr)
        for step, line in metrics(life.workdir).items():
            if line != self._true_rows.get(step):
                row.mismatching += 1
                print(f"mismatch: {line}, not {self._true_rows.get(step)}", file=sys.stderr)
        if "Traceback" in life.said() or "as it was written" in life.said():
            self._fail(row, life.said()[-3000:])

    def _finish(self, row: Row, workdir: Path) -> None:
        """Lets a run end by itself and compares all of it with the uninterrupted one."""
        committed = newest_step(workdir)
        life = self._start(workdir)
        if life.wait():
            self._fail(row, f"could not go on:\n{life.said()[-3000:]}")
            return
        self._check(row, life, committed, began=True)
        if unfinished(workdir):
            self._fail(row, f"{workdir} still has something unfinished")
        if len(metrics(workdir)) != self._steps or parameters(workdir) != parameters(self._whole):
            self._fail(row, f"{workdir} did not end as the uninterrupted run")

    def end_early(self, *, kills: int, signals: int) -> None:
        """Starts a run again and again, and ends it every time, until all is done."""
        ends = (["SIGTERM", "SIGINT"] * signals)[:signals]
        ends += list(self._rng.choice(KILLED, kills, p=(0.2, 0.3, 0.5)))
        workdir, finished, slowest = self._folder / "ended-0", 0, 0.0
        for end in self._rng.permutation(ends):
            row = self._row(f"kill -9, {end}" if end in KILLED else end)
            if newest_step(workdir) == self._steps:
                finished += 1
                workdir = self._folder / f"ended-{finished}"
            committed = newest_step(workdir)
            life = self._start(workdir)
            running = self._wait_to_end(life, end if end in KILLED else "stepping")
            begun, at = time.monotonic(), max(metrics(workdir), default=0)
            number = signal.SIGKILL if end in KILLED else signal.Signals[end]
            status = life.end(number)
            expected = {-number} if end in KILLED else {128 + number}
            if not running or newest_step(workdir) == self._steps:
                # It was quicker than we: done, or with nothing left to do but exit.
                expected |= {0, -number}
            if status not in expected:
                self._fail(row, f"exit status {status}:\n{life.said()[-3000:]}")
            if end not in KILLED:
                row.lost += max(0, at - (newest_step(workdir) or 0))
                slowest = max(slowest, time.monotonic() - begun)
                if slowest > SAVED_WITHIN:
                    self._fail(row, f"{slowest:.1f} s from signal to end")
            self._check(row, life, committed, began=running and end != "starting")
        print(f"slowest end after a signal: {slowest:.1f} s")
        self._finish(row, workdir)

    def _wait_to_end(self, life: Life, when: str) -> bool:
        """Waits for a random moment of a kind; False if the run ended before."""
        before = list(metrics(life.workdir))
        delay = self._rng.random()
        if when == "starting":
            begun = time.monotonic()
            return life.wait_for(lambda: time.monotonic() > begun + 3 * delay)
        if not life.wait_for(lambda: list(metrics(life.workdir))[len(before) :] != []):
            return False
        if when == "stepping":
            begun = time.monotonic()
            return life.wait_for(lambda: time.monotonic() > begun + delay)
        commit = self._rng.integers(3)  # the first, second or third from here
        for _ in range(commit + 1):
            if not life.wait_for(lambda: not unfinished(life.workdir)):
                return False
            if not life.wait_for(lambda: unfinished(life.workdir)):
                return False
        time.sleep(0.08 * delay)
        return True

    def change(self, count: int) -> None:
        """Changes files of the newest checkpoint; the one before must be found, and be restored."""
        from efficient_lvsm_jax.training.checkpoints import Checkpoints

        workdir = self._folder / "changed"
        shutil.copytree(self._whole, workdir)
        steps = workdir / "checkpoints"
        newest, before = sorted(map(int, os.listdir(steps)), reverse=True)[:2]
        good = {step: parameters_of(workdir, step, self._folder) for step in (newest, before)}
        item = "ema" if (steps / str(newest) / "ema").exists() else "params"
        files = sorted(path for path in (steps / str(newest)).rglob("*") if path.is_file())
        logging.disable(logging.WARNING)
        for _ in range(count):
            path = files[self._rng.integers(len(files))]
            original = path.read_bytes()
            what = change_file(path, self._rng)
            row = self._row(f"file changed: {what}")
            read = path.relative_to(steps / str(newest)).parts[0] in (item, "manifest.json")
            if parameters(workdir) != good[before if read else newest]:
                row.undetected += 1
                print(f"undetected by load: {what} in {path}", file=sys.stderr)
            with Checkpoints(workdir, keep=KEEP) as checkpoints:
                found = checkpoints.latest()
            if found != before:
                row.undetected += 1
                print(f"undetected: {what} in {path}, {found} taken", file=sys.stderr)
            aside = steps / f"{newest}.damaged"
            if not aside.exists():
                self._fail(row, f"{what} in {path}: not set aside")
            else:
                aside.rename(steps / str(newest))
            path.write_bytes(original)
        logging.disable(logging.NOTSET)

    def go_on_after_damage(self) -> None:
        """A run whose newest checkpoint is damaged goes on from the one before, and ends equal."""
        row, workdir = self._row("goes on from before the damage"), self._folder / "damaged"
        life = self._start(workdir)
        if self._wait_to_end(life, "stepping"):
            life.end(signal.SIGTERM)
        newest, before = sorted(committed_steps(workdir), reverse=True)[:2]
        files = (workdir / "checkpoints" / str(newest)).rglob("*")
        largest = max((path for path in files if path.is_file()), key=lambda p: p.stat().st_size)
        change_file(largest, self._rng)
        life = self._start(workdir)
        status = life.wait()
        if status or life.went_on_from() != before or "set aside" not in life.said():
            self._fail(row, f"exit status {status}:\n{life.said()[-3000:]}")
        if metrics(workdir) != self._true_rows:
            row.mismatching += 1
        if parameters(workdir) != parameters(self._whole):
            self._fail(row, "did not end as the uninterrupted run")

        row = self._row("no good checkpoint left")
        for step in committed_steps(workdir):
            change_file(workdir / "checkpoints" / str(step) / "manifest.json", self._rng)
        there = sorted(os.listdir(workdir / "checkpoints"))
        life = self._start(workdir)
        status = life.wait()
        if status != 2 or "no step there is as it was written" not in life.said():
            self._fail(row, f"exit status {status}:\n{life.said()[-3000:]}")
        if sorted(os.listdir(workdir / "checkpoints")) != there:
            self._fail(row, "the checkpoints that were there changed")

    def fill_disk(self) -> None:
        """A run finds the disk full, then none of its folders writable, then all well again."""
        with self._small_disk() as (workdir, full, read_only):
            life = self._start(workdir)
            self._wait_to_end(life, "stepping")
            life.end(signal.SIGTERM)
            for name, condition in (("full disk", full), ("read-only folder", read_only)):
                row, committed = self._row(name), newest_step(workdir)
                with condition() as limits:
                    life = self._start(workdir, **limits)
                    status = life.wait()
                # What was saved before the disk was full counts.
                row.lost += max(0, committed - (newest_step(workdir) or 0))
                errors = re.findall("error: .*", life.said())
                if status != 2 or len(errors) != 1 or "Traceback" in life.said():
                    self._fail(row, f"exit status {status}:\n{life.said()[-3000:]}")
            self._finish(row, workdir)

    @contextlib.contextmanager
    def _small_disk(self) -> Iterator[tuple]:
        """A workdir, and context managers in which it is full, and read-only."""
        folder = self._folder / "disk"
        folder.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", "size=64m", "none", str(folder)]
        mounted = os.geteuid() == 0 and not subprocess.run(mount, capture_output=True).returncode
        workdir = folder / "run"

        def remount(options: str) -> None:
            subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], check=True)

        @contextlib.contextmanager
        def full():
            if mounted:
                used = shutil.disk_usage(folder).used
                one_step = sum(f.stat().st_size for f in (self._whole / "checkpoints").rglob("*"))
                remount(f"size={(used + one_step // 2) // 1024}k")
            yield {} if mounted else {"largest_file": 3000}
            if mounted:
                remount("size=64m")

        @contextlib.contextmanager
        def read_only():
            aside = workdir / "elsewhere"
            if mounted:
                remount("ro")
            else:
                (workdir / "checkpoints").rename(aside)
                (workdir / "checkpoints").touch()
            yield {}
            if mounted:
                remount("rw")
            else:
                (workdir / "checkpoints").unlink()
                aside.rename(workdir / "checkpoints")

        print(f"full disk and read-only folder: {'tmpfs' if mounted else 'limits on files'}")
        try:
            yield workdir, full, read_only
        finally:
            if mounted:
                subprocess.run(["umount", str(folder)], check=True)


def metrics(workdir: Path) -> dict[int, str]:
    """Complete rows of metrics.jsonl as they stand there, by step."""
    path = workdir / "metrics.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return {int(re.match(r'{"step": (\d+)', line)[1]): line for line in lines}


def committed_steps(workdir: Path) -> list[int]:
    """Steps whose folder has its final name."""
    folder = workdir / "checkpoints"
    names = os.listdir(folder) if folder.is_dir() else []
    return [int(name) for name in names if name.isdecimal()]


def newest_step(workdir: Path) -> int | None:
    """The newest of them."""
    return max(committed_steps(workdir), default=None)


def unfinished(workdir: Path) -> bool:
    """Whether a checkpoint is being written, or was when its process died."""
    folder = workdir / "checkpoints"
    return folder.is_dir() and any(".unfinished" in name for name in os.listdir(folder))


def parameters(workdir: Path) -> str:
    """Digest of what rendering would load."""
    from efficient_lvsm_jax.weights.folder import digest
    from efficient_lvsm_jax.weights.load import load

    return digest(load(workdir).params)


def parameters_of(workdir: Path, step: int, scratch: Path) -> str:
    """The same as if `step` were the newest."""
    alone = scratch / f"alone-{step}"
    (alone / "checkpoints").mkdir(parents=True)
    shutil.copy(workdir / "model.json", alone)
    shutil.copytree(workdir / "checkpoints" / str(step), alone / "checkpoints" / str(step))
    return parameters(alone)


def change_file(path: Path, rng: np.random.Generator) -> str:
    """Damages a file at a random place; says how."""
    data = bytearray(path.read_bytes())
    what = CHANGES[rng.choice(len(CHANGES), p=(0.6, 0.2, 0.1, 0.1))] if data else "gone"
    if what == "gone":
        path.unlink()
        return what
    place = int(rng.integers(len(data)))
    if what == "zeros":
        zeroed = data[:place] + bytes(len(data[place : place + 512])) + data[place + 512 :]
        what, data = ("zeros", zeroed) if zeroed != data else ("bit", data)
    if what == "bit":
        data[place] ^= 1 << int(rng.integers(8))
    if what == "cut":
        del data[place:]
    path.write_bytes(data)
    return what


def table(rows: dict[str, Row]) -> str:
    """Markdown, with a line that sums up."""
    everything = Row(*(sum(getattr(row, name) for row in rows.values()) for name in COUNTS))
    lines = [HEADER, ("---",) * len(HEADER)]
    for name, row in {**rows, "all": everything}.items():
        lines.append((name, *(str(getattr(row, count)) for count in COUNTS)))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kills", type=int, default=60, help="kill -9 at random moments")
    parser.add_argument("--flips", type=int, default=320, help="changed checkpoint files")
    parser.add_argument("--signals", type=int, default=8, help="SIGTERM and SIGINT")
    parser.add_argument("--steps", type=int, default=150, help="of the uninterrupted run")
    parser.add_argument("--no-disk", action="store_true", help="leave out disk and damaged resume")
    parser.add_argument("--stand-in", action="store_true", help="no model: seconds, for tests")
    arguments = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    os.environ.update(COMMAND_LINE)
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="torture-") as folder:
        torture = Torture(
            Path(folder),
            steps=arguments.steps,
            seed=arguments.seed,
            stand_in=arguments.stand_in,
        )
        torture.end_early(kills=arguments.kills, signals=arguments.signals)
        torture.change(arguments.flips)
        if not arguments.no_disk:
            torture.go_on_after_damage()
            torture.fill_disk()
    print(table(torture.rows))
    print(f"{time.monotonic() - begun:.0f} s, seed {arguments.seed}")
    bad = [getattr(row, name) for row in torture.rows.values() for name in COUNTS[1:]]
    return int(any(bad))


if __name__ == "__main__":
    sys.exit(main())
