"""Time to render, add and remove views: ours, the LVSM baselines, and a PyTorch Efficient-LVSM.

    make bench      (python benchmarks/rendering_speed.py --out runs/rendering)

All models have the published sizes and random weights, and see the same random pictures and
cameras. Every program is a process of its own; in each row they take turns: once to warm up, which
also compiles, then up to --rounds times, at least twice. Where an LVSM takes more than 15 s, its
first run counts, less what compiling took. Rows:

    V → T         V input views are encoded and T pictures rendered
    add N → T     one view joins N-1 others, then T pictures are rendered
    cached N → T  T pictures from N views that were encoded before
    remove N      one of N views leaves

For CPUs alone. The PyTorch model (tests/peers/efficient_lvsm_torch.py) keeps keys and values, too,
by concatenation as the published program does; it uses scaled_dot_product_attention under
inference_mode, and bf16 autocast of float32 weights or int8 products (quantize_dynamic) where its
name says so. Ours adds, renders and
removes through a Session, checks and transfers included. The LVSM models have no cache: they encode
all views again, and are left out of the long rows with 256 pixels. "More memory" is what a process
has at its peak above what it had when the run began, which for programs that keep freed memory is
less than they need. Seconds of compiling are those of a row's new programs. "Sparse" is ours with
sparse-linear attention wherever it can be and random P, which decides no time (what it loses of
pictures: docs/lite3r.md). Prints the tables of docs/performance.md, writes OUT.json and draws
OUT.png; --table prints and draws from OUT.json again. Needs the extra [bench].
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import datetime
import importlib.util
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.programs import MATRIX_EDGE, Program, matrix_rate, serve
from efficient_lvsm_jax.files.writing import write_json

OURS, TORCH = "ours", "PyTorch"
DECODER_ONLY, ENCODER_DECODER = "LVSM decoder-only", "LVSM encoder-decoder"
HALF = ", bf16"  # at the end of a program's name
SPARSE = ", sparse"  # likewise: a density of 0.3 everywhere, in blocks of 512 queries and 64 keys
INT8 = ", int8"  # likewise: products of layers, of weights and tokens; all else is float32
FAMILIES = {
    OURS: "efficient_lvsm",
    DECODER_ONLY: "lvsm_decoder_only",
    ENCODER_DECODER: "lvsm_encoder_decoder",
}
EFFICIENT = (OURS, TORCH, OURS + HALF, TORCH + HALF)
SPARSITY = ",".join(f"{place}=0.3:block512x64" for place in ("encoder", "decoder", "cross"))
# Small pictures make no sense of 3,072 latents, as many as three views of 256 pixels have tokens.
WITH_DECODER_ONLY = (OURS, TORCH, DECODER_ONLY, OURS + HALF, TORCH + HALF)
EVERY = (OURS, TORCH, DECODER_ONLY, ENCODER_DECODER, OURS + HALF, TORCH + HALF)
EIGHT_BITS = (OURS + INT8, TORCH + INT8)
LARGE = (OURS, OURS + SPARSE, TORCH, OURS + INT8, OURS + SPARSE + INT8, TORCH + INT8)


@dataclasses.dataclass(frozen=True)
class Row:
    """What is timed: kind is "whole", "add", "cached" or "remove", see the module."""

    kind: str
    inputs: int
    targets: int
    size: int
    programs: tuple[str, ...] = EFFICIENT

    @property
    def title(self) -> str:
        """As tables name it."""
        start = {"whole": "", "add": "add ", "cached": "cached ", "remove": "remove "}[self.kind]
        return f"{start}{self.inputs}" + (f" → {self.targets}" if self.targets else "")


SLOW = (DECODER_ONLY, ENCODER_DECODER)
MOST_SECONDS = 30.0  # of a program in a row, unless two turns take longer
# What is timed, and what makes everything as it was before.
Job = tuple[Callable[[], None], Callable[[], None]]

SMALL = 64  # pixels, where the full model is too slow for two cores
ROWS = (
    Row("whole", 2, 1, 256, EVERY + EIGHT_BITS),
    Row("whole", 2, 3, 256, EVERY),
    Row("whole", 2, 8, 256, EVERY),
    *(Row("add", views, 8, 256, (OURS, TORCH)) for views in (2, 4)),
    Row("add", 8, 8, 256),
    Row("cached", 2, 1, 256, EFFICIENT + EIGHT_BITS),
    Row("cached", 8, 1, 256),
    Row("remove", 8, 0, 256),
    Row("whole", 2, 1, 512, LARGE),
    Row("cached", 2, 1, 512, LARGE),
    *(Row("add", views, 8, SMALL, WITH_DECODER_ONLY) for views in (2, 4, 8, 16, 32, 64)),
)


def random_views(count: int, size: int, seed: int) -> tuple[np.ndarray, ...]:
    """Images [V, Y, X, 3], c2w [V, 4, 4] and fxfycxcy [V, 4] of cameras that look ahead."""
    rng = np.random.default_rng(seed)
    c2w = np.tile(np.eye(4, dtype=np.float32), (count, 1, 1))
    c2w[:, :3, 3] = rng.uniform(-0.5, 0.5, (count, 3))
    fxfycxcy = np.tile(np.float32([size, size, size / 2, size / 2]), (count, 1))
    return rng.random((count, size, size, 3), np.float32), c2w, fxfycxcy


def configured(name: str) -> tuple[str, Any]:
    """Family and configuration of a program of JAX."""
    from efficient_lvsm_jax.models.families import configure

    family = FAMILIES[name.partition(",")[0]]
    settings = {"compute_dtype": "bfloat16" if name.endswith(HALF) else "float32"}
    if SPARSE in name:
        settings["attention_sparsity"] = SPARSITY
    return family, configure(family, settings)


def jax_program(name: str) -> Callable[[dict], dict]:
    """A program that prepares a row, or runs it once."""
    import jax

    from efficient_lvsm_jax import SceneFrame, Session
    from efficient_lvsm_jax.geometry.cameras import Cameras, Views
    from efficient_lvsm_jax.models.model import Model, init_params
    from efficient_lvsm_jax.weights.scaled import in_eight_bits

    family, config = configured(name)
    params = jax.jit(lambda: init_params(family, config, jax.random.key(0)))()
    model = Model(family, config, jax.block_until_ready(params))
    if name.endswith(INT8):
        model = in_eight_bits(model, "int8")
    compiling = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, seconds, **_: "backend_compile" in event and compiling.append(seconds)
    )

    def prepare(row: Row) -> Job:
        views = random_views(row.inputs, row.size, 0)
        cameras = random_views(row.targets, row.size, 1)[1:]
        if row.kind == "whole":
            inputs = jax.device_put(Views(*(x[None] for x in views)))
            poses = jax.device_put(Cameras(*(x[None] for x in cameras), row.size, row.size))
            return lambda: jax.block_until_ready(model.decode(model.encode(inputs), poses)), nothing
        session = Session(
            model, frame=SceneFrame.identity(), capacity=row.inputs, check_poses=False
        )
        *others, newest = zip(*views, strict=True)
        if row.kind != "add":
            others.append(newest)
        ids = [session.add(*view) for view in others]
        session.block_until_ready()

        def run() -> None:
            if row.kind == "remove":
                session.remove(ids.pop(0))
            if row.kind == "add":
                ids.append(session.add(*newest))
            if row.targets:
                session.render(*cameras, (row.size, row.size))
            session.block_until_ready()

        def again() -> None:
            if row.kind == "add":
                session.remove(ids.pop(0))
            if row.kind == "remove":
                ids.append(session.add(*newest))
            session.block_until_ready()

        return run, again

    return answers(prepare, compiling, f"jax {jax.__version__}")


def torch_program(name: str) -> Callable[[dict], dict]:
    """A program that prepares a row, or runs it once."""
    import torch

    from tests.peers.efficient_lvsm_torch import EfficientLVSM, append, remove

    torch.manual_seed(0)
    model = EfficientLVSM().eval()
    if name.endswith(INT8):
        model = torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, torch.qint8)

    def prepare(row: Row) -> Job:
        def tensors(count: int, seed: int) -> list:
            image, c2w, fxfycxcy = random_views(count, row.size, seed)
            image = np.ascontiguousarray(np.moveaxis(image, -1, 1))
            return [torch.from_numpy(x[None]) for x in (image, c2w, fxfycxcy)]

        views, cameras = tensors(row.inputs, 0), tensors(row.targets, 1)[1:]
        size, tokens = (row.size, row.size), (row.size // 8) ** 2
        newest = [x[:, -1:] for x in views]
        with torch.inference_mode(), autocast():
            cache = model.encode(*views) if row.kind != "whole" else None
            kept = remove(cache, row.inputs - 1, tokens) if row.kind == "add" else cache

        def run() -> None:
            with torch.inference_mode(), autocast():
                if row.kind == "whole":
                    model(*views, *cameras)
                elif row.kind == "add":
                    model.decode(append(kept, model.encode(*newest)), *cameras, size)
                elif row.kind == "cached":
                    model.decode(cache, *cameras, size)
                else:
                    remove(cache, 0, tokens)

        return run, nothing

    def autocast():
        return torch.autocast("cpu", torch.bfloat16, enabled=name.endswith(HALF))

    return answers(prepare, [], f"torch {torch.__version__}")


def nothing() -> None:
    """For rows that leave everything as it was."""


def answers(
    prepare: Callable[[Row], Job], compiling: list[float], version: str
) -> Callable[[dict], dict]:
    """What a worker says: to {"row": …} once it is ready for it, to {} how long it took.

    To {"profile": DIR} it says nothing more than that it has traced the row, see `profiling`.
    """
    job = nothing, nothing

    def answer(request: dict) -> dict:
        nonlocal job
        if "row" in request:
            job = nothing, nothing  # frees the last row's arrays
            compiling.clear()
            job = prepare(Row(**request["row"]))
            prepared = sum(compiling)
            turn = timed(job[0])
            # Compiling happens before a run, not beside it.
            turn["seconds"] -= sum(compiling) - prepared
            return {"compile_seconds": sum(compiling), "version": version, "first": turn}
        run, again = job
        again()
        if "profile" in request:
            from efficient_lvsm_jax.runs.profiling import traced

            with contextlib.redirect_stdout(sys.stderr), traced(request["profile"]):
                run()
            return {}
        compiled = len(compiling)
        return {**timed(run), "compiled": len(compiling) - compiled}

    return answer


def timed(run: Callable[[], None]) -> dict:
    """Seconds that a run takes, and bytes that the process has more than before at its peak."""
    reset_peak()
    before = resident("VmRSS")
    started = time.perf_counter()
    run()
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "more_bytes": resident("VmHWM") - before}


def reset_peak() -> None:
    """Makes Linux count a process's most resident memory from now on."""
    Path("/proc/self/clear_refs").write_text("5")


