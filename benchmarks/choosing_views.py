"""What choosing views brings: quality and time of pictures from all cached views, or the nearest k.

    python benchmarks/choosing_views.py --weights runs/demo --out runs/choosing_views

Generated rooms that nothing was trained on, --views cameras of each. Of 2, 4, … 64 of them, spread,
a Session is made; --targets of the others, evenly chosen, are rendered one at a time from all views
in the cache, and from the 1, 2, 4 and 8 nearest (`geometry.choice`). PSNR is the mean over scenes
and targets. Milliseconds are the median of one picture, choosing included; the choices take turns
in one process, after one round to warm up. Writes OUT.json and prints a table; --table prints it
from OUT.json again.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
import time
from collections import defaultdict
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from data_pipeline.procedural.rooms import ProceduralScenes, SceneRecipe
from efficient_lvsm_jax.files.writing import write_json
from efficient_lvsm_jax.geometry.cameras import SceneFrame, spread
from efficient_lvsm_jax.metrics.pictures import psnr
from efficient_lvsm_jax.models.model import Model
from efficient_lvsm_jax.sessions.session import Session
from efficient_lvsm_jax.weights.load import load

CACHED = (2, 4, 8, 16, 32, 64)
CHOICES = ("all", "nearest:1", "nearest:2", "nearest:4", "nearest:8")


def measure(model: Model, scene: dict, cached: int, targets: int) -> dict[str, list[tuple]]:
    """(PSNR, seconds) of each target by choice, of one room with so many views cached."""
    image = scene["image"].astype(np.float32) / 255
    c2w, fxfycxcy = (scene[name].astype(np.float64) for name in ("c2w", "fxfycxcy"))
    inputs = spread(c2w, cached)
    others = [view for view in range(len(c2w)) if view not in inputs]
    at = np.linspace(0, len(others) - 1, targets).round().astype(int)
    frame = SceneFrame.from_cameras(c2w[inputs])
    session = Session(model, frame=frame, capacity=cached, check_poses=False)
    for view in inputs:
        session.add(image[view], c2w[view], fxfycxcy[view])
    choices = [x for x in CHOICES if x == "all" or int(x.partition(":")[2]) < cached]
    found = defaultdict(list)
    for target in [others[at[0]], *(others[i] for i in at)]:  # the first one warms up
        for choice in choices:
            start = time.perf_counter()
            picture = session.render(c2w[target], fxfycxcy[target], views=choice)
            seconds = time.perf_counter() - start
            found[choice].append((float(psnr(picture, image[target])), seconds))
    return {choice: values[1:] for choice, values in found.items()}


def table(results: dict) -> str:
    """The figures as markdown: dB / milliseconds."""
    lines = ["| cached | " + " | ".join(CHOICES) + " |", "|---" * (len(CHOICES) + 1) + "|"]
    for row in results["rows"]:
        cells = [
            f"{row[choice]['psnr']:.2f} / {row[choice]['ms']:.1f}" if choice in row else ""
            for choice in CHOICES
        ]
        lines.append(f"| {row['cached']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--weights", metavar="W", help="what elvsm.load takes")
    parser.add_argument("--out", required=True, metavar="OUT")
    parser.add_argument("--scenes", type=int, default=16)
    parser.add_argument("--views", type=int, default=72, help="cameras of a scene")
    parser.add_argument("--targets", type=int, default=8, help="of a scene")
    parser.add_argument("--arc", type=float, nargs=2, default=(60.0, 100.0), help="degrees")
    parser.add_argument("--seed", type=int, default=1000, help="of the held-out rooms")
    parser.add_argument("--table", action="store_true", help="print what OUT.json holds")
    asked = parser.parse_args()
    out = Path(f"{asked.out}.json")
    if asked.table:
        print(table(json.loads(out.read_text(encoding="utf-8"))))
        return
    if not asked.weights:
        parser.error("--weights: expected, but for --table")
    if asked.views < CACHED[-1] + asked.targets:
        parser.error(f"--views {asked.views}: expected {CACHED[-1]} to cache, and the targets")
    model = load(asked.weights)
    size = (model.trained_sizes or [(SceneRecipe.size,) * 2])[0][0]
    recipe = SceneRecipe(size=size, views=asked.views, arc=tuple(asked.arc))
    rooms = ProceduralScenes(asked.scenes, split="heldout", seed=asked.seed, recipe=recipe)
    rows = []
    for cached in CACHED:
        found = defaultdict(list)
        for scene in range(len(rooms)):
            for choice, values in measure(model, rooms[scene], cached, asked.targets).items():
                found[choice] += values
        row = {"cached": cached}
        for choice, values in found.items():
            quality, seconds = np.array(values).T
            row[choice] = {"psnr": float(quality.mean()), "ms": float(np.median(seconds) * 1e3)}
        rows.append(row)
    results = {
        "date": datetime.date.today().isoformat(),
        "model": repr(model),
        **{name: value for name, value in vars(asked).items() if name not in ("out", "table")},
        "rows": rows,
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    write_json(out, results)
    print(table(results))


if __name__ == "__main__":
    main()
