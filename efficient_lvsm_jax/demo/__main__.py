"""The model that ships, on what ships: pictures, a film, scores, a report. Ends by itself.

    python -m efficient_lvsm_jax.demo [--out runs/demo]

It runs commands that anybody can, and says them. Programs are kept between starts, in
JAX_COMPILATION_CACHE_DIR or else in the user's cache folder.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from efficient_lvsm_jax.commands import Parser, keep_programs, main_exit
from efficient_lvsm_jax.errors import InputError

FAILED = 1  # exit status of a command that ran, and says itself what is wrong


def main(argv: Sequence[str] | None = None) -> int:
    """The command; see above."""
    parser = Parser("python -m efficient_lvsm_jax.demo", __doc__)
    parser.add_argument(
        "--out", type=Path, default=Path("runs/demo"), help="folder (default: %(default)s)"
    )
    arguments = parser.parse_args(argv)
    keep_programs()

    # Here, so that --help need not wait for it.
    from efficient_lvsm_jax.demo.first_views import draw_first_views
    from efficient_lvsm_jax.shipped import example

    out = arguments.out
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out}: is a file; name a folder")
    draw_first_views(out / "views.png")
    print(f"pictures: {out / 'views.png'}", flush=True)
    film = ("render", example("room"), "--weights", "rooms", "--path", "orbit", "--frames", "90")
    scores = ("eval", "--config", "configs/rooms.py", "--weights", "rooms", "--workdir", out)
    for command in ((*film, "--out", out / "film.mp4"), (*scores, "--restart")):
        words = [str(word) for word in command]
        print("\n$ elvsm", *words, flush=True)
        if subprocess.run([sys.executable, "-m", "efficient_lvsm_jax", *words]).returncode:
            return FAILED
    print(f"\nfilm: {out / 'film.mp4'}\nreport: {out / 'evaluation' / 'report.html'}")
    print("look at it live, photos in and out: elvsm view   (needs the extra [viewer])")
    return 0


if __name__ == "__main__":
    main_exit(main)
