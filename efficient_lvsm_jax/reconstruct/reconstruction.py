"""Cameras of pictures, and a capture of them that everything here reads.

out/transforms.json, images/         as nerfstudio has them, with points.ply
out/sparse/0/*.txt                   the same cameras and points as a COLMAP model
out/depth/, depth_confidence/        of networks: .npy [y, x], see docs/geometry.md

In the meantime out.partial/ has what an interrupted run has done, see docs/geometry.md as well.
"""

from __future__ import annotations

import argparse
import functools
import shutil
from pathlib import Path

import numpy as np

from data_pipeline.captures.export import CaptureWriter
from data_pipeline.captures.inputs import open_scene
from data_pipeline.formats import point_clouds
from data_pipeline.formats.depth_maps import nearest
from data_pipeline.pictures.images import load_image
from data_pipeline.scenes import Cloud
from data_pipeline.unposed.kept import kept_photos
from data_pipeline.unposed.mapping import structure_from_motion
from data_pipeline.unposed.photos import Photos
from data_pipeline.unposed.sources import open_photos, state_of
from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.files.writing import reporting_writes
from efficient_lvsm_jax.models.geometry_model import GeometryModel
from efficient_lvsm_jax.models.model import digest
from efficient_lvsm_jax.reconstruct import COLMAP, LENSES
from efficient_lvsm_jax.reconstruct.clouds import write_model
from efficient_lvsm_jax.reconstruct.comparison import compare_cameras
from efficient_lvsm_jax.reconstruct.unfinished import unfinished, unfinished_folder
from efficient_lvsm_jax.sessions.unposed import see
from efficient_lvsm_jax.version import __version__
from efficient_lvsm_jax.weights.load import load_geometry

POINTS = 200_000  # of a network's cloud, at most
MODEL, CLOUD = Path("sparse", "0"), "points.ply"
CONFIDENCE = "depth_confidence"
# What decides the result, by flag, and where the command line has it.
OPTIONS = {
    "--with": "method",
    "--every": "every",
    "--count": "count",
    "--scene": "scene",
    "--lens": "lens",
    "--size": "side",
    "--remember": "remember",
}


def reconstruct(arguments: argparse.Namespace) -> None:
    """Writes what the command line asks for, whole or not at all, and prints what became of it.

    Raises:
      InputError: pictures that give no cameras, no such weights, or a folder that is there or
        cannot be written.
    """
    true = open_scene(arguments.compare) if arguments.compare else None  # before hours of work
    if arguments.out.exists():
        raise InputError(f"{arguments.out} already exists; name a new folder or remove it first")
    model = None if arguments.method == COLMAP else _network(arguments)
    files = state_of(arguments.source, but=unfinished_folder(arguments.out))
    made_of = {
        "version": __version__,
        "source": str(Path(arguments.source).absolute()),
        "files (SHA-256 of names, sizes, times)": files,
        "weights (SHA-256)": None if model is None else digest(model.params),
        **{flag: getattr(arguments, name) for flag, name in OPTIONS.items()},
    }
    with reporting_writes(arguments.out), unfinished(arguments.out, made_of) as work:
        photos = kept_photos(functools.partial(_opened, arguments, work), work / "photos")
        whole = work / "capture"
        shutil.rmtree(whole, ignore_errors=True)
        with CaptureWriter(whole) as capture:
            if model is None:
                placed, points = _by_colmap(photos, work, capture, arguments.lens or LENSES[0])
            else:
                placed, points = _by_network(model, photos, work, capture, arguments)
        whole.rename(arguments.out)
    print(
        f"{arguments.out}: {placed} of {photos.count} pictures placed by {arguments.method}, "
        f"{points:,} points"
    )
    if true is not None:
        print(
            f"compared with {arguments.compare}: {compare_cameras(open_scene(arguments.out), true)}"
        )


def _network(arguments: argparse.Namespace) -> GeometryModel:
    model = load_geometry(arguments.weights)
    family = "stream_vggt" if model.family == "vggt" and model.config.causal else model.family
    if family != arguments.method:
        raise InputError(f"--with {arguments.method}: {arguments.weights} is of {family}")
    return model


def _opened(arguments: argparse.Namespace, work: Path) -> Photos:
    return open_photos(
        arguments.source,
        every=arguments.every,
        count=arguments.count,
        scene=arguments.scene,
        choice=work / "frames.json",
    )


def _by_colmap(photos: Photos, work: Path, capture: CaptureWriter, lens: str) -> tuple[int, int]:
    """How many pictures and points there are."""
    mapped = structure_from_motion(photos, work, lens=lens)
    for frame, file, (fxfycxcy, bent) in zip(
        mapped.frames, mapped.files, mapped.lenses, strict=True
    ):
        image, stored = load_image(file), file.read_bytes()
        capture.add(image, frame.c2w, fxfycxcy, name=frame.name, stored=stored, lens=bent)
    (capture.partial / MODEL).mkdir(parents=True)
    mapped.model.write_text(capture.partial / MODEL)
    _write_cloud(capture, Cloud(mapped.points, mapped.colours))
    return len(mapped.frames), len(mapped.points)


def _by_network(
    model: GeometryModel,
    photos: Photos,
    work: Path,
    capture: CaptureWriter,
    arguments: argparse.Namespace,
) -> tuple[int, int]:
    """As `_by_colmap`, with depth."""
    (capture.partial / CONFIDENCE).mkdir()
    names, c2w, fxfycxcy, sizes, clouds = [], [], [], [], []
    keep = work / "seen"
    for seen in see(model, photos, side=arguments.side, remember=arguments.remember, keep=keep):
        photo, confidence = seen.photo, f"{CONFIDENCE}/{seen.photo.name}.npy"
        # Of a photo that the network saw enlarged, no more numbers than it has pixels.
        size = np.minimum(seen.depth.shape, photo.image.shape[:2])
        np.save(capture.partial / confidence, nearest(seen.confidence, size))
        capture.add(
            photo.image,
            seen.c2w,
            seen.fxfycxcy,
            nearest(seen.depth, size),
            name=photo.name,
            stored=photo.stored,
            fields={f"{CONFIDENCE}_file_path": confidence},
        )
        names.append(photo.name)
        c2w.append(seen.c2w)
        fxfycxcy.append(seen.fxfycxcy)
        sizes.append(photo.image.shape[1::-1])
        clouds.append(seen.surest(POINTS // photos.count))
    cloud = Cloud(
        np.concatenate([each.points for each in clouds]),
        np.concatenate([each.colours for each in clouds]),
    )
    write_model(capture.partial / MODEL, names, np.stack(c2w), fxfycxcy, sizes, cloud)
    _write_cloud(capture, cloud)
    return len(names), len(cloud.points)


def _write_cloud(capture: CaptureWriter, cloud: Cloud) -> None:
    point_clouds.write_ply(capture.partial / CLOUD, cloud)
    capture.fields[point_clouds.FIELD] = CLOUD
