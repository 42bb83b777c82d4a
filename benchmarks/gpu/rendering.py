"""Section "rendering": how long views take to come in and pictures to come out.

The published model of 199 M parameters with random weights in bfloat16, one scene. Programs of a
row take turns in this process; every run waits for its pictures, which stay on the device but in
the rows of a session. Rows:

    V → T         V views are encoded and T pictures rendered
    cached N → T  T pictures from N views that were encoded before, in a cache with room for 64
    add N → T     one view is encoded and joins N-1 others, then T pictures are rendered
    remove N      one of N views leaves
    session       one picture from a cache of 2, as NumPy array in and out

"Written out" is ours without a loop over layers. PyTorch is tests/peers/efficient_lvsm_torch.py
under inference_mode and bf16 autocast of float32 weights, with scaled_dot_product_attention as it
chooses and forced to cuDNN; and compiled, where shapes are few. LVSM decoder-only is this
repository's; without a cache it encodes all views again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable

import jax
import numpy as np

from benchmarks.gpu.context import Context, Rows, columns, memory_gib, turns
from benchmarks.gpu.right import random_views
from benchmarks.rendering_speed import DECODER_ONLY, OURS, Row, work
from efficient_lvsm_jax import Session
from efficient_lvsm_jax.cost.chips import PEAK_FLOPS
from efficient_lvsm_jax.geometry.cameras import Cameras, SceneFrame
from efficient_lvsm_jax.nn import cache as pages

SLOTS = 64
PATCH = 8
WRITTEN = OURS + ", written out"
TORCH, TORCH_CUDNN, TORCH_COMPILED = "PyTorch", "PyTorch, cuDNN", "PyTorch, compiled"


def rows(context: Context) -> Rows:
    """The rows in order of value."""
    size, large = context.pick((256, 512), (32, 32))
    counts = context.pick((2, 8, 64, 16, 32), (2,))
    added = context.pick((64, 4, 8, 16, 32, 48), (3,))
    table = [
        Row("whole", 2, 1, size),
        *context.pick((Row("whole", 2, 8, size),), ()),
        *(Row("cached", 2, targets, size) for targets in context.pick((1, 8), (1,))),
        *(Row("add", views, 8, size) for views in added),
        *context.pick((Row("whole", 2, 1, large),), ()),
        *(Row("cached", n, targets, size) for n in counts[1:] for targets in (1, 8)),
        Row("remove", counts[-1], 0, size),
    ]
    peer = _Peer(context) if context.has_torch else None
    yield "session 2 → 1", functools.partial(_session, context, size)
    for row in table:
        yield f"{row.size} px, {row.title}", functools.partial(_row, context, row, peer)


def _row(context: Context, row: Row, peer: _Peer | None) -> dict:
    programs = {OURS: program(context, row)}
    if row.kind in ("whole", "cached"):
        programs[WRITTEN] = program(context, row, scan_layers=False)
    if peer:
        programs |= peer.programs(row)
    if row.kind == "add":
        programs[DECODER_ONLY] = _decoder_only(context, row)
    runs, seconds = context.pick((50, 8.0), (3, 1.0))
    figures = columns(turns(programs, runs=runs, most_seconds=seconds))
    if flops := work(row, OURS):
        figures["TFLOP"] = flops / 1e12
        if peak := PEAK_FLOPS.get(context.device_kind):
            figures["of the peak"] = flops / peak / figures[f"{OURS}, ms"] * 1e3
    figures |= memory_gib()
    return figures


def _on_device(tree: object) -> object:
    return jax.block_until_ready(jax.device_put(tree))


def program(context: Context, row: Row, *, scan_layers: bool = True) -> Callable[[], object]:
    """What a row times of this repository's model."""
    model = context.model()
    config = dataclasses.replace(model.config, scan_layers=scan_layers)
    model = dataclasses.replace(model, config=config)
    views = random_views(row.inputs, row.size, 0)
    seen = random_views(max(row.targets, 1), row.size, 1)
    cameras = Cameras(*_on_device((seen.c2w, seen.fxfycxcy)), row.size, row.size)
    if row.kind == "whole":
        views = _on_device(views)
        return lambda: jax.block_until_ready(model.decode(model.encode(views), cameras))

    def one(index: int) -> object:
        return _on_device(jax.tree.map(lambda x: x[:, index : index + 1], views))

    kept = row.inputs - (row.kind == "add")
    cache = pages.empty(max(context.pick(SLOTS, 4), row.inputs), model.encode(one(0)))
    for index in range(kept):
        cache = pages.append(cache, model.encode(one(index)))
    newest = one(row.inputs - 1)
    state = {"cache": jax.block_until_ready(cache)}

    def cached() -> object:
        return jax.block_until_ready(model.decode(state["cache"], cameras))

    def add() -> object:
        cache = pages.append(state["cache"], model.encode(newest))
        pictures = jax.block_until_ready(model.decode(cache, cameras))
        state["cache"] = pages.remove(cache, kept)  # and for the next turn
        return pictures

    def remove() -> object:
        # Pages stay where they are, so that the page comes back with its flag.
        used = jax.block_until_ready(pages.remove(state["cache"], 0).used)
        return used

    return {"cached": cached, "add": add, "remove": remove}[row.kind]


