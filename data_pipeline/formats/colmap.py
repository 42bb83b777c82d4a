"""A COLMAP reconstruction: a folder with a sparse model and the pictures it was made from.

The model is looked for in sparse/0, sparse/1, …, in colmap/sparse/0, …, in sparse, and in the
folder itself; of several in one place the one with most images counts. Names of pictures
count from images or, where none of them is there, from the capture itself; smaller copies do, too
(`pictures.places`), and intrinsics are scaled to what is there.

Lenses: SIMPLE_PINHOLE and PINHOLE as they are; SIMPLE_RADIAL, RADIAL, OPENCV, FULL_OPENCV and the
fisheyes OPENCV_FISHEYE, SIMPLE_RADIAL_FISHEYE, RADIAL_FISHEYE undistorted; others are refused.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data_pipeline.formats.colmap_model import (
    CAMERA_MODELS,
    ModelCamera,
    ModelImage,
    model_suffix,
    read_cameras,
    read_images,
    read_points,
)
from data_pipeline.pictures.distortion import corner_shift, undistortion
from data_pipeline.pictures.frames import picture_frame
from data_pipeline.pictures.places import PICTURE_FOLDERS, find_pictures
from data_pipeline.read_options import ReadOptions
from data_pipeline.scenes import Frame, Observations, Scene, check_unique, scene_of
from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.files.reading import inside, listing

NAME = "colmap"
LOOKS_FOR = "sparse/0 or the folder itself with cameras.bin and images.bin, or .txt"
MIN_SHIFT = 0.5  # pixels by which a lens must move something to be worth a word
MAX_OBSERVATIONS = 20_000  # of a scene; more would not make a better check of its poses


def detect(path: Path) -> bool:
    """Whether `path` is a folder with a sparse model."""
    return bool(_models(path))


def read_scene(path: Path, options: ReadOptions) -> Scene:
    """The reconstruction in the folder `path`; its frames are sorted by name.

    `observations` are those of frames whose picture is there, in pixels of the frame's undistorted
    picture and within it. Of more than 20,000, every k-th is kept, so that all frames have their
    share; they are read from the files when asked for.

    Raises:
      InputError: no model or no picture, a damaged file, a lens that cannot be undone.
    """
    folder, images, notes = _largest(path)
    cameras = read_cameras(folder)
    images.sort(key=lambda image: image.name)
    check_unique([image.name for image in images], f"{folder}: images")
    pictures = _pictures(path, images, folder)
    frames, absent = [], []
    for image in images:
        where = f"{folder}, image {image.name!r}"
        if image.camera not in cameras:
            raise InputError(f"{where}: its camera {image.camera} is not among the model's cameras")
        picture = pictures.get(image.name)
        if picture is None:
            absent.append(image.name)
            continue
        camera = cameras[image.camera]
        where = f"{where}, camera {image.camera}"
        fxfycxcy, distortion = camera.pinhole(where)
        frames.append(
            picture_frame(
                picture,
                image.name,
                image.c2w,
                fxfycxcy,
                where=where,
                stated_size=camera.size,
                distortion=distortion,
            )
        )
    has_points = os.path.isfile(folder / f"points3D{model_suffix(folder)}")
    return scene_of(
        path.resolve().name,
        frames,
        absent,
        options,
        observations=(lambda: _observations(folder, cameras, frames)) if has_points else None,
        notes=notes,
    )


def lens_notes(folder: Path, file: str, *, centred: bool) -> list[str]:
    """What a COLMAP model knows of its lenses and `file` beside it, without distortion, does not.

    A line for each; none if there is no model, or nothing moves a pixel by half a pixel or more.

    Args:
      centred: `file` puts the principal point in the middle, whatever the lens.
    """
    known: dict[tuple[str, str], float] = {}
    for model in _models(folder):
        try:
            cameras = read_cameras(model)
        except InputError:  # it is not what is read
            continue
        for camera in cameras.values():
            for what, shift in _beyond_focal_length(camera, centred=centred).items():
                known[what] = max(shift, known.get(what, 0.0))
    return [
        f"{file} knows no {what}, but the COLMAP model beside it does ({name}, which "
        + (
            f"moves the corners by {shift:.1f} px): unless the pictures are undistorted already, "
            "read that model with --format colmap"
            if shift < math.inf
            else "cannot be read either): unless the pictures are undistorted already, do that "
            "with `colmap image_undistorter`"
        )
        for (what, name), shift in known.items()
        if shift >= MIN_SHIFT
    ]


def _beyond_focal_length(camera: ModelCamera, *, centred: bool) -> dict[tuple[str, str], float]:
    """By what is known of a lens, and its model: pixels, infinite where it cannot be undone."""
    name = CAMERA_MODELS[camera.model][0]
    try:
        fxfycxcy, distortion = camera.pinhole(name)
    except InputError:
        return {("lens distortion", name): math.inf}
    known = {}
    if distortion is not None:
        known["lens distortion", name] = corner_shift(fxfycxcy, camera.size, distortion)
    if centred:
        off = np.abs(fxfycxcy[2:] - np.array(camera.size) / 2).max()
        known["principal point", name] = float(off)
    return known


def _models(path: Path) -> list[Path]:
    """The models in the first place that has any."""
    for place in (path / "sparse", path / "colmap" / "sparse"):
        if below := [folder for folder in listing(place) if model_suffix(folder)]:
            return below
    return [folder for folder in (path / "sparse", path) if model_suffix(folder)][:1]


def _largest(path: Path) -> tuple[Path, list[ModelImage], list[str]]:
    """The model with most images, its images, and a line if there are several models."""
    folders = _models(path)
    for folder in folders:
        for name in ("cameras", "images", "points3D"):
            file = folder / f"{name}{model_suffix(folder)}"
            inside(path, file.relative_to(path).as_posix(), str(path))
    models = {folder: read_images(folder) for folder in folders}
    if not models:
        raise InputError(f"{path}: no COLMAP model; looked for {LOOKS_FOR}")
    folder = max(models, key=lambda folder: len(models[folder]))
    counts = ", ".join(f"{other.name}: {len(images)}" for other, images in models.items())
    several = (
        f"{len(models)} separate models; reading {folder.relative_to(path)}, which has most images "
        f"({counts})"
    )
    if not models[folder]:
        raise InputError(f"{folder}: the model has no image")
    return folder, models[folder], [several] * (len(models) > 1)


def _pictures(path: Path, images: Sequence[ModelImage], folder: Path) -> dict[str, Path]:
    """The pictures that are there, by the image's name; all in images, or in the capture itself."""
    names = {image.name: f"{folder}, image {image.name!r}" for image in images}
    for name, where in names.items():
        inside(path / "images", name, where)  # nor may it leave the folder of pictures
    for above in ("images/", ""):
        found = find_pictures([path], {above + name: where for name, where in names.items()}).paths
        if found:
            return {name.removeprefix(above): picture for name, picture in found.items()}
    raise InputError(
        f"{path}: none of the model's {len(images)} pictures (e.g. {images[0].name!r}) is in "
        f"{', '.join(PICTURE_FOLDERS)}; open the folder that holds these and the model"
    )


