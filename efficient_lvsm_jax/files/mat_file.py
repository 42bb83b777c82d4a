"""Reads MATLAB 5 .mat files, which MATLAB's `save` writes unless told -v7.3, as a stream.

`scipy.io.loadmat` would do for files one trusts; a file of 60 kB with cells within cells ends its
process, and 200 bytes make it ask for 8 GB. Here, whoever reads says what it expects, level by
level: nothing recurses, nothing is allocated before its size was compared with what was expected
and with the file, and what is not asked for is passed over without being kept.

    with open_variable(path, "layers") as layers:      # a Matrix
        for layer in layers.cells():
            for field, value in layer.fields(): ...

A file is 128 bytes of header, then variables, each compressed with zlib or not. Everything is an
element: kind (4 bytes), size (4 bytes), and that many bytes, filled up to 8; or, if there are at
most 4, kind and size in 2 bytes each and the bytes right behind. A matrix is an element of elements
(flags, axes, name, then by its class). Nothing in it can run.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.files.stored import printable

HEADER_BYTES = 128
MAX_VARIABLE_BYTES = 2**30  # uncompressed; of which a reader keeps what it asked for
MAX_TEXT_BYTES = 2**12
PIECE = 2**18

# Kinds of elements.
INT8, INT32, UINT32, MATRIX, COMPRESSED = 1, 5, 6, 14, 15
NUMBERS = {
    1: "<i1", 2: "<u1", 3: "<i2", 4: "<u2", 5: "<i4", 6: "<u4", 7: "<f4", 9: "<f8", 12: "<i8",
    13: "<u8",
}  # fmt: skip
TEXTS = {1: "latin1", 2: "latin1", 4: "utf-16-le", 16: "utf-8", 17: "utf-16-le"}

CLASSES = {
    1: "cell", 2: "struct", 3: "object", 4: "char", 5: "sparse", 6: "double", 7: "single",
    8: "int8", 9: "uint8", 10: "int16", 11: "uint16", 12: "int32", 13: "uint32", 14: "int64",
    15: "uint64", 16: "function handle", 17: "opaque",
}  # fmt: skip
NUMERIC = ("double", "single", *(CLASSES[code] for code in range(8, 16)))
COMPLEX = 0x08


@contextlib.contextmanager
def open_variable(path: Path, name: str) -> Iterator[Matrix]:
    """The variable of that name; it is read while the context lasts, and verified at its end.

    Raises:
      InputError: names the file. It cannot be read, is no such file, of another version, damaged,
        or has no such variable. What the context raises is given the name of the file, too.
    """
    try:
        with path.open("rb") as file:
            _check_header(file.read(HEADER_BYTES))
            source, variable = _find(file, name)
            yield variable
            source.skip_to(variable.stop)
            source.finish()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    except zlib.error as error:
        raise InputError(f"{path}: damaged, its compressed data cannot be read") from error
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


@dataclasses.dataclass(frozen=True)
class Matrix:
    """An array of any class, of which the header was read. What follows is read once, in order.

    Attributes:
      kind: "cell", "struct", "char", "single", "double", ...; one of CLASSES.
      shape: two numbers or more, as MATLAB has it.
      name: of a variable; "" inside of others.
      stop: where it ends in `source`.
      is_complex: an imaginary part follows the real one.
    """

    source: _Source
    kind: str
    shape: tuple[int, ...]
    name: str
    stop: int
    is_complex: bool = False

    def expect(self, kind: str, shape: tuple[int, ...], what: str) -> None:
        """Raises InputError unless it is of this class and shape."""
        if (self.kind, self.shape) != (kind, shape):
            raise InputError(f"{what} is {self}, expected {_described(kind, shape)}")

    def __str__(self) -> str:
        return _described(self.kind, self.shape)

    def cells(self) -> Iterator[Matrix]:
        """The matrices of a cell array in column-major order. Each is over when the next comes."""
        if self.kind != "cell":
            raise InputError(f"found {self} where a cell array belongs")
        for _ in range(math.prod(self.shape)):
            yield from self._next_matrix()

    def fields(self) -> Iterator[tuple[str, Matrix]]:
        """Names and values of a single struct. Each value is over when the next comes."""
        if self.kind != "struct" or math.prod(self.shape) != 1:
            raise InputError(f"found {self} where a single struct belongs")
        length = np.frombuffer(self._element((INT32,), 4), "<i4")
        if len(length) != 1 or not 1 <= length[0] <= 64:
            raise _damaged("lengths of field names")
        names = self._element((INT8,), MAX_TEXT_BYTES)
        if len(names) % length[0]:
            raise _damaged("field names")
        for start in range(0, len(names), int(length[0])):
            name = names[start : start + int(length[0])].split(b"\0")[0].decode("latin1")
            for value in self._next_matrix():
                yield name, value

    def text(self) -> str:
        """One line of characters."""
        if self.kind != "char" or (self.shape[0] != 1 and 0 not in self.shape):
            raise InputError(f"found {self} where a line of text belongs")
        kind, data = self.source.element(self.stop, MAX_TEXT_BYTES)
        if kind not in TEXTS:
            raise _damaged(f"text stored as kind {kind}")
        return data.decode(TEXTS[kind], "replace")

    def numbers(self) -> np.ndarray:
        """Its values as they are stored, in C order; compare `shape` first, for its size."""
        if self.kind not in NUMERIC or self.is_complex:
            raise InputError(f"found {self} where real numbers belong")
        count = math.prod(self.shape)
        kind, data = self.source.element(self.stop, 8 * count)
        if kind not in NUMBERS or len(data) != count * np.dtype(NUMBERS[kind]).itemsize:
            raise _damaged(f"{self} in {len(data)} bytes of kind {kind}")
        values = np.frombuffer(data, NUMBERS[kind])
        return np.ascontiguousarray(values.reshape(self.shape, order="F"))

    def _next_matrix(self) -> Iterator[Matrix]:
        matrix = self.source.matrix(self.stop)
        yield matrix
        self.source.skip_to(matrix.stop)

    def _element(self, kinds: tuple[int, ...], limit: int) -> bytes:
        return self.source.element_of(kinds, self.stop, limit)


class _Source:
    """Bytes that come in pieces, and the elements in them."""

    def __init__(self, pieces: Iterator[bytes]):
        self._pieces = pieces
        self._piece = memoryview(b"")
        self.position = 0

    def take(self, count: int) -> bytes:
        """The next bytes."""
        parts = list(self._parts(count))
        return parts[0].tobytes() if len(parts) == 1 else b"".join(parts)

    def skip_to(self, position: int) -> None:
        """Passes over bytes; each element was checked to end in the one around it."""
        for _ in self._parts(position - self.position):
            pass

    def finish(self) -> None:
        """There must be nothing left, and its checksum right."""
        if len(self._piece) or any(self._pieces):
            raise _damaged("more data than its header says")

    def element(self, stop: int, limit: int) -> tuple[int, bytes]:
        """(kind, data) of an element that ends before `stop` and holds at most `limit` bytes."""
        kind, size, small = self._tag(stop)
        if size > limit:
            raise _damaged(f"{size} bytes where at most {limit} belong")
        if small is not None:
            return kind, small
        padded = size + -size % 8
        if self.position + size > stop:
            raise _damaged("an element reaches beyond the one it is in")
        data = self.take(size)
        self.skip_to(min(stop, self.position - size + padded))
        return kind, data

    def element_of(self, kinds: tuple[int, ...], stop: int, limit: int) -> bytes:
        """The data of an element of one of these kinds."""
        kind, data = self.element(stop, limit)
        if kind not in kinds:
            raise _damaged(f"an element of kind {kind}, expected {' or '.join(map(str, kinds))}")
        return data

    def matrix(self, stop: int) -> Matrix:
        """The header of a matrix that ends before `stop`."""
        kind, size, small = self._tag(stop)
        if kind != MATRIX or small:
            raise _damaged(f"an element of kind {kind} where a matrix belongs")
        end = self.position + size
        if end > stop:
            raise _damaged("a matrix reaches beyond what it is in")
        if not size:  # so MATLAB stores fields that were never set
            return Matrix(self, "double", (0, 0), "", end)
        flags = self.element_of((UINT32,), end, 8)
        if len(flags) != 8 or flags[0] not in CLASSES:
            raise _damaged(f"a matrix of class {flags[0] if flags else 'nothing'}")
        kind = CLASSES[flags[0]]
        if kind == "opaque":  # has no axes here; skipped, or refused for its class
            return Matrix(self, kind, (), "", end)
        axes = self.element_of((INT32,), end, 64)
        shape = struct.unpack(f"<{len(axes) // 4}i", axes[: len(axes) // 4 * 4])
        if len(shape) < 2 or min(shape) < 0:
            raise _damaged(f"a matrix of shape {shape}")
        name = self.element_of((INT8,), end, MAX_TEXT_BYTES).decode("latin1")
        return Matrix(self, kind, shape, name, end, bool(flags[1] & COMPLEX))

    def _tag(self, stop: int) -> tuple[int, int, bytes | None]:
        """Kind and size of the next element; and its data, if it is so small that it is here."""
        if self.position + 8 > stop:
            raise _damaged("an element begins where the one around it ends")
        tag = self.take(8)
        kind, size = struct.unpack("<II", tag)
        if kind >> 16 == 0:
            return kind, size, None
        kind, size = kind & 0xFFFF, kind >> 16
        if size > 4:
            raise _damaged(f"{size} bytes in an element of 4")
        return kind, size, tag[4 : 4 + size]

    def _parts(self, count: int) -> Iterator[memoryview]:
        while count > 0:
            if not len(self._piece):
                self._piece = memoryview(next(self._pieces, b""))
                if not len(self._piece):
                    raise _damaged("it ends too early")
            part, self._piece = self._piece[:count], self._piece[count:]
            count -= len(part)
            self.position += len(part)
            yield part


def _find(file: BinaryIO, name: str) -> tuple[_Source, Matrix]:
    size = os.fstat(file.fileno()).st_size
    names = []
    position = HEADER_BYTES
    while position < size:
        file.seek(position)
        tag = file.read(8)
        kind, count = struct.unpack("<II", tag) if len(tag) == 8 else (0, 8)
        after = position + 8 + count
        if after > size:
            raise InputError(
                f"cut off at {size} bytes: what begins at {position} reaches to {after}; "
                "download it again"
            )
        if kind == MATRIX:
            file.seek(position)
            source = _Source(_pieces(file, 8 + count))
        elif kind == COMPRESSED:
            source = _Source(_inflated(_pieces(file, count)))
        else:
            raise _damaged(f"an element of kind {kind} where a variable belongs")
        variable = source.matrix(MAX_VARIABLE_BYTES)
        if variable.name == name:
            return source, variable
        names.append(printable(variable.name))
        position = after
    raise InputError(f"holds {', '.join(names[:10]) or 'nothing'}; expected a variable {name!r}")


def _pieces(file: BinaryIO, count: int) -> Iterator[bytes]:
    while count and (piece := file.read(min(count, PIECE))):
        count -= len(piece)
        yield piece


def _inflated(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Uncompressed pieces, none much larger than PIECE, whatever the ratio."""
    machine = zlib.decompressobj()
    for piece in pieces:
        while piece and not machine.eof:
            if inflated := machine.decompress(piece, PIECE):
                yield inflated
            piece = machine.unconsumed_tail
    while not machine.eof and (inflated := machine.decompress(b"", PIECE)):
        yield inflated
    if not machine.eof:
        raise _damaged("its compressed data ends too early")


def _check_header(header: bytes) -> None:
    if header.startswith(b"\x89HDF\r\n") or header.startswith(b"MATLAB 7.3"):
        raise InputError(
            "a MATLAB 7.3 (HDF5) file; expected version 5: in MATLAB, load it and save with '-v7'"
        )
    if len(header) < HEADER_BYTES or header[124:128] not in (b"\x00\x01IM", b"\x01\x00MI"):
        raise InputError("not a MATLAB 5 .mat file")
    if header[126:128] == b"MI":
        raise InputError("a big-endian .mat file; expected a little-endian one")


def _described(kind: str, shape: tuple[int, ...]) -> str:
    return f"{kind} [{', '.join(map(str, shape))}]"


def _damaged(what: str) -> InputError:
    return InputError(f"damaged: {what}")
