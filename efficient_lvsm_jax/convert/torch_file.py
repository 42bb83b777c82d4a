"""Reads PyTorch checkpoints (.pt, .pth) without PyTorch and without running anything in them.

Such a file is a zip: `STEM/data.pkl`, a pickle that describes the objects, and `STEM/data/KEY`, the
raw storages. A pickle is a program for a stack machine that may name any Python function and call
it. The machine here knows the few instructions that plain containers and tensors need; names stand
for themselves and are never imported, and every other name or instruction ends the reading with an
error. Sizes, counts and layouts are checked before memory is spent on them, and a tensor's values
are read only when asked for.
"""

from __future__ import annotations

import contextlib
import dataclasses
import pickletools
import re
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from efficient_lvsm_jax.convert.stored import DTYPES, Storage, StoredTensor, printable
from efficient_lvsm_jax.errors import InputError

MAX_READ_BYTES = 8 * 2**20  # in one piece, so also of the zip's directory
MAX_MEMBERS = 100_000
MAX_PICKLE_BYTES = 64 * 2**20
MAX_INSTRUCTIONS = 2_000_000
MAX_OPEN_CONTAINERS = 100
MAX_STACK = 10_000
MAX_NUMBER_BYTES = 16

TENSOR_DTYPES = {f"torch.{name}": dtype for name, dtype in DTYPES.items()}
STORAGES = {
    "torch.FloatStorage": DTYPES["float32"],
    "torch.HalfStorage": DTYPES["float16"],
    "torch.BFloat16Storage": DTYPES["bfloat16"],
    "torch.DoubleStorage": DTYPES["float64"],
    "torch.LongStorage": DTYPES["int64"],
    "torch.IntStorage": DTYPES["int32"],
    "torch.ShortStorage": DTYPES["int16"],
    "torch.CharStorage": DTYPES["int8"],
    "torch.ByteStorage": DTYPES["uint8"],
    "torch.BoolStorage": DTYPES["bool"],
    "torch.storage.UntypedStorage": DTYPES["uint8"],
}
ORDERED_DICT = "collections.OrderedDict"
SIZE = "torch.Size"
TENSOR = "torch._utils._rebuild_tensor_v2"
TENSOR_OF_BYTES = "torch._utils._rebuild_tensor_v3"
PARAMETER = "torch._utils._rebuild_parameter"
KNOWN_NAMES = frozenset(
    (ORDERED_DICT, SIZE, TENSOR, TENSOR_OF_BYTES, PARAMETER, *STORAGES, *TENSOR_DTYPES)
)


@dataclasses.dataclass(frozen=True)
class _Name:
    """A known name in the pickle, e.g. torch.FloatStorage. Nothing is imported for it."""

    name: str


class _OrderedDict(dict):
    """A collections.OrderedDict of the file; attributes set on it are dropped."""


@contextlib.contextmanager
def open_torch(path: Path) -> Iterator[Any]:
    """What a PyTorch file holds: containers, numbers, strings and `StoredTensor`s.

    Tensors can be read until the context ends.

    Raises:
      InputError: not such a file, damaged, or asking for anything but tensors and containers.
    """
    with _open_zip(path) as archive:
        members = _members(path, archive)

        def storage(key: str, dtype: np.dtype, length: int) -> Storage:
            member = members.get(f"data/{key}")
            if member is None or not re.fullmatch(r"[0-9]{1,9}", key):
                raise InputError(f"{path}: storage {printable(key)} is not in the file")
            if length * dtype.itemsize != member.file_size:
                raise InputError(
                    f"{path}: storage {key} is said to have {length} values of {dtype}, but has "
                    f"{member.file_size} bytes; the file is damaged"
                )
            return Storage(member.file_size, dtype, lambda: _read(path, archive, member))

        pickled = _read(path, archive, members["data.pkl"]).tobytes()
        yield _Machine(path, storage).run(pickled)


