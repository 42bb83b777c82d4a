"""A stream of frames without cameras, and what a model of geometry says of each as it comes.

    stream = elvsm.Stream(model, capacity=200)
    for photo in photos:
        geometry = stream.observe(photo)

Axes: R frame, Y X pixel.
"""

from __future__ import annotations

import copy
import dataclasses
import os
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.models.geometry_model import GeometryModel
from efficient_lvsm_jax.models.scene_geometry import Geometry, SceneMemory

FULL = ("refuse", "window")

Frame = np.ndarray | Image.Image | str | os.PathLike


class Stream:
    """Frames seen one after the other, each with all before it.

    Everything is told in one frame of the world, that of the first camera; see
    `models.scene_geometry`. Frames of a stream have one size, and compile one program.
    """

    def __init__(
        self,
        model: GeometryModel,
        *,
        capacity: int,
        when_full: str = "refuse",
        camera_cache: str | None = None,
    ):
        """Starts an empty stream.

        Args:
          model: of a family of geometry, causal.
          capacity: frames that there is room for; memory for all of them is taken at the first.
          when_full: what `observe` does when there is no room for a frame: "refuse" it, or, as a
            "window", forget the oldest but the first, whose camera is the world; so that a stream
            of any length takes the same memory and time for every frame.
          camera_cache: what the camera head sees of frames before, as the model's setting of this
            name says; None is as the model has it.

        Raises:
          InputError: a model that renders views, or that sees clips as a whole, or no such
            capacity, when_full or camera_cache.
        """
        if not isinstance(model, GeometryModel):
            raise InputError(
                f"{model!r} sees no geometry, which a Stream is for; see elvsm.Session"
            )
        if not model.config.causal:
            raise InputError(
                f"model.causal=False: {model.family} sees its frames as a whole; give them all to "
                "model.observe(None, images), or set model.causal=True for StreamVGGT's weights"
            )
        if capacity < 1:
            raise InputError(f"capacity {capacity}: expected room for at least 1 frame")
        if when_full not in FULL:
            raise InputError(f"when_full={when_full!r}: expected one of {', '.join(FULL)}")
        if camera_cache is not None:
            config = dataclasses.replace(model.config, camera_cache=camera_cache)
            model = dataclasses.replace(model, config=config)
        self._model, self._capacity, self._when_full = model, capacity, when_full
        self.reset()

    def __len__(self) -> int:
        """How many frames were seen."""
        return self._seen

    def __repr__(self) -> str:
        size = "" if self.size is None else f" of {self.size[0]}x{self.size[1]}"
        return (
            f"Stream({len(self)} frames{size} seen, {len(self._kept)} of {self._capacity} "
            f"remembered; {self._model.family})"
        )

    @property
    def size(self) -> tuple[int, int] | None:
        """(height, width) of all frames; None before the first."""
        return self._size

    @property
    def memory(self) -> SceneMemory | None:
        """What is remembered; None before the first frame. The next `observe` takes it away."""
        return self._memory

    def reset(self) -> None:
        """Forgets all frames; the next one is the first of another world."""
        self._memory: SceneMemory | None = None
        self._size: tuple[int, int] | None = None
        self._seen = 0
        self._kept: list[int] = []  # slots of the frames in memory, in the order of frames

    def copy(self) -> Stream:
        """A stream that goes on from here by itself."""
        other = copy.copy(self)
        other._memory, other._kept = jax.tree.map(jnp.copy, self._memory), list(self._kept)
        return other

    def observe(self, frame: Frame | Sequence[Frame]) -> Geometry:
        """What is now known of a frame, or of several that come at once.

        Several at once are as if they came one by one, and compile a program for their number.

        Args:
          frame: [Y, X, 3], uint8 or floats in [0, 1], both sides multiples of the model's patch; a
            PIL image or the path of a photo, which is fitted as `data_pipeline.pictures.unposed`
            does; or a list of such, or [R, Y, X, 3].

        Returns:
          Geometry without the axis of scenes, and of a single frame without that of frames.

        Raises:
          InputError: not such frames, of another size than those before, or more than there is
            room for. The stream is then as it was.
        """
        single = isinstance(frame, (str, os.PathLike, Image.Image)) or np.ndim(frame) == 3
        frames = [_pixels(each) for each in ([frame] if single else frame)]
        if not frames:
            raise InputError("no frames: expected one, or a list of them")
        size = self._size or frames[0].shape[:2]
        for each in frames:
            if each.shape[:2] != size:
                raise InputError(
                    f"frame of {each.shape[0]}x{each.shape[1]} in a stream of {size[0]}x{size[1]} "
                    "(height x width): frames of a stream have one size; resize it, or start "
                    "another stream"
                )
        kept = self._with_room_for(len(frames))
        free = [slot for slot in range(self._capacity) if slot not in kept]
        memory = self._memory
        if memory is None:
            memory = self._model.start(self._capacity, size)
        elif kept != self._kept:
            used = np.isin(np.arange(self._capacity), kept)
            memory = dataclasses.replace(memory, used=jnp.asarray(used))
        self._memory, geometry = self._model.observe(memory, np.stack(frames)[None])
        self._size, self._seen = tuple(size), self._seen + len(frames)
        self._kept = kept + free[: len(frames)]  # new ones go into the first free slots
        return _without_axes(geometry, single)

    def _with_room_for(self, count: int) -> list[int]:
        """`_kept` of the frames that stay when so many more come."""
        over = len(self._kept) + count - self._capacity
        if over <= 0:
            return self._kept
        if self._when_full == "refuse" or over >= len(self._kept):
            raise InputError(
                f"{count} frames for a stream with room for {self._capacity}, of which "
                f"{len(self._kept)} are taken; start one with more capacity"
                + (", or with when_full='window'" if self._when_full == "refuse" else "")
            )
        return self._kept[:1] + self._kept[1 + over :]


def _without_axes(geometry: Geometry, single: bool) -> Geometry:
    """Without the axis of scenes, and of frames if there is a single one."""
    index = (0, 0) if single else (0,)
    encodings = geometry.encodings[:, *index]
    rest = jax.tree.map(lambda x: x[index], dataclasses.replace(geometry, encodings=None))
    return dataclasses.replace(rest, encodings=encodings)


def _pixels(frame: Frame) -> np.ndarray:
    """A frame as floats [Y, X, 3] in [0, 1]."""
    if isinstance(frame, (str, os.PathLike, Image.Image)):
        # Here, as decoding needs libraries that a machine which is given arrays may lack.
        from data_pipeline.pictures.images import load_upright, rgb
        from data_pipeline.pictures.unposed import fit_width

        is_image = isinstance(frame, Image.Image)
        frame = fit_width(Image.fromarray(rgb(frame, "frame") if is_image else load_upright(frame)))
    frame = np.asarray(frame)
    if frame.ndim != 3 or frame.shape[2] != 3:
        raise InputError(f"frame of shape {frame.shape}: expected [Y, X, 3] (RGB)")
    if frame.dtype == np.uint8:
        return frame.astype(np.float32) / 255
    if not np.issubdtype(frame.dtype, np.floating):
        raise InputError(f"frame of {frame.dtype}: expected uint8, or floats in [0, 1]")
    if not (frame.min(initial=0) >= 0 and frame.max(initial=0) <= 1):
        raise InputError(
            f"frame with values from {frame.min():g} to {frame.max():g}: expected finite values "
            "in [0, 1]; divide 8-bit values by 255"
        )
    return frame.astype(np.float32)
