"""The five-camera scene in every format, with one thing in it that is to be wrong or unusual."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from capture_writers import (
    blender,
    colmap,
    llff,
    nerfstudio,
    objects,
    posed_scenes,
    prepared,
    realestate,
    torch_chunks,
)
from five_cameras import five_cameras, jpeg, png

from data_pipeline.formats import open_scenes
from data_pipeline.posed_scenes import FOLDER
from data_pipeline.read_options import ReadOptions
from data_pipeline.scenes import Scene
from efficient_lvsm_jax.errors import InputError

TRUTH = five_cameras(centred=True)  # which every format can hold
NAME = TRUTH.name
OPTIONS = ReadOptions(vertical_fov=objects.vertical_fov(TRUTH))


def write_chunk(folder: Path, truth=TRUTH) -> Path:
    return torch_chunks.write(folder, truth, index=False)


WRITERS: dict[str, Callable[..., Path]] = {
    "posed_scenes": posed_scenes.write,
    "realestate10k": realestate.write,
    "pixelsplat": write_chunk,
    "prepared": prepared.write,
    "nerfstudio": nerfstudio.write,
    "blender": blender.write,
    "llff": llff.write,
    "colmap": colmap.write,
    "objects": objects.write,
}
FORMATS = tuple(WRITERS)
PICTURES = {  # number 1
    "realestate10k": f"frames/test/{realestate.SCENE}/{realestate.TIMESTAMPS[1]}.png",
    "prepared": f"images/{NAME}/00001.png",
    "nerfstudio": f"images/{nerfstudio.NAMES[1]}",
    "blender": "train/r_1.png",
    "llff": "images/image001.png",
    "colmap": f"images/{colmap.NAMES[1]}",
    "objects": "001.png",
}
CHUNK, SHARD, MANIFEST = "000000.torch", FOLDER / posed_scenes.SHARD, FOLDER / posed_scenes.MANIFEST
CAMERAS_TXT = f"test/{realestate.SCENE}.txt"


def write(format: str, folder: Path, picture: bytes | None = None) -> Path:
    """The scene; with `picture` in the place of picture 1."""
    if picture is None:
        return WRITERS[format](folder, TRUTH)
    if format == "pixelsplat":
        return write_scenes(folder, chunk_scene(picture))
    if format == "posed_scenes":
        frames = posed_scenes.records(TRUTH)
        frames[1]["image"] = picture
        return posed_scenes.write(folder, TRUTH, frames=frames)
    root = WRITERS[format](folder, TRUTH)
    (root / PICTURES[format]).write_bytes(picture)
    return root


def chunk_scene(picture: bytes | None = None, order=range(5)) -> dict:
    scene = torch_chunks.chunk_scene(TRUTH)
    if picture is not None:
        scene["images"][1] = np.frombuffer(picture, np.uint8)
    for key in ("timestamps", "cameras"):
        scene[key] = scene[key][list(order)]
    scene["images"] = [scene["images"][number] for number in order]
    return scene


def write_scenes(folder: Path, *scenes: dict) -> Path:
    folder.mkdir()
    torch_chunks.write_chunk(folder / CHUNK, list(scenes))
    return folder


def read(root: Path, options: ReadOptions = OPTIONS) -> Scene:
    """The first scene, all of its pictures decoded."""
    scene = open_scenes(root, options)[0]
    for frame in scene.frames:
        frame.image()
    return scene


def named(format: str) -> str:
    """What a message about picture 1 says."""
    if format == "posed_scenes":
        return f"{posed_scenes.SHARD}, record 1"
    return f"{CHUNK}, scene {NAME}, frame 00001" if format == "pixelsplat" else PICTURES[format]


def refuses(root: Path, *said: str, options: ReadOptions = OPTIONS) -> None:
    """Asserts that reading raises an InputError whose message has all of that."""
    with pytest.raises(InputError) as caught:
        read(root, options)
    for part in said:
        assert part in str(caught.value)


def large_png(side: int = 50_000) -> bytes:
    data = bytearray(png(TRUTH.image[0]))
    data[16:24] = struct.pack(">II", side, side)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    return bytes(data)


def large_jpeg(side: int = 50_000) -> bytes:
    data = bytearray(jpeg(TRUTH.image[0]))
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = struct.pack(">HH", side, side)
    return bytes(data)
