"""Writes the five-camera scene in the prepared layout of the LVSM programs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from five_cameras import FiveCameras, png


def write(
    folder: Path,
    truth: FiveCameras,
    *,
    others: Sequence[FiveCameras] = (),
    written_in: str = "/somewhere/else",
) -> Path:
    """The scenes in folder/test, with paths as their writer's machine had them."""
    split = folder / "test"
    for scene in (truth, *others):
        pictures = split / "images" / scene.name
        pictures.mkdir(parents=True)
        frames = []
        for index, image in enumerate(scene.image):
            name = f"{index:05d}.png"
            (pictures / name).write_bytes(png(image))
            frames.append(
                {
                    "image_path": f"{written_in}/test/images/{scene.name}/{name}",
                    "fxfycxcy": scene.fxfycxcy[index].tolist(),
                    "w2c": scene.w2c[index].tolist(),
                }
            )
        metadata = split / "metadata" / f"{scene.name}.json"
        metadata.parent.mkdir(exist_ok=True)
        metadata.write_text(json.dumps({"scene_name": scene.name, "frames": frames}))
    names = [scene.name for scene in (truth, *others)]
    lines = "".join(f"{written_in}/test/metadata/{name}.json\n" for name in names)
    (split / "full_list.txt").write_text(lines)
    return split
