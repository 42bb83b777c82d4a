"""Time and memory of the full-size models of geometry, with drawn numbers for weights.

    python benchmarks/full_geometry.py --out FOLDER [--models NAME ...] [--frames 1 2] [--rounds 3]

What they say means nothing, what they take does. Every model is measured in a process of its own:
seconds to compile and, the median of some rounds, to see a clip; for StreamVGGT as well a frame
that comes after so many others. FLOPs are those of the formulas. Prints the table of
docs/geometry.md; FOLDER gets full_geometry.json.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import statistics
import sys
import time
from pathlib import Path

import jax
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from efficient_lvsm_jax.files.writing import write_json
from efficient_lvsm_jax.models.families import configure
from efficient_lvsm_jax.models.geometry_model import GeometryModel
from efficient_lvsm_jax.models.model import abstract_params

BASE = {"width": 768, "channels": (96, 192, 384, 768), "features": 128}
LARGE = {
    **{"width": 1024, "layers": 24, "encoder_layers": 8, "taps": (2, 4, 6, 8)},
    **{"channels": (256, 512, 1024, 1024), "features": 256},
}
MODELS = {
    "Depth Anything 3 Small": ("depth_anything3", {}),
    "Depth Anything 3 Base": ("depth_anything3", BASE),
    "Depth Anything 3 Large": ("depth_anything3", LARGE),
    "VGGT": ("vggt", {"causal": False}),
    "StreamVGGT": ("vggt", {}),
}
SIZE = 392, 518  # rows and columns of a picture of 3:4 as the published programs prepare it


def drawn(name: str) -> GeometryModel:
    """A full-size model with small numbers."""
    family, settings = MODELS[name]
    config, draw = configure(family, settings), np.random.default_rng(0)

    def numbers(x: jax.ShapeDtypeStruct) -> np.ndarray:
        return draw.standard_normal(x.shape, np.float32) * np.float32(0.02)

    params = jax.tree.map(numbers, abstract_params(family, config))
    return GeometryModel(family, config, jax.tree.map(jax.numpy.asarray, params))


def measured(name: str, clips: list[int], rounds: int) -> dict:
    """What a model takes; run in a process of its own."""
    model, draw = drawn(name), np.random.default_rng(1)
    parameters = sum(x.size for x in jax.tree.leaves(model.params))
    found = {"parameters": parameters, "rows": []}

    def pictures(count: int) -> np.ndarray:
        return draw.uniform(size=(1, count, *SIZE, 3)).astype(np.float32)

    def row(what: str, flops: int, see) -> None:
        taken = []
        for _ in range(rounds + 1):
            start = time.perf_counter()
            see()
            taken.append(time.perf_counter() - start)
        first, *rest = taken
        found["rows"].append(
            {
                "what": what,
                "compile_seconds": first - statistics.median(rest),
                "seconds": statistics.median(rest),
                "flops": flops,
                "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            }
        )
        print(name, found["rows"][-1], flush=True)

    def flops(frames: int, remembered: int = 0) -> int:
        parts = model.config.observe_flops(frames, SIZE, remembered).values()
        return sum(part.total for part in parts)

    for count in clips:
        images = pictures(count)
        row(
            f"a clip of {count}",
            flops(count),
            lambda images=images: jax.block_until_ready(model.observe(None, images)),
        )
    if name == "StreamVGGT":
        memory = [model.start(rounds + 2, SIZE)]

        def frame() -> None:
            memory[0], seen = model.observe(memory[0], pictures(1))
            jax.block_until_ready(seen)

        row("a frame of a stream", flops(1, rounds // 2 + 1), frame)
    return found


def main() -> None:
    """Measures, prints, writes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--frames", type=int, nargs="+", default=[1, 2], help="of clips")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    results = {}
    for name in arguments.models:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            results[name] = pool.apply(measured, (name, arguments.frames, arguments.rounds))
        write_json(arguments.out / "full_geometry.json", results)
    print("| model | parameters | sees | seconds | compiling, s | TFLOP | peak memory, GB |")
    print("|---" * 7 + "|")
    for name, found in results.items():
        for row in found["rows"]:
            print(
                f"| {name} | {found['parameters']:,} | {row['what']} | {row['seconds']:.1f} "
                f"| {row['compile_seconds']:.0f} | {row['flops'] / 1e12:.2f} "
                f"| {row['peak_bytes'] / 1e9:.1f} |"
            )


if __name__ == "__main__":
    main()
