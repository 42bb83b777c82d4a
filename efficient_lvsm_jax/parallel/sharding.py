"""Where every array of a training run lives: the mesh, and path rules for parameters and state.

Nothing else in the package knows the mesh. Axes: `data` splits the scenes of a batch; `fsdp` splits
them too and, besides, the width axis of every large parameter and of its optimizer state; `context`
splits the input views of every scene and the pages of its cache.

Code that computes over a mesh with `context`, or with a kernel of an accelerator, runs under
`jax.set_mesh(mesh)`: attention asks here which mesh that is.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from efficient_lvsm_jax.errors import InputError

AXES = ("data", "fsdp")  # both split the scenes of a batch
CONTEXT = "context"
BATCH = PartitionSpec(AXES)

# Parameter path to partition: the first that matches and has no more axes than the parameter. L is
# the scanned layer axis; D (width) is split.
RULES: tuple[tuple[str, PartitionSpec], ...] = (
    (r"(qkv|q|kv)/kernel$", PartitionSpec(None, "fsdp")),  # [L, D, …]
    (r"out/kernel$", PartitionSpec(None, None, None, "fsdp")),  # [L, H, K, D]
    (r"up/kernel$", PartitionSpec(None, "fsdp")),  # [L, D, F]
    (r"(?<!head/)(?<!coder/)down/kernel$", PartitionSpec(None, None, "fsdp")),  # [L, F, D]
    (r"tokenizer/kernel$", PartitionSpec(None, "fsdp")),  # [P, D]
    (r"head/kernel$", PartitionSpec("fsdp")),  # [D, P]
    (r"norm/scale$", PartitionSpec()),  # [L, K], [L, D] or [D]
    (r"sparse/(kernel|share)$", PartitionSpec()),  # [L, K, K], [L]
    (r"kernel/(codes|scale)$", PartitionSpec()),  # [L, O, I], [L, O]; of eight bits, for rendering
    (r"latents$", PartitionSpec(None, "fsdp")),  # [Z, D], of LVSM
    (r"projectors/.*kernel$", PartitionSpec("fsdp")),  # [D, F], of REPA
    (r"projectors/.*bias$", PartitionSpec()),  # [F]
    (r"ns_coeffs$", PartitionSpec()),  # Muon's Newton-Schulz coefficients
    # Of models of geometry.
    (r"(bias|scale[12]?)$", PartitionSpec()),
    (r"(cls|storage|positions|mask_token|camera_token|register_tokens)$", PartitionSpec()),
    (r"(empty|first_or_later|virtual_tracks)$", PartitionSpec()),
    (r"patches/kernel$", PartitionSpec(None, None, None, "fsdp")),  # [Y, X, C, D]
    (r"/(embed|compare1|input)/kernel$", PartitionSpec(None, "fsdp")),  # [few, D]
    (r"/(down|modulation|compare2|feature_update|output)/kernel$", PartitionSpec("fsdp")),  # [D, …]
    (r"/(visible|confidence)/kernel$", PartitionSpec("fsdp")),
    (r"/(hidden[12]|translation|quaternion|field_of_view)/kernel$", PartitionSpec("fsdp")),
    (
        r"/(project|reduce|conv|neck|last)\d?/kernel$",
        PartitionSpec(None, None, "fsdp"),
    ),  # [y, x, C, C]
    (r"/resize\d/(map/)?kernel$", PartitionSpec(None, None, "fsdp")),
)


def make_mesh(spec: str, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh over all devices from "data:8,fsdp:4", see `mesh_sizes`.

    Args:
      spec: axes and sizes.
      devices: to use instead of all of this run.

    Raises:
      InputError: as `mesh_sizes`; or the views of one scene would be on several processes, each of
        which reads scenes of its own.
    """
    devices = jax.devices() if devices is None else devices
    sizes = mesh_sizes(spec, len(devices))
    kinds = (AxisType.Auto,) * len(sizes)
    mesh = jax.make_mesh(tuple(sizes.values()), tuple(sizes), axis_types=kinds, devices=devices)
    for scenes in mesh.devices.reshape(-1, sizes[CONTEXT]):
        if len({device.process_index for device in scenes}) > 1:
            raise InputError(
                f"mesh={spec!r}: {CONTEXT}:{sizes[CONTEXT]} spreads the views of a scene over "
                "several processes; it can be at most the number of devices of one"
            )
    return mesh


def mesh_sizes(spec: str, devices: int) -> dict[str, int]:
    """Size of every axis in "data:8,fsdp:4" on so many devices; one may be -1, "all the rest".

    Raises:
      InputError: unknown axis, bad size, or sizes that do not multiply to the number of devices.
    """
    sizes = dict.fromkeys((*AXES, CONTEXT), 1)
    for part in spec.split(","):
        name, _, size = part.strip().partition(":")
        if name not in sizes or not re.fullmatch(r"-1|[1-9]\d*", size):
            raise InputError(
                f"mesh={spec!r}: cannot read {part!r}; expected axis:size with an axis of "
                f"{', '.join(sizes)} and a positive size or -1, for instance data:-1,fsdp:1"
            )
        sizes[name] = int(size)
    open_axes = [name for name, size in sizes.items() if size == -1]
    fixed = math.prod(size for size in sizes.values() if size > 0)
    if len(open_axes) == 1 and devices % fixed == 0:
        sizes[open_axes[0]] = devices // fixed
    if math.prod(sizes.values()) != devices:
        raise InputError(f"mesh={spec!r} does not multiply to the {devices} devices of this run")
    return sizes


