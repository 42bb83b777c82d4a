"""pixelSplat's RealEstate10K chunks: `.torch` files of some hundred scenes, read without PyTorch.

    ROOT/{train,test}/000000.torch, …    and index.json = {scene: chunk file}

Opens a split's folder, ROOT with `split`, or one chunk file. A chunk is a list of dicts: `key` (the
scene's name), `timestamps` [N], `cameras` float32 [N, 18] (fx fy cx cy divided by the picture's
width and height, two zeros, row-major 3x4 world-to-camera in OpenCV axes), `images` (N encoded
pictures). Chunks are read by the converter's interpreter, which executes nothing; the pictures stay
in the file until they are asked for. The last few chunks used stay open.
"""

from __future__ import annotations

import functools
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.formats.splits import choose_split
from data_pipeline.pictures.frames import world_from_camera
from data_pipeline.pictures.images import decode_image, image_size
from data_pipeline.pictures.jpeg import JPEG_START
from data_pipeline.read_options import ReadOptions
from data_pipeline.scenes import Frame, Scene, Scenes, scene_of
from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.files.reading import MAX_PICTURE_BYTES, inside, listing, read_json_object
from efficient_lvsm_jax.files.stored import StoredTensor, described
from efficient_lvsm_jax.files.torch_file import open_torch
from efficient_lvsm_jax.geometry.cameras import check_cameras
from efficient_lvsm_jax.geometry.intrinsics import check_intrinsics

NAME = "pixelsplat"
LOOKS_FOR = "*.torch chunks"
OPEN_CHUNKS = 4
CAMERA_NUMBERS = 18


def detect(path: Path) -> bool:
    """Whether it is a chunk, or a folder with chunks or with splits of chunks."""
    if path.is_file():
        return path.suffix == ".torch"
    return bool(listing(path, "*.torch") or _splits(path))


def open_data_set(path: Path, options: ReadOptions) -> Scenes:
    """The scenes of a chunk file, of a split, or of the split that the options name.

    Raises:
      InputError: damaged files, an index that does not fit its chunks, no split where there are
        several.
    """
    if path.is_file():
        listed = [(name, path) for name in _names(path)]
    else:
        folder = path if listing(path, "*.torch") else choose_split(path, _splits(path), options)
        listed = _listed(folder)
    names = [name for name, _ in listed]
    return Scenes(NAME, path, names, lambda index: _scene(*listed[index], options))


def _splits(path: Path) -> dict[str, Path]:
    folders = {name: path / name for name in ("train", "test")}
    return {name: folder for name, folder in folders.items() if listing(folder, "*.torch")}


def _listed(folder: Path) -> list[tuple[str, Path]]:
    """(scene, chunk) from index.json, or by opening every chunk if there is none."""
    index = inside(folder, "index.json", str(folder))
    if index.is_file():
        listed = []
        for name, chunk in read_json_object(index).items():
            path = inside(folder, chunk, f"{index}, scene {name!r}")
            listed.append((name, path))
        return listed
    chunks = [inside(folder, chunk.name, str(folder)) for chunk in listing(folder, "*.torch")]
    return [(name, chunk) for chunk in chunks for name in _names(chunk)]


def _names(chunk: Path) -> list[str]:
    return [_key(chunk, number, scene) for number, scene in enumerate(_open_chunk(chunk))]


@functools.lru_cache(maxsize=OPEN_CHUNKS)
def _open_chunk(path: Path) -> _Chunk:
    return _Chunk(path)


class _Chunk(list):
    """The dicts of a chunk; its file is open as long as this object lives."""

    def __init__(self, path: Path):
        self._context = open_torch(path)
        content = self._context.__enter__()
        if isinstance(content, list):
            wrong = [scene for scene in content if not isinstance(scene, dict)]
        else:
            wrong = [content]
        if wrong:
            raise InputError(
                f"{path}: not a chunk of scenes (expected a list of dicts, found "
                f"{described(wrong[0])})"
            )
        super().__init__(content)


