"""Flights of the camera through a viewed scene, and the files that are made of them."""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from data_pipeline.captures.camera_path_files import read_camera_path, write_camera_path
from data_pipeline.captures.export import CaptureWriter
from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.geometry.paths import camera_path, orbit
from efficient_lvsm_jax.media.video import write_film, write_gif
from efficient_lvsm_jax.viewer.scene import ViewedScene

ORBIT, INPUTS, KEYFRAMES, FILE = "orbit", "through the inputs", "keyframes", "file"
KINDS = (ORBIT, INPUTS, KEYFRAMES)
MOST_FRAMES = 1800  # a minute at 30 a second
MOST_FPS = 60


@dataclasses.dataclass(frozen=True)
class Camera:
    """c2w [4, 4] in the world; fxfycxcy [4] in pixels of the scene's pictures."""

    c2w: np.ndarray
    fxfycxcy: np.ndarray


def flight(
    kind: str, scene: ViewedScene, lens: np.ndarray, frames: int, keyframes: Sequence[Camera]
) -> list[Camera]:
    """The cameras of a flight.

    Args:
      kind: one of KINDS.
      scene: in which.
      lens: fxfycxcy [4] of an orbit and through the inputs.
      frames: how many, at least; rounded up to equally many between all pairs of stops.
      keyframes: the stops of KEYFRAMES.

    Raises:
      InputError: too few stops, too many frames, or inputs that define no orbit.
    """
    if not 1 <= frames <= MOST_FRAMES:
        raise InputError(f"{frames} frames: expected 1 to {MOST_FRAMES}")
    inputs = np.stack([scene.photos[photo].c2w for photo in scene.chosen] or [np.eye(4)])
    if kind == ORBIT:
        return [Camera(c2w, lens) for c2w in orbit(inputs, frames)]
    stops, lenses = inputs, np.tile(lens, (len(inputs), 1))
    if kind == KEYFRAMES:
        if len(keyframes) < 2:
            raise InputError(f"{len(keyframes)} keyframes: add two or more first")
        stops = np.stack([each.c2w for each in keyframes])
        lenses = np.stack([each.fxfycxcy for each in keyframes])
    elif len(scene.chosen) < 2:
        raise InputError(f"{len(scene.chosen)} photos in the cache: put two or more in first")
    steps = -(-frames // (len(stops) - 1))
    path = camera_path(stops, lenses, steps, nearest_first=kind == INPUTS)
    return [Camera(*each) for each in zip(*path, strict=True)]


def read_flight(content: bytes, size: tuple[int, int]) -> list[Camera]:
    """The cameras of a nerfstudio camera path, for pictures of `size`, (height, width).

    Raises:
      InputError: as `read_camera_path`, or too many frames.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "path.json"
        file.write_bytes(content)
        try:
            c2w, fxfycxcy, (stored, _) = read_camera_path(file)
        except InputError as error:
            raise InputError(str(error).replace(str(file), file.name)) from error
    if len(c2w) > MOST_FRAMES:
        raise InputError(f"a path of {len(c2w)} frames: expected at most {MOST_FRAMES}")
    height, width = size
    focal = fxfycxcy[:, 1] * height / stored
    return [
        Camera(pose, np.array([f, f, width / 2, height / 2]))
        for pose, f in zip(c2w, focal, strict=True)
    ]


def path_file(cameras: Sequence[Camera], size: tuple[int, int], fps: int) -> bytes:
    """The cameras as a nerfstudio camera path, in the world of the capture."""
    poses = np.stack([camera.c2w for camera in cameras])
    lenses = np.stack([camera.fxfycxcy for camera in cameras])
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "path.json"
        write_camera_path(file, poses, lenses, size, fps=fps)
        return file.read_bytes()


def film(name: str, pictures: Iterable[np.ndarray], fps: int) -> bytes:
    """A film of pictures uint8 [Y, X, 3]; `name` ends in .mp4 or .gif, which says what it is."""
    write = write_gif if name.endswith(".gif") else write_film
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder) / name, pictures, fps=fps)
        return (Path(folder) / name).read_bytes()


def capture(cameras: Sequence[Camera], pictures: Iterable[np.ndarray]) -> bytes:
    """Pictures with their cameras as a zipped capture that all commands read."""
    with tempfile.TemporaryDirectory() as folder:
        with CaptureWriter(Path(folder) / "capture") as writer:
            for camera, picture in zip(cameras, pictures, strict=True):
                writer.add(picture, camera.c2w, camera.fxfycxcy)
        return Path(shutil.make_archive(f"{folder}/all", "zip", folder, "capture")).read_bytes()
