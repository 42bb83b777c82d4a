"""Writes the five-camera scene as a COLMAP reconstruction."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from five_cameras import HEIGHT, WIDTH, FiveCameras, png
from PIL import Image

MODEL_IDS = {
    "SIMPLE_PINHOLE": 0,
    "PINHOLE": 1,
    "SIMPLE_RADIAL": 2,
    "RADIAL": 3,
    "OPENCV": 4,
    "OPENCV_FISHEYE": 5,
    "FULL_OPENCV": 6,
    "FOV": 7,
    "SIMPLE_RADIAL_FISHEYE": 8,
    "RADIAL_FISHEYE": 9,
}
ONE_FOCAL_LENGTH = ("SIMPLE_PINHOLE", "SIMPLE_RADIAL", "RADIAL")
NAMES = tuple(f"frame {view}.png" for view in range(5))


def write(
    folder: Path,
    truth: FiveCameras,
    *,
    binary: bool = True,
    model: str = "PINHOLE",
    lens: Sequence[float] = (),
    points: int = 40,
    names: Sequence[str] = NAMES,
    sparse: str = "sparse/0",
    pictures: str = "images",
    scale: int = 1,
) -> Path:
    """The scene in `folder`, which is returned; images are listed in reverse.

    Args:
      model: of the camera, with the coefficients `lens` behind the intrinsics.
      points: how many points; 0: no points3D file.
      scale: the model is of pictures larger by this factor than those stored.
    """
    store_pictures(folder / pictures, truth, names)
    destination = folder / sparse
    destination.mkdir(parents=True, exist_ok=True)
    cameras = {view + 1: (model, truth.fxfycxcy[view] * scale, lens) for view in range(5)}
    positions = visible_points(truth, points)
    images, tracks = [], [[] for _ in positions]
    for view in reversed(range(5)):
        pixels, seen = _observed(positions, truth, view, model, lens)
        for index, point in enumerate(seen):
            tracks[point].append((view + 10, index))
        # One more that belongs to no point.
        pixels = np.vstack([pixels, [[1.5, 2.5]]]) * scale if points else np.zeros((0, 2))
        images.append((view, names[view], pixels, [*seen, -1]))
    w2c = truth.w2c
    poses = {view: [*quaternion(w2c[view, :3, :3]), *w2c[view, :3, 3]] for view in range(5)}
    size = WIDTH * scale, HEIGHT * scale
    store = _write_binary if binary else _write_text
    store(destination, cameras, images, poses, positions, tracks, size)
    return folder


def store_pictures(folder: Path, truth: FiveCameras, names: Sequence[str] = NAMES) -> None:
    """The pictures of the scene as PNG files of these names."""
    for name, image in zip(names, truth.image, strict=True):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(png(image))


def quaternion(rotation: np.ndarray) -> np.ndarray:
    """(w, x, y, z) of a rotation [3, 3]."""
    axis = cv2.Rodrigues(rotation)[0].ravel()
    angle = np.linalg.norm(axis)
    return np.array([np.cos(angle / 2), *np.sin(angle / 2) * axis / max(angle, 1e-12)])


def visible_points(truth: FiveCameras, count: int, seed: int = 0) -> np.ndarray:
    """World points [count, 3], each seen by one of the cameras at least."""
    rng = np.random.default_rng(seed)
    view = np.arange(count) % 5
    pixels = rng.uniform([10, 10], [WIDTH - 10, HEIGHT - 10], (count, 2))
    focal, centre = truth.fxfycxcy[view, :2], truth.fxfycxcy[view, 2:]
    rays = np.hstack([(pixels - centre) / focal, np.ones((count, 1)), np.zeros((count, 1))])
    rays[:, :3] *= rng.uniform(4, 8, (count, 1))
    rays[:, 3] = 1
    return np.einsum("Pij,Pj->Pi", truth.c2w[view], rays)[:, :3]


def distorted(rays: np.ndarray, model: str, lens: Sequence[float]) -> np.ndarray:
    """Where a lens of that model shows rays (x, y) [M, 2] of the plane z = 1."""
    r2 = (rays**2).sum(-1, keepdims=True)
    if model.endswith("FISHEYE"):
        r, k = np.sqrt(r2), [*lens, *[0.0] * (4 - len(lens))]
        angle = np.arctan(r)
        bent = angle * (1 + sum(k[i] * angle ** (2 * i + 2) for i in range(4)))
        return rays * np.where(r > 1e-9, bent / np.maximum(r, 1e-9), 1)
    if model in ("SIMPLE_RADIAL", "RADIAL"):
        return rays * (1 + sum(k * r2 ** (i + 1) for i, k in enumerate(lens)))
    if model in ("OPENCV", "FULL_OPENCV"):
        k1, k2, p1, p2, k3, k4, k5, k6 = [*lens, *[0.0] * (8 - len(lens))]
        radial = (1 + k1 * r2 + k2 * r2**2 + k3 * r2**3) / (1 + k4 * r2 + k5 * r2**2 + k6 * r2**3)
        x, y = rays[:, :1], rays[:, 1:]
        return rays * radial + np.hstack(
            [2 * p1 * x * y + p2 * (r2 + 2 * x**2), p1 * (r2 + 2 * y**2) + 2 * p2 * x * y]
        )
    return rays


def _observed(positions, truth, view, model, lens):
    """Pixels [M, 2] of the points [M] that the picture shows."""
    if not len(positions):
        return np.zeros((0, 2)), []
    local = positions @ truth.w2c[view, :3, :3].T + truth.w2c[view, :3, 3]
    rays = distorted(local[:, :2] / local[:, 2:], model, lens)
    pixels = rays * truth.fxfycxcy[view, :2] + truth.fxfycxcy[view, 2:]
    inside = ((pixels > 0) & (pixels < [WIDTH, HEIGHT])).all(-1) & (local[:, 2] > 0.1)
    return pixels[inside], np.flatnonzero(inside)


def _parameters(model, fxfycxcy, lens):
    one = model in ONE_FOCAL_LENGTH or model.endswith("RADIAL_FISHEYE")
    return [*(fxfycxcy[[0, 2, 3]] if one else fxfycxcy), *lens]


def _write_binary(folder, cameras, images, poses, positions, tracks, size):
    data = struct.pack("<Q", len(cameras))
    for identifier, (model, fxfycxcy, lens) in cameras.items():
        parameters = _parameters(model, fxfycxcy, lens)
        data += struct.pack("<IiQQ", identifier, MODEL_IDS[model], *size)
        data += struct.pack(f"<{len(parameters)}d", *parameters)
    (folder / "cameras.bin").write_bytes(data)

    data = struct.pack("<Q", len(images))
    for view, name, pixels, seen in images:
        data += struct.pack("<I7dI", view + 10, *poses[view], view + 1) + name.encode() + b"\0"
        data += struct.pack("<Q", len(pixels))
        for pixel, point in zip(pixels, seen, strict=False):
            data += struct.pack("<2dQ", *pixel, point + 1 if point >= 0 else 2**64 - 1)
    (folder / "images.bin").write_bytes(data)

    if not len(positions):
        return
    data = struct.pack("<Q", len(positions))
    for index, position in enumerate(positions):
        data += struct.pack("<Q3d3Bd", index + 1, *position, 10, 20, 30, 0.5)
        data += struct.pack("<Q", len(tracks[index]))
        data += b"".join(struct.pack("<II", *element) for element in tracks[index])
    (folder / "points3D.bin").write_bytes(data)


def _write_text(folder, cameras, images, poses, positions, tracks, size):
    lines = ["# Camera list"]
    for identifier, (model, fxfycxcy, lens) in cameras.items():
        lines.append(_row(identifier, model, *size, *_parameters(model, fxfycxcy, lens)))
    (folder / "cameras.txt").write_text("\n".join(lines) + "\n")

    lines = ["# Image list with two lines of data per image:", f"# Number of images: {len(images)}"]
    for view, name, pixels, seen in images:
        lines.append(_row(view + 10, *poses[view], view + 1, name))
        rows = zip(pixels, seen, strict=False)
        lines.append(" ".join(_row(*p, i + 1 if i >= 0 else -1) for p, i in rows))
    (folder / "images.txt").write_text("\n".join(lines) + "\n")

    if not len(positions):
        return
    lines = ["# 3D point list"]
    for index, position in enumerate(positions):
        track = [number for element in tracks[index] for number in element]
        lines.append(_row(index + 1, *position, 10, 20, 30, 0.5, *track))
    (folder / "points3D.txt").write_text("\n".join(lines) + "\n")


def _row(*values) -> str:
    return " ".join(
        repr(float(value)) if isinstance(value, np.floating | float) else str(value)
        for value in values
    )


def half_size(folder: Path) -> None:
    """Halves the pictures in a folder, as COLMAP users do for images_2."""
    for path in folder.rglob("*.png"):
        with Image.open(path) as image:
            image.resize((image.width // 2, image.height // 2)).save(path)