def resident(what: str) -> int:
    """VmRSS (resident memory) or VmHWM (most of it) of this process, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(what))


def work(row: Row, program: str) -> int:
    """Analytic FLOPs of a row."""
    family, config = configured(program.replace(TORCH, OURS))
    pixels = row.size**2
    parts = []
    if row.kind == "whole" or (row.kind == "add" and family != FAMILIES[OURS]):
        parts.append(config.encode_flops(row.inputs, pixels))
    elif row.kind == "add":
        parts.append(config.encode_flops(1, pixels))
    if row.targets:
        parts.append(config.decode_flops(row.inputs, row.targets, pixels))
    return sum(each.total for part in parts for each in part.values())


def measure(arguments: argparse.Namespace, file: Path) -> None:
    """Measures all rows of all programs; `file` gets the results after every row."""
    rates = {dtype: [matrix_rate(dtype)] for dtype in ("float32", "bfloat16")}
    programs = {name: Program(name, Path(__file__), []) for name in arguments.programs}
    rows = []
    results = {
        "date": datetime.date.today().isoformat(),
        "machine": f"{cpu_name()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "matrix_rates": rates,
        "rounds": arguments.rounds,
        "rows": rows,
    }
    for row in ROWS:
        if arguments.rows not in f"{row.size} px, {row.title}":
            continue
        taking_part = {name: programs[name] for name in row.programs if name in programs}
        starts = {name: p.ask({"row": dataclasses.asdict(row)}) for name, p in taking_part.items()}
        firsts = {name: start.pop("first") for name, start in starts.items()}
        # Where a baseline takes long, its first run counts, and it is the only one.
        found = {
            name: [first] if name in SLOW and first["seconds"] > MOST_SECONDS / 2 else []
            for name, first in firsts.items()
        }
        turns = {
            name: min(arguments.rounds, max(2, int(MOST_SECONDS / firsts[name]["seconds"])))
            for name in taking_part
            if not found[name]
        }
        for turn in range(arguments.rounds):
            for name, most in turns.items():
                if turn < most:
                    found[name].append(taking_part[name].ask({}))
                    if found[name][-1]["compiled"]:
                        raise SystemExit(f"{row.title}, {name}: compiled again in turn {turn}")
        for name, program in taking_part.items():
            if arguments.profile and not name.startswith(TORCH):
                folder = arguments.profile / f"{row.size}_px_{row.title}_{name}".replace(" ", "_")
                program.ask({"profile": str(folder)})
        for name, turns in found.items():
            result = {
                "title": row.title,
                "size": row.size,
                "inputs": row.inputs,
                "targets": row.targets,
                "kind": row.kind,
                "program": name,
                "flops": work(row, name),
                **starts[name],
                "turns": turns,
            }
            rows.append(result)
            seconds = statistics.median(turn["seconds"] for turn in turns)
            print(f"{row.size} px, {row.title}, {name}: {seconds:.4g} s", flush=True)
        write_json(file, results)
    for program in programs.values():
        program.close()
    for dtype, found in rates.items():
        found.append(matrix_rate(dtype))
    write_json(file, results)


def cpu_name() -> str:
    """Of this machine's processor."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((x.partition(":")[2].strip() for x in lines if x.startswith("model name")), "CPU")


