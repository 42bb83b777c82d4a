"""Converts weights; see the package's documentation.

Exit status: 0 converted, 2 wrong input, 3 converted, but a --reference limit was exceeded.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from efficient_lvsm_jax import checkpoints
from efficient_lvsm_jax.convert import convert
from efficient_lvsm_jax.convert.reference import compare, read_reference
from efficient_lvsm_jax.errors import main_exit

ABOVE_LIMIT = 3


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m efficient_lvsm_jax.convert",
        description="Convert published PyTorch weights to a weights folder, or weights to a "
        "published .safetensors file. PyTorch is not needed, and nothing in a file is run.",
        epilog="Published weights keep their own licence.",
    )
    parser.add_argument(
        "source",
        metavar="SOURCE",
        help=".pt, .pth or .safetensors file, or hf://OWNER/REPO/FILE; to write a .safetensors "
        "file also a weights folder or training workdir",
    )
    parser.add_argument(
        "destination", metavar="DESTINATION", help="new folder, or new file ending in .safetensors"
    )
    parser.add_argument(
        "--reference",
        metavar="REF.npz",
        help="recorded outputs of the published program; run the model and compare",
    )
    arguments = parser.parse_args(argv)

    reference = read_reference(arguments.reference) if arguments.reference else None
    done = convert(arguments.source, arguments.destination)
    print(
        f"{arguments.destination}: {done.family}, {done.config.layers} layers, width "
        f"{done.config.width}, {done.parameters} parameters in {done.tensors} published tensors, "
        f"sha256 {done.sha256}"
    )
    for reason, count in done.left_out.items():
        print(f"left out {count} tensors: {reason}")
    if reference is None:
        return 0
    model = checkpoints.load(arguments.destination)
    differences = []
    for difference in compare(model, reference):
        print(difference, flush=True)
        differences.append(difference)
    return 0 if all(difference.within for difference in differences) else ABOVE_LIMIT


if __name__ == "__main__":
    main_exit(main)