def _scene(name: str, chunk: Path, options: ReadOptions) -> Scene:
    if not chunk.is_file():
        raise InputError(f"{chunk}: no such chunk, but index.json says it has scene {name!r}")
    scenes = [scene for i, scene in enumerate(_open_chunk(chunk)) if _key(chunk, i, scene) == name]
    if len(scenes) != 1:
        raise InputError(f"{chunk}: has {len(scenes)} scenes named {name!r}, expected 1")
    where, scene = f"{chunk}, scene {name}", scenes[0]
    cameras = _array(scene, "cameras", where, axes=2, kind=np.floating)
    with np.errstate(invalid="ignore"):  # refused as not finite
        cameras = cameras.astype(np.float64)
    timestamps = _array(scene, "timestamps", where, axes=1, kind=np.integer)
    images = scene.get("images")
    if cameras.shape[1] != CAMERA_NUMBERS:
        raise InputError(f"{where}: cameras {cameras.shape}, expected [N, {CAMERA_NUMBERS}]")
    if not isinstance(images, list) or not len(images) == len(cameras) == len(timestamps):
        counts = len(images) if isinstance(images, list) else "no"
        raise InputError(
            f"{where}: {counts} images, {len(cameras)} cameras, {len(timestamps)} timestamps; "
            "expected as many of each"
        )

    heads = [_head(image, f"{where}, frame {number}") for number, image in enumerate(images)]
    known = Counter(size for size, _ in heads if size)
    if not known:
        raise InputError(f"{where}: none of its {len(images)} pictures can be read")
    usual = known.most_common(1)[0][0]
    frames = []
    for number, (image, (size, is_jpeg)) in enumerate(zip(images, heads, strict=True)):
        label = f"{number:05d}"
        width, height = size or usual
        camera = f"{where}, frame {label}"
        c2w = world_from_camera(cameras[number, 6:].reshape(3, 4), camera)
        fxfycxcy = cameras[number, :4] * [width, height, width, height]
        check_cameras(c2w, fxfycxcy, camera)
        check_intrinsics(fxfycxcy, (width, height), camera)
        frames.append(
            Frame(
                label,
                c2w,
                fxfycxcy,
                width,
                height,
                functools.partial(_decode, image, camera),
                functools.partial(_bytes, image) if is_jpeg else None,
                int(timestamps[number]),
            )
        )
    holes = [number for number, (size, _) in enumerate(heads) if size is None]
    return scene_of(name, frames, [], options, holes=holes)


def _key(chunk: Path, number: int, scene: dict) -> str:
    key = scene.get("key")
    if not isinstance(key, str) or not key:
        raise InputError(f"{chunk}, scene {number}: its key is {key!r}, expected a name")
    return key


def _array(scene: dict, key: str, where: str, *, axes: int, kind: type) -> np.ndarray:
    value = scene.get(key)
    if (
        not isinstance(value, StoredTensor)
        or len(value.shape) != axes
        or not np.issubdtype(value.dtype, kind)
    ):
        raise InputError(f"{where}: {key} is not a tensor of {axes} axes and {kind.__name__} type")
    return value.numpy()


def _bytes(image: Any) -> bytes:
    """The encoded picture; empty for anything that is none."""
    if not isinstance(image, StoredTensor) or image.dtype != np.uint8 or len(image.shape) != 1:
        return b""
    return image.numpy().tobytes() if image.shape[0] <= MAX_PICTURE_BYTES else b""


def _head(image: Any, name: str) -> tuple[tuple[int, int] | None, bool]:
    """Size of the picture, None if it cannot be read, and whether it is a JPEG."""
    try:
        data = _bytes(image)  # raises where the checksum is wrong
        return image_size(data, name), data.startswith(JPEG_START)
    except InputError:
        return None, False


def _decode(image: Any, name: str) -> np.ndarray:
    return decode_image(_bytes(image), name)
