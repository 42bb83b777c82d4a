"""Writes the five-camera scene as an LLFF capture; its cameras must be centred."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from five_cameras import HEIGHT, WIDTH, FiveCameras, png


def write(folder: Path, truth: FiveCameras, *, scale: int = 1) -> Path:
    """The pictures and poses_bounds.npy; returns `folder`.

    Args:
      scale: the pictures are copies in images_2, …, and the poses describe `scale` times larger
        ones.
    """
    pictures = folder / ("images" if scale == 1 else f"images_{scale}")
    pictures.mkdir(parents=True)
    rows = []
    for number, (image, c2w) in enumerate(zip(truth.image, truth.c2w, strict=True)):
        (pictures / f"image{number:03d}.png").write_bytes(png(image))
        right, down, forward, position = c2w[:3].T
        size = scale * np.array([HEIGHT, WIDTH, truth.fxfycxcy[number, 0]])
        matrix = np.stack([down, right, -forward, position, size], axis=1)
        rows.append([*matrix.ravel(), 1.0, 10.0])
    np.save(folder / "poses_bounds.npy", np.array(rows))
    return folder
