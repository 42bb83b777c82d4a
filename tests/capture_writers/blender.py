"""Writes the five-camera scene as one split of a Blender scene; its cameras must be centred."""

from __future__ import annotations

import json
import math
from pathlib import Path

from five_cameras import WIDTH, FiveCameras, png

from capture_writers.nerfstudio import opengl


def write(
    folder: Path, truth: FiveCameras, *, split: str = "train", suffix: str = "", first: int = 0
) -> Path:
    """The pictures and the transforms file of a split; returns `folder`.

    Args:
      suffix: that the file gives to picture names, mostly none.
      first: number of the first picture.
    """
    (folder / split).mkdir(parents=True)
    frames = []
    for number, (image, c2w) in enumerate(zip(truth.image, truth.c2w, strict=True), first):
        (folder / split / f"r_{number}.png").write_bytes(png(image))
        frames.append(
            {"file_path": f"./{split}/r_{number}{suffix}", "transform_matrix": opengl(c2w)}
        )
    angle = 2 * math.atan(0.5 * WIDTH / truth.fxfycxcy[0, 0])
    description = {"camera_angle_x": angle, "frames": frames}
    (folder / f"transforms_{split}.json").write_text(json.dumps(description))
    return folder