@contextlib.contextmanager
def _open_zip(path: Path) -> Iterator[zipfile.ZipFile]:
    try:
        file = path.open("rb")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    with file:
        start = file.read(4)
        if start != b"PK\3\4":
            raise InputError(f"{path}: {_not_a_zip(start)}")
        try:
            archive = zipfile.ZipFile(_LimitedReads(file))
        except (
            zipfile.BadZipFile,
            NotImplementedError,
            OSError,
            ValueError,
            struct.error,
        ) as error:
            raise InputError(
                f"{path}: truncated or damaged ({error}); copy or download it again"
            ) from error
        with archive:
            yield archive


class _LimitedReads:
    """A file for zipfile, which otherwise reads a directory of any size into memory."""

    def __init__(self, file: BinaryIO):
        self._file = file
        self.seek, self.tell, self.seekable = file.seek, file.tell, file.seekable

    def read(self, size: int = -1) -> bytes:
        if size > MAX_READ_BYTES:
            raise zipfile.BadZipFile(f"a directory of {size} bytes")
        return self._file.read(size if size >= 0 else MAX_READ_BYTES)


def _not_a_zip(start: bytes) -> str:
    if not start:
        return "the file is empty; copy or download it again"
    if start[:1] == b"\x80":
        return (
            "written in PyTorch's old format, a bare pickle, which is not read; load it where you "
            "trust it and save it again with PyTorch 1.6 or later, or as .safetensors"
        )
    return "not a PyTorch checkpoint (expected a zip file, as torch.save writes it)"


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


