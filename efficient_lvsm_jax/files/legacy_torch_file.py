"""Reads PyTorch checkpoints in the format before PyTorch 1.6, without running anything in them.

Such a file is a row of pickles and numbers: a magic number, a format version, what machine wrote
it, the object with references to storages by key, the list of all keys, and then for every key in
that order a count (int64) and as many values. There are no checksums: damage to values stays
unnoticed. The format is still what old downloads have, such as torchvision's VGG16.
"""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.files.pickle_machine import MAX_PICKLE_BYTES, PickleMachine
from efficient_lvsm_jax.files.stored import Storage, printable

MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
VERSION = 1001
COUNT_BYTES = 8


def read_legacy(path: Path, file: BinaryIO) -> Any:
    """What the file holds: containers, numbers, strings, `StoredTensor`s and `Placeholder`s.

    Args:
      path: of the file, for messages.
      file: the open file; tensors can be read until it is closed.

    Raises:
      InputError: not such a file, or damaged.
    """
    size = os.fstat(file.fileno()).st_size
    file.seek(0)
    # All pickles lie before the values; reading them from here bounds what they can make us read.
    pickles = io.BytesIO(file.read(min(size, MAX_PICKLE_BYTES)))
    _check_header(path, pickles)

    storages: dict[str, Storage] = {}
    starts: dict[str, int] = {}

    def storage(key: str, dtype: np.dtype, length: int) -> Storage:
        nbytes = length * dtype.itemsize
        if nbytes > size:
            raise InputError(
                f"{path}: storage {printable(key)} is said to have {length} values of {dtype}, "
                f"more than the file of {size} bytes; it is truncated or damaged"
            )
        new = Storage(nbytes, dtype, lambda: _read(path, file, starts[key], nbytes))
        known = storages.setdefault(key, new)
        if (known.nbytes, known.dtype) != (nbytes, dtype):
            raise InputError(
                f"{path}: storage {printable(key)} is described in two ways; the file is damaged"
            )
        return known

    content = PickleMachine(path, storage, part="description of tensors").run(pickles)
    keys = PickleMachine(path, part="list of storages").run(pickles)
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise InputError(f"{path}: its list of storages is not one of names; it is damaged")
    if len(keys) != len(storages) or set(keys) != set(storages):
        raise InputError(
            f"{path}: has {len(keys)} storages, but describes {len(storages)}, or others; it is "
            "damaged, or has storages of a kind that is not known here"
        )
    starts.update(_find_storages(path, file, pickles.tell(), size, keys, storages))
    return content


def _check_header(path: Path, pickles: BinaryIO) -> None:
    """Reads magic number, version and machine."""
    found = PickleMachine(path, part="first pickle").run(pickles)
    if found != MAGIC_NUMBER:
        raise InputError(
            f"{path}: a pickle, but not one of torch.save; expected a file that torch.save wrote"
        )
    found = PickleMachine(path, part="version").run(pickles)
    if found != VERSION:
        raise InputError(
            f"{path}: format version {printable(str(found))}; only {VERSION} is known. Load the "
            "file where you trust it and save it again"
        )
    machine = PickleMachine(path, part="description of a machine").run(pickles)
    if not isinstance(machine, dict) or machine.get("little_endian") is not True:
        raise InputError(
            f"{path}: its numbers are not little-endian; load it with PyTorch on a little-endian "
            "machine and save it again"
        )


def _find_storages(
    path: Path,
    file: BinaryIO,
    start: int,
    size: int,
    keys: list[str],
    storages: dict[str, Storage],
) -> dict[str, int]:
    """Where the bytes of every storage begin, from the first count at `start` on.

    Counts must be those described, and end with the file.
    """
    starts = {}
    for key in keys:
        file.seek(start)
        count = int.from_bytes(file.read(COUNT_BYTES), "little", signed=True)
        nbytes, dtype = storages[key].nbytes, storages[key].dtype
        starts[key] = start + COUNT_BYTES
        start = starts[key] + nbytes
        if start > size:
            raise InputError(
                f"{path}: ends within storage {printable(key)}; it is truncated: copy or download "
                "it again"
            )
        if count * dtype.itemsize != nbytes:
            raise InputError(
                f"{path}: storage {printable(key)} is said to have {nbytes // dtype.itemsize} "
                f"values of {dtype}, but has {count}; the file is damaged"
            )
    if start != size:
        raise InputError(
            f"{path}: {size - start} bytes follow its last storage; it is damaged, or holds more "
            "than one object: save them to files of their own"
        )
    return starts


def _read(path: Path, file: BinaryIO, start: int, nbytes: int) -> np.ndarray:
    """Bytes of the file, uint8 [nbytes]."""
    data = np.empty(nbytes, np.uint8)
    try:
        file.seek(start)
        got = file.readinto(memoryview(data))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    if got != nbytes:
        raise InputError(f"{path}: became shorter while it was read; copy or download it again")
    return data
