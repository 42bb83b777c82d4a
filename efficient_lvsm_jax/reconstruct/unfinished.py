"""Work that goes on where it was interrupted, in a folder beside what is to be made."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from efficient_lvsm_jax import commands
from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.files.writing import read_json, write_json

MADE_OF = "made_of.json"


def unfinished_folder(out: Path) -> Path:
    """Where work on `out` lies until it is done: OUT.partial."""
    return out.with_name(f"{out.name}.partial")


@contextlib.contextmanager
def unfinished(out: Path, made_of: Mapping[str, Any]) -> Iterator[Path]:
    """The folder to work in, empty or as an interruption left it.

    It is gone when the block ends, also with an InputError, which would come again, but for one of
    a full disk. That, interruptions and other errors leave it; a line says so.

    Args:
      out: what is to be made.
      made_of: JSON values that decide what is made, by how they are called.

    Raises:
      InputError: another process works in it, or it is of other values.
      OSError: it cannot be written.
    """
    folder = unfinished_folder(out)
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        _begin(folder, descriptor, made_of)
        try:
            yield folder
        except BaseException as error:
            no_room = getattr(error.__cause__, "errno", None) in commands.USED_UP
            passes = no_room or commands.interrupted.is_set()
            if isinstance(error, InputError) and not passes:
                shutil.rmtree(folder)
            else:
                _say(f"{folder} keeps what is done: the same command goes on from it")
            raise
        shutil.rmtree(folder)
    finally:
        os.close(descriptor)


def _begin(folder: Path, descriptor: int, made_of: Mapping[str, Any]) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise InputError(f"{folder}: another process works in it; wait for its end") from error
    if not any(folder.iterdir()):
        write_json(folder / MADE_OF, made_of)
        return
    if not (folder / MADE_OF).exists():
        raise InputError(f"{folder}: is there, and no interrupted run left it; rename or remove it")
    before = read_json(folder / MADE_OF)
    for name in made_of:
        if before.get(name) != made_of[name]:
            raise InputError(
                f"{folder}: an interrupted run left it, of {name} {before.get(name)}, and this one "
                f"is of {made_of[name]}; run that again, or remove the folder to begin anew"
            )
    for path in folder.glob(".*"):  # was being written
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    _say(f"going on from {folder}, which an interrupted run left; remove it to begin anew")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
