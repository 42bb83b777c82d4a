"""Draws a walk through a furnished room: a capture to try everything on, without a camera.

    python -m data_pipeline.procedural --out captures/walk
    python -m data_pipeline.procedural --room --out captures/room

With --room a small room seen from an arc of cameras, as the model "rooms" knows them. Both are
nerfstudio captures of PNG files with exact poses. The same flags give the same pictures.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from efficient_lvsm_jax.commands import Parser, main_exit, picture_size

LENSES = ("pinhole", "opencv", "fisheye")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; see above."""
    parser = Parser("python -m data_pipeline.procedural", __doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder, which must not exist")
    parser.add_argument("--room", action="store_true", help="a small room from an arc of cameras")
    parser.add_argument("--frames", type=int, help="pictures (default: 90, of a room 24)")
    parser.add_argument(
        "--size",
        type=picture_size,
        metavar="HxW",
        help="of a picture, pixels; H alone is a square (default: 270x480, of a room 48)",
    )
    parser.add_argument(
        "--lens",
        choices=LENSES,
        help="opencv: as of a phone, with k1 k2 p1 p2 (default: pinhole)",
    )
    parser.add_argument(
        "--exposure",
        type=float,
        metavar="STOPS",
        help="by which the brightness strays from frame to frame (default: 0)",
    )
    parser.add_argument("--depth", action="store_true", help="write the depth of every pixel, too")
    parser.add_argument("--seed", type=int, default=0, help="of room and walk (default: 0)")
    flags = parser.parse_args(arguments)

    names = ("frames", "size", "lens", "exposure")
    given = {name: getattr(flags, name) for name in names if getattr(flags, name) is not None}
    frames = given.setdefault("frames", 24 if flags.room else 90)
    (_room if flags.room else _walk)(flags, given, parser)
    of_what = "room" if flags.room else "walk"
    print(f"{flags.out}: {frames} picture{'s' * (frames != 1)} of a {of_what}")
    return 0


def _room(flags: argparse.Namespace, given: dict[str, Any], parser: Parser) -> None:
    if not {*given} <= {"frames", "size"}:
        parser.error("--lens and --exposure are of a walk; a room has neither")
    height, width = given.get("size", (48, 48))
    if height != width:
        parser.error(f"--size {height}x{width}: pictures of a room are square, as --size 48")

    # Here, so that --help need not wait for it.
    from data_pipeline.captures.export import CaptureWriter
    from data_pipeline.procedural.rooms import ProceduralScenes, SceneRecipe

    recipe = SceneRecipe(size=height, views=given["frames"])
    room = ProceduralScenes(1, seed=flags.seed, split="example", recipe=recipe, depth=flags.depth)[
        0
    ]
    names = ("image", "c2w", "fxfycxcy", *(["depth"] if flags.depth else []))
    with CaptureWriter(flags.out) as capture:
        for frame in zip(*(room[name] for name in names), strict=True):
            capture.add(*frame)


def _walk(flags: argparse.Namespace, given: dict[str, Any], _: Parser) -> None:
    from data_pipeline.procedural import walk

    if "lens" in given:
        given["lens"] = walk.LENSES[given["lens"]]
    walk.write_walk(flags.out, seed=flags.seed, depth=flags.depth, progress=True, **given)


if __name__ == "__main__":
    main_exit(main)
