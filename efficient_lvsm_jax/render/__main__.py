"""Renders a film of a capture: a few of its pictures go in, a camera flies, an mp4 comes out.

    python -m efficient_lvsm_jax.render CAPTURE --weights W --path orbit --out FILM.mp4
    python -m efficient_lvsm_jax.render CLIP.mp4 FILM.mp4 --weights W --geometry G

With --geometry the pictures, of a video, a folder of photos or a capture, have no cameras or none
that count: a network, or structure from motion, finds them, and those taken apart become inputs.
Inputs and film keep the shape of the capture's pictures, landscape, portrait or square, at about as
many pixels as the model was trained on; --size crops them to another, --size 256 to squares as
published. The last line printed says which frames of the scene were inputs, and the film's frames,
size and time.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from data_pipeline.read_options import (
    add_geometry_options,
    add_read_options,
    check_geometry_options,
)
from efficient_lvsm_jax.commands import Parser, add_products_option, main_exit, picture_size
from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.render import FRAMES

PATHS = ("orbit", "spiral", "inputs", "frames")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit status."""
    arguments = _parser().parse_args(argv)
    _check(arguments)
    # Here, so that --help need not wait for it.
    from efficient_lvsm_jax.render.film import make_film

    make_film(arguments)
    return 0


def _check(arguments: argparse.Namespace) -> None:
    """Raises an InputError for arguments that do not go together."""
    if (arguments.film is None) == (arguments.out is None):
        raise InputError("name the film once, behind the capture or by --out FILM.mp4")
    arguments.out = arguments.film or arguments.out
    if arguments.out.suffix != ".mp4":  # said before cameras are looked for, not behind
        raise InputError(f"{arguments.out}: a film's name must end in .mp4")
    check_geometry_options(arguments)
    if arguments.path is None:
        arguments.path = "inputs" if arguments.geometry else "orbit"
    file = arguments.path.endswith(".json")
    if arguments.path not in PATHS and not file:
        raise InputError(f"--path {arguments.path}: expected {', '.join(PATHS)} or FILE.json")
    if file and arguments.frames is not None:
        raise InputError(f"--frames: {arguments.path} says itself how many frames it has")
    if file and arguments.size and arguments.size[0] != arguments.size[1]:
        size = "x".join(map(str, arguments.size))
        raise InputError(f"--size {size}: {arguments.path} says its shape; give a height")
    if arguments.dataparser_transforms is not None and not file:
        raise InputError("--dataparser-transforms: is about the world of a --path FILE.json")
    if arguments.save_path is not None and arguments.save_path.suffix != ".json":
        raise InputError(f"--save-path {arguments.save_path}: its name must end in .json")
    if arguments.frames is not None and arguments.frames < 1:
        raise InputError(f"--frames {arguments.frames}: a film needs at least 1")
    if arguments.fps < 1:
        raise InputError(f"--fps {arguments.fps}: a film needs at least 1 frame a second")
    if arguments.beside and arguments.path != "frames":
        raise InputError("--beside: only --path frames passes cameras whose true picture is known")
    if arguments.full_circle and arguments.path != "orbit":
        raise InputError("--full-circle: only --path orbit can go around")
    inputs = arguments.inputs
    if isinstance(inputs, list) and (len(inputs) < 2 or len(set(inputs)) < len(inputs)):
        raise InputError(
            f"--inputs {','.join(map(str, inputs))}: expected two or more frames, all different; "
            "--count says how many"
        )


def _inputs(text: str) -> list[int] | str:
    if text.startswith("spread:"):
        return text
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r}: expected numbers with commas between, e.g. 0,7,12, or spread:8"
        ) from None


def _parser() -> argparse.ArgumentParser:
    parser = Parser("python -m efficient_lvsm_jax.render", __doc__)
    parser.add_argument(
        "capture",
        metavar="CAPTURE",
        help="folder or file of posed pictures; with --geometry of any, or a video",
    )
    parser.add_argument("film", nargs="?", metavar="FILM.mp4", type=Path, help="as --out")
    parser.add_argument("--out", metavar="FILM.mp4", type=Path, help="is replaced if it exists")
    parser.add_argument(
        "--weights",
        required=True,
        metavar="W",
        help="a folder, workdir, file, hf://… or name: docs/weights.md",
    )
    add_geometry_options(
        parser,
        "what finds the cameras: weights of a network (StreamVGGT, VGGT, Depth Anything 3), or "
        "colmap",
    )
    parser.add_argument(
        "--path",
        metavar="PATH",
        help="orbit: around what the inputs look at (the default); spiral: small turns around "
        "their mean; inputs: through them, nearest first (the default with --geometry); frames: "
        "from the capture's own cameras, in their order; FILE.json: a nerfstudio camera path, in "
        "the world of the capture's own poses, with the shape of its own pictures (of a viewer's "
        "world: --dataparser-transforms)",
    )
    parser.add_argument(
        "--size",
        type=picture_size,
        metavar="HxW",
        help="of inputs and film in pixels; H alone is a square, and of a --path FILE.json the "
        "film's height (default: the capture's shape, as many pixels as in training)",
    )
    parser.add_argument(
        "--dataparser-transforms",
        type=Path,
        metavar="FILE.json",
        help="the dataparser_transforms.json of the nerfstudio run whose viewer wrote --path: "
        "turns the path back into the capture's world",
    )
    parser.add_argument(
        "--frames",
        type=int,
        metavar="N",
        help=f"of the film (default: {FRAMES}); with --path inputs, where all pairs of inputs get "
        "equally many, rounded up; with --path frames so many of the capture's, evenly (default: "
        "all)",
    )
    parser.add_argument("--fps", type=int, default=30, help="frames a second (default: 30)")
    parser.add_argument(
        "--full-circle", action="store_true", help="of --path orbit: also where no input was"
    )
    parser.add_argument(
        "--beside",
        action="store_true",
        help="of --path frames: the true picture beside each, and the inputs below",
    )
    inputs = parser.add_mutually_exclusive_group()
    inputs.add_argument(
        "--count",
        type=int,
        metavar="V",
        help="how many pictures go in, spread over the capture (default: 8, or all if "
        "there are fewer)",
    )
    inputs.add_argument(
        "--inputs",
        type=_inputs,
        metavar="I,J,K",
        help="which ones, counted from 0; or spread:V, the same as --count V",
    )
    parser.add_argument("--scene", metavar="NAME", help="which of several, or its number from 0")
    add_read_options(parser)
    parser.add_argument(
        "--export",
        metavar="FOLDER",
        help="new folder for the pictures with their cameras, as a nerfstudio capture",
    )
    parser.add_argument(
        "--cache",
        metavar="PRECISION",
        help="how keys and values of the inputs are stored: fp32, bf16, fp8 or int8 (default: as "
        "they are computed)",
    )
    add_products_option(parser)
    parser.add_argument(
        "--views",
        default="all",
        metavar="CHOICE",
        help="which of the inputs each picture reads: all, or nearest:K, the K that see most of "
        "what it sees, which takes less time (default: all)",
    )
    parser.add_argument(
        "--save-path",
        type=Path,
        metavar="FILE.json",
        help="write the cameras as a nerfstudio camera path, too, for another viewer or capture; "
        "the film then has square pixels and is centred, as that format knows nothing else",
    )
    return parser


if __name__ == "__main__":
    main_exit(main)
