"""Writes a model as programs that run without this package: StableHLO by `jax.export`.

    python -m efficient_lvsm_jax.export --weights W --out OUT --size 256 256x384
        --targets 1 8 --capacity 16

OUT then holds `encode`, `decode` and, for models with a view cache, `append` and `replace`, each
for the shapes asked for; the weights; manifest.json, which describes all of it; and
load.py, which runs it with jax, numpy and flatbuffers alone. docs/export.md has an example.

A program is traced for the platform it will run on, wherever this runs: attention is the CPU's
loops on cpu, splash on tpu, and whole scores on cuda, because JAX makes no promise that a cuDNN
call in a file runs with later versions. --cudnn takes it nevertheless.

Exit status: 0 written, 2 something given is wrong.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path

from efficient_lvsm_jax.commands import Parser, main_exit, picture_size


def _count(text: str) -> int:
    if not re.fullmatch(r"[1-9]\d*", text):
        raise argparse.ArgumentTypeError(f"{text!r}: expected a positive integer")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    parser = Parser("python -m efficient_lvsm_jax.export", __doc__, {"--inputs": "--count"})
    parser.add_argument(
        "--weights",
        required=True,
        metavar="W",
        help="a folder, workdir, file, hf://… or name: docs/weights.md",
    )
    parser.add_argument("--out", required=True, type=Path, help="new folder")
    parser.add_argument(
        "--size",
        type=picture_size,
        nargs="+",
        required=True,
        metavar="HxW",
        help="height x width of inputs and targets in pixels, or one number for both",
    )
    parser.add_argument(
        "--targets",
        type=_count,
        nargs="+",
        default=[1, 8],
        metavar="T",
        help="pictures that one call renders (default: 1 8)",
    )
    parser.add_argument(
        "--capacity", type=_count, metavar="S", help="views a cache has room for; Efficient-LVSM"
    )
    parser.add_argument(
        "--count", type=_count, nargs="+", default=[], metavar="V", help="input views; LVSM models"
    )
    parser.add_argument(
        "--platforms", nargs="+", metavar="P", help="some of cpu, cuda and tpu (default: all)"
    )
    parser.add_argument(
        "--compute-dtype",
        choices=("float32", "bfloat16"),
        help="of products and weights (default: as the weights' configuration says)",
    )
    parser.add_argument(
        "--cudnn",
        action="store_true",
        help="fused attention on cuda; JAX does not promise that later versions run such a file",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    arguments = _parser().parse_args(argv)
    # Here, so that --help need not wait for it.
    from efficient_lvsm_jax.export.programs import LOADER_FILE, PLATFORMS, Shapes, export
    from efficient_lvsm_jax.weights.load import load_renderer

    model = load_renderer(arguments.weights)
    if arguments.compute_dtype:
        config = dataclasses.replace(model.config, compute_dtype=arguments.compute_dtype)
        model = dataclasses.replace(model, config=config)
    shapes = Shapes(
        tuple(arguments.size),
        tuple(arguments.targets),
        arguments.capacity,
        tuple(arguments.count),
    )
    about = export(
        model,
        arguments.out,
        shapes,
        platforms=list(dict.fromkeys(arguments.platforms or PLATFORMS)),
        cudnn=arguments.cudnn,
    )
    for entry in about["programs"]:
        attention = f"  attention: {entry['attention']}" if entry["attention"] else ""
        print(f"{entry['file']}{attention}")
    print(
        f"{arguments.out}: {about['family']}, {len(about['programs'])} programs in "
        f"{about['config']['compute_dtype']}, made with jax {about['jax']}; {LOADER_FILE} runs them"
    )


if __name__ == "__main__":
    main_exit(main)
