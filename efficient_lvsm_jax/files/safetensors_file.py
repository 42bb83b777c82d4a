"""Reads and writes .safetensors: a JSON table of names, dtypes, shapes and places, then the values.

The format is small enough to be handled here: eight bytes with the length of the table
(little-endian), the table, and the tensors in C order without gaps. Nothing in it can run.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.files.stored import (
    DTYPES,
    Storage,
    StoredTensor,
    contiguous_strides,
    printable,
)
from efficient_lvsm_jax.files.writing import written_whole

MAX_TABLE_BYTES = 16 * 2**20
METADATA = "__metadata__"
FORMAT_DTYPES = {
    "F32": DTYPES["float32"],
    "F16": DTYPES["float16"],
    "BF16": DTYPES["bfloat16"],
    "F64": DTYPES["float64"],
    "I64": DTYPES["int64"],
    "I32": DTYPES["int32"],
    "I16": DTYPES["int16"],
    "I8": DTYPES["int8"],
    "F8_E4M3": DTYPES["float8_e4m3fn"],
    "U8": DTYPES["uint8"],
    "BOOL": DTYPES["bool"],
}
WRITTEN = {dtype: name for name, dtype in FORMAT_DTYPES.items()}


def read_safetensors(path: Path) -> dict[str, StoredTensor]:
    """The tensors of a file by name; their values are read when asked for.

    Raises:
      InputError: not such a file, or damaged.
    """
    entries, length, size = _table(path)
    try:
        entries.pop(METADATA, None)
        places = sorted((_place(entry), name) for name, entry in entries.items())
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise _malformed(path, error) from error

    tensors, end = {}, 0
    for (start, stop), name in places:
        dtype, shape = FORMAT_DTYPES.get(entries[name]["dtype"]), tuple(entries[name]["shape"])
        what = f"tensor {printable(name)}"
        if dtype is None:
            known = ", ".join(FORMAT_DTYPES)
            raise InputError(f"{path}: {what} has a dtype that is not read here; read are {known}")
        if any(type(side) is not int or side < 0 for side in shape):
            raise _damaged(path, f"{what} has an impossible shape")
        if start != end or stop - start != math.prod(shape) * dtype.itemsize:
            raise _damaged(path, f"{what} does not have the bytes its shape needs")
        storage = _storage(path, dtype, 8 + length + start, stop - start)
        tensors[name] = StoredTensor(storage, dtype, shape, contiguous_strides(shape))
        if flaw := tensors[name].flaw():
            raise _damaged(path, f"{what} {flaw}")
        end = stop
    if 8 + length + end != size:
        raise _damaged(path, f"its tensors end at byte {8 + length + end} of {size}")
    return tensors


def read_metadata(path: Path) -> dict[str, str]:
    """What is said of the whole file, none if nothing is; it is not believed to be true.

    Raises:
      InputError: not such a file, or damaged.
    """
    entries, _, _ = _table(path)
    try:
        said = dict(entries.get(METADATA) or {})
    except (ValueError, TypeError, AttributeError) as error:
        raise _malformed(path, error) from error
    if not all(isinstance(value, str) for value in said.values()):
        raise _damaged(path, f"{METADATA} holds other values than texts")
    return said


def write_safetensors(
    path: Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None
) -> None:
    """Writes `tensors` in their order, beside `path`, and renames the whole to it.

    Args:
      path: a new file.
      tensors: of dtypes of the format.
      metadata: texts about the whole file, as of `read_metadata`.

    Raises:
      InputError: `path` exists, or cannot be written; then nothing is left behind.
    """
    if path.exists():
        raise InputError(f"{path} already exists; name a new file or remove it first")
    table: dict[str, Any] = {METADATA: {"format": "pt", **(metadata or {})}}
    end = 0
    for name, array in tensors.items():
        start, end = end, end + array.nbytes
        dtype = WRITTEN[array.dtype]
        table[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": [start, end]}
    encoded = json.dumps(table, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)  # values start at a multiple of eight bytes

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(path) as partial, partial.open("wb") as file:
            file.write(len(encoded).to_bytes(8, "little") + encoded)
            for array in tensors.values():
                # Bytes: a buffer of eight-bit floats is none that Python knows.
                little = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
                file.write(little.view(np.uint8).data)
    except OSError as error:
        raise InputError(
            f"{path}: cannot be written ({error.strerror}); free space or name another file. "
            "Nothing unfinished was kept"
        ) from error


def _table(path: Path) -> tuple[dict[str, Any], int, int]:
    """The table as it is written, its bytes, and those of the file."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= min(size - 8, MAX_TABLE_BYTES):
                raise _damaged(path, f"its table of tensors would take {length} bytes of {size}")
            table = file.read(length)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    try:
        entries = json.loads(table, object_pairs_hook=_without_repeats)
    except (ValueError, RecursionError) as error:
        raise _malformed(path, error) from error
    if not isinstance(entries, dict):
        raise _malformed(path, "no object")
    return entries, length, size


def _place(entry: dict) -> tuple[int, int]:
    start, stop = entry["data_offsets"]
    if not (type(start) is type(stop) is int and 0 <= start <= stop):
        raise ValueError("a tensor lies nowhere")
    if not (isinstance(entry["dtype"], str) and isinstance(entry["shape"], list)):
        raise ValueError("a tensor without dtype or shape")
    return start, stop


def _storage(path: Path, dtype: np.dtype, position: int, nbytes: int) -> Storage:
    return Storage(nbytes, dtype, lambda: np.fromfile(path, np.uint8, nbytes, offset=position))


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict:
    if len(dict(pairs)) != len(pairs):
        raise ValueError("a name is there twice")
    return dict(pairs)


def _malformed(path: Path, error: Exception | str) -> InputError:
    return _damaged(path, f"its table of tensors is malformed ({error})")


def _damaged(path: Path, reason: str) -> InputError:
    return InputError(f"{path}: not a .safetensors file, or damaged ({reason}); copy it again")
