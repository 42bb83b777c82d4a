"""The pictures of goldens/re10k_sample: a furnished room, drawn from the cameras in its chunks.

PYTHONPATH=. python tests/re10k_sample.py    # draws them anew and replaces the chunks
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from capture_writers.torch_chunks import write_chunk
from five_cameras import jpeg

from data_pipeline.procedural.furnished_room import furnished_room
from data_pipeline.procedural.walk import draw
from efficient_lvsm_jax.files.torch_file import open_torch

SAMPLE = Path(__file__).parent / "goldens" / "re10k_sample"
SIZE = (152, 270)
SEED, QUALITY = 5, 85
# Of the cameras in the room: metres of a unit of theirs, and where their origin is.
METRES, ORIGIN = 0.4, (0.0, 0.0, 1.15)


def drawn(camera: np.ndarray) -> np.ndarray:
    """The picture uint8 [Y, X, 3] of a camera, [18] as a chunk has it."""
    c2w = np.linalg.inv(np.vstack([camera[6:].reshape(3, 4), [0, 0, 0, 1]]).astype(np.float64))
    c2w[:3, 3] = METRES * c2w[:3, 3] + ORIGIN
    height, width = SIZE
    fxfycxcy = camera[:4].astype(np.float64) * [width, height, width, height]
    return draw(furnished_room(SEED), c2w, fxfycxcy, SIZE)


def chunks() -> Iterator[tuple[Path, list[dict]]]:
    """The files of the sample and their scenes: cameras, timestamps and pictures as arrays."""
    for path in sorted((SAMPLE / "test").glob("*.torch")):
        with open_torch(path) as scenes:
            for scene in scenes:
                scene["cameras"] = scene["cameras"].numpy()
                scene["timestamps"] = scene["timestamps"].numpy()
                scene["images"] = [image.numpy() for image in scene["images"]]
            yield path, scenes


if __name__ == "__main__":
    for chunk, all_scenes in list(chunks()):
        for one in all_scenes:
            pictures = (jpeg(drawn(camera), QUALITY) for camera in one["cameras"])
            one["images"] = [np.frombuffer(picture, np.uint8) for picture in pictures]
        write_chunk(chunk, all_scenes)
