"""How to read a capture or data set, and the flags of the commands that read one.

Flags are defined before anything is computed, so this imports no numbers and no pictures.
"""

from __future__ import annotations

import argparse
import dataclasses
import math

from efficient_lvsm_jax.configuration import Settings, setting
from efficient_lvsm_jax.errors import InputError

AXES = ("opengl", "opencv")  # x right; y up, z backward, or y down, z forward


@dataclasses.dataclass(frozen=True)
class ReadOptions(Settings):
    """How to read what a format leaves open.

    Attributes:
      strict: refuse a scene of which listed frames are absent; otherwise a warning names them.
      split: "train", "val" or "test" of formats that keep several; "" reads what there is, and is
        an error where a choice must be made.
      vertical_fov: degrees, of object renders, which do not store their intrinsics.
      axes: of the cameras in transforms.json files, which do not say: "opengl", as nerfstudio and
        Blender write them, or "opencv".
    """

    strict: bool = False
    split: str = ""
    vertical_fov: float = setting(49.1, above=math.pi, below=180)  # below pi, it is radians
    axes: str = setting(AXES[0], choices=AXES)


def add_read_options(parser: argparse.ArgumentParser, split: str = "--split") -> None:
    """Defines what `read_options` reads; `split` is the name of the flag for a split."""
    parser.add_argument(
        split, dest="read_split", default="", metavar="SPLIT", help="of a source that has several"
    )
    parser.add_argument("--format", help="of the source, as docs/data.md names it (default: found)")
    parser.add_argument("--axes", choices=AXES, default=AXES[0], help="of a transforms.json")
    parser.add_argument(
        "--vertical-fov",
        type=float,
        default=ReadOptions.vertical_fov,
        metavar="DEGREES",
        help="of object renders (default: %(default)s)",
    )
    parser.add_argument(
        "--strict", action="store_true", help="refuse scenes of which pictures are absent"
    )


def read_options(arguments: argparse.Namespace) -> tuple[ReadOptions, str | None]:
    """The options and the format for `open_scenes`.

    Raises:
      InputError: a field of view that cannot be.
    """
    options = ReadOptions(
        strict=arguments.strict,
        split=arguments.read_split,
        axes=arguments.axes,
        vertical_fov=arguments.vertical_fov,
    )
    return options, arguments.format


def add_geometry_options(parser: argparse.ArgumentParser, geometry: str) -> None:
    """Defines --geometry, which `geometry` describes, and --every."""
    parser.add_argument("--geometry", metavar="G", help=geometry)
    parser.add_argument(
        "--every",
        type=int,
        metavar="N",
        help="with --geometry: look at each N-th frame or photo (default: all photos, and of a "
        "video 60 frames, equally far apart in motion and the sharpest there)",
    )


def check_geometry_options(arguments: argparse.Namespace) -> None:
    """Raises an InputError for --every without --geometry, or one of `read_options` with it."""
    if arguments.geometry is None and arguments.every is not None:
        raise InputError("--every: is about pictures without cameras; see --geometry")
    if arguments.geometry is not None and read_options(arguments) != (ReadOptions(), None):
        raise InputError(
            "--format, --split, --axes, --vertical-fov and --strict are about cameras that are "
            "there; --geometry finds its own: leave them out"
        )
