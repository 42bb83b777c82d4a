"""Writes the five-camera scene as pixelSplat chunks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from five_cameras import HEIGHT, WIDTH, FiveCameras, jpeg, png
from torch_files import ORDERED_DICT, rebuilt, storage, write_torch


def write(
    folder: Path, truth: FiveCameras, *, others: Sequence[FiveCameras] = (), index: bool = True
) -> Path:
    """A chunk for `truth` and one for `others`, in folder/test; returns that split."""
    split = folder / "test"
    split.mkdir(parents=True)
    listed = {}
    for number, scenes in enumerate([[truth], list(others)]):
        if scenes:
            write_chunk(split / f"{number:06d}.torch", [chunk_scene(scene) for scene in scenes])
            listed |= {scene.name: f"{number:06d}.torch" for scene in scenes}
    if index:
        (split / "index.json").write_text(json.dumps(listed))
    return split


def chunk_scene(truth: FiveCameras, *, picture: str = "png") -> dict:
    """The dict of a scene, arrays and encoded pictures where the file has tensors."""
    encode = {"png": png, "jpeg": jpeg}[picture]
    cameras = np.zeros((5, 18), np.float64)
    cameras[:, :4] = truth.fxfycxcy / [WIDTH, HEIGHT, WIDTH, HEIGHT]
    cameras[:, 6:] = truth.w2c[:, :3].reshape(5, 12)
    return {
        "url": "https://example.org",
        "timestamps": np.arange(5, dtype=np.int64) * 33_000,
        "cameras": cameras.astype(np.float32),
        "key": truth.name,
        "images": [np.frombuffer(encode(image), np.uint8) for image in truth.image],
    }


def write_chunk(path: Path, scenes: list[dict]) -> Path:
    """A chunk of such dicts."""
    storages: dict[str, bytes] = {}
    kinds = {"float32": "FloatStorage", "int64": "LongStorage", "uint8": "ByteStorage"}

    def encoded(value):
        if isinstance(value, list):
            return [encoded(item) for item in value]
        if isinstance(value, dict):
            return {key: encoded(item) for key, item in value.items()}
        if not isinstance(value, np.ndarray):
            return value
        key = str(len(storages))
        storages[key] = value.tobytes()
        stored = storage(key, value.size, kinds[value.dtype.name])
        strides = tuple(int(np.prod(value.shape[axis + 1 :])) for axis in range(value.ndim))
        return rebuilt(stored, 0, value.shape, strides, False, ORDERED_DICT)

    return write_torch(path, encoded(scenes), storages)
