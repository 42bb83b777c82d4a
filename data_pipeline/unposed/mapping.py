"""Structure from motion: pictures that overlap to their cameras and points, by pycolmap.

Incremental mapping alone: the global one gives wrong cameras without a word where focal lengths are
not known. The same pictures give the same cameras, bit for bit: all that is drawn at random has a
seed, pictures are listed in their order before several threads find features and matches, and one
thread alone does the mapping, since several begin it with whichever pair they find first.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.formats.colmap_model import read_cameras, read_images
from data_pipeline.pictures.distortion import Distortion
from data_pipeline.pictures.frames import picture_frame
from data_pipeline.scenes import Frame
from data_pipeline.unposed.photos import Photos
from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.files.writing import written_whole
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
AT_ONCE, PAIRS_AT_ONCE = 4, 100  # pictures, and pairs, between two words about how far it is


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
      photos: of `kept_photos`, as it reads files.
      work: a folder for files in between. Features and matches are found once: with those that an
        interrupted call left there, of the same pictures and lens, it goes on.
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
    database, groups, files = work / "features.db", {}, {}
    for photo in photos:
        lens_of = (*photo.image.shape[1::-1], photo.focal)
        groups.setdefault(lens_of, []).append(photo.file.name)
        files[photo.name] = photo.file
    folder = photo.file.parent
    if not database.exists():
        with written_whole(database) as partial:
            _list(pycolmap, partial, folder, groups, lens)
    _find_features(pycolmap, database, folder)
    _match(pycolmap, database, work / "pairs.txt", photos.film and len(files) > PAIRS_OF_ALL)
    model = _placed(pycolmap, database, folder, work / "models", len(files))
    names = {file.name: name for name, file in files.items()}
    for image in model.images.values():
        image.name = names[image.name]
    placed = {image.name: image.camera_id for image in model.images.values() if image.has_pose}
    lost = [name for name in files if name not in placed]
    if len(placed) < max(LEAST, SHARE * len(files)):
        features = {names[file]: count for file, count in _features(pycolmap, database).items()}
        raise InputError(
            f"{photos.name}: {len(placed)} of {len(files)} pictures found a place, expected "
            f"{SHARE:.0%} and at least {LEAST}; without one: "
            + _shown([f"{name} ({features.get(name, 0)} features)" for name in lost])
            + "; take pictures that overlap, of things with texture, from places apart"
        )
    if lost:
        log.warning(
            "%s: %d of %d pictures found no place: %s",
            photos.name,
            len(lost),
            len(files),
            _shown(lost),
        )
    if min(Counter(placed.values()).values()) >= ENOUGH:
        model = _with_middles(pycolmap, model)
    return _mapped(model, files, _empty(work / "model"))


def _placed(pycolmap, database: Path, folder: Path, models: Path, count: int) -> Any:
    """The largest model of incremental mapping, which may be empty."""
    options = pycolmap.IncrementalPipelineOptions()
    options.random_seed = options.mapper.random_seed = options.triangulation.random_seed = SEED
    options.min_model_size = LEAST
    options.num_threads = 1
    with Progress("placing", count, "pictures") as progress:
        found = pycolmap.incremental_mapping(
            database,
            folder,
            _empty(models),
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
    options.ceres.solver_options.num_threads = 1
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


def _list(
    pycolmap, database: Path, folder: Path, groups: Mapping[tuple, Sequence[str]], lens: str
) -> None:
    """A new database of pictures and lenses, by (width, height, focal length or None)."""
    pycolmap.Database.open(database).close()
    model, focals, rest = LENSES[lens]
    for (width, height, focal), names in groups.items():
        reader = pycolmap.ImageReaderOptions()
        reader.camera_model = model
        if focal is not None:
            values = [*[focal] * focals, width / 2, height / 2, *[0.0] * rest]
            reader.camera_params = ",".join(map(str, values))
        pycolmap.import_images(database, folder, pycolmap.CameraMode.SINGLE, names, reader)


def _find_features(pycolmap, database: Path, folder: Path) -> None:
    extraction = pycolmap.FeatureExtractionOptions()
    extraction.num_threads = _threads()
    found = _features(pycolmap, database)
    left = [name for name, count in found.items() if not count]
    with Progress("features", len(found), "pictures", done=len(found) - len(left)) as progress:
        for first in range(0, len(left), AT_ONCE):
            some = left[first : first + AT_ONCE]
            pycolmap.extract_features(database, folder, some, extraction_options=extraction)
            progress.advance(len(some))


def _match(pycolmap, database: Path, listed: Path, neighbours_alone: bool) -> None:
    """Compares each picture with every other, or with those before and after it."""
    matching = pycolmap.FeatureMatchingOptions()
    matching.num_threads = _threads()
    verification = pycolmap.TwoViewGeometryOptions()
    verification.ransac.random_seed = SEED
    of_pairs = pycolmap.ImportedPairingOptions()
    of_pairs.match_list_path = str(listed)
    with pycolmap.Database.open(database) as opened:
        if neighbours_alone:
            options = pycolmap.SequentialPairingOptions()
            pairs = pycolmap.SequentialPairGenerator(options, opened).all_pairs()
        else:
            options = pycolmap.ExhaustivePairingOptions()
            pairs = pycolmap.ExhaustivePairGenerator(options, opened).all_pairs()
        left = [pair for pair in pairs if not opened.exists_two_view_geometry(*pair)]
        names = {image.image_id: image.name for image in opened.read_all_images()}
    with Progress("matching", len(pairs), "pairs", done=len(pairs) - len(left)) as progress:
        for first in range(0, len(left), PAIRS_AT_ONCE):
            some = left[first : first + PAIRS_AT_ONCE]
            listed.write_text("".join(f"{names[one]} {names[other]}\n" for one, other in some))
            pycolmap.match_image_pairs(database, matching, of_pairs, verification)
            progress.advance(len(some))


def _features(pycolmap, database: Path) -> dict[str, int]:
    """How many were found, by picture."""
    with pycolmap.Database.open(database) as opened:
        return {
            image.name: opened.num_keypoints_for_image(image.image_id)
            for image in opened.read_all_images()
        }


def _mapped(model: Any, pictures: Mapping[str, Path], folder: Path) -> Mapped:
    """Through files in `folder`, which our reader of COLMAP's models knows."""
    model.write_text(folder)
    cameras = read_cameras(folder)
    images = sorted(read_images(folder), key=lambda image: image.name)
    files = [pictures[image.name] for image in images]
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


def _empty(folder: Path) -> Path:
    """The folder, without what an interrupted call left."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder


def _threads() -> int:
    """As many as this process may use; pycolmap counts those of the machine."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else -1


def _shown(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
