"""Writes the five-camera scene as prepared data, or any other records, faults included."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from array_record.python.array_record_module import ArrayRecordWriter
from five_cameras import HEIGHT, WIDTH, FiveCameras, jpeg

from data_pipeline.posed_scenes import FOLDER
from data_pipeline.posed_scenes.posed_scenes_dataset_builder import FEATURES

SHARD = "posed_scenes-train.array_record-00000-of-00001"
MANIFEST = "manifest-train.json"


def records(truth: FiveCameras) -> list[dict[str, Any]]:
    """The scene's records."""
    return [
        {
            "scene": truth.name,
            "index": index,
            "frame": f"{index}.jpg",
            "timestamp": -1,
            "image": jpeg(image),
            "width": WIDTH,
            "height": HEIGHT,
            "c2w": truth.c2w[index],
            "fxfycxcy": truth.fxfycxcy[index],
        }
        for index, image in enumerate(truth.image)
    ]


def write(
    out: Path, truth: FiveCameras, *, frames: Sequence[dict[str, Any]] = (), **manifest: Any
) -> Path:
    """A shard and its manifest in `out`; returns `out`.

    Args:
      frames: the records, if not those of the scene.
      manifest: entries that are to be others.
    """
    frames = frames or records(truth)
    folder = out / FOLDER
    folder.mkdir(parents=True)
    shard = write_shard(folder / SHARD, [FEATURES.serialize_example(frame) for frame in frames])
    described = {
        "shards": [
            {
                "file": SHARD,
                "frames": len(frames),
                "bytes": shard.stat().st_size,
                "sha256": hashlib.sha256(shard.read_bytes()).hexdigest(),
            }
        ],
        "scenes": [[truth.name, 0, 0, len(frames), []]],
    }
    (folder / MANIFEST).write_text(json.dumps(described | manifest))
    return out


def write_shard(path: Path, serialized: Sequence[bytes]) -> Path:
    """A shard of these bytes, with the checksums that belong to them."""
    writer = ArrayRecordWriter(str(path), "group_size:1,uncompressed")
    for record in serialized:
        writer.write(record)
    writer.close()
    return path
