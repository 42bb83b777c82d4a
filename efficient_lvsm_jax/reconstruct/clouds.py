"""Coloured points, and cameras beside them, as files that other programs read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy.spatial.transform import Rotation

_VERTEX = np.dtype([("position", "<f4", 3), ("colour", "u1", 3)])
_HEADER = """ply
format binary_little_endian 1.0
element vertex {count}
property float x
property float y
property float z
property uchar red
property uchar green
property uchar blue
end_header
"""


def write_ply(path: Path, points: np.ndarray, colours: np.ndarray) -> None:
    """Points [P, 3] with colours, uint8 [P, 3]."""
    vertices = np.empty(len(points), _VERTEX)
    vertices["position"], vertices["colour"] = points, colours
    path.write_bytes(_HEADER.format(count=len(points)).encode() + vertices.tobytes())


def write_model(
    folder: Path,
    names: Sequence[str],
    c2w: np.ndarray,
    fxfycxcy: np.ndarray,
    sizes: Sequence[tuple[int, int]],
    points: np.ndarray,
    colours: np.ndarray,
) -> None:
    """A COLMAP text model of pinhole cameras, whose points are seen by none of them.

    Args:
      folder: is made.
      names: of pictures [V], c2w [V, 4, 4], fxfycxcy [V, 4] in pixels, sizes (width, height).
      points, colours: as of `write_ply`.
    """
    folder.mkdir(parents=True)
    w2c = np.linalg.inv(c2w)
    turns = np.roll(Rotation.from_matrix(w2c[:, :3, :3]).as_quat(), 1, axis=-1)  # w first
    cameras, images = [], []
    for number, name in enumerate(names, 1):
        lens, pose = fxfycxcy[number - 1], [*turns[number - 1], *w2c[number - 1, :3, 3]]
        cameras.append(_line(number, "PINHOLE", *sizes[number - 1], *lens))
        images += [_line(number, *pose, number, name), "\n"]  # and no observation
    _write(folder / "cameras.txt", cameras)
    _write(folder / "images.txt", images)
    rows = zip(points.tolist(), colours.tolist(), strict=True)
    cloud = [_line(number, *point, *colour, 0) for number, (point, colour) in enumerate(rows, 1)]
    _write(folder / "points3D.txt", cloud)


def _line(*values) -> str:
    return " ".join(str(value) for value in values) + "\n"


def _write(path: Path, lines: Sequence[str]) -> None:
    path.write_text("".join(lines), encoding="utf-8")
