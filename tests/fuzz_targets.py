"""What the fuzzer mutates and how it is read: small data sets of every format that can be read."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import gzip
import io
import json
import pickle
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
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
from five_cameras import HEIGHT, WIDTH, five_cameras
from PIL import Image, features
from torch_files import ORDERED_DICT, Raw, rebuilt, storage, write_legacy, write_torch
from vgg19_files import drawn_convolutions, layers, write_layers

from data_pipeline.captures.camera_path_files import read_camera_path, write_camera_path
from data_pipeline.evaluation.index import read_index
from data_pipeline.formats import array_record, open_scenes
from data_pipeline.formats.point_clouds import write_ply
from data_pipeline.pictures.images import decode_jpeg_into
from data_pipeline.read_options import ReadOptions
from data_pipeline.scenes import Cloud, Frame, Scene
from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.files.safetensors_file import write_safetensors
from efficient_lvsm_jax.files.stored import StoredTensor
from efficient_lvsm_jax.geometry.cameras import check_cameras
from efficient_lvsm_jax.weights.source import open_state_dict
from efficient_lvsm_jax.weights.vgg19 import read_vgg19

TRUTH, OTHER = five_cameras(), five_cameras(seed=1)
SHARED, CENTRED = five_cameras(same_intrinsics=True), five_cameras(centred=True)
WAYS = 10  # of storing a picture
JUNK = bytes(range(200))
LENS = [-0.05, 0.01, 0.002, -0.001]


class Violation(BaseException):
    """Something that no file may bring about. No Exception: nothing may take it for damage."""


@dataclasses.dataclass(frozen=True)
class Target:
    """Data of one format.

    variants: sets of files to start from, by relative path. read: reads all there is in a folder
    and returns the refusals. named: what a message may name instead of the folder. is_data_set:
    else its files are named by whoever reads them, and may be links to anywhere.
    """

    variants: list[dict[str, bytes]]
    read: Callable[[Path], list[InputError]]
    named: tuple[str, ...] = ()
    is_data_set: bool = True


def targets() -> dict[str, Target]:
    """All readers by name."""
    fov = objects.vertical_fov(CENTRED)
    return {
        "posed_scenes": _scenes("posed_scenes", lambda f: posed_scenes.write(f, TRUTH)),
        "realestate10k": _scenes("realestate10k", lambda f: realestate.write(f, TRUTH)),
        "pixelsplat": _scenes(
            "pixelsplat", lambda f: torch_chunks.write(f, TRUTH, others=[OTHER]), _chunk_of_jpegs
        ),
        "prepared": _scenes("prepared", lambda f: prepared.write(f, TRUTH)),
        "nerfstudio": _scenes(
            "nerfstudio",
            lambda f: nerfstudio.write(f, TRUTH, per_frame=True),
            lambda f: nerfstudio.write(f, SHARED, scale=4, described_in="colmap"),
            _distorted,
            _with_points,
        ),
        "blender": _scenes("blender", lambda f: blender.write(f, CENTRED)),
        "llff": _scenes("llff", lambda f: llff.write(f, CENTRED)),
        "colmap": _scenes(
            "colmap",
            lambda f: colmap.write(f, TRUTH),
            lambda f: colmap.write(f, TRUTH, binary=False),
            lambda f: colmap.write(f, TRUTH, model="OPENCV", lens=LENS),
            lambda f: colmap.write(f, TRUTH, binary=False, model="OPENCV_FISHEYE", lens=LENS),
        ),
        "objects": _scenes("objects", lambda f: objects.write(f, CENTRED), vertical_fov=fov),
        "evaluation index": Target([_written(_index)], _read_indices, is_data_set=False),
        "camera path": Target([_written(_camera_path)], _read_camera_paths, is_data_set=False),
        "vgg19": Target([_written(_vgg19)], _read_vgg19s, is_data_set=False),
        "checkpoint": Target(
            [_written(_checkpoints), _written(_shards)], _read_checkpoints, is_data_set=False
        ),
    }


# Data to start from


def _scenes(format: str, *writers: Callable[[Path], Any], **options: Any) -> Target:
    read_options = ReadOptions(**options)
    return Target(
        [_written(writer, first) for writer in writers for first in (0, 5)],
        lambda folder: _read_scenes(folder, format, read_options),
        (TRUTH.name, OTHER.name, realestate.SCENE),
    )


def _written(write: Callable[[Path], Any], first: int = 0) -> dict[str, bytes]:
    """The files that a writer makes, its pictures stored in several ways, from `first` on."""
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / "data"
        write(folder)
        files = {
            str(path.relative_to(folder)): path.read_bytes()
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }
    pictures = [name for name in files if name.endswith(".png")]
    return files | {
        name: _stored(files[name], (way + first) % WAYS) for way, name in enumerate(pictures)
    }


def _stored(png: bytes, way: int) -> bytes:
    """The picture as it is, as JPEG with EXIF, with alpha, with a palette, and as other files."""
    image, buffer = Image.open(io.BytesIO(png)), io.BytesIO()
    match way:
        case 0:
            return png
        case 1:
            exif = Image.Exif()
            exif[0x0112] = 3
            image.save(buffer, "JPEG", exif=exif, quality=90)
        case 2:
            image.convert("RGBA").save(buffer, "PNG")
        case 3:
            image.convert("P").save(buffer, "PNG", transparency=7)
        case 4:
            image.convert("L").save(buffer, "JPEG", progressive=True)
        case 5:
            image.save(buffer, "WEBP")
        case 6:
            image.save(buffer, "TIFF", compression="tiff_lzw")
        case 7:
            image.save(buffer, "AVIF" if features.check("avif") else "WEBP")
        case 8:
            image.save(buffer, "JPEG", restart_marker_blocks=4)
        case 9:
            image.save(buffer, "JPEG")
            return buffer.getvalue()[:-2] + JUNK + b"\xff\xd9"
    return buffer.getvalue()


def _chunk_of_jpegs(folder: Path) -> None:
    scenes = [torch_chunks.chunk_scene(truth) for truth in (TRUTH, OTHER)]
    for scene in scenes:
        jpegs = [_stored(image.tobytes(), 1) for image in scene["images"]]
        scene["images"] = [np.frombuffer(jpeg, np.uint8) for jpeg in jpegs]
    folder.mkdir()
    torch_chunks.write_chunk(folder / "0.torch", scenes)


def _distorted(folder: Path) -> None:
    path = nerfstudio.write(folder, SHARED) / "transforms.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"k1": 0.05, "p1": -0.002}))


def _with_points(folder: Path) -> None:
    path = nerfstudio.write(folder, SHARED) / "transforms.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"ply_file_path": "a.ply"}))
    points = TRUTH.c2w[:, :3, 3]
    write_ply(folder / "a.ply", Cloud(points, np.zeros(points.shape, np.uint8)))


def _camera_path(folder: Path) -> None:
    folder.mkdir()
    write_camera_path(folder / "path.json", CENTRED.c2w, CENTRED.fxfycxcy, (HEIGHT, WIDTH))


def _index(folder: Path) -> None:
    folder.mkdir()
    text = json.dumps({"a": {"context": [5, 9], "target": [6, 7, 8]}, "b": None}).encode()
    (folder / "index.json").write_bytes(text)
    (folder / "index.json.gz").write_bytes(gzip.compress(text))


def _vgg19(folder: Path) -> None:
    folder.mkdir()
    params = drawn_convolutions(0, (2, 2, 2, 2, 2))
    write_layers(folder / "a.mat", layers(params), compressed=False)
    write_layers(folder / "b.mat", layers(params, older=True), compressed=True)


def _checkpoints(folder: Path) -> None:
    """With objects beside the model, and parameters that are parts of one buffer."""
    folder.mkdir()
    beside = pickle.dumps([np.float64(3), argparse.Namespace(rate=0.1), {(1, 2): {3}}], 2)[2:-1]
    for write, file, view in (
        (write_torch, "new.pt", ()),
        (write_legacy, "old.pth", (None,)),
    ):
        model = {
            f"module.blocks.{i}._orig_mod.weight": rebuilt(
                storage("0", 8, view=view), 4 * i, (2, 2), (2, 1), False, ORDERED_DICT
            )
            for i in range(2)
        }
        content = {"model": model, "ema": model, "beside": Raw(beside), "step": 3}
        values = np.arange(8, dtype=np.float32)
        write(folder / file, content, {"0": values if view else values.tobytes()})


def _shards(folder: Path) -> None:
    folder.mkdir()
    for name in ("a", "b"):
        write_safetensors(folder / f"{name}.safetensors", {name: np.ones(3, np.float32)})
    index = {"weight_map": {name: f"{name}.safetensors" for name in ("a", "b")}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


# Reading all of it


def _read_scenes(folder: Path, format: str, options: ReadOptions) -> list[InputError]:
    refusals: list[InputError] = []
    with _refusing(refusals):
        scenes = open_scenes(folder, options, format=format)
        for index in range(len(scenes)):
            with _refusing(refusals):
                _read_scene(scenes[index], refusals)
    array_record._reader.cache_clear()  # else open files pile up
    return refusals


def _read_scene(scene: Scene, refusals: list[InputError]) -> None:
    for number in range(len(scene.frames)):
        with _refusing(refusals):
            _read_frame(scene.frames[number])
    if scene.observations:
        with _refusing(refusals):
            seen = scene.observations()
            if not (np.isfinite(seen.pixels).all() and np.isfinite(seen.points).all()):
                raise Violation("observations that are not finite")
    if scene.cloud:
        with _refusing(refusals):
            cloud = scene.cloud(10)
            if not (1 <= len(cloud.points) <= 10 and np.isfinite(cloud.points).all()):
                raise Violation(f"a cloud of {cloud.points}")


def _read_frame(frame: Frame) -> None:
    try:
        check_cameras(frame.c2w, frame.fxfycxcy)
    except InputError as error:
        raise Violation(f"a camera that was not refused: {error}") from error
    image = frame.image()
    if image.dtype != np.uint8 or image.shape != (frame.height, frame.width, 3):
        raise Violation(f"a picture {image.dtype} {image.shape} of {frame}")
    alpha = frame.alpha() if frame.alpha else None
    if alpha is not None and (alpha.dtype != np.uint8 or alpha.shape != image.shape[:2]):
        raise Violation(f"alpha {alpha.dtype} {alpha.shape} of {frame}")
    if frame.encoded:
        again = np.empty_like(image)
        decode_jpeg_into(frame.encoded(), again, frame.name)
        if not np.array_equal(again, image):
            raise Violation(f"the encoded picture of {frame} is another one")


def _read_indices(folder: Path) -> list[InputError]:
    refusals: list[InputError] = []
    for path in sorted(folder.iterdir()):
        with _refusing(refusals):
            index = read_index(path)
            for scene in index.context:
                with _refusing(refusals):
                    index.choose(scene, 4, 1)
    return refusals


def _read_camera_paths(folder: Path) -> list[InputError]:
    refusals: list[InputError] = []
    for path in sorted(folder.iterdir()):
        with _refusing(refusals):
            read_camera_path(path)
    return refusals


def _read_vgg19s(folder: Path) -> list[InputError]:
    refusals: list[InputError] = []
    for path in sorted(folder.iterdir()):
        with _refusing(refusals):
            for name, layer in read_vgg19(path).items():
                if not all(np.isfinite(values).all() for values in layer.values()):
                    raise Violation(f"{name} is not finite")
    return refusals


def _read_checkpoints(folder: Path) -> list[InputError]:
    refusals: list[InputError] = []
    for path in sorted(folder.iterdir()):
        with _refusing(refusals), open_state_dict(path) as tensors:
            for tensor in tensors.values():
                if isinstance(tensor, StoredTensor):
                    tensor.numpy().sum()
    return refusals


@contextlib.contextmanager
def _refusing(refusals: list[InputError]) -> Iterator[None]:
    """Collects an InputError, so that what follows is read all the same."""
    try:
        yield
    except InputError as error:
        refusals.append(error)
