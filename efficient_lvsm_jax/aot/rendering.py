"""Rendering compiled for devices that are not there: encode, decode, adding a view to a cache."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from efficient_lvsm_jax.aot import PROGRAMS
from efficient_lvsm_jax.aot.training_step import Compiled, placed, what_became_of
from efficient_lvsm_jax.cost.memory import bytes_per_device
from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.geometry.cameras import Cameras, Views
from efficient_lvsm_jax.models.model import abstract_ready, lower
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

    def on_mesh(tree: Any, spec: PartitionSpec) -> Any:
        return placed(tree, jax.tree.map(lambda _: NamedSharding(mesh, spec), tree))

    def cameras(count: int) -> tuple[jax.ShapeDtypeStruct, ...]:
        shapes = ((4, 4), (4,))
        arrays = (jax.ShapeDtypeStruct((asked.scenes, count, *s), jnp.float32) for s in shapes)
        return tuple(on_mesh(array, BATCH) for array in arrays)

    def views(count: int) -> Views:
        shape = (asked.scenes, count, asked.size, asked.size, 3)
        return Views(on_mesh(jax.ShapeDtypeStruct(shape, jnp.float32), BATCH), *cameras(count))

    def call(method: str, *args: Any) -> jax.stages.Lowered:
        return lower(asked.family, asked.model, method, params, *args)

    def size_of(tree: Any) -> int:
        return bytes_per_device(tree, jax.tree.map(lambda x: x.sharding, tree))

    params = on_mesh(abstract_ready(asked.family, asked.model), PartitionSpec())
    with jax.set_mesh(mesh):
        if asked.program == "encode":
            lowered, images = call("encode", views(asked.views)), views(asked.views)
            arguments = {"pictures and cameras": size_of(images)}
            moved = sum(arguments.values()) + _bytes(lowered.out_info) // mesh.size
        else:
            count = asked.views if asked.program == "decode" else 1
            memory = call("encode", views(count)).out_info
            page = memory
            if asked.model.paged:
                memory = jax.eval_shape(lambda x: pages.empty(asked.slots, x), memory)
                memory = pages.bounded_by(memory, asked.views)
            memory = _scenes_spread(memory, on_mesh)
            arguments = {"memory of views": size_of(memory)}
            in_use = size_of(memory) * (asked.views / asked.slots if asked.model.paged else 1)
            if asked.program == "append":
                page = _scenes_spread(page, on_mesh)
                lowered = pages.lower_append(dataclasses.replace(memory, most=None), page)
                arguments["page"] = size_of(page)
                moved = 2 * arguments["page"]
            else:
                seen = Cameras(*cameras(asked.targets), asked.size, asked.size)
                lowered = call("decode", memory, seen)
                arguments["cameras"] = size_of(seen)
                moved = in_use + _bytes(lowered.out_info) // mesh.size
        compiled = what_became_of(lowered.compile(), arguments, rest=PARAMETERS)
        return compiled, int(moved + max(compiled.bytes[PARAMETERS], 0))


def _scenes_spread(memory: Any, on_mesh: Any) -> Any:
    """A memory as it lies on a mesh that spreads scenes: caches have them on their second axis."""
    if not isinstance(memory, Pages):
        return on_mesh(memory, BATCH)
    return jax.tree.map(
        lambda x: on_mesh(x, PartitionSpec(None, *BATCH) if x.ndim > 1 else PartitionSpec()), memory
    )


def _bytes(shapes: Any) -> int:
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(shapes))