def _decoder_only(context: Context, row: Row) -> Callable[[], object]:
    model = context.model("lvsm_decoder_only")
    views = _on_device(random_views(row.inputs, row.size, 0))
    seen = random_views(row.targets, row.size, 1)
    cameras = Cameras(*_on_device((seen.c2w, seen.fxfycxcy)), row.size, row.size)
    return lambda: jax.block_until_ready(model.decode(model.encode(views), cameras))


def _session(context: Context, size: int) -> dict:
    """What a person waits for: checks, transfers and all."""
    views = random_views(3, size, 0)
    session = Session(context.model(), frame=SceneFrame.identity(), check_poses=False)
    for i in range(2):
        session.add(views.image[0, i], views.c2w[0, i], views.fxfycxcy[0, i])
    target = views.c2w[0, 2], views.fxfycxcy[0, 2], (size, size)
    runs, seconds = context.pick((100, 8.0), (3, 1.0))
    return columns(turns({OURS: lambda: session.render(*target)}, runs=runs, most_seconds=seconds))


class _Peer:
    """Efficient-LVSM in PyTorch on the same device."""

    def __init__(self, context: Context):
        import torch

        from tests.peers.efficient_lvsm_torch import EfficientLVSM

        torch.manual_seed(0)
        torch.backends.cuda.matmul.allow_tf32 = True
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        sizes = dict(context.sizes)
        self.model = EfficientLVSM(**sizes).to(self.device).eval()
        self.compiled = torch.compile(self.model) if self.device == "cuda" else None

    def programs(self, row: Row) -> dict[str, Callable[[], object]]:
        """Variants for a row."""
        if row.kind == "remove":
            return {TORCH: self._program(row, contextlib.nullcontext)}
        found = {TORCH: self._program(row, contextlib.nullcontext)}
        if self.device == "cuda":
            found[TORCH_CUDNN] = self._program(row, _cudnn)
            if row.kind == "whole":
                found[TORCH_COMPILED] = self._program(row, contextlib.nullcontext, compiled=True)
        return found

    def _program(
        self, row: Row, attention: Callable, *, compiled: bool = False
    ) -> Callable[[], object]:
        import torch

        from tests.peers.efficient_lvsm_torch import append, remove

        model = self.compiled if compiled else self.model
        views, targets = (
            self._tensors(count, row.size, seed)
            for count, seed in ((row.inputs, 0), (max(row.targets, 1), 1))
        )
        cameras, size = targets[1:], (row.size, row.size)
        newest = [x[:, -1:] for x in views]

        def half() -> contextlib.ExitStack:
            stack = contextlib.ExitStack()
            stack.enter_context(torch.inference_mode())
            stack.enter_context(torch.autocast(self.device, torch.bfloat16))
            stack.enter_context(attention())
            return stack

        with half():
            cache = None if row.kind == "whole" else model.encode(*views)
            kept = cache
            if row.kind == "add":
                kept = remove(cache, row.inputs - 1, (row.size // PATCH) ** 2)

        def run() -> object:
            with half():
                if row.kind == "whole":
                    result = model(*views, *cameras)
                elif row.kind == "add":
                    result = model.decode(append(kept, model.encode(*newest)), *cameras, size)
                elif row.kind == "cached":
                    result = model.decode(cache, *cameras, size)
                else:
                    result = remove(cache, 0, (row.size // PATCH) ** 2)
            if self.device == "cuda":
                torch.cuda.synchronize()
            return result

        return run

    def _tensors(self, count: int, size: int, seed: int) -> list:
        import torch

        views = random_views(count, size, seed)
        image = np.ascontiguousarray(np.moveaxis(views.image, -1, 2))
        arrays = (image, views.c2w, views.fxfycxcy)
        return [torch.from_numpy(np.array(x)).to(self.device) for x in arrays]


def _cudnn() -> contextlib.AbstractContextManager:
    from torch.nn.attention import SDPBackend, sdpa_kernel

    return sdpa_kernel(SDPBackend.CUDNN_ATTENTION)
