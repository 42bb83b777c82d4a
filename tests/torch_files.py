"""PyTorch checkpoint files of the tests, well-formed and otherwise, written without PyTorch."""

from __future__ import annotations

import dataclasses
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.files.stored import StoredTensor, contiguous_strides
from efficient_lvsm_jax.files.torch_file import open_torch

FOUR = np.arange(4, dtype="<f4").tobytes()
STORAGES = {
    "float32": "FloatStorage",
    "float16": "HalfStorage",
    "bfloat16": "BFloat16Storage",
    "float64": "DoubleStorage",
    "int64": "LongStorage",
    "bool": "BoolStorage",
}


@dataclasses.dataclass(frozen=True)
class Raw:
    """Pickle instructions that leave one value."""

    code: bytes


def name(module: str, attribute: str) -> Raw:
    """A global."""
    return Raw(f"c{module}\n{attribute}\n".encode())


def call(function: Raw, *arguments: Any) -> Raw:
    """A call."""
    return Raw(function.code + encode(tuple(arguments)) + b"R")


def storage(
    key: Any, length: Any, kind: str = "FloatStorage", module: str = "torch", view: tuple = ()
) -> Raw:
    """A reference to a storage; the legacy format has a sixth entry, `view`."""
    reference = ("storage", name(module, kind), key, "cpu", length, *view)
    return Raw(encode(reference) + b"Q")


def tensor(
    key: str, shape: Any, strides: Any = None, *, offset: int = 0, length: int | None = None
) -> Raw:
    """A float32 tensor; C order and a storage that just fits unless told otherwise."""
    strides = contiguous_strides(shape) if strides is None else strides
    length = int(np.prod(shape)) if length is None else length
    return rebuilt(storage(key, length), offset, shape, strides, False, ORDERED_DICT)


def rebuilt(*arguments: Any) -> Raw:
    """A tensor by its arguments."""
    return call(name("torch._utils", "_rebuild_tensor_v2"), *arguments)


def encode(value: Any) -> bytes:
    """The pickle instructions that make `value`."""
    match value:
        case Raw(code):
            return code
        case None:
            return b"N"
        case bool():
            return b"\x88" if value else b"\x89"
        case int():
            return b"\x8a\x09" + value.to_bytes(9, "little", signed=True)
        case float():
            return b"G" + struct.pack(">d", value)
        case str():
            return b"X" + struct.pack("<I", len(value.encode())) + value.encode()
        case tuple():
            return b"(" + b"".join(map(encode, value)) + b"t"
        case list():
            return b"](" + b"".join(map(encode, value)) + b"e"
        case dict():
            items = (encode(key) + encode(item) for key, item in value.items())
            return b"}(" + b"".join(items) + b"u"
    raise TypeError(value)


ORDERED_DICT = call(name("collections", "OrderedDict"))


def write_zip(path: Path, members: dict[str, bytes], *, compressed: bool = False) -> Path:
    """A zip with these members."""
    kind = zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED
    with zipfile.ZipFile(path, "w", kind) as archive:
        for member, data in members.items():
            archive.writestr(zipfile.ZipInfo(member), data, kind)  # not the time of day
    return path


def write_torch(path: Path, content: Any, storages: dict[str, bytes] | None = None) -> Path:
    """A checkpoint of `content`; raw instructions are a whole pickle if they end with STOP."""
    code = encode(content)
    pickled = code if code.endswith(b".") else b"\x80\x02" + code + b"."
    members = {"x/data.pkl": pickled, "x/byteorder": b"little", "x/version": b"3\n"}
    members |= {f"x/data/{key}": data for key, data in (storages or {}).items()}
    return write_zip(path, members)


def write_legacy(
    path: Path, content: Any, storages: dict[str, np.ndarray] | None = None, **header: Any
) -> Path:
    """A checkpoint in the format before PyTorch 1.6.

    Args:
      header: magic, version, machine, keys and end (bytes), where they are to be others.
    """
    storages = storages or {}
    machine = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"int": 4}}
    magic, version = header.get("magic", 0x1950A86A20F9469CFC6C), header.get("version", 1001)
    keys = header.get("keys", list(storages))
    code = encode(content)
    # The magic number needs ten bytes, more than `encode` gives a number.
    start = Raw(b"\x8a\x0a" + magic.to_bytes(10, "little")) if type(magic) is int else magic
    parts = [start, version, header.get("machine", machine), Raw(code.removesuffix(b".")), keys]
    data = b"".join(b"\x80\x02" + encode(part) + b"." for part in parts)
    for array in storages.values():
        data += struct.pack("<q", array.size) + np.ascontiguousarray(array).tobytes()
    path.write_bytes(data + header.get("end", b""))
    return path


def write_arrays(
    path: Path, arrays: dict[str, np.ndarray], *, bare: bool = False, **beside: Any
) -> Path:
    """A training checkpoint: `arrays` under "model", and other entries; or only the arrays."""
    content, storages = {}, {}
    for index, (key, array) in enumerate(arrays.items()):
        stored = storage(str(index), array.size, STORAGES[array.dtype.name])
        strides = contiguous_strides(array.shape)
        content[key] = rebuilt(stored, 0, array.shape, strides, False, ORDERED_DICT)
        storages[str(index)] = np.ascontiguousarray(array).tobytes()
    return write_torch(path, content if bare else {"model": content, **beside}, storages)


def read(path):
    """The content, with every tensor at the top or one level below read."""

    def values(x):
        if isinstance(x, dict):
            return {key: values(item) for key, item in x.items()}
        return x.numpy() if isinstance(x, StoredTensor) else x

    with open_torch(path) as content:
        return values(content)


def refused(path):
    """The message `path` is refused with, which names the file."""
    with pytest.raises(InputError) as caught, open_torch(path):
        pass
    assert str(path) in str(caught.value)
    return str(caught.value)
