"""`GeometryModel`: family, configuration and parameters as one value, as `Model` is of views."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.geometry.cameras import Cameras, check_cameras
from efficient_lvsm_jax.models.families import family_named
from efficient_lvsm_jax.models.model import bind_as_is, prepared
from efficient_lvsm_jax.models.scene_geometry import (
    Geometry,
    GeometryConfig,
    SceneMemory,
)


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class GeometryModel:
    """A ready model of geometry: arrays in, arrays out, jitted once per shape.

    Attributes:
      family: its name, see `families`.
      config: what it is and how it computes.
      params: nested dict of float32 arrays.
      trained_sizes: (height, width) of the pictures it was trained on; empty: those of the
        published weights, or not known.
    """

    family: str
    config: GeometryConfig
    params: dict
    trained_sizes: tuple[tuple[int, int], ...] = ()

    def __repr__(self) -> str:
        count = sum(x.size for x in jax.tree.leaves(self.params))
        return (
            f"GeometryModel({self.family}, {count:,} parameters, computes in "
            f"{self.config.compute_dtype})"
        )

    @functools.cached_property
    def ready(self) -> dict:
        """`params` with kernels outside of heads in the compute dtype."""
        return prepared(self.family, self.config, self.params)

    def start(
        self, capacity: int, size: tuple[int, int], batch: int = 1, track_frames: int = 0
    ) -> SceneMemory:
        """An empty memory for so many frames of (height, width) pixels of each of B scenes.

        It is where the parameters are: bound to a device later, it would compile its readers anew.

        Args:
          capacity: frames that there is room for.
          size: of the frames.
          batch: B.
          track_frames: how many frames points can be tracked through, the first and the last ones;
            0: points cannot be tracked.

        Raises:
          InputError: no room, or a size that is no whole patches.
        """
        if capacity < 1:
            raise InputError(f"memory for {capacity} frames: expected room for at least 1")
        if track_frames < 0 or track_frames == 1:
            raise InputError(
                f"track_frames={track_frames}: expected at least 2, the first frame and another, "
                "or 0 to track nothing"
            )
        _check_size(size, self.config.patch)
        memory = _start(self.family, self.config, capacity, tuple(size), batch, track_frames)
        return memory if self.place is None else jax.device_put(memory, self.place)

    @property
    def place(self) -> jax.sharding.Sharding | None:
        """The one device that the parameters are bound to, as restored ones are; None: to none."""
        first = jax.tree.leaves(self.params)[0]
        bound = isinstance(first, jax.Array) and first.committed
        return first.sharding if bound and len(first.devices()) == 1 else None

    def observe(
        self,
        memory: SceneMemory | None,
        images: jax.Array | np.ndarray,
        queries: jax.Array | np.ndarray | None = None,
        cameras: Cameras | None = None,
    ) -> tuple[SceneMemory | None, Geometry]:
        """Frames seen after those in memory, or by themselves, and what is now known of them.

        The memory is donated: keep only the new one. A call of as many frames of the same size
        compiles nothing, however many were seen. That the memory has free slots is looked at,
        which waits for the call before.

        Args:
          memory: of `start`, or None: the frames are a clip that is seen as a whole.
          images: [B, R, Y, X, 3] floats in [0, 1].
          queries: pixels x y of the very first frame to track, [B, Q, 2]; with a memory only one
            that was started with `track_frames`.
          cameras: of the frames, [B, R], where they are known and the family takes them.

        Raises:
          InputError: arrays that are no such pictures, points or cameras, sizes unlike those of the
            memory, or a memory with too few free slots.
        """
        if images.ndim != 5 or images.shape[-1] != 3 or 0 in images.shape:
            raise InputError(f"images of shape {images.shape}: expected [B, R, Y, X, 3]")
        if not jnp.issubdtype(images.dtype, jnp.floating):
            raise InputError(f"images of {images.dtype}: expected floats in [0, 1]")
        _check_size(images.shape[2:4], self.config.patch)
        if queries is not None and (
            queries.ndim != 3 or queries.shape[::2] != (images.shape[0], 2)
        ):
            raise InputError(
                f"queries of shape {queries.shape}: expected [{images.shape[0]}, Q, 2]"
            )
        if queries is not None and memory is not None and memory.tracking is None:
            raise InputError(
                "queries for a memory that keeps nothing to find tracks in; start it with "
                "track_frames of 2 or more"
            )
        if memory is not None:
            self._check_memory(memory, images.shape)
        if cameras is not None:
            self._check_given(cameras, images.shape)
        return _observe(self.family, self.config, self.ready, memory, images, queries, cameras)

    def _check_given(self, cameras: Cameras, shape: tuple[int, ...]) -> None:
        if not family_named(self.family).module.takes_cameras:
            raise InputError(f"cameras for {self.family}, which takes none: leave them out")
        check_cameras(cameras.c2w, cameras.fxfycxcy)
        given = (*cameras.fxfycxcy.shape[:-1], cameras.height, cameras.width)
        if given != shape[:4]:
            raise InputError(
                f"cameras of {given} for images of {shape[:4]} (scenes, frames, height, width): "
                "expected one for every frame, with intrinsics in its pixels"
            )

    def _check_memory(self, memory: SceneMemory, shape: tuple[int, ...]) -> None:
        expected = abstract_memory(self.family, self.config, memory.capacity, shape[2:4], shape[0])
        if memory.tokens.k.shape != expected.tokens.k.shape:
            raise InputError(
                f"images of shape {shape} do not fit the memory: it holds frames of "
                f"{memory.tokens.k.shape[4]} tokens of {memory.tokens.k.shape[1]} scenes, these "
                f"have {expected.tokens.k.shape[4]} of {shape[0]}; start another one"
            )
        free = memory.capacity - int(np.count_nonzero(memory.used))
        if shape[1] > free:
            raise InputError(
                f"{shape[1]} frames for a memory with {free} of {memory.capacity} slots free; "
                "start one with more room"
            )


def _check_size(size: tuple[int, int], patch: int) -> None:
    height, width = size
    if height < patch or width < patch or height % patch or width % patch:
        raise InputError(
            f"frames of {height}x{width} (height x width): both must be multiples of the patch "
            f"size {patch}; resize them, as data_pipeline.pictures.unposed does"
        )


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3, 4, 5))
def _start(
    family: str,
    config: GeometryConfig,
    capacity: int,
    size: tuple[int, int],
    batch: int,
    track_frames: int = 0,
) -> SceneMemory:
    module = family_named(family).module
    return module.start(config, capacity, size, batch, track_frames)


def abstract_memory(
    family: str, config: GeometryConfig, capacity: int, size: tuple[int, int], batch: int = 1
) -> SceneMemory:
    """Shapes of a memory, as `GeometryModel.start` makes it."""
    return jax.eval_shape(lambda: _start(family, config, capacity, size, batch))


def lower_observe(
    family: str, config: GeometryConfig, ready: dict, memory: SceneMemory | None, images: jax.Array
) -> jax.stages.Lowered:
    """The program that `GeometryModel.observe` runs, to be compiled; all may be abstract."""
    return _observe.lower(family, config, ready, memory, images, None, None)


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=3)
def _observe(
    family: str,
    config: GeometryConfig,
    params: dict,
    memory: SceneMemory | None,
    images: jax.Array,
    queries: jax.Array | None,
    cameras: Cameras | None,
) -> tuple[SceneMemory | None, Geometry]:
    known = {} if cameras is None else {"cameras": cameras}
    return bind_as_is(family, config, params).observe(memory, images, queries, **known)
