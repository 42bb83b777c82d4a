"""Writes the five-camera scene as a nerfstudio capture."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from five_cameras import HEIGHT, WIDTH, FiveCameras, png

NAMES = tuple(f"frame_{number:05d}.png" for number in range(1, 6))


def write(
    folder: Path,
    truth: FiveCameras,
    *,
    names: Sequence[str] = NAMES,
    per_frame: bool = False,
    scale: int = 1,
    described_in: str = "",
) -> Path:
    """The pictures and their transforms.json; returns `folder`.

    Args:
      names: of the pictures, in images.
      per_frame: intrinsics in every frame, instead of once for all.
      scale: the pictures are copies in images_2, …, and the file describes `scale` times larger
        ones.
      described_in: folder of the JSON file, "colmap" as in DL3DV's sample.
    """
    lenses = [intrinsics(lens, scale) for lens in truth.fxfycxcy]
    frames = [
        {"file_path": f"images/{name}", "transform_matrix": opengl(c2w)}
        | (lens if per_frame else {})
        for name, c2w, lens in zip(names, truth.c2w, lenses, strict=True)
    ]
    pictures = folder / ("images" if scale == 1 else f"images_{scale}")
    pictures.mkdir(parents=True)
    for name, image in zip(names, truth.image, strict=True):
        (pictures / name).write_bytes(png(image))
    (folder / described_in).mkdir(exist_ok=True)
    description = ({} if per_frame else lenses[0]) | {"camera_model": "OPENCV", "frames": frames}
    (folder / described_in / "transforms.json").write_text(json.dumps(description))
    return folder


def intrinsics(fxfycxcy: np.ndarray, scale: int = 1) -> dict:
    """Fields of a camera without distortion whose picture is `scale` times larger."""
    values = dict(zip(("fl_x", "fl_y", "cx", "cy"), (scale * fxfycxcy).tolist(), strict=True))
    return values | {"w": scale * WIDTH, "h": scale * HEIGHT}


def opengl(c2w: np.ndarray) -> list[list[float]]:
    """The pose [4, 4] with axes x right, y up, z backward."""
    return np.column_stack([c2w[:, 0], -c2w[:, 1], -c2w[:, 2], c2w[:, 3]]).tolist()