def tables(results: dict) -> None:
    """Prints what docs/performance.md holds."""
    rates = {dtype: max(found) for dtype, found in results["matrix_rates"].items()}
    print(
        f"{results['date']}; {results['machine']}; a {MATRIX_EDGE}-square product: "
        f"{rates['float32'] / 1e9:.0f} GFLOP/s in float32, {rates['bfloat16'] / 1e9:.0f} in "
        f"bfloat16; up to {results['rounds']} rounds"
    )
    print(
        "\n| px | row | program | median, s | p95, s | PyTorch's time / this | TFLOP | of the "
        "matrix rate | more memory, MiB | compile, s |"
    )
    print("|---" * 10 + "|")
    for row in results["rows"]:
        seconds = [turn["seconds"] for turn in row["turns"]]
        median = statistics.median(seconds)
        alike = next((end for end in (HALF, INT8) if row["program"].endswith(end)), "")
        peer = _median(results, row, TORCH + alike)
        more = max(turn["more_bytes"] for turn in row["turns"]) / 2**20
        ratio = f"{peer / median:.2f}" if peer and row["kind"] != "remove" else ""
        rate = rates.get({HALF: "bfloat16", "": "float32"}.get(alike))
        share = f"{row['flops'] / median / rate:.0%}" if row["flops"] and rate else ""
        compiled = f"{row['compile_seconds']:.1f}" if "jax" in row["version"] else ""
        print(
            f"| {row['size']} | {row['title']} | {row['program']} | {median:.4g} | "
            f"{np.percentile(seconds, 95):.4g} | {ratio} | {row['flops'] / 1e12:.3g} | {share} | "
            f"{more:.0f} | {compiled} |"
        )