def state_shardings(mesh: Mesh, state: Any) -> Any:
    """Shardings for a tree of abstract arrays: parameters, averages, optimizer state, counters.

    Raises:
      InputError: an array with axes matches no rule, or the mesh does not divide it.
    """

    def place(path: tuple, leaf: jax.ShapeDtypeStruct) -> NamedSharding:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        spec = PartitionSpec() if leaf.ndim == 0 else _rule(name, leaf.ndim)
        for size, axis in zip(leaf.shape, spec, strict=False):
            if axis is not None and size % mesh.shape[axis]:
                raise InputError(
                    f"{name} of shape {leaf.shape}: {size} is not divisible by the mesh axis "
                    f"{axis}:{mesh.shape[axis]}; choose another mesh"
                )
        logging.info("%s %s -> %s", name, leaf.shape, spec)
        return NamedSharding(mesh, spec)

    return jax.tree_util.tree_map_with_path(place, state)


def _rule(name: str, axes: int) -> PartitionSpec:
    for pattern, spec in RULES:
        if len(spec) <= axes and re.search(pattern, name):
            return spec
    raise InputError(
        f"no sharding rule matches {name}, of {axes} axes; add one to RULES in parallel/sharding.py"
    )


def batch_shardings(mesh: Mesh) -> tuple[NamedSharding, NamedSharding]:
    """Of all arrays [B, V, ...] of input views, and of all [B, T, ...] of targets."""
    spread = mesh.shape.get(CONTEXT, 1) > 1
    inputs = PartitionSpec(AXES, CONTEXT) if spread else BATCH
    return NamedSharding(mesh, inputs), NamedSharding(mesh, BATCH)


def put_batch(mesh: Mesh, batch: Any) -> Any:
    """This process's share of a `geometry.cameras.Batch` as global arrays.

    Raises:
      InputError: a number of input views that the context axis does not divide.
    """
    check_divides(mesh, "input views", batch.inputs.c2w.shape[1], (CONTEXT,))
    inputs, targets = batch_shardings(mesh)
    parts = vars(batch).items()  # depth is of the inputs
    return type(batch)(
        **{name: _put(inputs if name in ("inputs", "depth") else targets, x) for name, x in parts}
    )


def put_scenes(mesh: Mesh, arrays: Any) -> Any:
    """This process's share of arrays with a leading scene axis as global arrays."""
    return _put(NamedSharding(mesh, BATCH), arrays)


def _put(sharding: NamedSharding, arrays: Any) -> Any:
    return jax.tree.map(
        lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), arrays
    )


def put_cache(mesh: Mesh, cache: Any) -> Any:
    """A view cache with its scenes and pages spread over the mesh; its updates keep them so.

    Raises:
      InputError: a capacity or a number of scenes that the mesh does not divide.
    """
    _, scenes, _, capacity, _, _ = cache.k.shape
    check_divides(mesh, "scenes", scenes, AXES)
    check_divides(mesh, "pages of the cache", capacity, (CONTEXT,))
    spread = PartitionSpec(None, AXES, None, CONTEXT)
    return jax.tree.map(
        lambda x: jax.device_put(x, NamedSharding(mesh, spread if x.ndim > 1 else PartitionSpec())),
        cache,
    )


def mesh_in_use() -> AbstractMesh | None:
    """The mesh set by `jax.set_mesh`, if it has more than one device; None inside `shard_map`."""
    mesh = jax.sharding.get_abstract_mesh()
    return mesh if mesh.size > 1 and mesh.are_all_axes_auto else None


def views_are_spread() -> bool:
    """Whether the mesh in use spreads input views over several devices."""
    mesh = mesh_in_use()
    return mesh is not None and mesh.shape.get(CONTEXT, 1) > 1


def platform() -> str:
    """What computes in the mesh in use, or without one in this process: "cpu", "cuda", "tpu", …"""
    device = jax.sharding.get_abstract_mesh().abstract_device or jax.local_devices()[0]
    is_nvidia = device.platform == "gpu" and not device.device_kind.startswith("AMD")
    return "cuda" if is_nvidia else device.platform


def check_divides(mesh: Mesh | AbstractMesh, what: str, number: int, axes: Sequence[str]) -> None:
    """Raises InputError unless `number` of `what` divides over mesh axes."""
    if number % math.prod(mesh.shape.get(axis, 1) for axis in axes):
        named = ",".join(f"{axis}:{mesh.shape.get(axis, 1)}" for axis in axes)
        raise InputError(
            f"{number} {what} do not divide over the mesh axes {named}; change their number or the "
            "mesh"
        )
