"""Reads PyTorch checkpoints (.pt, .pth) without PyTorch and without running anything in them.

Such a file is a zip: `STEM/data.pkl`, a pickle that describes the objects, and `STEM/data/KEY`, the
raw storages; before PyTorch 1.6 it was a row of pickles (`legacy_torch_file`). `pickle_machine`
interprets the pickle. Sizes, counts and layouts are checked before memory is spent on them, and a
tensor's values are read only when asked for.
"""

from __future__ import annotations

import contextlib
import functools
import re
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.files.legacy_torch_file import read_legacy
from efficient_lvsm_jax.files.pickle_machine import MAX_PICKLE_BYTES, PickleMachine
from efficient_lvsm_jax.files.stored import Storage, printable

MAX_READ_BYTES = 8 * 2**20  # in one piece, so also of the zip's directory
MAX_MEMBERS = 100_000


@contextlib.contextmanager
def open_torch(path: Path) -> Iterator[Any]:
    """What a PyTorch file holds: containers, numbers, strings and `StoredTensor`s.

    Tensors can be read until the context ends. Anything else is a `Placeholder`.

    Raises:
      InputError: not such a file, or damaged.
    """
    try:
        file = path.open("rb")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    with file:
        start = file.read(4)
        if start == b"PK\3\4":
            with _open_zip(path, file) as archive:
                yield _read_zip(path, archive)
        elif start[:1] == b"\x80":
            yield read_legacy(path, file)
        elif start:
            raise InputError(
                f"{path}: not a PyTorch checkpoint (expected a zip file, as torch.save writes it)"
            )
        else:
            raise InputError(f"{path}: the file is empty; copy or download it again")


def _open_zip(path: Path, file: BinaryIO) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(_LimitedReads(file))
    except (zipfile.BadZipFile, NotImplementedError, OSError, ValueError, struct.error) as error:
        raise InputError(
            f"{path}: truncated or damaged ({error}); copy or download it again"
        ) from error


def _read_zip(path: Path, archive: zipfile.ZipFile) -> Any:
    members = _members(path, archive)
    reads: dict[str, Callable[[], np.ndarray]] = {}

    def storage(key: str, dtype: np.dtype, length: int) -> Storage:
        member = members.get(f"data/{key}")
        if member is None or not re.fullmatch(r"[0-9]{1,9}", key):
            raise InputError(f"{path}: storage {printable(key)} is not in the file")
        if length * dtype.itemsize != member.file_size:
            raise InputError(
                f"{path}: storage {key} is said to have {length} values of {dtype}, but has "
                f"{member.file_size} bytes; the file is damaged"
            )
        read = reads.setdefault(key, functools.partial(_read, path, archive, member))
        return Storage(member.file_size, dtype, read)

    pickled = _read(path, archive, members["data.pkl"]).tobytes()
    return PickleMachine(path, storage).run(pickled)


class _LimitedReads:
    """A file for zipfile, which otherwise reads a directory of any size into memory."""

    def __init__(self, file: BinaryIO):
        self._file = file
        self.seek, self.tell, self.seekable = file.seek, file.tell, file.seekable

    def read(self, size: int = -1) -> bytes:
        if size > MAX_READ_BYTES:
            raise zipfile.BadZipFile(f"a directory of {size} bytes")
        return self._file.read(size if size >= 0 else MAX_READ_BYTES)


def _members(path: Path, archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """Members by name without their common folder; all stored as they are, none twice."""
    entries = archive.infolist()
    if len(entries) > MAX_MEMBERS:
        raise InputError(f"{path}: has {len(entries)} members; at most {MAX_MEMBERS} are read")
    folders = {e.filename[: -len("data.pkl")] for e in entries if e.filename.endswith("/data.pkl")}
    if len(folders) != 1:
        raise InputError(f"{path}: a zip file, but not one of torch.save (no single */data.pkl)")
    (folder,) = folders
    members: dict[str, zipfile.ZipInfo] = {}
    for entry in entries:
        name = entry.filename.removeprefix(folder)
        what = f"{path}: member {printable(entry.filename)}"
        if not entry.filename.startswith(folder) or ".." in re.split(r"[/\\]", entry.filename):
            raise InputError(f"{what} lies outside the checkpoint; torch.save never does that")
        if name in members:
            raise InputError(f"{what} is there twice; torch.save never does that")
        if (
            entry.compress_type != zipfile.ZIP_STORED
            or entry.compress_size != entry.file_size
            or entry.flag_bits & 1
        ):
            raise InputError(
                f"{what} is compressed or encrypted, which torch.save never does; if you trust the "
                "file, zip its content again without compression"
            )
        members[name] = entry
    total, size = sum(entry.file_size for entry in entries), path.stat().st_size
    if total > size:
        raise InputError(f"{path}: members of {total} bytes in a file of {size}; it is damaged")
    if members["data.pkl"].file_size > MAX_PICKLE_BYTES:
        raise InputError(f"{path}: data.pkl is larger than {MAX_PICKLE_BYTES} bytes")
    order = members.get("byteorder")
    if order and (order.file_size > 16 or _read(path, archive, order).tobytes() != b"little"):
        raise InputError(
            f"{path}: its numbers are not little-endian; load it with PyTorch on a little-endian "
            "machine and save it again"
        )
    return members


def _read(path: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    """The bytes of a member, uint8; zipfile compares their checksum."""
    data = np.empty(member.file_size, np.uint8)
    try:
        with archive.open(member) as file:
            for start in range(0, len(data), MAX_READ_BYTES):
                block = memoryview(data)[start : start + MAX_READ_BYTES]
                if file.readinto(block) != len(block):
                    raise zipfile.BadZipFile("it ends early")
    except (zipfile.BadZipFile, NotImplementedError, EOFError, OSError, ValueError) as error:
        raise InputError(
            f"{path}: member {printable(member.filename)} is damaged ({error}); copy or download "
            "the file again"
        ) from error
    return data
