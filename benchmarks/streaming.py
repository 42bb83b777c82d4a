"""Milliseconds and bytes of every frame of a stream: bounded and not, or dense and sparse.

    python benchmarks/streaming.py --out FOLDER [--frames 1000] [--room 16] [--weights FOLDER]
    python benchmarks/streaming.py --out FOLDER --frames 200 --sparsity global=0.3 --size 266 266

Without weights a small network with drawn numbers is timed: what it says means nothing, what it
takes does. Each policy is a stream of its own with room for --room frames, and "unbounded" one with
room for all, as "dense" and those of --sparsity have; every frame goes to all in turns. FOLDER gets
streaming.json and streaming.png. Time is that of the processor, in all threads, so that other
programs on the machine matter little; bytes are those of frames in use.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from efficient_lvsm_jax.files.writing import write_json
from efficient_lvsm_jax.media.plots import COLOURS, new_figure, save_png, style
from efficient_lvsm_jax.models.families import configure
from efficient_lvsm_jax.models.geometry_model import GeometryModel
from efficient_lvsm_jax.models.model import abstract_params, with_projections
from efficient_lvsm_jax.sessions.forgetting import WHEN_FULL
from efficient_lvsm_jax.sessions.streaming import Stream
from efficient_lvsm_jax.weights.load import load

SMALL = {
    **{"width": 64, "head_dim": 16, "encoder_layers": 1, "layers": 4, "taps": (1, 2, 3, 4)},
    **{"channels": (8, 8, 8, 8), "features": 8, "camera_heads": 4, "camera_layers": 1},
    **{"track_features": 8, "track_width": 16, "track_heads": 2, "track_layers": 1},
}
HEADS_OF_64 = {"width": 128, "head_dim": 64}  # as published; where attention is compared
SIZE = 42, 56  # of the small network's frames
SMOOTHED = 25  # frames, whose median is drawn


def small(**sizes: int) -> GeometryModel:
    """A small network with drawn numbers; other sizes than those of SMALL."""
    config, draw = configure("vggt", SMALL | sizes), np.random.default_rng(0)
    params = jax.tree.map(
        lambda x: jnp.float32(draw.normal(scale=0.1, size=x.shape)),
        abstract_params("vggt", config),
    )
    return GeometryModel("vggt", config, params)


def sparse(model: GeometryModel, text: str) -> GeometryModel:
    """The model with attention as `text` says; P is 0."""
    config = dataclasses.replace(model.config, attention_sparsity=text)
    params = with_projections(model.params, model.family, config)
    return dataclasses.replace(model, config=config, params=params)


def measured(
    streams: Mapping[str, Stream], frames: int, size: tuple[int, int]
) -> dict[str, dict[str, list]]:
    """Of every frame but the first two, which compile: milliseconds, and bytes in use after it."""
    draw = np.random.default_rng(1)
    found: dict[str, dict[str, list]] = {name: {"ms": [], "bytes": []} for name in streams}
    for index in range(frames):
        frame = draw.uniform(size=(*size, 3)).astype(np.float32)
        for name, stream in streams.items():
            start = time.process_time()
            jax.block_until_ready(stream.observe(frame))
            taken = time.process_time() - start
            if index > 1:
                found[name]["ms"].append(1000 * taken)
                found[name]["bytes"].append(int(stream.memory.used.sum()) * stream.frame_bytes)
    return found


def draw(results: dict[str, dict], path: Path) -> None:
    """Milliseconds above, bytes below."""
    figure = new_figure(800, 560)
    upper, lower = figure.subplots(2, 1, sharex=True)
    for colour, (name, found) in zip(COLOURS, results.items(), strict=False):
        at = 3 + np.arange(len(found["ms"]))
        windows = np.lib.stride_tricks.sliding_window_view(found["ms"], SMOOTHED)
        upper.plot(at[SMOOTHED - 1 :], np.median(windows, axis=-1), color=colour, label=name)
        lower.plot(at, np.array(found["bytes"]) / 2**20, color=colour)
    for axes, label in ((upper, "CPU ms a frame"), (lower, "MiB of memory in use")):
        style(axes)
        axes.set_ylabel(label)
        axes.set_ylim(bottom=0)
    upper.legend(frameon=False)
    lower.set_xlabel("frame")
    save_png(figure, path)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--frames", type=int, default=1000)
    parser.add_argument("--room", type=int, default=16, help="frames of bounded streams")
    parser.add_argument("--weights", help="a model of geometry instead of the small network")
    parser.add_argument("--size", type=int, nargs=2, default=SIZE, help="height and width")
    parser.add_argument(
        "--sparsity", nargs="+", metavar="TEXT", help="of model.attention_sparsity, to compare"
    )
    arguments = parser.parse_args()
    sizes = HEADS_OF_64 if arguments.sparsity else {}
    model = load(arguments.weights) if arguments.weights else small(**sizes)
    arguments.out.mkdir(parents=True, exist_ok=True)
    every, room = {"capacity": arguments.frames}, {"capacity": arguments.room}
    streams = {"dense" if arguments.sparsity else "unbounded": Stream(model, **every)}
    if arguments.sparsity:
        streams |= {text: Stream(sparse(model, text), **every) for text in arguments.sparsity}
    else:
        streams |= {name: Stream(model, when_full=name, **room) for name in WHEN_FULL[1:]}
    results = measured(streams, arguments.frames, tuple(arguments.size))
    for name, found in results.items():
        tenth = max(1, len(found["ms"]) // 10)
        first, last = np.median(found["ms"][:tenth]), np.median(found["ms"][-tenth:])
        print(
            f"{name:<24} {first:8.1f} ms at first, {last:8.1f} ms at last, "
            f"{found['bytes'][-1] / 2**20:8.1f} MiB at last",
            flush=True,
        )
    write_json(arguments.out / "streaming.json", results)
    draw(results, arguments.out / "streaming.png")


if __name__ == "__main__":
    main()
