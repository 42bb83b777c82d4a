"""Geometry compiled for devices that are not there: frames of a clip, or of a stream."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from efficient_lvsm_jax.aot import OBSERVE
from efficient_lvsm_jax.aot.rendering import PARAMETERS, bytes_of, scenes_spread
from efficient_lvsm_jax.aot.training_step import (
    Compiled,
    bytes_of_one,
    placed_alike,
    what_became_of,
)
from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.models.geometry_model import abstract_memory, lower_observe
from efficient_lvsm_jax.models.model import abstract_params, prepared
from efficient_lvsm_jax.models.scene_geometry import GeometryConfig
from efficient_lvsm_jax.nn.flops import Flops
from efficient_lvsm_jax.parallel.sharding import BATCH, check_divides, make_mesh


@dataclasses.dataclass(frozen=True)
class ObserveQuestion:
    """What is to be seen, on what.

    Attributes:
      family, model: what sees.
      size: edge of all frames, pixels; whole patches.
      scenes: B, of all devices together.
      frames: R, seen in one call.
      slots: S, frames that a stream's memory has room for, which is full after the call; 0: the
        frames are a clip.
      mesh, devices: its mesh setting, and how many.

    Raises:
      InputError: a memory of a model that has none, or numbers that cannot be.
    """

    family: str
    model: GeometryConfig
    size: int
    scenes: int
    frames: int
    slots: int
    mesh: str
    devices: int
    program = OBSERVE

    def __post_init__(self):
        for name in ("scenes", "frames"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}={getattr(self, name)}: expected at least 1")
        if self.slots and not self.model.causal:
            raise InputError(
                f"slots={self.slots}: {self.family} that is not causal sees clips as a whole and "
                "keeps no memory; leave out --capacity"
            )
        if self.slots and self.slots < self.frames:
            raise InputError(f"slots={self.slots}: expected room for all {self.frames} frames")
        if self.size % self.model.patch:
            raise InputError(
                f"frames of {self.size} px: expected a multiple of model.patch={self.model.patch}, "
                "as --config.data.size"
            )

    @property
    def told(self) -> dict[str, int]:
        """What a report says of it."""
        return {name: getattr(self, name) for name in ("size", "scenes", "frames", "slots")}

    def flops(self) -> Flops:
        """Of all devices."""
        remembered = max(self.slots - self.frames, 0)
        parts = self.model.observe_flops(self.frames, (self.size, self.size), remembered)
        return sum(parts.values(), Flops()) * self.scenes


def compile_observe(asked: ObserveQuestion, devices: Sequence[jax.Device]) -> tuple[Compiled, int]:
    """Compiles the program for devices, from shapes alone.

    Returns:
      What the compiler made of it, and the bytes that one device must read and write: parameters,
      frames, memory, and what is known of the frames, once each.

    Raises:
      InputError: scenes that the mesh does not divide.
    """
    mesh = make_mesh(asked.mesh, devices)
    check_divides(mesh, "scenes", asked.scenes, tuple(mesh.shape))
    size = asked.size, asked.size
    params = abstract_params(asked.family, asked.model)
    params = jax.eval_shape(functools.partial(prepared, asked.family, asked.model), params)
    params = placed_alike(mesh, PartitionSpec(), params)
    images = jax.ShapeDtypeStruct((asked.scenes, asked.frames, *size, 3), jnp.float32)
    images = placed_alike(mesh, BATCH, images)
    arguments, memory = {"frames": bytes_of_one(images)}, None
    if asked.slots:
        memory = abstract_memory(asked.family, asked.model, asked.slots, size, asked.scenes)
        memory = scenes_spread(mesh, memory)
        arguments["memory of frames"] = bytes_of_one(memory)
    with jax.set_mesh(mesh):
        lowered = lower_observe(asked.family, asked.model, params, memory, images)
        compiled = what_became_of(lowered.compile(), arguments, rest=PARAMETERS)
    _, known = lowered.out_info
    moved = sum(arguments.values()) + bytes_of(known) // mesh.size
    return compiled, int(moved + max(compiled.bytes[PARAMETERS], 0))