def _median(results: dict, like: dict, program: str) -> float | None:
    """Of another program in the same row."""
    for row in results["rows"]:
        if (row["size"], row["title"], row["program"]) == (like["size"], like["title"], program):
            return statistics.median(turn["seconds"] for turn in row["turns"])
    return None


def picture(results: dict, path: Path) -> None:
    """Seconds over targets, and over views that are added one by one."""
    from efficient_lvsm_jax.media.curves import Panel, draw_curves

    names = list(dict.fromkeys(row["program"] for row in results["rows"]))
    panels = []
    for title, kind, size, along in (
        ("two views in, T pictures out, 256 px: seconds", "whole", 256, "targets"),
        ("add a view and render 8, 256 px: seconds", "add", 256, "views"),
        (f"add a view and render 8, {SMALL} px: seconds", "add", SMALL, "views"),
    ):
        curves = {}
        for name in names:
            points = [
                (row[along if along == "targets" else "inputs"], _median(results, row, name))
                for row in results["rows"]
                if (row["kind"], row["size"], row["program"]) == (kind, size, name)
            ]
            curves[name] = tuple(np.array(points, np.float64).reshape(-1, 2).T)
        panels.append(Panel(title, curves, points=curves, logarithmic=True, along=along))
    note = f"full models with random weights; {results['machine']}; {results['date']}"
    draw_curves(panels, names, [note]).savefig(path)


def main() -> None:
    """Measures, writes, prints and draws."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/rendering"))
    parser.add_argument("--rounds", type=int, default=5)
    programs = tuple(dict.fromkeys(EVERY + EIGHT_BITS + LARGE))
    parser.add_argument("--programs", nargs="+", choices=programs, default=programs)
    parser.add_argument("--rows", default="", help="only those with this in their name")
    parser.add_argument("--profile", type=Path, help="folder for a trace of every row, not timed")
    parser.add_argument("--table", action="store_true", help="of results that are there already")
    parser.add_argument("--serve", choices=programs, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        make = torch_program if arguments.serve.startswith(TORCH) else jax_program
        return serve(make(arguments.serve))
    if importlib.util.find_spec("torch") is None and any(TORCH in x for x in arguments.programs):
        parser.error("PyTorch is not installed: pip install -e '.[bench]', or leave it out")
    if os.environ.setdefault("JAX_PLATFORMS", "cpu") != "cpu":
        parser.error("set JAX_PLATFORMS=cpu: accelerators are not measured by this yet")
    file = arguments.out.with_suffix(".json")
    if not arguments.table:
        file.parent.mkdir(parents=True, exist_ok=True)
        measure(arguments, file)
    results = json.loads(file.read_text())
    tables(results)
    picture(results, arguments.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
