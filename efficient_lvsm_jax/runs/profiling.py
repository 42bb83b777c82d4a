"""Traces of where the time goes, for xprof: `--profile DIR` of train.py and eval.py.

    with traced("profile/"):
        jax.block_until_ready(model.decode(memory, cameras))

A trace has every operation on every device with the line of code it comes from, memory, and the
program as compiled. It lies in DIR/plugins/profile/TIME/; a folder may hold many.
"""

from __future__ import annotations

import contextlib
import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import jax

from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.parallel.processes import say

log = logging.getLogger(__name__)

STEPS = 3  # traced, or more where a run needs more to show each of its programs


@contextlib.contextmanager
def traced(folder: str | Path) -> Iterator[None]:
    """Traces what is computed inside, and says how to look at it.

    Compile before, or the trace is of the compiler; wait for the results inside, or it ends first.

    Args:
      folder: may exist; traces are added.

    Raises:
      InputError: it cannot be written to.
    """
    folder = _writable(folder)
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0  # every Python call would slow down what is measured
    with jax.profiler.trace(folder, profiler_options=options):
        yield
    say(f"trace in {folder}: pip install xprof; xprof --logdir {folder}")


class StepTrace:
    """Traces a few steps of a run after those that compile. A context manager, around the loop."""

    def __init__(
        self, folder: str | Path | None, name: str, *, warm_up: int, total: int, steps: int = STEPS
    ):
        """Checks that there is something to trace.

        Args:
          folder: as `traced`; None traces nothing.
          name: what xprof calls a step.
          warm_up: steps of this run that come before.
          total: steps that this run will take.
          steps: to trace, or as many of them as there are.

        Raises:
          InputError: `folder` cannot be written to, or the run ends before the trace would begin.
        """
        self._folder, self._name = folder, name
        self._first, self._end, self._begun = warm_up, warm_up + steps, 0
        self._trace, self._step = contextlib.ExitStack(), contextlib.ExitStack()
        if folder is None:
            return
        _writable(folder)
        if total <= warm_up:
            raise InputError(
                f"--profile {folder}: the trace begins after the first steps ({name}), which "
                f"compile: {warm_up} of them, and this run has {max(total, 0)} left to do"
            )

    def begin(self, step: int, *, after: Any = None) -> None:
        """Says that `step` begins, and that the one before it is computed once `after` is."""
        if self._folder is None:
            return
        self._step.close()
        if self._begun in (self._first, self._end):
            jax.block_until_ready(after)  # neither what came before nor half of the last step
        if self._begun == self._first:
            self._trace.enter_context(traced(self._folder))
        if self._begun == self._end:
            self._trace.close()
        elif self._begun >= self._first:
            annotation = jax.profiler.StepTraceAnnotation(self._name, step_num=step)
            self._step.enter_context(annotation)
        self._begun += 1

    def __enter__(self) -> StepTrace:
        return self

    def __exit__(
        self, kind: type | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._step.close()
        self._trace.close()
        if self._folder is not None and self._begun <= self._first and error is None:
            log.warning("--profile %s: ended before the trace began", self._folder)


def _writable(folder: str | Path) -> Path:
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(
            f"--profile {folder}: it cannot be written to ({error.strerror}); name another"
        ) from error
    return folder
