"""The files of a COLMAP sparse model, text or binary: cameras, posed images, points.

A model is a folder with cameras, images and perhaps points3D, all as .bin or all as .txt; where
both are there, the binary files count, as in COLMAP. Other files (rigs, frames) are not needed.
Counts in binary files are believed only as far as the file's length goes, so memory stays within a
small multiple of it.
"""

from __future__ import annotations

import dataclasses
import math
import os
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from data_pipeline.pictures.distortion import FISHEYE, Distortion, perspective
from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.files.reading import read_bytes, read_text

MAX_MODEL_BYTES = 2 * 2**30  # of a binary file: tens of millions of observations
# Name and number of parameters by model id.
CAMERA_MODELS = {
    0: ("SIMPLE_PINHOLE", 3),
    1: ("PINHOLE", 4),
    2: ("SIMPLE_RADIAL", 4),
    3: ("RADIAL", 5),
    4: ("OPENCV", 8),
    5: ("OPENCV_FISHEYE", 8),
    6: ("FULL_OPENCV", 12),
    7: ("FOV", 5),
    8: ("SIMPLE_RADIAL_FISHEYE", 4),
    9: ("RADIAL_FISHEYE", 5),
    10: ("THIN_PRISM_FISHEYE", 12),
    11: ("RAD_TAN_THIN_PRISM_FISHEYE", 16),
    12: ("SIMPLE_DIVISION", 4),
    13: ("DIVISION", 5),
    14: ("SIMPLE_FISHEYE", 3),
    15: ("FISHEYE", 4),
    16: ("EUCM", 6),
    17: ("EQUIRECTANGULAR", 2),
}
MODEL_IDS = {name: model for model, (name, _) in CAMERA_MODELS.items()}
ONE_FOCAL_LENGTH = (0, 2, 3, 8, 9)  # models that begin with f cx cy, not fx fy cx cy
_POINT2D = np.dtype([("pixel", "<f8", 2), ("point", "<i8")])  # no point: all bits set, so -1


@dataclasses.dataclass(frozen=True)
class ModelCamera:
    """A lens as COLMAP states it.

    model: an id of `CAMERA_MODELS`. size: (width, height), pixels.
    """

    model: int
    size: tuple[int, int]
    parameters: tuple[float, ...]

    def pinhole(self, where: str) -> tuple[np.ndarray, Distortion | None]:
        """fxfycxcy [4] in pixels of a picture of `size`, and the distortion, None if there is none.

        Raises:
          InputError: a model whose distortion we cannot undo, or coefficients that no lens has;
            `where` names the camera.
        """
        p = self.parameters
        fxfycxcy = np.array([p[0], *p[:3]] if self.model in ONE_FOCAL_LENGTH else p[:4])
        try:
            match self.model:
                case 0 | 1:
                    return fxfycxcy, None
                case 2 | 3:
                    return fxfycxcy, perspective(p[3:])
                case 4 | 6:
                    return fxfycxcy, perspective([*p[4:6], *p[8:]], p[6:8])
                case 5:
                    return fxfycxcy, Distortion(FISHEYE, p[4:])
                case 8 | 9:
                    return fxfycxcy, Distortion(FISHEYE, (*p[3:], *[0.0] * (7 - len(p))))
        except InputError as error:
            raise InputError(f"{where}: {error}") from error
        raise InputError(
            f"{where}: camera model {CAMERA_MODELS[self.model][0]} (id {self.model}) is not "
            "supported; undistort with `colmap image_undistorter`, which writes PINHOLE cameras"
        )


@dataclasses.dataclass(frozen=True)
class ModelImage:
    """A posed image, and the M points seen in it.

    c2w: [4, 4]. pixels: [M, 2] (x, y) of a picture of its camera's size, pixel centres at +0.5.
    points: [M] ids.
    """

    name: str
    c2w: np.ndarray
    camera: int
    pixels: np.ndarray
    points: np.ndarray


def model_suffix(folder: Path) -> str | None:
    """ ".bin" or ".txt", as the model in `folder` is stored; None if there is no model."""
    for suffix in (".bin", ".txt"):
        if all(os.path.isfile(folder / f"{name}{suffix}") for name in ("cameras", "images")):
            return suffix
    return None


def read_cameras(folder: Path) -> dict[int, ModelCamera]:
    """The cameras of the model in `folder` by id.

    Raises:
      InputError: a damaged file; the message names it and the camera or line.
    """
    path = folder / f"cameras{model_suffix(folder)}"
    cameras: dict[int, ModelCamera] = {}
    for where, identifier, camera in (
        _binary_cameras(path) if path.suffix == ".bin" else _text_cameras(path)
    ):
        if identifier in cameras:
            raise InputError(f"{where}: a second camera of id {identifier}")
        if not np.isfinite(camera.parameters).all():
            raise InputError(f"{where}: parameters {list(camera.parameters)} are not finite")
        cameras[identifier] = camera
    return cameras


