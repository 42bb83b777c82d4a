"""A film of a capture: which pictures go in, where the camera flies, what it sees."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import time
from collections.abc import Iterator

import numpy as np

from data_pipeline.captures.camera_path_files import read_camera_path, write_camera_path
from data_pipeline.captures.export import CaptureWriter
from data_pipeline.formats import open_scenes
from data_pipeline.pictures.transforms import portrait_to_square, preprocess_frame
from data_pipeline.read_options import read_options
from data_pipeline.scenes import Frame, Scene
from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.geometry.cameras import SceneFrame, spread
from efficient_lvsm_jax.geometry.paths import camera_path, orbit, spiral
from efficient_lvsm_jax.media.progress import counted
from efficient_lvsm_jax.media.video import write_film
from efficient_lvsm_jax.render import FRAMES, INPUTS
from efficient_lvsm_jax.sessions.session import Session
from efficient_lvsm_jax.weights.load import load

WIDEST = 4  # a film of a camera path file is at most so many times as wide as high


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
    scene = _scene(arguments)
    chosen = _chosen(arguments, scene)
    model = load(arguments.weights)

    prepared = [_prepare(scene.frames[i], arguments.size[0], model.config.patch) for i in chosen]
    images, poses, intrinsics = (list(values) for values in zip(*prepared, strict=True))
    flight = _flight(arguments, np.stack(poses), np.stack(intrinsics), model.config.patch)
    if arguments.save_path is not None:
        flight = _as_file(flight)
        write_camera_path(
            arguments.save_path, flight.c2w, flight.fxfycxcy, flight.size, fps=arguments.fps
        )
    frame = SceneFrame.from_cameras(poses)
    session = Session(model, frame=frame, capacity=len(chosen), precision=arguments.cache)
    for view in zip(images, poses, intrinsics, strict=True):
        session.add(*view)

    seconds: list[float] = []
    with contextlib.ExitStack() as stack:
        capture = stack.enter_context(CaptureWriter(arguments.export)) if arguments.export else None
        write_film(arguments.out, _pictures(session, flight, seconds, capture), fps=arguments.fps)
    height, width = flight.size
    print(
        f"scene={scene.name} inputs={','.join(map(str, chosen))} frames={len(seconds)} "
        f"size={width}x{height} seconds_per_frame={np.median(seconds):.3g} film={arguments.out}"
        + (f" capture={arguments.export}" if arguments.export else "")
    )


def _pictures(
    session: Session, flight: Flight, seconds: list[float], capture: CaptureWriter | None
) -> Iterator[np.ndarray]:
    """The pictures of the film one by one, uint8 [Y, X, 3]; appends what each took to `seconds`."""
    cameras = zip(flight.c2w, flight.fxfycxcy, strict=True)
    for c2w, fxfycxcy in counted(cameras, "rendering", len(flight.c2w), "frames"):
        start = time.perf_counter()
        picture = session.render(c2w, fxfycxcy, flight.size)
        picture = np.round(255 * picture).astype(np.uint8)  # the model's range is [0, 1]
        seconds.append(time.perf_counter() - start)
        if capture is not None:
            capture.add(picture, c2w, fxfycxcy)
        yield picture


def _flight(
    arguments: argparse.Namespace, c2w: np.ndarray, fxfycxcy: np.ndarray, patch: int
) -> Flight:
    """The cameras of --path among inputs c2w [V, 4, 4], fxfycxcy [V, 4]."""
    height, width = size = arguments.size
    fxfycxcy = fxfycxcy + np.array([0, 0, (width - height) / 2, 0])  # inputs are squares
    frames = FRAMES if arguments.frames is None else arguments.frames
    if arguments.path == "inputs":
        steps = -(-frames // (len(c2w) - 1))
        return Flight(*camera_path(c2w, fxfycxcy, steps, nearest_first=True), size)
    if arguments.path == "orbit":
        path = orbit(c2w, frames, full_circle=arguments.full_circle)
    elif arguments.path == "spiral":
        path = spiral(c2w, frames)
    else:
        return _file_flight(arguments.path, height, patch)
    return Flight(path, np.tile(np.median(fxfycxcy, axis=0), (frames, 1)), size)


def _file_flight(path: str, height: int, patch: int) -> Flight:
    """A camera path file at another height: same field of view upwards, width as near as can be."""
    c2w, fxfycxcy, (stored_height, stored_width) = read_camera_path(path)
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


def _prepare(frame: Frame, size: int, patch: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Image float32 [size, size, 3], c2w and fxfycxcy of a frame as the model takes it."""
    try:
        square = portrait_to_square(frame.image(), frame.fxfycxcy)
        image, fxfycxcy = preprocess_frame(*square, size, patch=patch)
    except InputError as error:
        raise InputError(f"{frame.name}: {error}") from None
    return image, frame.c2w, fxfycxcy


def _scene(arguments: argparse.Namespace) -> Scene:
    options, format = read_options(arguments)
    scenes = open_scenes(arguments.capture, options, format=format)
    if arguments.scene is not None:
        return scenes[scenes.find(arguments.scene)]
    if len(scenes) > 1:
        shown = ", ".join(scenes.names[:5]) + (", …" if len(scenes) > 5 else "")
        raise InputError(
            f"{arguments.capture}: {len(scenes)} scenes; name one with --scene: {shown}"
        )
    return scenes[0]


def _chosen(arguments: argparse.Namespace, scene: Scene) -> list[int]:
    """Indices of the scene's frames that are inputs."""
    usable = scene.usable
    if arguments.inputs is not None:
        for index in arguments.inputs:
            if index not in usable:
                raise InputError(
                    f"--inputs {index}: scene {scene.name} has frames 0 to {len(scene.frames) - 1}"
                    + (", this one without picture" if 0 <= index < len(scene.frames) else "")
                )
        return arguments.inputs
    count = min(INPUTS, len(usable)) if arguments.count is None else arguments.count
    if not 2 <= count <= len(usable):
        raise InputError(
            f"{count} inputs of scene {scene.name}, which has {len(usable)} pictures: a film needs "
            "at least 2 inputs, which say how large the scene is, and at most all pictures"
        )
    return [usable[i] for i in spread(np.stack([scene.frames[i].c2w for i in usable]), count)]
