"""What a cache within so many bytes keeps: condensing views against fewer bits and fewer views.

    python benchmarks/bounded_cache.py --weights FOLDER --out FOLDER [--size 64] [--scenes 8]

Held-out generated rooms with many cameras on an arc. All views but every fourth are added in order,
as a stream brings them; the others are rendered and compared with what was drawn. Each setting is a
session of its own:

    full            all views, keys and values as fp32, bf16, int8 and fp8
    merge           `Session(when_full="merge")` within some shares of the bytes of full, fp32, int8
    spread, oldest  the same bytes and precisions, views taken out instead

FOLDER gets bounded_cache.json, bounded_cache.md (the table, printed as well) and bounded_cache.png.
Bytes are those of the cache's arrays; means over scenes, ± being the standard error over scenes of
the difference from full fp32.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from data_pipeline.procedural.rooms import ProceduralScenes, SceneRecipe
from efficient_lvsm_jax.files.writing import write_json, written_whole
from efficient_lvsm_jax.geometry.cameras import SceneFrame
from efficient_lvsm_jax.media.plots import COLOURS, new_figure, save_png, style
from efficient_lvsm_jax.models.model import Model
from efficient_lvsm_jax.nn.paged import PRECISIONS
from efficient_lvsm_jax.sessions.session import Session
from efficient_lvsm_jax.weights.load import load

SEED = 2026  # of scenes; "heldout" ones are never of a training, whatever the seed
TARGET_EVERY = 4
SHARES = (1 / 2, 1 / 4, 1 / 6)  # of the bytes of all views
BOUNDED, BOUNDED_PRECISIONS = ("merge", "spread", "oldest"), ("fp32", "int8")


def session_of(model: Model, scene: dict, inputs: np.ndarray, options: dict) -> Session:
    """A session of the scene's inputs, added in order."""
    frame = SceneFrame.from_cameras(scene["c2w"][inputs])
    session = Session(model, frame=frame, **{"capacity": len(inputs), **options})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of views that leave
        for index in inputs:
            session.add(*(scene[name][index] for name in ("image", "c2w", "fxfycxcy")))
    return session


def measured(model: Model, scene: dict, options: dict) -> tuple[float, int, int]:
    """Mean PSNR of a scene's targets, dB; bytes of its pages; views that are left."""
    is_target = np.arange(len(scene["c2w"])) % TARGET_EVERY == TARGET_EVERY // 2
    session = session_of(model, scene, np.flatnonzero(~is_target), options)
    found = session.render(*(scene[name][is_target] for name in ("c2w", "fxfycxcy")))
    wanted = scene["image"][is_target] / np.float32(255)
    psnr = -10 * np.log10(np.square(found - wanted).mean((1, 2, 3)))
    cache = session._store.cache
    return float(psnr.mean()), cache.capacity * cache.page_bytes, len(session.views)


def row(name: str, precision: str, scores: list, full: list) -> dict:
    """What stands in the results of one setting, from `measured` of all scenes."""
    psnr, size, views = (np.array(x) for x in zip(*scores, strict=True))
    less = psnr - [x[0] for x in full]
    error = less.std(ddof=1) / np.sqrt(len(less)) if len(less) > 1 else 0.0
    return {
        "setting": name,
        "precision": precision,
        "views": float(views.mean()),
        "bytes": int(size.max()),
        "psnr": float(psnr.mean()),
        "gain": float(less.mean()),
        "error": float(error),
    }


def table(rows: list[dict]) -> str:
    """Markdown, a line for each setting."""
    lines = [
        "| setting | stored as | views left | cache, KiB | PSNR, dB | against full fp32, dB |",
        "|---|---|---|---|---|---|",
    ]
    for each in rows:
        lines.append(
            f"| {each['setting']} | {each['precision']} | {each['views']:.0f} "
            f"| {each['bytes'] / 1024:.0f} | {each['psnr']:.2f} "
            f"| {each['gain']:+.2f} ± {each['error']:.2f} |"
        )
    return "\n".join(lines) + "\n"


def draw(rows: list[dict], path: Path) -> None:
    """PSNR against bytes, a line for each way to save some."""
    figure = new_figure(900, 600)
    axes = figure.subplots()
    style(axes)
    bounded = [(name, precision) for name in BOUNDED for precision in BOUNDED_PRECISIONS]
    for number, (name, precision) in enumerate([("full", None), *bounded]):
        mine = [each for each in rows if each["setting"] == name]
        mine = [each for each in mine if precision in (None, each["precision"])]
        mine.sort(key=lambda each: each["bytes"])
        axes.plot(
            [each["bytes"] / 1024 for each in mine],
            [each["psnr"] for each in mine],
            "--" if precision == "int8" else "-",
            color=COLOURS[(number + 1) // 2],
            marker="o",
            label="full, in fewer bits" if name == "full" else f"{name}, {precision}",
        )
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:.0f}")
    axes.set(xlabel="cache, KiB", ylabel="PSNR, dB")
    axes.legend()
    save_png(figure, path)


def main() -> None:
    """Measures, prints, writes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--weights", required=True, metavar="W", help="what elvsm.load takes")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--views", type=int, default=40)
    parser.add_argument("--scenes", type=int, default=8)
    asked = parser.parse_args()

    model = load(asked.weights)
    recipe = SceneRecipe(size=asked.size, views=asked.views)
    scenes = ProceduralScenes(asked.scenes, seed=SEED, split="heldout", recipe=recipe)

    def scores(options: dict) -> list:
        return [measured(model, scenes[index], options) for index in range(len(scenes))]

    full = {precision: scores({"precision": precision}) for precision in PRECISIONS}
    rows = [row("full", precision, each, full["fp32"]) for precision, each in full.items()]
    for precision in BOUNDED_PRECISIONS:
        for share in SHARES:
            budget = int(full[precision][0][1] * share)
            for name in BOUNDED:
                options = {"precision": precision, "max_bytes": budget, "when_full": name}
                rows.append(row(name, precision, scores(options), full["fp32"]))
                print(table(rows[-1:]).splitlines()[-1], flush=True)

    settings = {name: str(value) for name, value in vars(asked).items()}
    asked.out.mkdir(parents=True, exist_ok=True)
    write_json(asked.out / "bounded_cache.json", {"rows": rows, **settings})
    with written_whole(asked.out / "bounded_cache.md") as partial:
        partial.write_text(table(rows))
    draw(rows, asked.out / "bounded_cache.png")
    print(table(rows))


if __name__ == "__main__":
    main()