def read_images(folder: Path, *, points: bool = False) -> list[ModelImage]:
    """The posed images of the model in `folder`, in the file's order.

    Args:
      points: read what was seen in text files too; without, M is 0 for them.

    Raises:
      InputError: as `read_cameras`, and a rotation that is none.
    """
    path = folder / f"images{model_suffix(folder)}"
    return list(_binary_images(path) if path.suffix == ".bin" else _text_images(path, points))


def read_points(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """The points of the model in `folder`: ids [P] in ascending order, positions [P, 3].

    Raises:
      InputError: as `read_cameras`, and a position that is not finite.
    """
    path = folder / f"points3D{model_suffix(folder)}"
    rows = list(_binary_points(path) if path.suffix == ".bin" else _text_points(path))
    ids = np.array([row[0] for row in rows], np.int64)
    positions = np.array([row[1:] for row in rows], np.float64).reshape(-1, 3)
    for row in np.flatnonzero(~np.isfinite(positions).all(1))[:1]:
        raise InputError(f"{path}, point {ids[row]}: {positions[row].tolist()} is not finite")
    order = np.argsort(ids, kind="stable")
    return ids[order], positions[order]


class _Reader:
    """Walks a binary file and never past its end."""

    def __init__(self, path: Path):
        self.path, self.at = path, 0
        self.data = read_bytes(path, MAX_MODEL_BYTES)

    def take(self, layout: struct.Struct) -> tuple:
        return layout.unpack_from(self.data, self.skip(layout.size))

    def skip(self, size: int) -> int:
        """Where the next `size` bytes begin."""
        start = self.at
        if size > len(self.data) - start:
            raise InputError(
                f"{self.path}: ends after {len(self.data):,} bytes, within what begins at byte "
                f"{start:,} and takes {size:,}; the file is truncated or damaged, copy it again"
            )
        self.at = start + size
        return start

    def count(self, smallest: int, what: str) -> int:
        """A count of things that take at least `smallest` bytes each."""
        (count,) = self.take(_U64)
        left = len(self.data) - self.at
        if count > left // smallest:
            raise InputError(
                f"{self.path}: states {count:,} {what}, but the {left:,} bytes left cannot hold "
                "them; the file is truncated or damaged, copy it again"
            )
        return count

    def text(self, what: str) -> str:
        """A NUL-terminated string."""
        end = self.data.find(b"\0", self.at)
        if end < 0:
            raise InputError(f"{self.path}: {what} has no end; the file is truncated or damaged")
        start, self.at = self.at, end + 1
        try:
            return self.data[start:end].decode("utf-8")
        except UnicodeDecodeError as error:
            raise InputError(f"{self.path}: {what} is not UTF-8 ({error.reason})") from error


_U64 = struct.Struct("<Q")
_CAMERA = struct.Struct("<IiQQ")  # id, model, width, height
_IMAGE = struct.Struct("<I7dI")  # id, quaternion, translation, camera
_POINT3D = struct.Struct("<q3d3xdQ")  # id, position, colour (left out), error, length of the track
_TRACK_ELEMENT_BYTES = 8


def _binary_cameras(path: Path) -> Iterator[tuple[str, int, ModelCamera]]:
    reader = _Reader(path)
    for _ in range(reader.count(_CAMERA.size, "cameras")):
        identifier, model, width, height = reader.take(_CAMERA)
        where = f"{path}, camera {identifier}"
        if model not in CAMERA_MODELS:
            raise InputError(f"{where}: unknown camera model id {model}; known are 0 to 17")
        parameters = reader.take(struct.Struct(f"<{CAMERA_MODELS[model][1]}d"))
        yield where, identifier, ModelCamera(model, (width, height), parameters)


def _binary_images(path: Path) -> Iterator[ModelImage]:
    reader = _Reader(path)
    for _ in range(reader.count(_IMAGE.size + 1 + _U64.size, "images")):
        identifier, *pose, camera = reader.take(_IMAGE)
        name = reader.text(f"the name of image {identifier}")
        count = reader.count(_POINT2D.itemsize, f"points in image {name!r}")
        start = reader.skip(count * _POINT2D.itemsize)
        seen = np.frombuffer(reader.data, _POINT2D, count, start)
        c2w = _c2w(pose, f"{path}, image {name!r}")
        yield ModelImage(name, c2w, camera, seen["pixel"], seen["point"])


def _binary_points(path: Path) -> Iterator[tuple]:
    reader = _Reader(path)
    for _ in range(reader.count(_POINT3D.size, "points")):
        *point, _, length = reader.take(_POINT3D)
        reader.skip(length * _TRACK_ELEMENT_BYTES)
        yield tuple(point)


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    """("file, line n", line) of all lines. Not splitlines: names may hold other separators."""
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        yield f"{path}, line {number}", line.rstrip("\r")


def _data_lines(path: Path) -> Iterator[tuple[str, str]]:
    return ((where, line) for where, line in _lines(path) if _is_data(line))


def _is_data(line: str) -> bool:
    return bool(line.strip()) and not line.lstrip().startswith("#")


def _text_cameras(path: Path) -> Iterator[tuple[str, int, ModelCamera]]:
    for where, line in _data_lines(path):
        identifier, name, width, height, *parameters = _fields(
            line, where, "CAMERA_ID MODEL WIDTH HEIGHT PARAMS[]", at_least=4
        )
        if name not in MODEL_IDS:
            raise InputError(
                f"{where}: unknown camera model {name!r}; known: {', '.join(MODEL_IDS)}"
            )
        model = MODEL_IDS[name]
        if len(parameters) != CAMERA_MODELS[model][1]:
            raise InputError(
                f"{where}: {len(parameters)} parameters, {name} has {CAMERA_MODELS[model][1]}"
            )
        size = _integer(width, where), _integer(height, where)
        camera = ModelCamera(model, size, tuple(_numbers(parameters, where)))
        yield where, _integer(identifier, where), camera


def _text_images(path: Path, points: bool) -> Iterator[ModelImage]:
    lines = _lines(path)
    for where, line in lines:
        if not _is_data(line):
            continue
        fields = _fields(
            line, where, "IMAGE_ID QW QX QY QZ TX TY TZ CAMERA_ID NAME", at_least=10, split=9
        )
        _integer(fields[0], where)
        c2w = _c2w(_numbers(fields[1:8], where), where)
        camera = _integer(fields[8], where)
        # The line of points follows even if it is empty; only the file's last one may be cut off.
        where, line = next(lines, (where, ""))
        seen = _text_points2d(line, where) if points else np.zeros(0, _POINT2D)
        if line.strip() and not line.rsplit(maxsplit=1)[-1].lstrip("+-").isdecimal():
            raise InputError(
                f"{where}: expected the points of image {fields[9].strip()!r}, X Y POINT3D_ID, or "
                "an empty line; every image takes two lines"
            )
        yield ModelImage(fields[9].strip(), c2w, camera, seen["pixel"], seen["point"])


def _text_points2d(line: str, where: str) -> np.ndarray:
    fields = line.split()
    if len(fields) % 3:
        raise InputError(
            f"{where}: {len(fields)} fields, expected X Y POINT3D_ID for each point seen in the "
            "image, or an empty line; every image takes two lines"
        )
    seen = np.zeros(len(fields) // 3, _POINT2D)
    seen["pixel"] = _numbers([*fields[0::3], *fields[1::3]], where).reshape(2, -1).T
    seen["point"] = [_integer(field, where) for field in fields[2::3]]
    return seen


def _text_points(path: Path) -> Iterator[tuple]:
    for where, line in _data_lines(path):
        fields = _fields(line, where, "POINT3D_ID X Y Z …", at_least=4, split=4)
        yield _integer(fields[0], where), *_numbers(fields[1:4], where)


def _fields(line: str, where: str, expected: str, *, at_least: int, split: int = -1) -> list[str]:
    fields = line.split(maxsplit=split)
    if len(fields) < at_least:
        raise InputError(f"{where}: {len(fields)} fields, expected {expected}")
    return fields


def _numbers(fields: list[str], where: str) -> np.ndarray:
    try:
        return np.array([float(field) for field in fields])
    except ValueError as error:
        raise InputError(f"{where}: {error}; expected a number") from None


def _integer(field: str, where: str) -> int:
    try:
        value = int(field)
    except ValueError:
        raise InputError(f"{where}: {field[:80]!r} where a whole number is expected") from None
    if not -(2**63) <= value < 2**63:
        raise InputError(f"{where}: the number {value} is out of range")
    return value


def _c2w(pose: np.ndarray, where: str) -> np.ndarray:
    """Camera to world [4, 4] of a world-to-camera quaternion (w, x, y, z) and translation, [7]."""
    pose = np.asarray(pose)
    norm = math.hypot(*pose[:4])  # unlike np.linalg.norm, it does not overflow
    if not np.isfinite(pose).all() or norm < 1e-12:
        raise InputError(
            f"{where}: quaternion {pose[:4].tolist()}, translation {pose[4:].tolist()} is no pose"
        )
    w, x, y, z = pose[:4] / norm
    rotation = np.array(  # world from camera: the transpose of the quaternion's own
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y + z * w), 2 * (x * z - y * w)],
            [2 * (x * y - z * w), 1 - 2 * (x * x + z * z), 2 * (y * z + x * w)],
            [2 * (x * z + y * w), 2 * (y * z - x * w), 1 - 2 * (x * x + y * y)],
        ]
    )
    c2w = np.eye(4)
    c2w[:3, :3] = rotation
    with np.errstate(over="ignore", invalid="ignore"):  # refused as not finite, with the picture
        c2w[:3, 3] = -rotation @ pose[4:]
    return c2w
