"""What weights and a cache in eight bits cost: bytes and PSNR of a small model.

    python benchmarks/eight_bits.py --weights rooms [--size 48] [--views 8] [--scenes 4]

Held-out generated rooms; all views but every fourth are added, the others are rendered and compared
with what was drawn. Prints a table: weights as they are, stored in eight bits (products of floats),
and multiplied in eight bits; each with caches of several precisions. Bytes are those of the file of
weights as float32 or in eight bits, and of the cache's arrays; ± is the standard error over scenes
of the difference from float32 with a float32 cache.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.bounded_cache import SEED, measured, row
from data_pipeline.procedural.rooms import ProceduralScenes, SceneRecipe
from efficient_lvsm_jax.compress.storage import store
from efficient_lvsm_jax.convert.conversion import convert
from efficient_lvsm_jax.models.model import Model
from efficient_lvsm_jax.weights.load import load
from efficient_lvsm_jax.weights.scaled import BITS, in_eight_bits

CACHES = ("fp32", "int8", "fp8")


def models(weights: str, folder: Path) -> dict[str, tuple[Model, int]]:
    """A model and the bytes of its file, by what stands in the table."""
    convert(weights, plain := folder / "float32.safetensors")
    found = {"float32": (load(plain), plain.stat().st_size)}
    for bits in BITS:
        path = folder / f"{bits}.safetensors"
        store(weights, path, bits)
        found[f"{bits}, stored"] = load(path), path.stat().st_size
    for bits in BITS:
        stored, size = found[f"{bits}, stored"]
        found[f"{bits}, multiplied"] = in_eight_bits(stored, bits), size
    return found


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--weights", default="rooms", metavar="W", help="what elvsm.load takes")
    parser.add_argument("--size", type=int, default=48)
    parser.add_argument("--views", type=int, default=8)
    parser.add_argument("--scenes", type=int, default=4)
    parser.add_argument("--caches", nargs="+", choices=CACHES, default=CACHES)
    asked = parser.parse_args()

    recipe = SceneRecipe(size=asked.size, views=asked.views)
    scenes = ProceduralScenes(asked.scenes, seed=SEED, split="heldout", recipe=recipe)
    print("| weights | bytes | cache | KiB | PSNR, dB | against float32, dB |")
    print("|---|---|---|---|---|---|")
    full = None
    with tempfile.TemporaryDirectory() as folder:
        for name, (model, size) in models(asked.weights, Path(folder)).items():
            for cache in asked.caches:
                scores = [
                    measured(model, scenes[i], {"precision": cache}) for i in range(len(scenes))
                ]
                full = full or scores
                found = row(name, cache, scores, full)
                print(
                    f"| {name} | {size} | {cache} | {found['bytes'] / 1024:.0f} "
                    f"| {found['psnr']:.2f} | {found['gain']:+.3f} ± {found['error']:.3f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
