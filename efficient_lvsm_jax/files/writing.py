"""Files and folders that are whole or not there, and what to say when one cannot be written."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from efficient_lvsm_jax.errors import InputError


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A file beside `path` to write to, that is renamed to it once it is on disk.

    After an error it is gone and `path` is as it was.

    Raises:
      OSError: it cannot be written.
    """
    # The process: two that write the same file do not write into each other's. The suffix: encoders
    # choose a format by it.
    partial = path.with_name(f".{path.stem}.partial-{os.getpid()}{path.suffix}")
    try:
        yield partial
        _sync(partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def folder_written_whole(folder: Path) -> Iterator[Path]:
    """As `written_whole`, for a folder that is not there yet, whose files sync themselves.

    Raises:
      OSError: it cannot be written, or is there.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.partial-"))
    try:
        yield partial
        partial.chmod(0o755)  # mkdtemp's is for the owner alone
        partial.rename(folder)
        sync_folder(folder.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def sync_folder(folder: Path) -> None:
    """Puts the names in a folder on disk, such as that of a file just renamed there."""
    _sync(folder)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, value: Any) -> None:
    """Writes JSON, whole or not at all."""
    with written_whole(path) as partial, partial.open("w", encoding="utf-8") as file:
        json.dump(value, file, indent=2)
        file.write("\n")


def read_json(path: Path) -> dict:
    """The JSON object in `path`; an InputError says why there is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not a readable JSON file ({error})") from error
    if not isinstance(value, dict):
        raise InputError(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value


@contextlib.contextmanager
def reporting_writes(folder: Path, hint: Callable[[], str] = str) -> Iterator[None]:
    """Turns a failed write into an InputError that names the folder and ends with the hint."""
    try:
        yield
    except Exception as error:
        if not _is_write_failure(error):
            raise
        raise InputError(
            f"{folder}: cannot be written ({_reason(error)}); free space or name another folder. "
            f"What is unfinished does not count{hint()}"
        ) from error


def first_line(error: BaseException) -> str:
    """Of its message; of its type if it has none."""
    return (str(error).splitlines() or [type(error).__name__])[0][:300]


def _is_write_failure(error: BaseException) -> bool:
    """Whether saving failed for a reason outside the program: full disk, no permission, quota."""
    words = ("no space", "file too large", "permission denied", "read-only", "disk quota")
    return isinstance(error, OSError) or any(word in str(error).lower() for word in words)


def _reason(error: BaseException) -> str:
    """The operating system's words, which the storage library wraps in a page of paths."""
    code = re.search(r"os_error_code='(\d+)'", str(error))
    return os.strerror(int(code[1])) if code else first_line(error)


def json_safe(value: Any) -> Any:
    """The value with infinities and NaN as strings, so that it is JSON for every reader."""
    if isinstance(value, dict):
        return {key: json_safe(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [json_safe(item) for item in value]
    return _plain(value) if isinstance(value, float) else value


def _plain(number: float) -> float | str:
    """JSON has no infinity and no NaN: "inf" and "nan" there, which float() reads."""
    return number if math.isfinite(number) else str(number)
