"""What the sections of benchmarks/accelerator.py share: sizes, timing, random models and views."""

from __future__ import annotations

import dataclasses
import functools
import gc
import importlib.util
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import jax
import numpy as np

from efficient_lvsm_jax.models.families import configure
from efficient_lvsm_jax.models.model import Model, init_params

# A row of a table: its name, and what measures it.
Rows = Iterator[tuple[str, Callable[[], dict]]]
GOLDENS = Path(__file__).resolve().parents[2] / "tests" / "goldens"


@dataclasses.dataclass(eq=False)
class Context:
    """Where results go, how large everything is, and how long a section may take.

    Attributes:
      out: folder of the results.
      dry: toy sizes, to try the program.
      deadline: when the section should have ended, of `time.monotonic`.
      end: when everything should.
    """

    out: Path
    dry: bool
    deadline: float = 0.0
    end: float = 0.0

    @property
    def device_kind(self) -> str:
        """The name of the device that JAX computes on."""
        return jax.devices()[0].device_kind

    @property
    def on_gpu(self) -> bool:
        """Whether that is a GPU."""
        return jax.default_backend() == "gpu"

    @property
    def has_torch(self) -> bool:
        """Whether PyTorch is here."""
        return importlib.util.find_spec("torch") is not None

    def pick(self, full: object, toy: object) -> object:
        """`full`, or `toy` in a dry run."""
        return toy if self.dry else full

    @property
    def sizes(self) -> dict[str, int]:
        """What differs from the published model."""
        return self.pick({}, {"width": 64, "head_dim": 32, "layers": 1})

    @property
    def dtype(self) -> str:
        """What models compute in; a CPU compiles bfloat16 three times as long."""
        return self.pick("bfloat16", "float32")

    @functools.lru_cache(maxsize=2)  # noqa: B019 - a context lives as long as the program
    def model(self, family: str = "efficient_lvsm") -> Model:
        """A model of the published size with random weights."""
        config = configure(family, self.sizes | {"compute_dtype": self.dtype})
        params = jax.jit(functools.partial(init_params, family, config))(jax.random.key(0))
        return Model(family, config, jax.block_until_ready(params))


def turns(
    programs: Mapping[str, Callable[[], object]], *, runs: int, most_seconds: float
) -> dict[str, dict[str, float]]:
    """Times programs turn by turn, after two turns that do not count.

    Args:
      programs: each runs once and waits for its result.
      runs: of each, unless the time runs out (then at least three). One whose second run takes
        more than a fifth of the time is not run again: that run counts.
      most_seconds: for all of them together, warming up apart.

    Returns:
      By program: median and p95 in ms, runs, and seconds of the first run, which compiles.
    """
    first, found = {}, {name: [] for name in programs}
    for name, run in programs.items():
        first[name] = seconds_of(run)
        again = seconds_of(run)
        if again > most_seconds / 5:
            found[name].append(again)
    programs = {name: run for name, run in programs.items() if not found[name]}
    began = time.monotonic()
    for turn in range(runs):
        if turn >= 3 and time.monotonic() - began > most_seconds:
            break
        for name, run in programs.items():
            found[name].append(seconds_of(run))
    return {
        name: {
            "median_ms": 1e3 * statistics.median(times),
            "p95_ms": 1e3 * float(np.percentile(times, 95)),
            "runs": len(times),
            "first_s": first[name],
        }
        for name, times in found.items()
    }


def seconds_of(run: Callable[[], object]) -> float:
    """How long it takes once."""
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def columns(timed: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Medians and p95 of `turns` side by side."""
    row = {}
    for name, figures in timed.items():
        row[f"{name}, ms"] = figures["median_ms"]
        row[f"{name}, p95"] = figures["p95_ms"]
        row[f"{name}, first s"] = figures["first_s"]
    row["runs"] = min(figures["runs"] for figures in timed.values())
    return row


def memory_gib() -> dict[str, float]:
    """GiB of the device that JAX has in use, and has had at most since this program began."""
    stats = jax.devices()[0].memory_stats() or {}
    names = {"bytes_in_use": "in use, GiB", "peak_bytes_in_use": "peak so far, GiB"}
    return {name: stats[key] / 2**30 for key, name in names.items() if key in stats}


def free() -> None:
    """Gives back what is not referred to any more, in PyTorch as well."""
    gc.collect()
    if (torch := sys.modules.get("torch")) and torch.cuda.is_available():
        torch.cuda.empty_cache()


def all_finite(tree: object) -> bool:
    """Whether no array of a tree has NaN or Inf."""
    return all(np.isfinite(np.asarray(x, np.float32)).all() for x in jax.tree.leaves(tree))
