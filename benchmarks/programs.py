"""Programs that a benchmark compares: processes that take turns, and what the machine can do.

A process of its own for each makes peak memory its own. All may use large pages (GLIBC_TUNABLES is
replaced by glibc.malloc.hugetlb=1).
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

LARGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
MATRIX_EDGE = 4096  # of the product that measures a machine's matrix rate


class Program:
    """A worker process; `script` with --serve NAME calls `serve`."""

    def __init__(self, name: str, script: Path, argv: list[str]):
        self.name = name
        self._process = subprocess.Popen(
            [sys.executable, str(script), *argv, "--serve", name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | LARGE_PAGES,
        )

    def ask(self, request: Any = None) -> dict:
        """The worker's answer to a JSON value."""
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name}: ended with status {self._process.wait()}")
        return json.loads(line)

    def close(self) -> None:
        """Ends the process."""
        self._process.stdin.close()
        self._process.wait()


def serve(answer: Callable[[Any], dict]) -> None:
    """The worker: one line of JSON for every line read."""
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), flush=True)


def peak() -> int:
    """Most bytes this process has had: of the device where JAX runs on one, else of memory."""
    if "jax" in sys.modules:
        import jax

        if jax.default_backend() != "cpu":
            return jax.devices()[0].memory_stats()["peak_bytes_in_use"]
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def matrix_rate(dtype: str, edge: int = MATRIX_EDGE) -> float:
    """FLOP/s of a square product of random numbers in JAX, summed in float32, the best of a few."""
    import jax
    import jax.numpy as jnp

    # Chips are faster on equal numbers, and would round those of float32 unless told not to.
    x = jax.random.normal(jax.random.key(0), (edge, edge), dtype)
    product = jax.jit(
        lambda x: jnp.matmul(x, x, precision="highest", preferred_element_type=jnp.float32)
    )
    product(x).block_until_ready()
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        product(x).block_until_ready()
        seconds.append(time.perf_counter() - started)
    return 2 * edge**3 / min(seconds)
