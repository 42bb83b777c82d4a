"""Weights in several files with an index of which tensor is in which, as the Hugging Face hub has.

`NAME.safetensors.index.json`, or `NAME.bin.index.json` for files of PyTorch, holds
{"weight_map": {tensor: file}}; the files lie beside it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.files.reading import listing, read_json_object
from efficient_lvsm_jax.files.stored import printable

SUFFIXES = (".safetensors.index.json", ".bin.index.json")  # the first is taken where both are
END = ".index.json"


def find_index(folder: Path) -> Path | None:
    """The index in a folder, None if there is none.

    Raises:
      InputError: several.
    """
    for suffix in SUFFIXES:
        found = listing(folder, f"*{suffix}")
        if len(found) > 1:
            names = ", ".join(path.name for path in found)
            raise InputError(f"{folder}: holds several indices of weights ({names}); name one")
        if found:
            return found[0]
    return None


def read_index(index: Path) -> dict[str, list[str]]:
    """The tensors of every file of an index.

    Raises:
      InputError: no such index, damaged, or one that names files elsewhere.
    """
    where = read_json_object(index).get("weight_map")
    if not isinstance(where, dict) or not where:
        raise InputError(f"{index}: expected a weight_map of tensors and their files")
    kind = index.name.removesuffix(END).rpartition(".")[2]
    files: dict[str, list[str]] = {}
    for tensor, name in where.items():
        if not isinstance(name, str) or not name.endswith(f".{kind}") or {*name} & {*"/\\\0"}:
            raise InputError(
                f"{index}: says that {printable(tensor)} is in {name!r:.200}; expected "
                f"the name of a .{kind} file in the same folder"
            )
        files.setdefault(name, []).append(tensor)
    return files


def files_of(path: Path) -> list[Path]:
    """The files that weights are in: those of an index, or the file itself."""
    if not path.name.endswith(END):
        return [path]
    return [path.with_name(name) for name in sorted(read_index(path))]


@contextlib.contextmanager
def open_shards(
    index: Path, open_file: Callable[[Path], contextlib.AbstractContextManager]
) -> Iterator[dict[str, Any]]:
    """The tensors of all files by name; every file must have just those that the index says.

    Args:
      open_file: the content of one, as a context.

    Raises:
      InputError: a file is missing or damaged, or has other tensors.
    """
    files = read_index(index)
    tensors: dict[str, Any] = {}
    with contextlib.ExitStack() as stack:
        for name, expected in files.items():
            path = index.with_name(name)
            if not path.is_file():
                raise InputError(
                    f"{path}: missing; {index.name} says it has {printable(expected[0])} and "
                    f"{len(expected) - 1} other tensors: copy or download it, too"
                )
            content = stack.enter_context(open_file(path))
            if not isinstance(content, Mapping):
                raise InputError(f"{path}: holds a {type(content).__name__}; expected tensors")
            for wrong in content.keys() ^ set(expected):
                there = next((file for file, names in files.items() if wrong in names), "no file")
                has = "has" if wrong in content else "does not have"
                raise InputError(
                    f"{path}: {has} {printable(str(wrong))}, which by {index.name} is in {there}; "
                    "the files do not belong together: copy or download them again"
                )
            tensors |= content
        yield tensors
