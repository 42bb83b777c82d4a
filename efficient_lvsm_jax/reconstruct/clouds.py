"""Cameras and points as a model that other programs read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy.spatial.transform import Rotation

from data_pipeline.scenes import Cloud


def write_model(
    folder: Path,
    names: Sequence[str],
    c2w: np.ndarray,
    fxfycxcy: np.ndarray,
    sizes: Sequence[tuple[int, int]],
    cloud: Cloud,
) -> None:
    """A COLMAP text model of pinhole cameras, whose points are seen by none of them.

    Args:
      folder: is made.
      names: of pictures [V], c2w [V, 4, 4], fxfycxcy [V, 4] in pixels, sizes (width, height).
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
    rows = enumerate(zip(cloud.points.tolist(), cloud.colours.tolist(), strict=True), 1)
    points = [_line(number, *point, *colour, 0) for number, (point, colour) in rows]
    _write(folder / "points3D.txt", points)


def _line(*values) -> str:
    return " ".join(str(value) for value in values) + "\n"


def _write(path: Path, lines: Sequence[str]) -> None:
    path.write_text("".join(lines), encoding="utf-8")
