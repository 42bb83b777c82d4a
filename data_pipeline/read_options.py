"""How to read a capture or data set, as flags of the commands that read one."""

from __future__ import annotations

import argparse

from data_pipeline.scenes import AXES, ReadOptions


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
