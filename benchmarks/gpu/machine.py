"""Section "machine": what this is, and what it can do at best."""

from __future__ import annotations

import os
import platform
import shutil
import statistics
import subprocess

import jax
import jax.numpy as jnp

from benchmarks.gpu.context import Context, Rows, memory_gib, seconds_of
from benchmarks.programs import matrix_rate


def rows(context: Context) -> Rows:
    """Names and versions, then rates."""
    yield "software", lambda: _software(context)
    for dtype in ("bfloat16", "float32"):
        edge = context.pick(8192, 256)
        yield f"{edge}-square product, {dtype}", lambda d=dtype, e=edge: _product(d, e)
    yield "copy", lambda: _copy(context.pick(2**30, 2**20))


def _software(context: Context) -> dict:
    figures = {
        "device": context.device_kind,
        "devices": jax.device_count(),
        "jax": jax.__version__,
        "python": platform.python_version(),
        "cores": os.cpu_count(),
    }
    try:
        from jax._src.lib import cuda_versions

        figures["cudnn"] = cuda_versions.cudnn_get_version()
        figures["cuda"] = cuda_versions.cuda_runtime_get_version()
    except (ImportError, AttributeError):
        figures["cudnn"] = "none"  # as on a CPU
    if shutil.which("nvidia-smi"):
        query = "--query-gpu=name,driver_version,memory.total,power.limit"
        found = subprocess.run(
            ["nvidia-smi", query, "--format=csv,noheader"], capture_output=True, text=True
        )
        figures["nvidia-smi"] = found.stdout.strip()
    if context.has_torch:
        import torch

        figures["torch"] = torch.__version__
    return figures | memory_gib()


def _product(dtype: str, edge: int) -> dict:
    return {"TFLOP/s": matrix_rate(dtype, edge) / 1e12, **memory_gib()}


def _copy(numbers: int) -> dict:
    x = jax.random.normal(jax.random.key(0), (numbers,), jnp.bfloat16)
    copy = jax.jit(lambda x: x + 1)

    def run() -> None:
        copy(x).block_until_ready()

    run()
    seconds = statistics.median(seconds_of(run) for _ in range(10))
    return {"GB/s": 2 * x.nbytes / seconds / 1e9}
