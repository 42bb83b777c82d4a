"""Lists the training runs in a folder and draws their curves.

    python -m efficient_lvsm_jax.runs runs/ [--out FOLDER]

Prints a line per run and writes runs.png (loss and PSNR against the step) and runs.html (the same
with the newest pictures) to the folder. A run is a folder with model.json, at any depth.

States: running; finished; interrupted (stopped by a person or the machine); failed (with the
reason); silent, which says it runs but has given no sign for long: it was killed, or hangs; not
known, of a run without status.json.
"""

from __future__ import annotations

import time
from pathlib import Path

from efficient_lvsm_jax.commands import Parser, main_exit
from efficient_lvsm_jax.errors import InputError


def main() -> None:
    """The command line."""
    parser = Parser("python -m efficient_lvsm_jax.runs", __doc__, {"--output": "--out"})
    parser.add_argument("folder", type=Path, help="where to look for runs, at any depth")
    parser.add_argument("--out", type=Path, help="where to write; default: the same folder")
    arguments = parser.parse_args()
    # Here, so that --help need not wait for it.
    from efficient_lvsm_jax.media.plots import save_png
    from efficient_lvsm_jax.runs.listing import draw_runs, find_runs, listing, write_runs_page

    out, now = arguments.out or arguments.folder, time.time()
    runs = find_runs(arguments.folder, now=now)
    print(listing(runs, now))
    curves = draw_runs(runs)
    picture, page = out / "runs.png", out / "runs.html"
    try:
        out.mkdir(parents=True, exist_ok=True)
        save_png(curves, picture)
        write_runs_page(page, runs, curves, now)
    except OSError as error:
        raise InputError(
            f"{out}: cannot be written ({error.strerror or error}); name another --out"
        ) from error
    print(picture, page, sep="\n")


if __name__ == "__main__":
    main_exit(main)
