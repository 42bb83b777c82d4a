"""Structure from motion: pictures that overlap to their cameras and points, by pycolmap.

Incremental mapping alone: the global one gives wrong cameras without a word where focal lengths are
not known. All that is drawn at random has a seed, so the same pictures give the same cameras.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from data_pipeline.formats.colmap_model import read_cameras, read_images
from data_pipeline.pictures.distortion import Distortion
from data_pipeline.pictures.frames import picture_frame
from data_pipeline.scenes import Frame
from data_pipeline.unposed.photos import Photos
from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.media.progress import Progress

log = logging.getLogger(__name__)

# Parameters of a camera as COLMAP lists them, of a focal length, a middle and no distortion.
LENSES = {
    "pinhole": ("SIMPLE_PINHOLE", 1, 0),
    "radial": ("RADIAL", 1, 2),
    "opencv": ("OPENCV", 2, 4),
    "fisheye": ("OPENCV_FISHEYE", 2, 4),
}
SEED = 1
LEAST = 3  # cameras of a model
SHARE = 0.5  # of the pictures that must find a place
PAIRS_OF_ALL = 150  # frames of a film up to which each is compared with every other
ENOUGH = 20  # pictures of a lens to say where its middle is
OFF_CENTRE = 0.1  # of a side, by which that may be off
AT_ONCE = 4  # pictures, between two words about how far it is


@dataclasses.dataclass(frozen=True)
class Mapped:
    """Where pictures were taken, of those that found a place, in the order of their names.

    frames: their cameras, and the pictures without distortion, which are read from `files`. lenses:
    fxfycxcy [4] and distortion of these files. points: [P, 3], in the world of the cameras, and
    colours, uint8 [P, 3]. model: pycolmap's.
    """

    frames: Sequence[Frame]
    files: Sequence[Path]
    lenses: Sequence[tuple[np.ndarray, Distortion | None]]
    points: np.ndarray
    colours: np.ndarray
    model: Any


def structure_from_motion(photos: Photos, work: Path, *, lens: str = "radial") -> Mapped:
    """Cameras of pictures.

    Pictures of one size and focal length have one lens. Its middle is that of the picture, unless
    ENOUGH of them say where it is.

    Args:
      work: an empty folder for files in between, which hold the pictures as long as they are used.
      lens: a key of LENSES, of all.

    Raises:
      InputError: too few pictures have a place, with the reason; pycolmap is not installed.
    """
    try:
        import pycolmap
    except ImportError as error:
        raise InputError(
            "structure from motion needs pycolmap: pip install 'efficient-lvsm-jax[colmap]'"
        ) from error
    pycolmap.logging.minloglevel = 3  # what matters is said here
    folder, database = work / "images", work / "features.db"
    groups = _written(photos, folder)
    names = [name for group in groups.values() for name in group]
    _find_features(pycolmap, database, folder, groups, lens)
    neighbours_alone = photos.film and len(names) > PAIRS_OF_ALL
    print(
        f"matching: {len(names)} pictures, each with "
        + ("those before and after it" if neighbours_alone else "every other"),
        file=sys.stderr,
        flush=True,
    )
    _match(pycolmap, database, neighbours_alone)
    model = _placed(pycolmap, database, folder, len(names))
    placed = {image.name: image.camera_id for image in model.images.values() if image.has_pose}
    lost = [name for name in names if name not in placed]
    if len(placed) < max(LEAST, SHARE * len(names)):
        features = _features(pycolmap, database)
        raise InputError(
            f"{photos.name}: {len(placed)} of {len(names)} pictures found a place, expected "
            f"{SHARE:.0%} and at least {LEAST}; without one: "
            + _shown([f"{name} ({features.get(name, 0)} features)" for name in lost])
            + "; take pictures that overlap, of things with texture, from places apart"
        )
    if lost:
        log.warning(
            "%s: %d of %d pictures found no place: %s",
            photos.name,
            len(lost),
            len(names),
            _shown(lost),
        )
    if min(Counter(placed.values()).values()) >= ENOUGH:
        model = _with_middles(pycolmap, model)
    return _mapped(model, folder, work / "model")


def _written(photos: Photos, folder: Path) -> dict[tuple, list[str]]:
    """Writes the pictures; their names by (width, height, focal length or None)."""
    folder.mkdir()
    groups: dict[tuple, list[str]] = {}
    for photo in photos:
        if photo.stored is None:
            Image.fromarray(photo.image).save(folder / photo.name, "PNG")
        else:
            (folder / photo.name).write_bytes(photo.stored)
        lens = (*photo.image.shape[1::-1], photo.focal)
        groups.setdefault(lens, []).append(photo.name)
    return groups


def _placed(pycolmap, database: Path, folder: Path, count: int) -> Any:
    """The largest model of incremental mapping, which may be empty."""
    options = pycolmap.IncrementalPipelineOptions()
    options.random_seed = options.mapper.random_seed = options.triangulation.random_seed = SEED
    options.min_model_size = LEAST
    options.num_threads = _threads()
    models = database.parent / "models"
    models.mkdir()
    with Progress("placing", count, "pictures") as progress:
        found = pycolmap.incremental_mapping(
            database,
            folder,
            models,
            options,
            initial_image_pair_callback=lambda: progress.advance(2),
            next_image_callback=progress.advance,
        )
    empty = pycolmap.Reconstruction()
    return max(found.values(), key=lambda model: model.num_reg_images(), default=empty)


def _with_middles(pycolmap, model: Any) -> Any:
    """With principal points, unless they run away, as they do where little tells them."""
    refined = pycolmap.Reconstruction(model)
    options = pycolmap.BundleAdjustmentOptions()
    options.refine_principal_point = True
    options.print_summary = False
    options.ceres.solver_options.num_threads = _threads()
    options.ceres.solver_options.function_tolerance = 1e-6
    config = pycolmap.BundleAdjustmentConfig()
    for image in refined.images.values():
        if image.has_pose:
            config.add_image(image.image_id)
    config.fix_gauge(pycolmap.BundleAdjustmentGauge.TWO_CAMS_FROM_WORLD)
    pycolmap.create_default_bundle_adjuster(options, config, refined).solve()
    for camera in refined.cameras.values():
        middle = camera.principal_point_x / camera.width, camera.principal_point_y / camera.height
        if np.abs(np.array(middle) - 0.5).max() > OFF_CENTRE:
            return model
    return refined


def _find_features(
    pycolmap, database: Path, folder: Path, groups: Mapping[tuple, Sequence[str]], lens: str
):
    model, focals, rest = LENSES[lens]
    extraction = pycolmap.FeatureExtractionOptions()
    extraction.num_threads = _threads()
    with Progress("features", sum(map(len, groups.values())), "pictures") as progress:
        for number, ((width, height, focal), names) in enumerate(groups.items(), 1):
            reader = pycolmap.ImageReaderOptions()
            reader.camera_model = model
            if focal is not None:
                values = [*[focal] * focals, width / 2, height / 2, *[0.0] * rest]
                reader.camera_params = ",".join(map(str, values))
            for first in range(0, len(names), AT_ONCE):
                some = names[first : first + AT_ONCE]
                if first:
                    reader.existing_camera_id = number
                pycolmap.extract_features(
                    database, folder, some, pycolmap.CameraMode.SINGLE, reader, extraction
                )
                progress.advance(len(some))


def _match(pycolmap, database: Path, neighbours_alone: bool) -> None:
    matching = pycolmap.FeatureMatchingOptions()
    matching.num_threads = _threads()
    verification = pycolmap.TwoViewGeometryOptions()
    verification.ransac.random_seed = SEED
    match = pycolmap.match_sequential if neighbours_alone else pycolmap.match_exhaustive
    match(database, matching, verification_options=verification)


def _features(pycolmap, database: Path) -> dict[str, int]:
    """How many were found, by picture."""
    with pycolmap.Database.open(database) as opened:
        return {
            image.name: opened.num_keypoints_for_image(image.image_id)
            for image in opened.read_all_images()
        }


def _mapped(model: Any, pictures: Path, folder: Path) -> Mapped:
    """Through the files, which our reader of COLMAP's models knows."""
    folder.mkdir()
    model.write_text(folder)
    cameras = read_cameras(folder)
    images = sorted(read_images(folder), key=lambda image: image.name)
    files = [pictures / image.name for image in images]
    lenses = [cameras[image.camera].pinhole(image.name) for image in images]
    frames = [
        picture_frame(file, image.name, image.c2w, fxfycxcy, where=image.name, distortion=bent)
        for image, file, (fxfycxcy, bent) in zip(images, files, lenses, strict=True)
    ]
    points = list(model.points3D.values())
    return Mapped(
        frames,
        files,
        lenses,
        np.array([point.xyz for point in points], np.float64).reshape(-1, 3),
        np.array([point.color for point in points], np.uint8).reshape(-1, 3),
        model,
    )


def _threads() -> int:
    """As many as this process may use; pycolmap counts those of the machine."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else -1


def _shown(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
