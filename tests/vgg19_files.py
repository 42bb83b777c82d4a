"""Small files in the form of MatConvNet's VGG19, and elements of .mat files for hostile ones."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import scipy.io

STAGES = (2, 2, 4, 4, 4)
DENSE = ("conv", "relu", "conv", "relu", "conv", "softmax")
FIELDS = ("name", "type", "weights", "size", "pad", "stride", "precious", "dilate", "opts")
OLDER_FIELDS = ("weights", "pad", "type", "name", "stride")  # of beta16
HEADER = b"MATLAB 5.0 MAT-file".ljust(124) + b"\x00\x01IM"


def drawn_convolutions(seed: int, widths: tuple[int, ...]) -> dict:
    """conv{stage}_{layer} with one width a stage, as the weights of goldens were drawn."""
    params, channels = {}, 3
    names = [(s, n) for s, depth in enumerate(STAGES, 1) for n in range(1, depth + 1)]
    for number, (stage, layer) in enumerate(names):
        rng, width = np.random.default_rng([seed, number]), widths[stage - 1]
        kernel = rng.standard_normal((3, 3, channels, width)).astype(np.float32)
        params[f"conv{stage}_{layer}"] = {
            "kernel": kernel * np.float32(np.sqrt(2 / (9 * channels))),
            "bias": rng.standard_normal(width).astype(np.float32) * np.float32(0.1),
        }
        channels = width
    return params


def layers(params: dict, *, older: bool = False) -> list[dict]:
    """The 43 layers by field, to be changed and stored."""
    found = []
    for stage, depth in enumerate(STAGES, 1):
        for n in range(1, depth + 1):
            found.append(_convolution(f"conv{stage}_{n}", params[f"conv{stage}_{n}"], older))
            found.append({"name": f"relu{stage}_{n}", "type": "relu"})
        found.append({"name": f"pool{stage}", "type": "pool", "method": "max"})
    return found + [{"name": f"dense{number}", "type": kind} for number, kind in enumerate(DENSE)]


def write_layers(path: Path, found: list[dict], *, compressed: bool = True) -> Path:
    """Stores layers as variable `layers`, after another variable, with scipy."""
    cell = np.empty((1, len(found)), object)
    for number, layer in enumerate(found):
        value = np.empty((1, 1), [(name, object) for name in layer])
        for name, content in layer.items():
            value[0, 0][name] = content
        cell[0, number] = value
    scipy.io.savemat(path, {"meta": {"x": 1.0}, "layers": cell}, do_compression=compressed)
    return path


def _convolution(name: str, layer: dict, older: bool) -> dict:
    weights = np.empty((1, 2), object)
    bias = layer["bias"]
    weights[0, 0], weights[0, 1] = layer["kernel"], bias[None] if older else bias[:, None]
    fields = {
        "name": name, "type": "conv", "weights": weights, "size": np.ones((1, 4)),
        "pad": np.ones((1, 4)), "stride": np.ones((1, 2)), "precious": 0.0, "dilate": 1.0,
        "opts": np.empty((1, 0), object),
    }  # fmt: skip
    return {field: fields[field] for field in (OLDER_FIELDS if older else FIELDS)}


# Elements, without anything that checks them


def element(kind: int, data: bytes) -> bytes:
    return struct.pack("<II", kind, len(data)) + data + b"\0" * (-len(data) % 8)


def matrix(code: int, shape: tuple[int, ...], content: bytes = b"", name: bytes = b"") -> bytes:
    """A matrix of class `code`."""
    flags, axes = struct.pack("<II", code, 0), struct.pack(f"<{len(shape)}i", *shape)
    return element(14, element(6, flags) + element(5, axes) + element(1, name) + content)


def compressed(data: bytes) -> bytes:
    deflated = zlib.compress(data)
    return struct.pack("<II", 15, len(deflated)) + deflated


def write_bytes(path: Path, *parts: Any) -> Path:
    """A file of the usual header and these elements."""
    path.write_bytes(HEADER + b"".join(parts))
    return path