def _observations(
    folder: Path, cameras: dict[int, ModelCamera], frames: Sequence[Frame]
) -> Observations:
    ids, positions = read_points(folder)
    indices = {frame.name: index for index, frame in enumerate(frames)}
    images = [image for image in read_images(folder, points=True) if image.name in indices]
    images.sort(key=lambda image: image.name)
    if not len(ids) or not images:
        return Observations(np.zeros(0, np.int64), np.zeros((0, 2)), np.zeros((0, 3)))

    rows = [np.minimum(np.searchsorted(ids, image.points), len(ids) - 1) for image in images]
    known = [ids[row] == image.points for row, image in zip(rows, images, strict=True)]
    stride = -(-sum(int(seen.sum()) for seen in known) // MAX_OBSERVATIONS) or 1
    parts, before = [], 0
    for image, row, seen in zip(images, rows, known, strict=True):
        index = indices[image.name]
        chosen = np.flatnonzero(seen)
        chosen, before = chosen[-before % stride :: stride], before + len(chosen)
        pixels = _in_frame(image.pixels[chosen], cameras[image.camera], frames[index])
        size = frames[index].width, frames[index].height
        kept = ((pixels >= 0) & (pixels <= size)).all(-1)
        parts.append((np.full(kept.sum(), index), pixels[kept], positions[row[chosen][kept]]))
    return Observations(*(np.concatenate(part) for part in zip(*parts, strict=True)))


def _in_frame(pixels: np.ndarray, camera: ModelCamera, frame: Frame) -> np.ndarray:
    """Pixels [M, 2] of a picture of the camera's stated size as pixels of the frame's picture."""
    size = frame.width, frame.height
    scale = np.array(size) / camera.size
    fxfycxcy, distortion = camera.pinhole(frame.name)
    with np.errstate(over="ignore"):  # left out as outside of the picture
        pixels = pixels * scale
    if distortion is None or distortion.is_none:
        return pixels
    return undistortion(fxfycxcy * np.tile(scale, 2), size, distortion, frame.name).pixels(pixels)
