"""Section "traces": which kernels the time of a step and of a render goes to.

JAX's profiler records three runs after two that do not count. A kernel is named by what XLA or the
maker's library calls it; kernels that differ in a number alone are counted together, and the
largest stand in the row with their milliseconds a run. DIR gets the compiled step's text beside the
recorded profile, so that a kernel's operands can be looked up.
"""

from __future__ import annotations

import collections
import functools
import gzip
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import jax
from jax.profiler import ProfileData

from benchmarks.gpu import rendering, training
from benchmarks.gpu.context import Context, Rows, seconds_of
from benchmarks.rendering_speed import Row
from efficient_lvsm_jax.files.writing import written_whole

RUNS, SHOWN = 3, 14


def rows(context: Context) -> Rows:
    """A training step, and a render that is mostly launches."""
    size, batch = context.pick(256, 32), context.pick(8, 2)
    cached = Row("cached", 2, 1, size)
    yield (
        f"{cached.size} px, {cached.title}",
        lambda: _row(context, "render", rendering.program(context, cached)),
    )
    yield f"training step, {size} px, {batch} scenes", lambda: _step(context, size, batch)


def _step(context: Context, size: int, batch: int) -> dict:
    ours = training.compiled(context, size, batch, "products")
    with written_whole(context.out / "step.hlo.gz") as partial:
        partial.write_bytes(gzip.compress(ours.text.encode()))
    return _row(context, "step", ours.run)


def _row(context: Context, name: str, run: Callable[[], object]) -> dict:
    for _ in range(2):
        run()
    folder = context.out / "traces" / name
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0  # it would slow down what is recorded
    with jax.profiler.trace(folder, profiler_options=options):
        seconds = [seconds_of(run) for _ in range(RUNS)]
    spent, launches = kernels(folder)
    total = sum(spent.values())
    largest = sorted(spent, key=spent.get, reverse=True)[:SHOWN]
    return {
        "ms": 1e3 * sorted(seconds)[RUNS // 2],
        "in kernels, ms": total / RUNS,
        "launches": launches / RUNS,
        "largest, ms": ", ".join(f"{name} {spent[name] / RUNS:.3g}" for name in largest),
    }


def kernels(folder: Path) -> tuple[Mapping[str, float], int]:
    """Milliseconds by kind of kernel in a recorded profile, and how many were launched.

    A profile of a CPU has no device and therefore no kernels.
    """
    spent, launches = collections.Counter(), 0
    for file in folder.rglob("*.xplane.pb"):
        for plane in ProfileData.from_file(str(file)).planes:
            if not plane.name.startswith("/device:"):
                continue
            for line in plane.lines:
                if not line.name.startswith("Stream"):
                    continue  # the same again, by operation or by step
                for event in line.events:
                    spent[kind(event.name)] += event.duration_ns / 1e6
                    launches += 1
    return spent, launches


@functools.cache
def kind(name: str) -> str:
    """A kernel's name without what tells it from its copies."""
    return re.sub(r"(_\d+)+$", "", name)[:60]
