"""Coloured points as a PLY file, which nerfstudio names beside cameras as `ply_file_path`."""

from __future__ import annotations

import io
import itertools
from pathlib import Path

import numpy as np

from data_pipeline.scenes import Cloud
from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.files.reading import read_bytes

FIELD = "ply_file_path"
POSITION, COLOUR = ("x", "y", "z"), ("red", "green", "blue")
VERTEX = np.dtype([(name, "<f4") for name in POSITION] + [(name, "u1") for name in COLOUR])
END = b"end_header\n"
MOST_HEADER = 2**16  # bytes
ORDERS = {"binary_little_endian": "<", "binary_big_endian": ">", "ascii": "="}
TYPES = {  # by both names that each has
    **{"char": "i1", "uchar": "u1", "short": "i2", "ushort": "u2", "int": "i4", "uint": "u4"},
    **{"int8": "i1", "uint8": "u1", "int16": "i2", "uint16": "u2", "int32": "i4", "uint32": "u4"},
    **{"float": "f4", "double": "f8", "float32": "f4", "float64": "f8"},
}


def write_ply(path: Path, cloud: Cloud) -> None:
    """Writes the points, binary, float32."""
    vertices = np.empty(len(cloud.points), VERTEX)
    for names, columns in ((POSITION, cloud.points.T), (COLOUR, cloud.colours.T)):
        for name, column in zip(names, columns, strict=True):
            vertices[name] = column
    kinds = ["property float " + name for name in POSITION]
    kinds += ["property uchar " + name for name in COLOUR]
    first = ["ply", "format binary_little_endian 1.0", f"element vertex {len(vertices)}"]
    header = "\n".join([*first, *kinds, ""]).encode()
    path.write_bytes(header + END + vertices.tobytes())


def read_ply(path: Path, most: int) -> Cloud:
    """At most so many of the points that a PLY begins with, evenly chosen among those finite.

    Raises:
      InputError: not there, damaged, or points without a colour.
    """
    content = read_bytes(path)
    try:
        vertices = _vertices(content)
        points = np.stack([vertices[name] for name in POSITION], axis=-1).astype(np.float64)
        colours = np.stack([vertices[name] for name in COLOUR], axis=-1)
        if colours.dtype != np.uint8:
            raise ValueError(f"colours of {colours.dtype}, expected uchar")
        finite = np.flatnonzero(np.isfinite(points).all(axis=-1))
        if not len(finite):
            raise ValueError("none of them is finite")
    except ValueError as error:
        raise InputError(
            f"{path}: cannot be read as coloured points ({error}); write it again, or leave out "
            f"its {FIELD}"
        ) from error
    kept = finite[:: max(1, -(-len(finite) // most))]
    return Cloud(points[kept], colours[kept])


def _vertices(content: bytes) -> np.ndarray:
    """The vertices with all their properties; ValueError if there are none."""
    header, end, _ = content[:MOST_HEADER].partition(END)
    words = [line.split() for line in header.decode("ascii", "replace").splitlines()]
    match [line for line in words if line[:1] not in (["comment"], ["obj_info"])]:
        case [["ply"], ["format", kind, "1.0"], ["element", "vertex", count], *rest] if (
            end and kind in ORDERS and count.isdecimal() and len(count) < 12
        ):
            body, count = content[len(header) + len(END) :], int(count)
        case _:
            raise ValueError("no header of a PLY with vertices first")
    fields = []
    for line in itertools.takewhile(lambda line: line[:1] == ["property"], rest):
        if len(line) != 3 or line[1] not in TYPES:
            raise ValueError(f"a vertex with {' '.join(line)!r:.80}")
        fields.append((line[2], ORDERS[kind] + TYPES[line[1]]))
    vertex = np.dtype(fields)
    if missing := [name for name in (*POSITION, *COLOUR) if name not in vertex.fields]:
        raise ValueError(f"a vertex without {missing[0]}")
    least = 2 * len(fields) if kind == "ascii" else vertex.itemsize
    if not 1 <= count <= len(body) // least:
        raise ValueError(f"{count} vertices in {len(body)} bytes")
    if kind != "ascii":
        return np.frombuffer(body, vertex, count)
    vertices = np.loadtxt(io.BytesIO(body), vertex, comments=None, max_rows=count, ndmin=1)
    if len(vertices) != count:
        raise ValueError(f"{len(vertices)} of {count} vertices")
    return vertices
