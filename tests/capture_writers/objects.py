"""Writes the five-camera scene as renders of an object; its cameras must be centred."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from five_cameras import HEIGHT, FiveCameras, png


def write(folder: Path, truth: FiveCameras) -> Path:
    """000.png, 000.npy, …; returns `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, (image, w2c) in enumerate(zip(truth.image, truth.w2c, strict=True)):
        (folder / f"{number:03d}.png").write_bytes(png(image))
        np.save(folder / f"{number:03d}.npy", np.diag([1.0, -1.0, -1.0]) @ w2c[:3])
    (folder / "metadata.json").write_text("{}")
    return folder


def vertical_fov(truth: FiveCameras) -> float:
    """Degrees, which the renders do not tell."""
    return math.degrees(2 * math.atan(0.5 * HEIGHT / truth.fxfycxcy[0, 1]))
