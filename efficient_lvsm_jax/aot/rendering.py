"""Rendering compiled for devices that are not there: encode, decode, adding a view to a cache."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from efficient_lvsm_jax.aot import PROGRAMS
from efficient_lvsm_jax.aot.training_step import (
    Compiled,
    bytes_of_one,
    placed_alike,
    what_became_of,
)
from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.geometry.cameras import Cameras, Views
from efficient_lvsm_jax.models.model import abstract_ready, lower
from efficient_lvsm_jax.models.scene_geometry import SceneMemory
from efficient_lvsm_jax.models.view_synthesis import ModelConfig
from efficient_lvsm_jax.nn import cache as pages
from efficient_lvsm_jax.nn.flops import Flops
from efficient_lvsm_jax.nn.paged import Pages
from efficient_lvsm_jax.parallel.sharding import BATCH, check_divides, make_mesh

PARAMETERS = "parameters that it reads"


@dataclasses.dataclass(frozen=True)
class RenderQuestion:
    """What is to be rendered, on what.

    Attributes:
      program: of PROGRAMS; "append" writes one encoded view into a cache.
      family, model: what renders.
      size: edge of all pictures, pixels.
      scenes: B, of all devices together.
      views: V, encoded at once, or in the memory that is decoded.
      targets: T.
      slots: S, room of the cache; at least V.
      mesh, devices: its mesh setting, and how many.

    Raises:
      InputError: a model without a cache is asked to append, or numbers that cannot be.
    """

    program: str
    family: str
    model: ModelConfig
    size: int
    scenes: int
    views: int
    targets: int
    slots: int
    mesh: str
    devices: int

    def __post_init__(self):
        if self.program not in PROGRAMS:
            raise InputError(f"program {self.program!r}: expected one of {', '.join(PROGRAMS)}")
        if self.program == "append" and not self.model.paged:
            raise InputError(f"program append: {self.family} has no cache to which views are added")
        for name in ("scenes", "views", "targets"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}={getattr(self, name)}: expected at least 1")
        if self.slots < self.views:
            raise InputError(f"slots={self.slots}: expected room for all {self.views} views")

    @property
    def told(self) -> dict[str, int]:
        """What a report says of it."""
        names = ("size", "scenes", "views", "targets", "slots")
        return {name: getattr(self, name) for name in names}

    def flops(self) -> Flops:
        """Of all devices."""
        if self.program == "append":
            return Flops()
        pixels = self.size**2
        parts = (
            self.model.encode_flops(self.views, pixels)
            if self.program == "encode"
            else self.model.decode_flops(self.views, self.targets, pixels)
        )
        return sum(parts.values(), Flops()) * self.scenes


def compile_render(asked: RenderQuestion, devices: Sequence[jax.Device]) -> tuple[Compiled, int]:
    """Compiles the program for devices, from shapes alone.

    Returns:
      What the compiler made of it, and the bytes that one device must read and write: parameters,
      pages in use and pictures once each; what `append` writes, twice.

    Raises:
      InputError: scenes that the mesh does not divide.
    """
    mesh = make_mesh(asked.mesh, devices)
    check_divides(mesh, "scenes", asked.scenes, tuple(mesh.shape))

    def cameras(count: int) -> tuple[jax.ShapeDtypeStruct, ...]:
        shapes = ((4, 4), (4,))
        arrays = (jax.ShapeDtypeStruct((asked.scenes, count, *s), jnp.float32) for s in shapes)
        return tuple(placed_alike(mesh, BATCH, array) for array in arrays)

    def views(count: int) -> Views:
        shape = (asked.scenes, count, asked.size, asked.size, 3)
        return Views(
            placed_alike(mesh, BATCH, jax.ShapeDtypeStruct(shape, jnp.float32)), *cameras(count)
        )

    def call(method: str, *args: Any) -> jax.stages.Lowered:
        return lower(asked.family, asked.model, method, params, *args)

    params = placed_alike(mesh, PartitionSpec(), abstract_ready(asked.family, asked.model))
    with jax.set_mesh(mesh):
        if asked.program == "encode":
            lowered, images = call("encode", views(asked.views)), views(asked.views)
            arguments = {"pictures and cameras": bytes_of_one(images)}
            moved = sum(arguments.values()) + bytes_of(lowered.out_info) // mesh.size
        else:
            count = asked.views if asked.program == "decode" else 1
            memory = call("encode", views(count)).out_info
            page = memory
            if asked.model.paged:
                memory = jax.eval_shape(lambda x: pages.empty(asked.slots, x), memory)
                memory = pages.bounded_by(memory, asked.views)
            memory = scenes_spread(mesh, memory)
            arguments = {"memory of views": bytes_of_one(memory)}
            in_use = bytes_of_one(memory) * (asked.views / asked.slots if asked.model.paged else 1)
            if asked.program == "append":
                page = scenes_spread(mesh, page)
                lowered = pages.lower_append(dataclasses.replace(memory, most=None), page)
                arguments["page"] = bytes_of_one(page)
                moved = 2 * arguments["page"]
            else:
                seen = Cameras(*cameras(asked.targets), asked.size, asked.size)
                lowered = call("decode", memory, seen)
                arguments["cameras"] = bytes_of_one(seen)
                moved = in_use + bytes_of(lowered.out_info) // mesh.size
        compiled = what_became_of(lowered.compile(), arguments, rest=PARAMETERS)
        return compiled, int(moved + max(compiled.bytes[PARAMETERS], 0))


def scenes_spread(mesh: Mesh, memory: Any) -> Any:
    """A memory as it lies on a mesh that spreads scenes: pages have them on their second axis."""
    if not isinstance(memory, (Pages, SceneMemory)):
        return placed_alike(mesh, BATCH, memory)
    specs = {True: PartitionSpec(None, *BATCH), False: PartitionSpec()}
    return jax.tree.map(lambda x: placed_alike(mesh, specs[x.ndim > 1], x), memory)


def bytes_of(shapes: Any) -> int:
    """Of arrays, however they are spread."""
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(shapes))
