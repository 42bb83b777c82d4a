"""Finds where photos, or frames of a video, were taken, and writes a capture of them.

    python -m efficient_lvsm_jax.reconstruct PHOTOS OUT --with colmap
    python -m efficient_lvsm_jax.reconstruct CLIP.mp4 OUT --with stream_vggt --weights G

PHOTOS is a folder; a capture is one, too, its cameras ignored. OUT is a capture with a coloured
point cloud and a COLMAP model beside, and of networks with depth; it is written whole or not at
all. The last line says how many pictures have a place.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from efficient_lvsm_jax.commands import Parser, main_exit
from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.reconstruct import COLMAP, LENSES, NETWORKS


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit status."""
    arguments = _parser().parse_args(argv)
    needed = {"--weights": arguments.weights}
    others = {"--size": arguments.side, "--remember": arguments.remember}
    if arguments.method == COLMAP:
        for name, value in {**needed, **others}.items():
            if value is not None:
                raise InputError(f"{name}: is about networks, which --with colmap is none of")
    elif arguments.weights is None:
        raise InputError(f"--with {arguments.method}: which weights? Give --weights G")
    elif arguments.lens is not None:
        raise InputError(f"--lens: is about --with colmap; {arguments.method} knows no distortion")
    for name, value in others.items():
        if value is not None and value < 1:
            raise InputError(f"{name} {value}: expected 1 or more")
    # Here, so that --help need not wait for it.
    from efficient_lvsm_jax.reconstruct.reconstruction import reconstruct

    reconstruct(arguments)
    return 0


def _parser() -> Parser:
    parser = Parser("python -m efficient_lvsm_jax.reconstruct", __doc__)
    parser.add_argument("source", metavar="SOURCE", help="folder of photos, video, or capture")
    parser.add_argument("out", metavar="OUT", type=Path, help="folder, which must not exist")
    parser.add_argument(
        "--with",
        dest="method",
        required=True,
        choices=(COLMAP, *NETWORKS),
        help="colmap: structure from motion, exact and slow, needs pictures that overlap well; or "
        "a network, which needs weights",
    )
    parser.add_argument("--weights", metavar="G", help="of the network, as elvsm.load takes them")
    parser.add_argument(
        "--every", type=int, metavar="N", help="take each N-th frame of the video, or photo"
    )
    parser.add_argument(
        "--count",
        type=int,
        metavar="N",
        help="of a video: N frames, equally far apart in motion and the sharpest there (default: "
        "60)",
    )
    parser.add_argument("--scene", metavar="NAME", help="of a capture with several")
    parser.add_argument(
        "--lens",
        choices=LENSES,
        help="of colmap: what bends the pictures (default: radial, k1 k2; opencv has p1 p2, too)",
    )
    parser.add_argument(
        "--size",
        dest="side",
        type=int,
        metavar="PIXELS",
        help="of networks: the long side that they see (default: as trained)",
    )
    parser.add_argument(
        "--remember",
        type=int,
        metavar="N",
        help="of stream_vggt: frames in memory at a time, the first and the newest (default: all)",
    )
    parser.add_argument(
        "--compare",
        metavar="CAPTURE",
        help="with true cameras of the same pictures: print how far the found ones are from them",
    )
    return parser


if __name__ == "__main__":
    main_exit(main)
