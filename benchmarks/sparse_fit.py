"""What sparse attention costs in pictures, over its density: α and P fitted or not, any blocks.

    python benchmarks/sparse_fit.py --weights rooms --out FOLDER [--sizes 48 96] [--scenes 192]

Drawn rooms: both are fitted on those of the training split and judged on a fourth as many held-out
ones, as `elvsm compress --generated` does. Sparse are the places of `--places`, in blocks of
`--block` tokens, however few keys there are. FOLDER gets sparse_fit.json, and sparse_fit.png with a
panel for each size of pictures. Printed is a table, in dB.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from efficient_lvsm_jax.compress.scenes import ViewsOf, drawn
from efficient_lvsm_jax.compress.sparse_model import (
    FITTED,
    NOTHING,
    RANDOM,
    Fitted,
    made_sparse,
)
from efficient_lvsm_jax.files.writing import json_safe, write_json
from efficient_lvsm_jax.media.curves import Panel, draw_curves
from efficient_lvsm_jax.media.plots import save_png
from efficient_lvsm_jax.weights.load import load

DENSITIES = (0.05, 0.1, 0.2, 0.3, 0.5, 1.0)
HOW = {
    FITTED: "α and P fitted",
    NOTHING: "α = 1, P = 0: chosen blocks alone",
    RANDOM: "any blocks, α and P fitted",
}
TRUTH, DENSE = "PSNR, dB", "PSNR to the dense model, dB"


def row(density: float, of: Fitted) -> str:
    """A line of the table."""
    scores = of.report["scores"]
    values = [scores[how][name][0] for name in (TRUTH, DENSE) for how in HOW]
    return f"| {density:g} | " + " | ".join(f"{value:.2f}" for value in values) + " |"


def main() -> None:
    """Measures, prints, writes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--weights", default="rooms", metavar="W", help="what elvsm.load takes")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--sizes", type=int, nargs="+", default=[48, 96])
    parser.add_argument("--block", type=int, default=4)
    parser.add_argument("--places", nargs="+", help="(default: all)")
    parser.add_argument("--scenes", type=int, default=192)
    parser.add_argument("--inputs", type=int, default=4)
    asked = parser.parse_args()

    model = load(asked.weights)
    panels, found = [], {}
    for size in asked.sizes:
        split = drawn(asked.scenes, ViewsOf.of(model, asked.inputs, 2, size))
        print(f"{size} pixels: density, PSNR of {', '.join(HOW)}, and of them to the dense model")
        of_size = {}
        for density in DENSITIES:
            names = asked.places or model.config.places
            text = ",".join(f"{name}={density:g}:block{asked.block}:from0" for name in names)
            of_size[density] = made_sparse(model, text, split)
            print(row(density, of_size[density]), flush=True)
        dense = of_size[1.0].report["scores"]["dense"][TRUTH][0]
        percent = 100 * np.array(DENSITIES)
        curves = {
            shown: (percent, [of_size[x].report["scores"][how][TRUTH][0] for x in DENSITIES])
            for how, shown in HOW.items()
        }
        title = f"PSNR in dB at {size} pixels; of dense attention {dense:.2f}"
        panels.append(Panel(title, curves, along="density, % of the blocks of keys"))
        found[size] = {f"{density:g}": of.report for density, of in of_size.items()}
    asked.out.mkdir(parents=True, exist_ok=True)
    write_json(asked.out / "sparse_fit.json", json_safe(found))
    places = ", ".join(asked.places or model.config.places)
    save_png(
        draw_curves(
            panels, list(HOW.values()), [f"sparse: {places}, in blocks of {asked.block} tokens"]
        ),
        asked.out / "sparse_fit.png",
    )


if __name__ == "__main__":
    main()
