"""Looks at a capture in the browser: photos go in and out while the picture follows.

    python -m efficient_lvsm_jax.viewer
    python -m efficient_lvsm_jax.viewer CAPTURE --weights W
    python -m efficient_lvsm_jax.viewer CLIP.mp4 --weights W --geometry G

Without a capture it shows those that come with the package, by the model that does, two photos in
the cache at first. With --geometry the pictures, of a video or a folder of photos, have no cameras:
a network finds them while you look. Prints the address to open. It listens on this machine alone;
from another one, forward the port with the ssh line it prints, or let it listen there with --host,
which prints a token.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from data_pipeline.read_options import (
    add_geometry_options,
    add_read_options,
    check_geometry_options,
)
from efficient_lvsm_jax.commands import (
    Parser,
    add_products_option,
    keep_programs,
    main_exit,
    picture_size,
)
from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.shipped import CAPTURES

LOCAL = "127.0.0.1"
PHOTOS, KEYFRAMES = 24, 64


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit status."""
    arguments = _parser().parse_args(argv)
    if not 0 <= arguments.port <= 65535:
        raise InputError(f"--port {arguments.port}: expected 1 to 65535, or 0 for any free one")
    if arguments.photos is None:
        arguments.photos = PHOTOS if arguments.geometry is None else KEYFRAMES
    if arguments.photos < 2:
        raise InputError(f"--photos {arguments.photos}: expected at least 2")
    check_geometry_options(arguments)
    if arguments.capture is None and arguments.geometry is not None:
        raise InputError("--geometry: of which video or folder of photos? Name it first")
    if arguments.capture is None:
        arguments.capture = CAPTURES
        if arguments.weights is None:
            arguments.weights, arguments.count = "rooms", arguments.count or 2
    elif arguments.weights is None:
        raise InputError(
            f"--weights W: which model is {arguments.capture} to be shown by? The one that comes "
            "with the package, rooms, knows drawn rooms alone; docs/weights.md has others"
        )
    keep_programs()
    # Here, so that --help need not wait for it.
    from efficient_lvsm_jax.viewer.server import view

    view(arguments)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = Parser("python -m efficient_lvsm_jax.viewer", __doc__)
    parser.add_argument(
        "capture",
        metavar="CAPTURE",
        nargs="?",
        help="posed pictures, or a folder of captures to choose from; with --geometry a video or "
        "a folder of photos",
    )
    parser.add_argument(
        "--weights", metavar="W", help="a folder, workdir, file, hf://… or name: docs/weights.md"
    )
    add_geometry_options(
        parser,
        "weights of a network that finds cameras (StreamVGGT; VGGT and Depth Anything 3 see all "
        "pictures before the first is shown)",
    )
    parser.add_argument("--scene", metavar="NAME", help="to begin with, or its number from 0")
    parser.add_argument(
        "--count",
        type=int,
        metavar="V",
        help="photos in the cache at first (default: 8; with --geometry all that are keyframes)",
    )
    parser.add_argument(
        "--photos",
        type=int,
        metavar="P",
        help=f"in the strip (default: {PHOTOS}; with --geometry {KEYFRAMES})",
    )
    parser.add_argument(
        "--size",
        type=picture_size,
        metavar="HxW",
        help="of photos and pictures (default: the capture's shape, as many pixels as in training)",
    )
    parser.add_argument(
        "--cache", metavar="PRECISION", help="of keys and values: fp32, bf16, fp8 or int8"
    )
    add_products_option(parser)
    parser.add_argument("--port", type=int, default=8080, help="default: %(default)s; 0: any free")
    parser.add_argument(
        "--host",
        default=LOCAL,
        metavar="ADDRESS",
        help="to listen on, 0.0.0.0 for all of this machine; whoever knows the token that is "
        "printed then sees the capture, unencrypted (default: this machine alone)",
    )
    add_read_options(parser)
    return parser


if __name__ == "__main__":
    main_exit(main)
