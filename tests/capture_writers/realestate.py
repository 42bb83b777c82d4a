"""Writes the five-camera scene as RealEstate10K publishes its cameras, with its frames."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from five_cameras import HEIGHT, WIDTH, FiveCameras, png

SCENE = "0123456789abcdef"
TIMESTAMPS = (99_000, 133_467_000, 200_000_000, 1_000_000_000, 9_000_000_000)


def write(
    folder: Path,
    truth: FiveCameras,
    *,
    name: str = SCENE,
    split: str = "test",
    pictures: str = "frames",
) -> Path:
    """The scene in folder/split, or in folder itself if the split is empty; returns folder.

    pictures: folder above that of the scene's pictures; empty: beside the cameras.
    """
    (folder / split).mkdir(parents=True, exist_ok=True)
    lines = ["https://www.youtube.com/watch?v=generated"]
    frames = folder / pictures / split / name
    frames.mkdir(parents=True)
    for view, timestamp in enumerate(TIMESTAMPS):
        (frames / f"{timestamp}.png").write_bytes(png(truth.image[view]))
        intrinsics = truth.fxfycxcy[view] / [WIDTH, HEIGHT, WIDTH, HEIGHT]
        numbers = [*intrinsics, 0, 0, *truth.w2c[view, :3].ravel()]
        lines.append(" ".join([str(timestamp), *(np.format_float_positional(x) for x in numbers)]))
    (folder / split / f"{name}.txt").write_text("\n".join(lines) + "\n")
    return folder
