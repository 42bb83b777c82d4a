"""Sequences longer than memory: seen chunk by chunk, each moved into the world of the first.

    for geometry in observe_long(model, photos, length=60, overlap=10):
        geometry.cameras.c2w, geometry.depth

Neighbouring chunks share frames, and what moves the cameras of these in the one onto those in the
other (a Sim(3): turn, place and size) moves the whole chunk. Errors add up from chunk to chunk, and
a place that is come back to is not recognised: the loop stays open.

Axes: R frame of a chunk, Y X pixel.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Iterable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.geometry.alignment import Similarity, similarity_of_cameras
from efficient_lvsm_jax.geometry.pose_encoding import encode
from efficient_lvsm_jax.models.geometry_model import GeometryModel
from efficient_lvsm_jax.models.scene_geometry import Geometry
from efficient_lvsm_jax.sessions.streaming import Frame, pixels_of, without_axes

LEAST_OVERLAP = 2  # frames: from two places on the size of a world is known


def observe_long(
    model: GeometryModel, frames: Iterable[Frame], *, length: int, overlap: int
) -> Iterator[Geometry]:
    """What is known of every frame, in the world of the first chunk and in its unit.

    No more than `length` frames are held at a time, and one program is compiled if there are as
    many; the last chunk reaches further back for it.

    Args:
      model: of a family of geometry.
      frames: as `Stream.observe` takes them, of one size.
      length: frames of a chunk, which the model sees as a clip.
      overlap: frames that a chunk shares with the one before; what it said of them stays.

    Yields:
      Geometry of one frame after the other, as `Stream.observe` returns it.

    Raises:
      InputError: impossible numbers, what is no such frame, or the camera stands still while chunks
        overlap, so that the size of the next one is not known.
    """
    if not LEAST_OVERLAP <= overlap < length:
        raise InputError(
            f"length={length}, overlap={overlap}: expected an overlap from {LEAST_OVERLAP} to less "
            "than the length"
        )
    recent: deque[np.ndarray] = deque(maxlen=length)
    placed: deque[np.ndarray] = deque(maxlen=length)  # their cameras, where they are known
    fresh = 0  # frames that are not seen yet
    for frame in frames:
        pixels = pixels_of(frame)
        if recent and pixels.shape != recent[0].shape:
            raise InputError(
                f"frame of {pixels.shape[0]}x{pixels.shape[1]} in a sequence of "
                f"{recent[0].shape[0]}x{recent[0].shape[1]} (height x width): frames of a sequence "
                "have one size; resize it"
            )
        recent.append(pixels)
        fresh += 1
        if fresh == length - (overlap if placed else 0):
            yield from _chunk(model, recent, placed, fresh)
            fresh = 0
    if fresh:
        yield from _chunk(model, recent, placed, fresh)


def _chunk(model: GeometryModel, recent: deque, placed: deque, fresh: int) -> Iterator[Geometry]:
    """Geometry of the last frames, `fresh` of them, whose cameras `placed` gets."""
    _, geometry = model.observe(None, np.stack(recent)[None])
    known = len(recent) - fresh
    if known:
        c2w = np.asarray(geometry.cameras.c2w[0], np.float64)
        try:
            moves = similarity_of_cameras(c2w[:known], np.stack(placed)[-known:])
        except InputError as error:
            raise InputError(
                f"chunks that share {known} frames cannot be joined ({error}); choose a larger "
                "overlap, so that the camera moves in it, or a sequence without standstills"
            ) from error
        geometry = moved(geometry, moves)
    placed.extend(np.asarray(geometry.cameras.c2w[0, known:], np.float64))
    for index in range(known, len(recent)):
        one = jax.tree.map(
            lambda x, i=index: x[:, i : i + 1],
            dataclasses.replace(geometry, encodings=None, reference=None),
        )
        encodings = geometry.encodings[:, :, index : index + 1]
        yield without_axes(dataclasses.replace(one, encodings=encodings), single=True)


def moved(geometry: Geometry, moves: Similarity) -> Geometry:
    """Geometry in another world; of encodings the last alone is left."""
    cameras = dataclasses.replace(
        geometry.cameras, c2w=np.float32(moves.apply(np.asarray(geometry.cameras.c2w)))
    )
    points, rays = geometry.points, geometry.rays
    if points is not None:
        points = np.float32(moves.points(np.asarray(points)))
    if rays is not None:
        along, origins = np.split(np.asarray(rays), 2, axis=-1)
        rays = np.concatenate([along @ moves.rotation.T, moves.points(origins)], axis=-1)
        rays = jnp.float32(rays)
    return dataclasses.replace(
        geometry,
        cameras=cameras,
        encodings=encode(cameras)[None],
        depth=moves.scale * geometry.depth,
        points=points,
        rays=rays,
        reference=None,
    )
