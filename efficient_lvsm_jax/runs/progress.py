"""How fast training goes, and the line that says so.

Computing is asynchronous: the program hands step after step to the device and runs ahead of it. To
time a single step one would have to wait for it, and the device would idle meanwhile. So steps are
timed together: from one moment at which everything handed over is finished (the metrics of the
newest step have been read) to the next, divided by their number.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TextIO

import jax
from tqdm import tqdm

from efficient_lvsm_jax.cost.chips import PEAK_FLOPS
from efficient_lvsm_jax.media.progress import duration, is_terminal

WIDTH = 100  # columns of the line
REMEMBERED = 10  # readings the remaining time is judged by


def peak_flops(device_kind: str | None = None) -> float | None:
    """Peak bfloat16 FLOP/s of all devices of this run together; None if it is not known.

    device_kind: of one device; by default what JAX computes on, times their number.
    """
    if device_kind is not None:
        return PEAK_FLOPS.get(device_kind)
    peak = PEAK_FLOPS.get(jax.devices()[0].device_kind)
    return peak and peak * jax.device_count()


@dataclasses.dataclass(frozen=True)
class Reading:
    """The steps between two readings of a `StepClock`, in seconds.

    Attributes:
      steps: how many.
      step_s: per step, without what was waited for apart (checkpoints, pictures).
      data_s: per step, for which the program waited for a batch; a part of step_s. The device may
        have been busy meanwhile, so it is the most that faster data could save.
      checkpoint_s, pictures_s: in all of these steps together.
      scenes_per_s, images_per_s: of all processes; images are inputs and targets. While computing,
        as step_s.
      mfu: model FLOPs over the devices' peak in the same time; None if either is unknown.
      remaining_s: until the last step at the pace of the last readings, everything included but
        steps that compiled; None before there is another.
    """

    steps: int
    step_s: float
    data_s: float
    checkpoint_s: float
    pictures_s: float
    scenes_per_s: float
    images_per_s: float
    mfu: float | None
    remaining_s: float | None

    @property
    def data_share(self) -> float:
        """Of the step time."""
        return self.data_s / self.step_s if self.step_s else 0.0

    def numbers(self) -> dict[str, float]:
        """For the log; mfu only where it is known."""
        values = dataclasses.asdict(self) | {"data_share": self.data_share}
        return {name: value for name, value in values.items() if value is not None}


class StepClock:
    """Times steps, and what they wait for, without making them wait.

        with clock.waiting("data"):
            batch = next(batches)
        state, metrics = train_step(recipe, state, batch)
        clock.stepped(scenes=..., images=..., flops=...)
        ...
        values = jax.device_get(metrics)  # every `log.every` steps: all so far are finished
        reading = clock.read(steps_to_go)

    A step with another number of images than all before it is taken to compile, and is left out of
    the remaining time with what passed since the step before it.
    """

    KINDS = ("data", "checkpoint", "pictures")

    def __init__(
        self,
        *,
        peak: float | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ):
        """Starts now.

        Args:
          peak: FLOP/s of all devices together, see `peak_flops`.
          clock: monotonic seconds.
        """
        self._peak, self._clock = peak, clock
        self._began = self._last = clock()
        self.waited = dict.fromkeys(self.KINDS, 0.0)  # since the start
        self._paces: collections.deque[float] = collections.deque(maxlen=REMEMBERED)
        self._readings = 0
        self._stepped_at = self._began
        self._compiled: set[tuple[int, int]] = set()  # scenes and images of steps there were
        self._reset()

    def _reset(self) -> None:
        self._steps = self._scenes = self._images = 0
        self._compiling, self._compiling_s = 0, 0.0  # steps, and what they took
        self._flops: float | None = 0.0
        self._waits = dict.fromkeys(self.KINDS, 0.0)

    @contextlib.contextmanager
    def waiting(self, kind: str, after: Any = None) -> Iterator[None]:
        """Times what happens inside as a wait for "data", "checkpoint" or "pictures".

        after: arrays that must be finished first, whose time belongs to the steps: copying a state
          for a checkpoint waits for the steps that make it.
        """
        if after is not None:
            jax.block_until_ready(after)
        start = self._clock()
        try:
            yield
        finally:
            self._waits[kind] += self._clock() - start
            self.waited[kind] += self._clock() - start

    def stepped(self, *, scenes: int, images: int, flops: float | None = None) -> None:
        """Counts a step handed to the device, with what it handles in all processes together.

        flops: of the model, forward and backward, see `cost.flops.train_step`; None if unknown.
        """
        now = self._clock()
        if (scenes, images) not in self._compiled:
            self._compiled.add((scenes, images))
            self._compiling += 1
            self._compiling_s += now - max(self._stepped_at, self._last)
        self._stepped_at = now
        self._steps += 1
        self._scenes += scenes
        self._images += images
        known = flops is not None and self._flops is not None
        self._flops = self._flops + flops if known else None

    def read(self, steps_to_go: int) -> Reading:
        """The steps since the last reading; to be called when they are finished."""
        now = self._clock()
        elapsed, self._last = now - self._last, now
        steps, waits = max(self._steps, 1), self._waits
        busy = max(elapsed - waits["checkpoint"] - waits["pictures"], 1e-9)
        if self._steps > self._compiling:
            if self._readings == 1:
                self._paces.clear()  # of the first reading, in which more may have been made ready
            pace = (elapsed - self._compiling_s) / (self._steps - self._compiling)
            self._paces.append(pace)
        self._readings += 1
        utilisation = None
        if self._peak and self._flops:
            utilisation = self._flops / busy / self._peak
        reading = Reading(
            steps=self._steps,
            step_s=busy / steps,
            data_s=waits["data"] / steps,
            checkpoint_s=waits["checkpoint"],
            pictures_s=waits["pictures"],
            scenes_per_s=self._scenes / busy,
            images_per_s=self._images / busy,
            mfu=utilisation,
            remaining_s=steps_to_go * statistics.mean(self._paces) if self._paces else None,
        )
        self._reset()
        return reading

    def share(self, kind: str) -> float:
        """What was waited for since the start, of all the time since then."""
        return self.waited[kind] / max(self._clock() - self._began, 1e-9)


class Progress:
    """The line that tells a person how training goes.

    On a terminal it stays in place and counts steps as they are handed to the device. Anywhere else
    (a file, a pipe, a job's log) it is a plain line whenever numbers are read. In processes other
    than the first there is none.
    """

    def __init__(
        self, step: int, steps: int, *, file: TextIO | None = None, process: int | None = None
    ):
        """Starts at `step` of `steps`, on standard output unless another file is named."""
        self._file = file or sys.stdout
        shown = (jax.process_index() if process is None else process) == 0
        self._lines = shown and not is_terminal(self._file)
        self._step = step
        self._total = f"{steps // 1000}k" if steps >= 10_000 and steps % 1000 == 0 else str(steps)
        self._bar = tqdm(
            initial=step,
            total=steps,
            file=self._file,
            bar_format=f"{{n_fmt}}/{self._total} {{desc}}",
            dynamic_ncols=True,
            disable=not shown or self._lines,
        )

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def stepped(self) -> None:
        """Counts a step."""
        self._step += 1
        self._bar.update()

    def show(self, values: Mapping[str, float], reading: Reading) -> None:
        """Says the numbers of this step.

        values: loss and learning_rate; psnr, if there is one; skipped if it is not 0.
        """
        count = f"{self._step}/{self._total}"
        line = progress_line(values, reading, WIDTH - len(count) - 1)
        if self._lines:
            print(count, line, file=self._file, flush=True)
        self._bar.set_description_str(line)


def progress_line(values: Mapping[str, float], reading: Reading, width: int) -> str:
    """Numbers in at most `width` columns, of 100 there is room for all.

    In narrower terminals the rightmost are left out; metrics.jsonl and speed.jsonl have them.
    """
    rate = f"{values['learning_rate']:.1e}".replace("e-0", "e-")
    parts = [
        f"loss {values['loss']:.4f}",
        *([f"{values['psnr']:.1f}dB"] if "psnr" in values else []),
        f"{'?' if reading.remaining_s is None else duration(reading.remaining_s)} left",
        f"lr {rate}",
        f"{_short(reading.scenes_per_s)} scenes {_short(reading.images_per_s)} img/s",
        f"{_time(reading.step_s)} data {_time(reading.data_s)} {reading.data_share:.0%}",
    ]
    if reading.mfu is not None:
        parts.append(f"MFU {reading.mfu:.0%}")
    if values.get("skipped"):
        parts.insert(parts.index(f"lr {rate}") - 1, f"{values['skipped']:.0f} skipped")
    while len(" ".join(parts)) > width:
        parts.pop()
    return " ".join(parts)


def _time(seconds: float) -> str:
    if seconds >= 10:
        return f"{seconds:.0f}s"
    if seconds >= 1:
        return f"{seconds:.1f}s"
    milliseconds = seconds * 1e3
    return f"{milliseconds:.0f}ms" if milliseconds >= 10 else f"{milliseconds:.1f}ms"


def _short(number: float) -> str:
    return f"{number:.1f}" if number < 10 else f"{number:.0f}"
