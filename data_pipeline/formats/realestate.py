"""RealEstate10K as published: one text file of cameras per film, with the frames in folders.

Read are these layouts, and nothing else; SPLIT is train or test, ID 16 hex digits:

    ROOT/SPLIT/ID.txt    ROOT/{frames,images}/SPLIT/ID/TIMESTAMP.{jpg,png}    opened with `split`
                         or ROOT/SPLIT/ID/TIMESTAMP.{jpg,png}
    ROOT/ID.txt          ROOT/{frames,images}/ID/TIMESTAMP.{jpg,png}
                         or ROOT/ID/TIMESTAMP.{jpg,png}

A text file begins with the film's address. Each further line is a frame: timestamp in microseconds;
fx fy cx cy divided by the picture's width and height; two zeros; row-major 3x4 world-to-camera in
OpenCV axes. The pictures are not part of the published set, and may have any size.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import numpy as np

from data_pipeline.formats.splits import choose_split
from data_pipeline.pictures.frames import picture_frame, world_from_camera
from data_pipeline.pictures.images import load_image, oriented_size
from data_pipeline.pictures.places import find_pictures
from data_pipeline.read_options import ReadOptions
from data_pipeline.scenes import Frame, Scene, Scenes, scene_of
from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.files.reading import inside, listing, read_text

NAME = "realestate10k"
LOOKS_FOR = "camera files named by 16 hex digits, .txt, perhaps in train or test"
SPLITS = ("train", "test")
PICTURE_FOLDERS = ("frames", "images", ".")
FIELDS = 19
_CAMERA_FILE = re.compile(r"([0-9a-f]{16})\.txt")


def detect(path: Path) -> bool:
    """Whether `path` has camera files in it, or in its splits."""
    return bool(_camera_files(path) or _splits(path))


def open_data_set(path: Path, options: ReadOptions) -> Scenes:
    """The films of `path`, or of one of its splits, ordered by name.

    A frame whose picture is absent keeps its place, as evaluation indices count the lines.

    Raises:
      InputError: no camera file, or no split chosen where there are several. Of a scene: a line
        that is no camera, or not one picture.
    """
    if _camera_files(path) and not options.split:
        folder = path
    else:
        folder = choose_split(path, _splits(path), options)
    names = _camera_files(folder)
    return Scenes(NAME, path, names, lambda index: _scene(path, folder, names[index], options))


def _splits(path: Path) -> dict[str, Path]:
    return {split: path / split for split in SPLITS if _camera_files(path / split)}


def _camera_files(folder: Path) -> list[str]:
    """The names of the scenes in `folder`."""
    found = (_CAMERA_FILE.fullmatch(file.name) for file in listing(folder, "*.txt"))
    return [match[1] for match in found if match]


def _scene(root: Path, folder: Path, name: str, options: ReadOptions) -> Scene:
    path = inside(root, (folder.relative_to(root) / f"{name}.txt").as_posix(), str(folder))
    timestamps, cameras = _read_cameras(path)
    pictures = _pictures(root, folder, name)
    frames: list[Frame | None] = []
    below = pictures.relative_to(root).as_posix()
    names = {f"{below}/{timestamp}": f"frame {timestamp}" for timestamp in timestamps}
    found = find_pictures([root], names).paths
    for timestamp, camera in zip(timestamps, cameras, strict=True):
        picture = found.get(f"{below}/{timestamp}")
        where = f"{path}, frame {timestamp}"
        frames.append(
            None
            if picture is None
            else picture_frame(
                picture,
                str(timestamp),
                world_from_camera(camera[6:].reshape(3, 4), where),
                _intrinsics(camera, oriented_size(picture, None)),
                where=where,
                timestamp=timestamp,
            )
        )
    sizes = Counter((frame.width, frame.height) for frame in frames if frame)
    if not sizes:
        raise InputError(
            f"{path}: none of its {len(frames)} frames is in {pictures}, e.g. "
            f"{timestamps[0]}.jpg or .png; the published set has no pictures: put the "
            "films' frames there, and open the folder above the splits"
        )
    usual = sizes.most_common(1)[0][0]
    holes = [index for index, frame in enumerate(frames) if frame is None]
    for hole in holes:
        frames[hole] = _absent_frame(path, pictures, timestamps[hole], cameras[hole], usual)
    return scene_of(name, frames, [], options, holes=holes)


def _absent_frame(
    path: Path, pictures: Path, timestamp: int, camera: np.ndarray, size: tuple[int, int]
) -> Frame:
    """A frame of the size that the film's other frames have, without its picture."""
    return Frame(
        str(timestamp),
        world_from_camera(camera[6:].reshape(3, 4), f"{path}, frame {timestamp}"),
        _intrinsics(camera, size),
        *size,
        lambda: load_image(pictures / f"{timestamp}.jpg"),
        timestamp=timestamp,
    )


def _intrinsics(camera: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """fxfycxcy [4] in pixels of a picture of that size."""
    with np.errstate(over="ignore"):  # refused as not finite
        return camera[:4] * np.tile(size, 2)


def _pictures(root: Path, folder: Path, name: str) -> Path:
    """The folder of a film's pictures: the first of those named above that is there."""
    split = folder.relative_to(root)
    folders = [root / kind / split / name for kind in PICTURE_FOLDERS]
    return next((folder for folder in folders if folder.is_dir()), folders[0])


def _read_cameras(path: Path) -> tuple[list[int], np.ndarray]:
    """Timestamps, ascending, and the 18 numbers of each camera, [N, 18]."""
    lines = read_text(path).split("\n")
    if "://" not in lines[0]:
        raise InputError(f"{path}, line 1: expected the film's address, found {lines[0][:80]!r}")
    rows = {}
    for number, line in enumerate(lines[1:], start=2):
        fields = line.split()
        where = f"{path}, line {number}"
        if not fields and not any(rest.strip() for rest in lines[number:]):
            break  # the end of the file
        if len(fields) != FIELDS:
            raise InputError(
                f"{where}: {len(fields)} fields, expected {FIELDS}: timestamp, fx fy cx cy, two "
                "zeros, 3x4 world-to-camera"
            )
        try:
            timestamp, camera = int(fields[0]), [float(field) for field in fields[1:]]
        except ValueError as error:
            raise InputError(f"{where}: {error}; expected numbers") from None
        if not 0 <= timestamp < 2**63:
            raise InputError(f"{where}: the timestamp {timestamp} is out of range")
        if timestamp in rows:
            raise InputError(f"{where}: a second frame of timestamp {timestamp}")
        rows[timestamp] = camera
    if not rows:
        raise InputError(f"{path}: no frame in it")
    timestamps = sorted(rows)
    return timestamps, np.array([rows[timestamp] for timestamp in timestamps])