class _Machine:
    """Interprets the pickle of one file."""

    def __init__(self, path: Path, storage: Callable[[str, np.dtype, int], Storage]):
        self._path = path
        self._storage = storage
        self._stack: list[Any] = []
        self._marks: list[int] = []  # lengths of the stack where arguments begin
        self._memo: dict[int, Any] = {}

    def run(self, pickled: bytes) -> Any:
        """The object that `pickled` describes."""
        try:
            for count, (opcode, argument, _) in enumerate(pickletools.genops(pickled)):
                if opcode.name == "STOP":
                    (result,) = self._stack
                    return result
                if (
                    count >= MAX_INSTRUCTIONS
                    or len(self._marks) > MAX_OPEN_CONTAINERS
                    or len(self._stack) > MAX_STACK
                ):
                    raise self._refusal("is too long or too deeply nested for a checkpoint")
                self._step(opcode.name, argument)
        except InputError:
            raise
        # pickletools and the stack raise these for instructions that make no sense.
        except (ValueError, LookupError, TypeError, OverflowError, struct.error) as error:
            raise self._refusal(f"is malformed ({type(error).__name__})") from error
        raise self._refusal("ends early")

    def _refusal(self, reason: str) -> InputError:
        return InputError(
            f"{self._path}: its data.pkl {reason}; reading stopped and nothing of it was run"
        )

    def _step(self, instruction: str, argument: Any) -> None:
        stack = self._stack
        match instruction:
            case "PROTO" | "FRAME":
                pass
            case "NONE":
                stack.append(None)
            case "NEWTRUE" | "NEWFALSE":
                stack.append(instruction == "NEWTRUE")
            case "BININT" | "BININT1" | "BININT2" | "BINFLOAT" | "LONG1":
                if isinstance(argument, int) and argument.bit_length() > 8 * MAX_NUMBER_BYTES:
                    raise self._refusal("holds an absurdly long number")
                stack.append(argument)
            case "BINUNICODE" | "SHORT_BINUNICODE" | "BINUNICODE8":
                stack.append(argument)
            case "BINBYTES" | "SHORT_BINBYTES" | "BINBYTES8":
                stack.append(argument)
            case "MARK":
                self._marks.append(len(stack))
            case "EMPTY_TUPLE":
                stack.append(())
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                stack.append(tuple(reversed([stack.pop() for _ in range(int(instruction[-1]))])))
            case "TUPLE":
                stack.append(tuple(self._arguments()))
            case "EMPTY_LIST":
                stack.append([])
            case "APPEND" | "APPENDS":
                items = [stack.pop()] if instruction == "APPEND" else self._arguments()
                self._top(list).extend(items)
            case "EMPTY_DICT":
                stack.append({})
            case "SETITEM" | "SETITEMS":
                items = self._arguments() if instruction == "SETITEMS" else _pop_pair(stack)
                self._set_items(self._top(dict), items)
            case "BINPUT" | "LONG_BINPUT":
                self._memo[argument] = stack[-1]
            case "MEMOIZE":
                self._memo[len(self._memo)] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(self._memo[argument])
            case "GLOBAL":
                stack.append(self._name(argument.replace(" ", ".")))
            case "STACK_GLOBAL":
                stack.append(self._name(".".join(_pop_pair(stack))))
            case "BINPERSID":
                stack.append(self._stored(stack.pop()))
            case "REDUCE":
                function, arguments = _pop_pair(stack)
                stack.append(self._call(function, arguments))
            case "BUILD" if type(stack[-2]) is _OrderedDict and type(stack[-1]) is dict:
                stack.pop()  # attributes, such as the versions in a state dict's _metadata
            case _:
                detail = "" if argument is None else printable(str(argument).replace(" ", "."))
                raise self._refusal(
                    f"has the instruction {instruction} {detail}".rstrip()
                    + ", which tensors do not need"
                )

    def _arguments(self) -> list[Any]:
        """Takes everything since the last mark off the stack."""
        start = self._marks.pop()
        arguments = self._stack[start:]
        del self._stack[start:]
        return arguments

    def _top(self, kind: type) -> Any:
        top = self._stack[-1]
        if not isinstance(top, kind):
            raise self._refusal(f"fills a {type(top).__name__} as if it were a {kind.__name__}")
        return top

    def _set_items(self, target: dict, items: list[Any]) -> None:
        for key, value in zip(items[::2], items[1::2], strict=True):
            # Hashing a nested tuple could take for ever.
            if type(key) not in (str, int, float, bool, type(None)):
                raise self._refusal(f"uses a {type(key).__name__} as a key")
            target[key] = value

    def _name(self, name: str) -> _Name:
        if name not in KNOWN_NAMES:
            raise self._refusal(f"asks for {printable(name)}, which tensors do not need")
        return _Name(name)

    def _stored(self, reference: Any) -> Storage:
        """A reference ("storage", type, key, device, length) as the storage it means."""
        match reference:
            case ("storage", _Name(name), str(key), str(), int(length)) if (
                name in STORAGES and type(length) is int and length >= 0
            ):
                return self._storage(key, STORAGES[name], length)
        raise self._refusal("refers to something that is not a storage")

    def _call(self, function: Any, arguments: Any) -> Any:
        """What the few known functions would return."""
        if not isinstance(function, _Name):
            raise self._refusal(f"calls a {type(function).__name__}")
        match function.name, arguments:
            case (name, ()) if name == ORDERED_DICT:
                return _OrderedDict()
            case (name, (tuple(shape),)) if name == SIZE:
                return shape
            case (name, (StoredTensor() as tensor, bool(), dict())) if name == PARAMETER:
                return tensor
            case (
                name,
                (Storage() as storage, offset, tuple(shape), tuple(strides), bool(), _, *extra),
            ) if name == TENSOR and extra in ([], [None]):
                return self._tensor(storage, storage.dtype, shape, strides, offset)
            case (
                name,
                (
                    Storage() as storage,
                    offset,
                    tuple(shape),
                    tuple(strides),
                    bool(),
                    _,
                    _Name(dtype),
                    *extra,
                ),
            ) if name == TENSOR_OF_BYTES and dtype in TENSOR_DTYPES and extra in ([], [None]):
                return self._tensor(storage, TENSOR_DTYPES[dtype], shape, strides, offset)
        raise self._refusal(f"calls {function.name} with arguments it does not take")

    def _tensor(self, storage: Storage, dtype: np.dtype, *layout: Any) -> StoredTensor:
        tensor = StoredTensor(storage, dtype, *layout)
        if flaw := tensor.flaw():
            raise self._refusal(f"describes a tensor that {flaw}")
        return tensor


def _pop_pair(stack: list[Any]) -> list[Any]:
    second, first = stack.pop(), stack.pop()
    return [first, second]
