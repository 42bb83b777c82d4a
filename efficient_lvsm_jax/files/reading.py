"""Files of a data set, which we did not write: bounded reads, and no way out of its folder."""

from __future__ import annotations

import contextlib
import fnmatch
import json
import os
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from efficient_lvsm_jax.errors import InputError

MAX_TEXT_BYTES = 512 * 2**20  # of a JSON or text file
MAX_PICTURE_BYTES = 256 * 2**20


def inside(root: Path, name: str, where: str) -> Path:
    """The file `name`, relative to `root`, which must not lie outside of it.

    Args:
      root: folder of the data set.
      name: path as a file of the data set gives it, with / or \\ between folders.
      where: what names it, for the message, e.g. "scene/transforms.json, frame 3".

    Raises:
      InputError: an empty or absolute path, one that climbs out with "..", or through a symbolic
        link. The file itself need not exist.
    """
    if not isinstance(name, str) or not name.strip() or "\0" in name:
        raise InputError(f"{where}: the path {name!r:.200} is not a file name")
    posix = PurePosixPath(name.replace("\\", "/"))
    if posix.is_absolute() or PureWindowsPath(name).drive:
        raise InputError(
            f"{where}: the path {name!r:.200} is absolute; paths must be relative to the data set"
        )
    try:
        path, top = Path(os.path.realpath(root / posix)), Path(os.path.realpath(root))
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            os.stat(path)  # what it raises for names too long, Path.is_file would raise later
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError(
            f"{where}: the path {name!r:.200} cannot be followed ({reason})"
        ) from error
    if not path.is_relative_to(top):
        raise InputError(
            f"{where}: the path {name!r:.200} leads out of {root}; only files inside are read, so "
            "copy it there or open a folder further up"
        )
    return root / posix


def listing(folder: Path, pattern: str = "*") -> list[Path]:
    """What a folder of somebody's data holds, sorted by name; nothing if it cannot be listed.

    Names that begin with a dot are no data (macOS leaves a ._X beside every X on foreign disks),
    nor is __MACOSX, where its archives keep these.

    Args:
      pattern: that names match, as `fnmatch` understands it.
    """
    try:
        names = sorted(os.listdir(folder))
    except (OSError, ValueError):
        return []
    return [folder / name for name in names if is_data(name) and fnmatch.fnmatchcase(name, pattern)]


def is_data(name: str) -> bool:
    """Whether a file or folder of that name is any of the data; see `listing`."""
    return not name.startswith(".") and name != "__MACOSX"


def read_bytes(path: Path, limit: int = MAX_PICTURE_BYTES) -> bytes:
    """The content of a file of at most `limit` bytes; an InputError says why there is none."""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            content = file.read(size) if size <= limit else b""
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"{path}: cannot be read ({reason})") from error
    if size > limit:
        raise InputError(f"{path}: larger than {limit:,} bytes; is it what its name says?")
    if not content:
        raise InputError(f"{path}: the file is empty; copy or download it again")
    return content


def read_text(path: Path) -> str:
    """The content of a UTF-8 text file."""
    try:
        return read_bytes(path, MAX_TEXT_BYTES).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not a text file in UTF-8 ({error.reason})") from error


def read_json(path: Path) -> Any:
    """The JSON value in `path`. NaN and Infinity are read as numbers and refused where they count.

    Raises:
      InputError: not there, not readable, not JSON, or an object with two values for a key.
    """
    try:
        return json.loads(read_text(path), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: not valid JSON ({error})") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for key, item in pairs:
        if key in value:
            raise ValueError(f"the key {key!r:.200} is there twice")
        value[key] = item
    return value


def read_json_object(path: Path) -> dict:
    """The JSON object in `path`."""
    value = read_json(path)
    if not isinstance(value, dict):
        raise InputError(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value
