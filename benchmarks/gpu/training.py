"""Section "training": a step of the published model on one device, by what it keeps.

199 M parameters, 2 inputs and 6 targets at 256 px (once at 512), squared error, AdamW, bfloat16.
"Written out" is without a loop over layers. MFU counts the model's FLOPs alone against the data
sheet's peak. Flags are tried one by one on the first row's step; each is compiled anew. PyTorch is
the peer under torch.compile and bf16 autocast with fused AdamW, turn by turn with ours at a batch
that both hold.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import time
from collections.abc import Callable

import jax
import numpy as np

from benchmarks.gpu.context import Context, Rows, columns, memory_gib, seconds_of, turns
from benchmarks.training_speed import random_batch
from efficient_lvsm_jax.cost import flops
from efficient_lvsm_jax.cost.chips import PEAK_FLOPS
from efficient_lvsm_jax.geometry.cameras import Batch
from efficient_lvsm_jax.training.optimizer import OptimizerConfig
from efficient_lvsm_jax.training.step import Recipe, init_state, train_step

INPUTS, TARGETS = 2, 6
FLAGS = (
    "xla_gpu_enable_latency_hiding_scheduler",
    "xla_gpu_enable_while_loop_double_buffering",
    "xla_gpu_enable_cublaslt",
)
WRITTEN = ", written out"
# Remat policies and scenes that 80 GB hold, in order of value: docs/training.md has what was
# compiled. The first leaves room for PyTorch's step, which keeps everything.
STEPS = (
    ("products", 8),
    ("none" + WRITTEN, 8),
    ("products" + WRITTEN, 8),
    ("none" + WRITTEN, 16),
    ("products" + WRITTEN, 28),
    ("none", 8),
    ("products", 28),
    ("attention", 64),
    ("products", 16),
    ("full", 96),
)


def rows(context: Context) -> Rows:
    """The published step first; what it depends on after."""
    size, large = context.pick(256, 32), 512
    steps = context.pick(STEPS, (("products", 2), ("none" + WRITTEN, 2)))
    step = functools.partial(_step, context)
    for remat, batch in steps[:2]:
        title = f"{size} px, {batch} scenes, {remat}"
        yield title, functools.partial(step, size, batch, remat)
    if context.has_torch:
        batch = context.pick(8, 1)
        yield f"{size} px, {batch} scenes, beside PyTorch", lambda: _beside(context, size, batch)
    for remat, batch in steps[2:]:
        title = f"{size} px, {batch} scenes, {remat}"
        yield title, functools.partial(step, size, batch, remat)
    first = steps[0][1]
    for flag in FLAGS if context.on_gpu else ():
        title = f"{size} px, {first} scenes, products, {flag}"
        yield title, functools.partial(step, size, first, "products", flag=flag)
    if not context.dry:
        yield f"{large} px, 4 scenes, products", functools.partial(step, large, 4, "products")


def recipe_of(context: Context, remat: str) -> Recipe:
    """The published model's step; all sections take it from here, so that it compiles once.

    `remat` is a policy, and WRITTEN may follow.
    """
    settings = {"remat": remat.removesuffix(WRITTEN), "scan_layers": not remat.endswith(WRITTEN)}
    model = dataclasses.replace(context.model().config, **settings)
    return Recipe("efficient_lvsm", model, OptimizerConfig())


def batch_of(size: int, batch: int) -> Batch:
    """Random pictures and cameras on the device."""
    request = argparse.Namespace(size=size, batch=batch, inputs=INPUTS, targets=TARGETS)
    return jax.device_put(random_batch(request))


@dataclasses.dataclass
class Compiled:
    """A compiled step: run once, seconds it took to compile, bytes of temporaries, HLO."""

    run: Callable[[], float]
    compile_s: float
    temporaries: int
    text: str


def compiled(
    context: Context, size: int, batch: int, remat: str, flag: str | None = None
) -> Compiled:
    """A step by `train_step`, with the state that it changes.

    Args:
      context: of the benchmark.
      size, batch: pixels and scenes.
      remat: what is kept, as of `recipe_of`.
      flag: one of XLA's, switched on.
    """
    recipe = recipe_of(context, remat)
    state = jax.jit(functools.partial(init_state, recipe))(jax.random.key(0))
    data = batch_of(size, batch)
    began = time.perf_counter()
    options = {flag: "true"} if flag else None
    step = train_step.lower(recipe, state, data).compile(compiler_options=options)
    seconds = time.perf_counter() - began
    kept = {"state": state}

    def run() -> float:
        kept["state"], metrics = step(kept["state"], data)
        return float(metrics["loss"])

    temporaries = step.memory_analysis().temp_size_in_bytes
    return Compiled(run, seconds, temporaries, step.as_text())


def _step(context: Context, size: int, batch: int, remat: str, *, flag: str | None = None) -> dict:
    ours = compiled(context, size, batch, remat, flag)
    loss = ours.run()
    ours.run()
    began, times = time.monotonic(), []
    most, least = context.pick((10, 5), (2, 1))
    while len(times) < least or (len(times) < most and time.monotonic() - began < 8):
        times.append(seconds_of(ours.run))
    seconds = sorted(times)[len(times) // 2]
    work = flops.train_step(
        recipe_of(context, remat).model, batch, INPUTS, TARGETS, size**2, fused_attention=True
    )
    figures = {
        "step, ms": 1e3 * seconds,
        "scenes/s": batch / seconds,
        "model TFLOP/s": work.model.total / seconds / 1e12,
        "compile, s": ours.compile_s,
        "temporaries, GiB": ours.temporaries / 2**30,
        **memory_gib(),
        "loss": loss,
        "ok": loss == loss,
    }
    if peak := PEAK_FLOPS.get(context.device_kind):
        figures["MFU"] = work.model.total / seconds / peak
    return figures


def _beside(context: Context, size: int, batch: int) -> dict:
    import torch

    from tests.peers.efficient_lvsm_torch import EfficientLVSM, make_optimizer
    from tests.peers.efficient_lvsm_torch import train_step as peer_step

    device = "cuda" if torch.cuda.is_available() else "cpu"
    peer = EfficientLVSM(**context.sizes).to(device)
    optimizer = make_optimizer(peer)
    compiled_peer = torch.compile(peer) if device == "cuda" else peer
    data = {}
    for side, views in vars(batch_of(size, batch)).items():
        arrays = vars(views).values()
        image, c2w, fxfycxcy = (torch.from_numpy(np.array(x)).to(device) for x in arrays)
        data[side] = image.permute(0, 1, 4, 2, 3).contiguous(), c2w, fxfycxcy
    programs = {
        "ours": compiled(context, size, batch, "products").run,
        "ours, nothing again, written out": compiled(context, size, batch, "none" + WRITTEN).run,
        "PyTorch": lambda: peer_step(compiled_peer, optimizer, data, torch.bfloat16),
    }
    runs, seconds = context.pick((8, 20.0), (2, 1.0))
    figures = columns(turns(programs, runs=runs, most_seconds=seconds))
    figures["PyTorch's time / ours"] = figures["PyTorch, ms"] / figures["ours, ms"]
    return figures
