"""A film of a capture: which pictures go in, where the camera flies, what it sees."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import logging
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from data_pipeline.captures.camera_path_files import (
    capture_from_viewer,
    read_camera_path,
    write_camera_path,
)
from data_pipeline.captures.export import CaptureWriter
from data_pipeline.captures.inputs import choose_inputs, open_scene
from data_pipeline.inspect.findings import inspect_scene
from data_pipeline.inspect.text import check_line
from data_pipeline.pictures.transforms import fit, fit_intrinsics, fitting_size
from data_pipeline.read_options import read_options
from data_pipeline.scenes import Frame, Scene
from data_pipeline.unposed.kept import kept_photos
from data_pipeline.unposed.mapping import structure_from_motion
from data_pipeline.unposed.sources import open_photos
from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.geometry.cameras import SceneFrame
from efficient_lvsm_jax.geometry.paths import camera_path, orbit, spiral
from efficient_lvsm_jax.media.levels import to_bytes
from efficient_lvsm_jax.media.progress import counted
from efficient_lvsm_jax.media.sheet import beside
from efficient_lvsm_jax.media.video import write_film
from efficient_lvsm_jax.models.model import Model
from efficient_lvsm_jax.render import FRAMES
from efficient_lvsm_jax.sessions.choice import check_paged, nearest_of
from efficient_lvsm_jax.sessions.session import Session
from efficient_lvsm_jax.sessions.unposed import Keyframes, see
from efficient_lvsm_jax.weights.load import load_geometry, load_renderer

WIDEST = 4  # a film of a camera path file is at most so many times as wide as high
# A flight is plausible that comes nearer to an input than so many times their extent, and is not
# so many times smaller.
FAR, TINY = 2, 20

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Flight:
    """The cameras of a film.

    c2w: [F, 4, 4], in the world of the capture. fxfycxcy: [F, 4], pixels. size: (height, width).
    """

    c2w: np.ndarray
    fxfycxcy: np.ndarray
    size: tuple[int, int]


def make_film(arguments: argparse.Namespace) -> None:
    """Writes what the command line asks for and prints what became of it.

    Raises:
      InputError: no such capture, scene, frame or weights, or a file that cannot be written.
    """
    nearest_of(arguments.views, "--views")
    _check_files(arguments)
    if arguments.geometry is None:
        options, format = read_options(arguments)
        posed = open_scene(arguments.capture, arguments.scene, options=options, format=format)
        opened = contextlib.nullcontext(posed)
    else:
        opened = _posed_scene(arguments)
    # Before cameras are looked for, which may take long.
    model = load_renderer(arguments.weights, products=arguments.products)
    check_paged(model, arguments.views, "--views")
    exported = CaptureWriter(arguments.export) if arguments.export else contextlib.nullcontext()
    with exported as capture, opened as scene:
        _make_film(arguments, scene, model, capture)


def _check_files(arguments: argparse.Namespace) -> None:
    """Raises an InputError for files that cannot be written or read, before anything is done."""
    for path in (arguments.out, arguments.save_path):
        if path is not None and (path.is_dir() or not os.access(path.parent, os.W_OK)):
            why = "is a folder" if path.is_dir() else f"no folder {path.parent} to write to"
            raise InputError(f"{path}: cannot be written ({why}); name another file")
    if arguments.path.endswith(".json"):
        read_camera_path(arguments.path)


@contextlib.contextmanager
def _posed_scene(arguments: argparse.Namespace) -> Iterator[Scene]:
    """Pictures with the cameras that --geometry finds, to be read until the block ends."""
    colmap = arguments.geometry == "colmap"
    network = None if colmap else load_geometry(arguments.geometry)  # a video takes a while
    photos = open_photos(arguments.capture, every=arguments.every, scene=arguments.scene)
    with tempfile.TemporaryDirectory() as work:
        if colmap:
            kept = kept_photos(lambda: photos, Path(work, "photos"))
            frames = structure_from_motion(kept, Path(work)).frames
        else:
            keyframes = Keyframes()
            found = see(network, photos)
            frames = [seen.posed for seen in found if keyframes.take(seen)]
        if len(frames) < 2:
            raise InputError(
                f"{arguments.capture}: {arguments.geometry} sees all {photos.count} pictures from "
                "one place; expected a camera that walks"
            )
        yield Scene(Path(arguments.capture).stem, tuple(frames))


def _make_film(
    arguments: argparse.Namespace, scene: Scene, model: Model, capture: CaptureWriter | None
) -> None:
    """Of a scene, which `_posed_scene` may have found; its pictures go to a capture as well."""
    chosen = choose_inputs(scene, arguments.inputs or arguments.count)
    _inspect(scene)

    frames = [scene.frames[index] for index in chosen]
    poses = np.stack([frame.c2w for frame in frames])
    size = _size_of_inputs(arguments, frames, model)
    session = Session(
        model,
        frame=SceneFrame.from_cameras(poses),
        size=size,
        capacity=len(chosen),
        precision=arguments.cache,
        check_poses=False,  # done
    )
    patch = model.config.patch
    flown = _frames_flown(scene, arguments.frames) if arguments.path == "frames" else []
    if flown:
        flight = Flight(np.stack([f.c2w for f in flown]), _intrinsics(flown, size, patch), size)
    else:
        flight = _flight(arguments, poses, _intrinsics(frames, size, patch), size, patch)
    _check_extent(arguments, flight.c2w, poses)
    if arguments.save_path is not None:
        flight = _as_file(flight)
        write_camera_path(
            arguments.save_path, flight.c2w, flight.fxfycxcy, flight.size, fps=arguments.fps
        )
    for frame in frames:
        session.add(frame)

    seconds: list[float] = []
    pictures = _pictures(session, flight, arguments.views, seconds, capture)
    if arguments.beside:
        pictures = _beside(pictures, flown, frames, size, patch)
    write_film(arguments.out, pictures, fps=arguments.fps)
    height, width = flight.size
    print(
        f"scene={scene.name} inputs={','.join(map(str, chosen))} frames={len(seconds)} "
        f"size={width}x{height} seconds_per_frame={np.median(seconds):.3g} film={arguments.out}"
        + (f" capture={arguments.export}" if arguments.export else "")
    )


def _pictures(
    session: Session,
    flight: Flight,
    views: str,
    seconds: list[float],
    capture: CaptureWriter | None,
) -> Iterator[np.ndarray]:
    """The pictures of the film one by one, uint8 [Y, X, 3]; appends what each took to `seconds`."""
    cameras = zip(flight.c2w, flight.fxfycxcy, strict=True)
    for c2w, fxfycxcy in counted(cameras, "rendering", len(flight.c2w), "frames"):
        start = time.perf_counter()
        picture = session.render(c2w, fxfycxcy, flight.size, views)
        picture = to_bytes(picture)
        seconds.append(time.perf_counter() - start)
        if capture is not None:
            capture.add(picture, c2w, fxfycxcy)
        yield picture


def _beside(
    pictures: Iterator[np.ndarray],
    flown: Sequence[Frame],
    inputs: Sequence[Frame],
    size: tuple[int, int],
    patch: int,
) -> Iterator[np.ndarray]:
    """Each picture with the true one of its frame beside it and the inputs below."""

    def fitted(frame: Frame) -> np.ndarray:
        return fit(frame.image(), frame.fxfycxcy, size, patch=patch)[0]

    below, given = np.stack([fitted(frame) for frame in inputs]), {frame.name for frame in inputs}
    for picture, frame in zip(pictures, flown, strict=True):
        words = f"true, {frame.name}" + (", an input" if frame.name in given else "")
        yield beside(picture, fitted(frame), words, below)


def _frames_flown(scene: Scene, count: int | None) -> list[Frame]:
    """The frames of a scene that have a picture, in the order of their film; `count` evenly."""
    order = scene.film or range(len(scene.frames))
    order = [index for index in order if index not in scene.holes]
    count = len(order) if count is None else min(count, len(order))
    chosen = np.linspace(0, len(order) - 1, count).round().astype(int)
    return [scene.frames[order[place]] for place in chosen]


def _intrinsics(frames: Sequence[Frame], size: tuple[int, int], patch: int) -> np.ndarray:
    """fxfycxcy [V, 4] of frames fitted to `size`."""
    return np.stack(
        [fit_intrinsics(f.fxfycxcy, (f.height, f.width), size, patch=patch) for f in frames]
    )


def _size_of_inputs(
    arguments: argparse.Namespace, frames: Sequence[Frame], model: Model
) -> tuple[int, int]:
    """(height, width) of the inputs, and of a film whose path does not say its shape.

    What --size says, or the shape of most of the frames. With a path that says its shape, a height
    says how many tokens the inputs have.
    """
    if arguments.size is not None and not arguments.path.endswith(".json"):
        return arguments.size
    patch, tokens = model.config.patch, model.trained_tokens
    if arguments.size is not None:
        tokens = max(1, arguments.size[0] // patch) ** 2
    shapes = Counter((frame.width, frame.height) for frame in frames)
    return fitting_size(*shapes.most_common(1)[0][0], tokens, patch=patch)


def _inspect(scene: Scene) -> None:
    """Says whether the cameras fit the pictures and the capture is usable, as `inspect` does."""
    found = inspect_scene(scene)
    line = f"{scene.name}: {check_line(found.poses)}; {found.verdict}"
    if found.is_usable:
        print(line, file=sys.stderr)
    else:
        log.warning("%s", line)


def _check_extent(arguments: argparse.Namespace, c2w: np.ndarray, inputs: np.ndarray) -> None:
    """Warns of a flight c2w [F, 4, 4] that hardly moves, is far away or looks elsewhere."""
    centres, flown = inputs[:, :3, 3], c2w[:, :3, 3]
    spread = np.linalg.norm(np.ptp(centres, axis=0))
    extent = np.linalg.norm(np.ptp(flown, axis=0))
    nearest = np.linalg.norm(flown[:, None] - centres, axis=-1).min()
    if nearest > FAR * spread or (len(flown) > 1 and extent < spread / TINY):
        log.warning(
            "%s: the flight's cameras extend over %.3g, those of the inputs over %.3g, and come "
            "no nearer to them than %.3g: the flight is likely in another world than the capture; "
            "nerfstudio's viewer writes paths in a world of its own, which --dataparser-transforms "
            "undoes",
            arguments.path,
            extent,
            spread,
            nearest,
        )
    facing = (c2w[:, None, :3, 2] * inputs[:, :3, 2]).sum(-1).max()
    if facing < 0:
        log.warning(
            "%s: all of the flight's cameras look away from where any input looks (by %.0f degrees "
            "at least), at what no input shows: are its axes OpenCV's? A camera path has OpenGL's",
            arguments.path,
            np.rad2deg(np.arccos(max(facing, -1))),
        )


def _flight(
    arguments: argparse.Namespace,
    c2w: np.ndarray,
    fxfycxcy: np.ndarray,
    size: tuple[int, int],
    patch: int,
) -> Flight:
    """The cameras of --path among inputs c2w [V, 4, 4], fxfycxcy [V, 4], pictures of `size`."""
    frames = FRAMES if arguments.frames is None else arguments.frames
    if arguments.path == "inputs":
        steps = -(-frames // (len(c2w) - 1))
        return Flight(*camera_path(c2w, fxfycxcy, steps, nearest_first=True), size)
    if arguments.path == "orbit":
        path = orbit(c2w, frames, full_circle=arguments.full_circle)
    elif arguments.path == "spiral":
        path = spiral(c2w, frames)
    else:
        height = None if arguments.size is None else arguments.size[0]
        flight = _file_flight(arguments.path, height, size, patch)
        if arguments.dataparser_transforms is None:
            return flight
        c2w = capture_from_viewer(arguments.dataparser_transforms, flight.c2w)
        return dataclasses.replace(flight, c2w=c2w)
    return Flight(path, np.tile(np.median(fxfycxcy, axis=0), (frames, 1)), size)


def _file_flight(path: str, height: int | None, size: tuple[int, int], patch: int) -> Flight:
    """A camera path file at another height: same field of view upwards, width as near as can be.

    Where none is told it is that of about as many pixels as `size` has.
    """
    c2w, fxfycxcy, (stored_height, stored_width) = read_camera_path(path)
    if height is None:
        tokens = size[0] * size[1] // patch**2
        height, _ = fitting_size(stored_width, stored_height, tokens, patch=patch)
    width = max(round(stored_width / stored_height * height / patch), 1) * patch
    if width > WIDEST * height:
        raise InputError(
            f"{path}: {stored_width}x{stored_height} (width x height): wider than {WIDEST} times "
            "its height; change render_width"
        )
    fxfycxcy = fxfycxcy * height / stored_height
    fxfycxcy[:, 2:] = width / 2, height / 2
    return Flight(c2w, fxfycxcy, (height, width))


def _as_file(flight: Flight) -> Flight:
    """With lenses that a camera path file holds: fx as fy, principal point in the middle."""
    height, width = flight.size
    fxfycxcy = np.asarray(flight.fxfycxcy, np.float64)[:, [1, 1, 2, 3]]
    fxfycxcy[:, 2:] = width / 2, height / 2
    return dataclasses.replace(flight, fxfycxcy=fxfycxcy)
