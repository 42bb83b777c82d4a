"""Draws a walk through a furnished room: a capture to try everything on, without a camera.

    python -m data_pipeline.procedural --out captures/walk

A nerfstudio capture of PNG files with exact poses. The same flags give the same pictures.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from efficient_lvsm_jax.commands import Parser, main_exit, picture_size

LENSES = ("pinhole", "opencv", "fisheye")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; see above."""
    parser = Parser("python -m data_pipeline.procedural", __doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder, which must not exist")
    parser.add_argument("--frames", type=int, default=90, help="pictures (default: 90)")
    parser.add_argument(
        "--size",
        type=picture_size,
        default=(270, 480),
        metavar="HxW",
        help="of a picture, pixels; H alone is a square (default: 270x480)",
    )
    parser.add_argument(
        "--lens",
        choices=LENSES,
        default=LENSES[0],
        help="opencv: as of a phone, with k1 k2 p1 p2 (default: pinhole)",
    )
    parser.add_argument(
        "--exposure",
        type=float,
        default=0.0,
        metavar="STOPS",
        help="by which the brightness strays from frame to frame (default: 0)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of room and walk (default: 0)")
    flags = parser.parse_args(arguments)

    # Here, so that --help need not wait for it.
    from data_pipeline.procedural import walk

    walk.write_walk(
        flags.out,
        frames=flags.frames,
        size=flags.size,
        lens=walk.LENSES[flags.lens],
        exposure=flags.exposure,
        seed=flags.seed,
        progress=True,
    )
    print(f"{flags.out}: {flags.frames} picture{'s' * (flags.frames != 1)} of a walk")
    return 0


if __name__ == "__main__":
    main_exit(main)
