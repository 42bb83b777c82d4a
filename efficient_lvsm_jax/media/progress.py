"""How far a long job is: in place on a terminal, a line now and then anywhere else.

The time left is that of what is done since the first step, which compiles what the others run.
"""

from __future__ import annotations

import itertools
import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TextIO, TypeVar

from tqdm import tqdm

LINES, SECONDS = 10, 30.0  # of a job: a line each tenth, or after so long

T = TypeVar("T")


class Progress:
    """Counts what is done of a job, on standard error.

    with Progress("scoring", len(scenes), "scenes") as progress:
        for scene in scenes:
            ...
            progress.advance()
    """

    def __init__(
        self,
        what: str,
        total: int,
        unit: str,
        *,
        done: int = 0,
        shown: bool = True,
        file: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        """Starts now.

        Args:
          what: is done, for the line.
          total, unit: how many of what there are; `done` of them are done already.
          shown: whether anything is said.
          file: where, instead of standard error.
          clock: monotonic seconds.
        """
        self._what, self._total, self._unit = what, total, unit
        self._done, self._clock = done, clock
        self._file = file or sys.stderr
        self._first: tuple[int, float] | None = None  # done then, and when: after the first step
        self._said = done, clock()
        self._lines = shown and not is_terminal(self._file)
        self._bar = tqdm(
            total=total,
            initial=done,
            file=self._file,
            bar_format="{desc} |{bar}|",
            dynamic_ncols=True,
            disable=not shown or self._lines,
        )

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def advance(self, count: int = 1) -> None:
        """Counts what was just done."""
        self._done += count
        now = self._clock()
        self._first = self._first or (self._done, now)
        self._bar.set_description_str(self.line(), refresh=False)
        self._bar.update(count)
        said, when = self._said
        tenths = self._done * LINES // self._total - said * LINES // self._total
        if self._lines and (tenths or now - when >= SECONDS):
            print(self.line(), file=self._file, flush=True)
            self._said = self._done, now

    def line(self) -> str:
        """Such as "scoring: 12/48 scenes, 1m02s left"."""
        done = f"{self._what}: {self._done}/{self._total} {self._unit}"
        left = self._seconds_left()
        return done if left is None else f"{done}, {duration(left)} left"

    def _seconds_left(self) -> float | None:
        """None before the second step, and after the last."""
        if self._first is None or not self._first[0] < self._done < self._total:
            return None
        done, when = self._first
        return (self._clock() - when) / (self._done - done) * (self._total - self._done)


def counted(
    items: Iterable[T], what: str, total: int, unit: str, *, shown: bool = True
) -> Iterator[T]:
    """The items, each counted when the next is asked for; arguments as of `Progress`."""
    with Progress(what, total, unit, shown=shown) as progress:
        for item in items:
            yield item
            progress.advance()


def is_terminal(file: TextIO) -> bool:
    """Whether a line can stay in place there; some jobs have a terminal without rows or columns."""
    if not file.isatty():
        return False
    try:
        return 0 not in os.get_terminal_size(file.fileno())
    except OSError:
        return True


def duration(seconds: float) -> str:
    """3d04h, 3h04m, 3m04s or 4s."""
    if not math.isfinite(seconds):
        return "?"
    total = round(seconds)
    units = ((86400, "d"), (3600, "h"), (60, "m"), (1, "s"))
    for (large, name), (small, part) in itertools.pairwise(units):
        if total >= large:
            return f"{total // large}{name}{total % large // small:02d}{part}"
    return f"{total}s"
