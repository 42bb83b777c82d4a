"""A stream of frames without cameras, and what a model of geometry says of each as it comes.

    stream = elvsm.Stream(model, capacity=200)  # or max_bytes=8 * 2**30
    for photo in photos:
        geometry = stream.observe(photo)

Axes: R frame, Y X pixel.
"""

from __future__ import annotations

import copy
import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.models.geometry_model import GeometryModel
from efficient_lvsm_jax.models.model import digest
from efficient_lvsm_jax.models.scene_geometry import Geometry, SceneMemory
from efficient_lvsm_jax.sessions.forgetting import WHEN_FULL, frames_left, without_similar
from efficient_lvsm_jax.sessions.stream_file import read_about, read_memory, write_stream

SCALED = ("int8", "fp8")  # precisions whose pages have a scale, so that no key leaves its page

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
        capacity: int | None = None,
        max_bytes: int | None = None,
        when_full: str = "refuse",
        precision: str | None = None,
        camera_cache: str | None = None,
        track_frames: int = 0,
    ):
        """Starts an empty stream.

        Args:
          model: of a family of geometry, causal.
          capacity: frames that there is room for; memory for all of them is taken at the first.
          max_bytes: instead of `capacity`: the most bytes that they may take, see `frame_bytes`.
          when_full: what `observe` does when there is no room for a frame: "refuse" it; or forget,
            so that a stream of any length takes the same memory and time for every frame: as a
            "window" the oldest frame; by "confidence" the one whose depth the model was least sure
            of; by "similarity" of every layer and head so many keys as a frame has, those most like
            the mean of all (InfiniteVGGT; the camera head then remembers a window; not with sparse
            attention among frames). The first frame stays, whose camera is the world.
          precision: how keys and values are stored, one of `nn.paged.PRECISIONS`; None is as
            `model.config.cache` says. int8 and fp8 pages do not go with "similarity".
          camera_cache: what the camera head sees of frames before, as the model's setting of this
            name says; None is as the model has it.
          track_frames: how many frames points can be tracked through, the first and the last ones;
            their features are kept beside and do not count in max_bytes. 0: nothing is tracked.

        Raises:
          InputError: a model that renders views, or that sees clips as a whole, or an impossible
            value.
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
        if (capacity is None) == (max_bytes is None):
            raise InputError(
                f"capacity={capacity}, max_bytes={max_bytes}: expected one of both, how many "
                "frames are remembered or how many bytes they may take"
            )
        for name, value in (("capacity", capacity), ("max_bytes", max_bytes)):
            if value is not None and (type(value) is not int or value < 1):
                raise InputError(
                    f"{name}={value!r}: expected a positive integer, with room for at least 1 frame"
                )
        if when_full not in WHEN_FULL:
            raise InputError(f"when_full={when_full!r}: expected one of {', '.join(WHEN_FULL)}")
        if type(track_frames) is not int or track_frames < 0 or track_frames == 1:
            raise InputError(
                f"track_frames={track_frames!r}: expected 2 or more, the first frame and others, "
                "or 0 to track nothing"
            )
        config = model.config
        if camera_cache is not None:
            config = dataclasses.replace(config, camera_cache=camera_cache)
        if precision is not None:
            config = dataclasses.replace(config, cache=precision)
        if when_full == "similarity" and config.cache in SCALED:
            raise InputError(
                f"when_full='similarity' with keys stored as {config.cache}: a page of these has "
                "one scale and its keys cannot leave alone; choose bf16 or fp32, or another "
                "when_full"
            )
        if when_full == "similarity" and config.sparsity("global"):
            raise InputError(
                f"when_full='similarity' with model.attention_sparsity={config.attention_sparsity}:"
                " blocks of a frame are chosen by their means, and keys cannot leave them; choose "
                "another when_full, or leave out global"
            )
        self._model = dataclasses.replace(model, config=config)
        self._options = {
            "capacity": capacity,
            "max_bytes": max_bytes,
            "when_full": when_full,
            "precision": precision,
            "camera_cache": camera_cache,
            "track_frames": track_frames,
        }
        self._when_full, self._track_frames = when_full, track_frames
        self.reset()

    def __len__(self) -> int:
        """How many frames were seen."""
        return self._seen

    def __repr__(self) -> str:
        size = "" if self.size is None else f" of {self.size[0]}x{self.size[1]}"
        room = self.capacity or f"{self._options['max_bytes']} bytes"
        return (
            f"Stream({len(self)} frames{size} seen, {len(self._kept)} of {room} "
            f"remembered; {self._model.family})"
        )

    @property
    def capacity(self) -> int | None:
        """Frames that there is room for; with `max_bytes` None before the first frame."""
        return self._capacity

    @property
    def frame_bytes(self) -> int:
        """Bytes that keys and values of a frame take; 0 before the first."""
        return 0 if self._memory is None else self._memory.frame_bytes

    @property
    def model(self) -> GeometryModel:
        """What sees the frames."""
        return self._model

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
        self._capacity = self._options["capacity"]
        self._seen = 0
        # Slots of the frames in memory in the order of frames, or with "similarity" all in use.
        self._kept: list[int] = []
        self._confidence: dict[int, jax.Array] = {}  # of slots, where it matters

    def copy(self) -> Stream:
        """A stream that goes on from here by itself."""
        other = copy.copy(self)
        other._memory, other._kept = jax.tree.map(jnp.copy, self._memory), list(self._kept)
        other._confidence = dict(self._confidence)
        return other

    def save(self, path: str | os.PathLike) -> None:
        """Writes the stream to a new .safetensors file, whole or not at all; see `load`.

        Raises:
          InputError: no frame was seen yet, `path` exists, or cannot be written.
        """
        if self._size is None:
            raise InputError(f"{path}: nothing to save: the stream has seen no frame yet")
        about = {
            **self._model_told(),
            "options": self._options,
            "size": list(self._size),
            "seen": self._seen,
            "kept": self._kept,
            "confidence": {slot: float(x) for slot, x in self._confidence.items()},
        }
        write_stream(Path(path), self._memory, about)

    @classmethod
    def load(cls, path: str | os.PathLike, model: GeometryModel) -> Stream:
        """The stream of a file, which goes on as the one that was saved, bit by bit.

        Args:
          path: of `save`.
          model: the one it was of; the file has no parameters.

        Raises:
          InputError: no such file, a damaged one, or one of another model.
        """
        path = Path(path)
        about = read_about(path)
        try:
            stream = cls(model, **about["options"])
            stream._size = height, width = tuple(about["size"])
            stream._seen, stream._kept = int(about["seen"]), [int(x) for x in about["kept"]]
            confidence = {int(slot): x for slot, x in about["confidence"].items()}
        except InputError:
            raise  # in words of its own
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(
                f"{path}: what it says of its stream cannot be read ({error}); copy it again"
            ) from error
        for name, told in stream._model_told().items():
            if about.get(name) != told:
                raise InputError(
                    f"{path}: is a stream of {name}={about.get(name)!r}, and this model has "
                    f"{told!r}; load it with the model that it was saved with"
                )
        stream._confidence = {slot: jnp.float32(x) for slot, x in confidence.items()}
        stream._capacity = stream._room_for((height, width))
        stream._memory = read_memory(path, stream._started((height, width)))
        return stream

    def _model_told(self) -> dict[str, str]:
        """By what a file is known to be of this model."""
        settings = {f"model.{name}": str(value) for name, value in vars(self._model.config).items()}
        return {
            "family": self._model.family,
            **settings,
            "params_sha256": digest(self._model.params),
        }

    def observe(
        self, frame: Frame | Sequence[Frame], queries: np.ndarray | None = None
    ) -> Geometry:
        """What is now known of a frame, or of several that come at once.

        Several at once are as if they came one by one, but that a full stream makes room for all of
        them first; they compile a program for their number.

        Args:
          frame: [Y, X, 3], uint8 or floats in [0, 1], both sides multiples of the model's patch; a
            PIL image or the path of a photo, which is fitted as `data_pipeline.pictures.unposed`
            does; or a list of such, or [R, Y, X, 3].
          queries: pixels x y [Q, 2] of the stream's first frame, to be found in this one; with
            `track_frames`, and the same or others in every call. What comes of a frame is what a
            clip says of its last frame that has the first and the last `track_frames` - 1 frames
            up to this. Every number of them compiles.

        Returns:
          Geometry without the axis of scenes, and of a single frame without that of frames.

        Raises:
          InputError: not such frames or queries, of another size than those before, or more than
            there is room for. The stream is then as it was.
        """
        # Of the frame itself: a list has no shape if its frames differ in theirs.
        one = isinstance(frame, (str, os.PathLike, Image.Image))
        single = one or getattr(frame, "ndim", None) == 3
        frames = [pixels_of(each) for each in ([frame] if single else frame)]
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
        if queries is not None:
            queries = self._checked_queries(queries, size)
        if self._memory is None:
            self._capacity = self._room_for(size)
        over = self._checked_over(len(frames))
        memory = self._started(size) if self._memory is None else self._memory
        memory, kept = self._without(over, memory) if over > 0 else (memory, self._kept)
        free = [slot for slot in range(self._capacity) if slot not in kept]
        self._memory, geometry = self._model.observe(memory, np.stack(frames)[None], queries)
        self._size, self._seen = tuple(size), self._seen + len(frames)
        new = free[: len(frames)]  # they go into the first free slots
        self._kept = kept + new
        if self._when_full == "confidence":
            means = geometry.depth_confidence.mean(axis=(2, 3))
            self._confidence |= {slot: means[0, index] for index, slot in enumerate(new)}
        return without_axes(geometry, single)

    def _checked_queries(self, queries: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """Queries [1, Q, 2] as the model takes them."""
        queries = np.asarray(queries, np.float32)
        if not self._track_frames:
            raise InputError(
                "queries for a stream that tracks nothing; start it with track_frames of 2 or more"
            )
        if queries.ndim != 2 or queries.shape[1] != 2 or not len(queries):
            raise InputError(f"queries of shape {queries.shape}: expected [Q, 2], pixels x y")
        if not (np.all(queries >= 0) and np.all(queries <= (size[1], size[0]))):
            raise InputError(
                f"queries from {queries.min(axis=0)} to {queries.max(axis=0)}: expected pixels x y "
                f"within {size[1]}x{size[0]} (width x height)"
            )
        return queries[None]

    def _room_for(self, size: tuple[int, int]) -> int:
        """Frames of a size that there is to be room for."""
        most = self._options["max_bytes"]
        if most is None:
            return self._options["capacity"]
        one = jax.eval_shape(lambda: self._model.start(1, size)).frame_bytes
        if one > most:
            raise InputError(
                f"max_bytes={most} holds no frame of {size[0]}x{size[1]} (height x width): one "
                f"takes {one} bytes"
            )
        return most // one

    def _started(self, size: tuple[int, int]) -> SceneMemory:
        """The memory before the first frame."""
        memory = self._model.start(self._capacity, size, track_frames=self._track_frames)
        if self._when_full == "similarity" and self._capacity > 1:
            # Of nothing, so that it compiles now and not in the middle of the stream.
            memory = without_similar(memory, self._capacity, 1)
            memory = self._with_used(memory, [])
        return memory

    def _with_used(self, memory: SceneMemory, slots: Sequence[int]) -> SceneMemory:
        """The memory with those slots used; bound to a device or not as it is, see `start`."""
        used = np.isin(np.arange(self._capacity), slots)
        return dataclasses.replace(memory, used=jnp.array(used, device=self._model.place))

    def _checked_over(self, count: int) -> int:
        """How many frames have to leave before so many more come; not above 0: none."""
        used = len(self._kept)
        over = used + count - self._capacity
        if over > 0 and (self._when_full == "refuse" or over >= used):
            raise InputError(
                f"{count} frames for a stream with room for {self._capacity}, of which "
                f"{used} are taken; start one with more capacity"
                + (", or with when_full='window'" if self._when_full == "refuse" else "")
            )
        return over

    def _without(self, over: int, memory: SceneMemory) -> tuple[SceneMemory, list[int]]:
        """The memory with so many frames fewer, or as many keys, and its slots that are used."""
        if self._when_full == "similarity":
            used = len(self._kept)
            self._memory = without_similar(memory, used, over)
            self._kept = self._kept[: used - over]
            return self._memory, self._kept
        kept = frames_left(self._when_full, self._kept, over, self._confidence)
        return self._with_used(memory, kept), kept


def without_axes(geometry: Geometry, single: bool) -> Geometry:
    """Without the axis of scenes, and of frames if there is a single one."""
    index = (0, 0) if single else (0,)
    encodings = geometry.encodings[:, *index]
    rest = jax.tree.map(lambda x: x[index], dataclasses.replace(geometry, encodings=None))
    return dataclasses.replace(rest, encodings=encodings)


def pixels_of(frame: Frame) -> np.ndarray:
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
