"""What one accelerator shows in ten minutes: is it right, how fast is it, and what does it train.

    python benchmarks/accelerator.py [--out DIR] [--budget SECONDS] [--dry-run]
                                     [--only SECTION …] [--rows WORD …]

Sections, in order of value; each may use its share of the time and what those before left:

    machine     card, driver, libraries, memory, measured matrix rate and bandwidth
    right       kernels against float32, the goldens, sessions, training steps; NaN is a failure
    rendering   the published model: views in, pictures out, beside PyTorch
    sparse      sparse attention to a cache of large pictures, beside dense
    eight_bits  a layer's products in FP8 and int8, beside bfloat16
    traces      the kernels of a training step and of a render
    training    steps of the published model by what is kept, flags one by one, beside PyTorch
    rooms       a small model trained on generated rooms for the time that is left

DIR gets results.json and results.md after every row, rooms.safetensors and rooms.png, and keeps
compiled programs in DIR/programs for the next start. A row that fails is recorded with its error
and the next one begins. A row that began is not interrupted, so leave a minute.

Ten minutes do not hold everything: --rows takes rows whose title has one of the words, for what an
earlier run left out (`--only right --rows session steps pages`).

It needs jax, flax, optax, orbax, numpy and Pillow; without PyTorch its columns are left out. Exit
status: 0 if every check held and no row failed, 1 otherwise. --dry-run does all of it at toy sizes
on whatever is there: its figures mean nothing.
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import os
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

# Memory is shared with PyTorch in this process, so JAX takes what it needs when it needs it.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", ".95")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.gpu.context import Context, free
from efficient_lvsm_jax.files.writing import write_json, written_whole

# Section to its share of the time.
SECTIONS = {
    "machine": 0.03,
    "right": 0.2,
    "rendering": 0.24,
    "sparse": 0.07,
    "eight_bits": 0.04,
    "traces": 0.07,
    "training": 0.21,
    "rooms": 0.14,
}


def measure(
    context: Context, names: list[str], budget: float, words: Sequence[str] = ("",)
) -> list[dict]:
    """Runs sections, rows whose titles have one of the words; writes after every row; the rows."""
    rows: list[dict] = []
    started = time.monotonic()
    total = sum(SECTIONS[name] for name in names)
    share = 0.0
    for name in names:
        share += SECTIONS[name] / total
        context.deadline = started + share * budget
        context.end = started + budget
        try:
            section = importlib.import_module(f"benchmarks.gpu.{name}")
            jobs = iter(section.rows(context))
        except Exception as error:
            rows.append(_failed(name, "start", error))
            _write(context, rows)
            continue
        while True:
            try:
                title, job = next(jobs)
            except StopIteration:
                break
            except Exception as error:  # of preparing the next row, which ends the section
                rows.append(_failed(name, "preparing", error))
                break
            if not any(word in title for word in words):
                continue
            row = {"section": name, "row": title}
            began = time.monotonic()
            if began > context.deadline:
                row["left_out"] = "no time left"
            else:
                try:
                    row |= job()
                except Exception as error:
                    row = _failed(name, title, error)
                row["took_seconds"] = round(time.monotonic() - began, 2)
                free()
            rows.append(row)
            _write(context, rows)
            print(f"{time.monotonic() - started:6.1f} s  {_line(row)}", flush=True)
        _write(context, rows)
    return rows


def _failed(section: str, title: str, error: Exception) -> dict:
    where = traceback.extract_tb(error.__traceback__)[-1]
    return {
        "section": section,
        "row": title,
        "ok": False,
        "error": f"{type(error).__name__}: {str(error)[:400]}",
        "at": f"{Path(where.filename).name}:{where.lineno}",
    }


def _write(context: Context, rows: list[dict]) -> None:
    about = {
        "date": datetime.date.today().isoformat(),
        "device": context.device_kind,
        "dry_run": context.dry,
        "rows": rows,
    }
    write_json(context.out / "results.json", about)
    with written_whole(context.out / "results.md") as partial:
        partial.write_text(markdown(about), encoding="utf-8")


def markdown(about: dict) -> str:
    """The tables of docs/performance.md, one for each section."""
    lines = [f"Measured {about['date']} on {about['device']}."]
    if about["dry_run"]:
        lines += ["", "**A dry run: the figures mean nothing.**"]
    for section in SECTIONS:
        rows = [row for row in about["rows"] if row["section"] == section]
        if not rows:
            continue
        hidden = ("section", "took_seconds", "at")
        names = list(dict.fromkeys(key for row in rows for key in row if key not in hidden))
        lines += ["", f"### {section}", "", f"| {' | '.join(names)} |", "|---" * len(names) + "|"]
        for row in rows:
            cells = (_cell(row.get(name, "")) for name in names)
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cell(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "NO"
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value).replace("|", "/").replace("\n", " ")


def _line(row: dict) -> str:
    rest = (f"{k}={_cell(v)}" for k, v in row.items() if k not in ("section", "row"))
    return f"{row['section']}: {row['row']}: {', '.join(rest)}"


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/accelerator"))
    parser.add_argument("--budget", type=float, default=540, help="seconds in all")
    parser.add_argument("--only", nargs="+", choices=tuple(SECTIONS), default=tuple(SECTIONS))
    parser.add_argument("--rows", nargs="+", default=("",), metavar="WORD", help="of their titles")
    parser.add_argument("--dry-run", action="store_true")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    import jax

    jax.config.update("jax_compilation_cache_dir", str(arguments.out / "programs"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    context = Context(out=arguments.out, dry=arguments.dry_run)
    if jax.default_backend() == "cpu" and not context.dry:
        parser.error("no accelerator is here: --dry-run tries everything at toy sizes")
    names = [name for name in SECTIONS if name in arguments.only]
    rows = measure(context, names, arguments.budget, arguments.rows)
    if not rows:
        parser.error(
            f"--rows {' '.join(arguments.rows)}: no row of {', '.join(names)} is called so"
        )
    bad = [row for row in rows if row.get("ok") is False]
    for row in bad:
        print(f"FAILED  {_line(row)}", file=sys.stderr)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
