"""A tensor that is still in its file: what it is, without its values, until they are asked for."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import ml_dtypes
import numpy as np

# Values are little-endian in both file formats.
DTYPES = {
    "float32": np.dtype("<f4"),
    "float16": np.dtype("<f2"),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float64": np.dtype("<f8"),
    "int64": np.dtype("<i8"),
    "int32": np.dtype("<i4"),
    "int16": np.dtype("<i2"),
    "int8": np.dtype("i1"),
    "float8_e4m3fn": np.dtype(ml_dtypes.float8_e4m3fn),
    "uint8": np.dtype("u1"),
    "bool": np.dtype("?"),
    "complex64": np.dtype("<c8"),
    "complex128": np.dtype("<c16"),
}
MAX_AXES = 16
OVERLAPS = "repeats or overlaps its own elements"


@dataclasses.dataclass(frozen=True, eq=False)
class Placeholder:
    """Stands for something in a file that is not read: nothing was imported or run for it.

    Attributes:
      what: what it is, for messages.
    """

    what: str

    def __str__(self) -> str:
        return self.what


def described(value: Any) -> str:
    """What a value of a file is, for messages."""
    return value.what if isinstance(value, Placeholder) else f"a {type(value).__name__}"


@dataclasses.dataclass(frozen=True)
class Storage:
    """Bytes of a file that tensors are laid out in.

    Attributes:
      nbytes: how many.
      dtype: what they hold.
      read: returns bytes of the file as uint8; the same function for all storages that are parts of
        the same bytes, so that whoever wants several may read once.
      start: of these bytes, where the storage begins.
    """

    nbytes: int
    dtype: np.dtype
    read: Callable[[], np.ndarray]
    start: int = 0

    def part(self, offset: int, count: int) -> Storage:
        """`count` values from value `offset` on, as a storage of their own."""
        start, nbytes = offset * self.dtype.itemsize, count * self.dtype.itemsize
        return Storage(nbytes, self.dtype, self.read, self.start + start)


@dataclasses.dataclass(frozen=True)
class StoredTensor:
    """A tensor in a storage. Offset and strides count values, as PyTorch counts them."""

    storage: Storage
    dtype: np.dtype
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int = 0

    @property
    def nbytes(self) -> int:
        """What its values take."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def dense(self) -> bool:
        """Whether its values lie side by side in C order."""
        axes = zip(self.shape, self.strides, contiguous_strides(self.shape), strict=True)
        return all(size == 1 or stride == dense for size, stride, dense in axes)

    def numpy(self) -> np.ndarray:
        """Reads the whole storage and returns this tensor's values, read-only."""
        return self.laid_in(self.storage.read())

    def laid_in(self, data: np.ndarray) -> np.ndarray:
        """This tensor's values in what `storage.read` returned, read-only."""
        values = data[self.storage.start :][: self.storage.nbytes]
        values = values[self.offset * self.dtype.itemsize :]
        values = values[: values.nbytes // self.dtype.itemsize * self.dtype.itemsize]
        strides = [stride * self.dtype.itemsize for stride in self.strides]
        return np.lib.stride_tricks.as_strided(
            values.view(self.dtype), self.shape, strides, writeable=False
        )

    def flaw(self) -> str | None:
        """Why this layout must not be read, if so: outside its storage, or elements that overlap.

        A tensor without a flaw has at most as many values as its storage.
        """
        sizes = (*self.shape, *self.strides, self.offset)
        if any(type(size) is not int or size < 0 for size in sizes):
            return "has sizes that are not whole numbers from 0"
        if len(self.shape) != len(self.strides) or len(self.shape) > MAX_AXES:
            return f"has {len(self.shape)} axes and {len(self.strides)} strides"
        if 0 in self.shape:
            return None
        last = 0
        axes = zip(self.strides, self.shape, strict=True)
        for stride, size in sorted(axis for axis in axes if axis[1] > 1):
            if stride <= last:
                return OVERLAPS
            last += (size - 1) * stride
        if (self.offset + last + 1) * self.dtype.itemsize > self.storage.nbytes:
            return "reaches beyond its storage"
        return None


@dataclasses.dataclass(frozen=True)
class ScaledTensor(StoredTensor):
    """Numbers of few bits, each row of which is multiplied by its own scale, [rows, 1]."""

    scale: StoredTensor | None = None

    def laid_in(self, data: np.ndarray) -> np.ndarray:
        """What they stand for, float32."""
        return super().laid_in(data).astype(np.float32) * self.scale.numpy()


def contiguous_strides(shape: Sequence[int]) -> tuple[int, ...]:
    """Strides, in values, of an array in C order."""
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


def printable(text: str) -> str:
    """A name from a file, fit for a terminal: no control characters, not longer than 120."""
    text = ascii(text)[1:-1]
    return text if len(text) <= 120 else f"{text[:117]}..."
