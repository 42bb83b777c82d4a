"""Step time and memory of training the full model, beside a PyTorch model of the same maths.

    make bench-train      (python benchmarks/training_speed.py [--size 256] [--rounds 3])

Programs take turns, while the others wait: a step to warm up, because memory that was free for a
while is slow to get back on virtual machines, and a step that is timed. All draw the same random
pictures and cameras, and start from random weights; losses are a check, not a
result. The PyTorch model (tests/peers/efficient_lvsm_torch.py) uses fused AdamW and
scaled_dot_product_attention; on a GPU also torch.compile, and bf16 autocast with --dtype bfloat16.
Needs the extra [bench].
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import platform
import statistics
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.programs import MATRIX_EDGE, Program, matrix_rate, peak, serve
from efficient_lvsm_jax.files.writing import write_json
from efficient_lvsm_jax.geometry.cameras import Batch, Views

FULL = {"width": 768, "head_dim": 64, "layers": 12, "patch": 8, "mlp_ratio": 4}


def random_batch(arguments: argparse.Namespace) -> Batch:
    """Pictures of noise and cameras that look ahead, the same for every program."""
    rng = np.random.default_rng(0)
    size = arguments.size
    sides = []
    for views in (arguments.inputs, arguments.targets):
        shape = (arguments.batch, views)
        c2w = np.tile(np.eye(4, dtype=np.float32), (*shape, 1, 1))
        c2w[..., :3, 3] = rng.uniform(-0.5, 0.5, (*shape, 3))
        fxfycxcy = np.tile(np.float32([size, size, size / 2, size / 2]), (*shape, 1))
        image = rng.random((*shape, size, size, 3), np.float32)
        sides.append(Views(image, c2w, fxfycxcy))
    return Batch(*sides)


def jax_program(arguments: argparse.Namespace, remat: str):
    """Yields what compiling took and needs, then one (seconds, loss) per `next`."""
    import jax

    from efficient_lvsm_jax.cost import flops
    from efficient_lvsm_jax.models.families import configure
    from efficient_lvsm_jax.training.optimizer import OptimizerConfig
    from efficient_lvsm_jax.training.step import Recipe, init_state, train_step

    model = configure("efficient_lvsm", FULL | {"remat": remat, "compute_dtype": arguments.dtype})
    recipe = Recipe("efficient_lvsm", model, OptimizerConfig())
    state = jax.block_until_ready(jax.jit(lambda: init_state(recipe, jax.random.key(0)))())
    batch = jax.device_put(random_batch(arguments))
    started = time.perf_counter()
    step = train_step.lower(recipe, state, batch).compile()
    compile_seconds = time.perf_counter() - started
    work = flops.train_step(
        model,
        arguments.batch,
        arguments.inputs,
        arguments.targets,
        arguments.size**2,
        fused_attention=True,
    )
    yield {
        "compile_seconds": compile_seconds,
        "device": jax.devices()[0].device_kind,
        "version": f"jax {jax.__version__}",
        "model_flops": work.model.total,
    }
    while True:
        started = time.perf_counter()
        state, metrics = step(state, batch)
        loss = float(metrics["loss"])
        jax.block_until_ready(state)
        yield {"seconds": time.perf_counter() - started, "loss": loss, "peak_bytes": peak()}


def torch_program(arguments: argparse.Namespace, compiled: bool):
    """Yields what compiling took, then one (seconds, loss) per `next`."""
    import torch

    from tests.peers.efficient_lvsm_torch import EfficientLVSM, make_optimizer, train_step

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    model = EfficientLVSM().to(device)
    optimizer = make_optimizer(model)
    dtype = getattr(torch, arguments.dtype)
    batch = {}
    for side, views in vars(random_batch(arguments)).items():
        image, c2w, fxfycxcy = (torch.from_numpy(x).to(device) for x in vars(views).values())
        batch[side] = image.permute(0, 1, 4, 2, 3).contiguous(), c2w, fxfycxcy
    run = torch.compile(model) if compiled else model
    started = time.perf_counter()
    train_step(run, optimizer, batch, dtype)
    first = time.perf_counter() - started
    started = time.perf_counter()
    train_step(run, optimizer, batch, dtype)
    again = time.perf_counter() - started
    on_gpu = device.type == "cuda"
    yield {
        "compile_seconds": max(first - again, 0.0),
        "device": torch.cuda.get_device_name() if on_gpu else "cpu",
        "version": f"torch {torch.__version__}",
    }
    while True:
        started = time.perf_counter()
        loss = train_step(run, optimizer, batch, dtype)
        if on_gpu:
            torch.cuda.synchronize()
        yield {
            "seconds": time.perf_counter() - started,
            "loss": loss,
            "peak_bytes": torch.cuda.max_memory_allocated() if on_gpu else peak(),
        }


PROGRAMS = {
    "ours, keep all": lambda a: jax_program(a, "none"),
    "ours, keep attention": lambda a: jax_program(a, "attention"),
    "ours, keep layers": lambda a: jax_program(a, "full"),
    "PyTorch": lambda a: torch_program(a, compiled=False),
    "PyTorch, compiled": lambda a: torch_program(a, compiled=True),
}


def main() -> None:
    """Measures and prints a table; --json writes all figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--inputs", type=int, default=2)
    parser.add_argument("--targets", type=int, default=6)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--programs", default="ours, keep attention|PyTorch")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--serve", choices=tuple(PROGRAMS), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        answers = PROGRAMS[arguments.serve](arguments)
        return serve(lambda _: next(answers))
    names = arguments.programs.split("|")
    unknown = set(names) - set(PROGRAMS)
    if unknown:
        parser.error(f"--programs: unknown {sorted(unknown)}; known are {', '.join(PROGRAMS)}")
    if importlib.util.find_spec("torch") is None and any("PyTorch" in name for name in names):
        parser.error("PyTorch is not installed: pip install -e '.[bench]', or leave it out")

    programs = [Program(name, Path(__file__), sys.argv[1:]) for name in names]
    starts = [program.ask() for program in programs]
    rows = [[] for _ in programs]
    for _ in range(arguments.rounds):
        for program, found in zip(programs, rows, strict=True):
            program.ask()  # a step to warm up
            found.append(program.ask())
    for program in programs:
        program.close()

    rate = matrix_rate(arguments.dtype)
    model_flops = next((start["model_flops"] for start in starts if "model_flops" in start), 0)
    print(
        f"{arguments.size} px, {arguments.batch} scene(s) of {arguments.inputs} inputs and "
        f"{arguments.targets} targets, {arguments.dtype}, {arguments.rounds} rounds; "
        f"{starts[0]['device']}, {os.cpu_count()} cores, Python "
        f"{platform.python_version()}; a {MATRIX_EDGE}-square product reaches "
        f"{rate / 1e9:.0f} GFLOP/s"
    )
    print(
        "| program | step, s (median, range) | TFLOP/s | of matrix rate | peak, GiB | compile, s |"
    )
    print("|---|---|---|---|---|---|")
    results = []
    for program, start, found in zip(programs, starts, rows, strict=True):
        seconds = [row["seconds"] for row in found]
        median = statistics.median(seconds)
        peak_gib = found[-1]["peak_bytes"] / 2**30
        results.append({"name": program.name, **start, "rows": found})
        print(
            f"| {program.name} ({start['version']}) | {median:.3g} ({min(seconds):.3g}–"
            f"{max(seconds):.3g}) | {model_flops / median / 1e12:.3g} | "
            f"{model_flops / median / rate:.0%} | {peak_gib:.1f} | "
            f"{start['compile_seconds']:.0f} |"
        )
    if arguments.json:
        about = {key: value for key, value in vars(arguments).items() if key != "json"}
        found = {"about": about, "matrix_rate": rate, "programs": results}
        write_json(arguments.json, found)


if __name__ == "__main__":
    main()
