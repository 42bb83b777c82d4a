"""Where every array of a training run lives: the mesh, and path rules for parameters and state.

Nothing else in the package knows the mesh. Axes: `data` splits the scenes of a batch; `fsdp` splits
them too and, besides, the width axis of every large parameter and of its optimizer state.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from efficient_lvsm_jax.errors import InputError

AXES = ("data", "fsdp")
BATCH = PartitionSpec(AXES)

# Parameter path to partition, first match wins. L is the scanned layer axis; D (width) is split.
RULES: tuple[tuple[str, PartitionSpec], ...] = (
    (r"(qkv|q|kv)/kernel$", PartitionSpec(None, "fsdp")),  # [L, D, …]
    (r"out/kernel$", PartitionSpec(None, None, None, "fsdp")),  # [L, H, K, D]
    (r"up/kernel$", PartitionSpec(None, "fsdp")),  # [L, D, F]
    (r"down/kernel$", PartitionSpec(None, None, "fsdp")),  # [L, F, D]
    (r"tokenizer/kernel$", PartitionSpec(None, "fsdp")),  # [P, D]
    (r"head/kernel$", PartitionSpec("fsdp")),  # [D, P]
    (r"norm/scale$", PartitionSpec()),  # [L, K]
    (r"projectors/.*kernel$", PartitionSpec("fsdp")),  # [D, F], of REPA
    (r"projectors/.*bias$", PartitionSpec()),  # [F]
    (r"ns_coeffs$", PartitionSpec()),  # Muon's Newton-Schulz coefficients
)


def make_mesh(spec: str, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh over all devices from "data:8,fsdp:4", see `mesh_sizes`.

    Args:
      spec: axes and sizes.
      devices: to use instead of all of this run.

    Raises:
      InputError: as `mesh_sizes`.
    """
    devices = jax.devices() if devices is None else devices
    sizes = mesh_sizes(spec, len(devices))
    kinds = (AxisType.Auto,) * len(AXES)
    return jax.make_mesh(tuple(sizes.values()), AXES, axis_types=kinds, devices=devices)


def mesh_sizes(spec: str, devices: int) -> dict[str, int]:
    """Size of every axis in "data:8,fsdp:4" on so many devices; one may be -1, "all the rest".

    Raises:
      InputError: unknown axis, bad size, or sizes that do not multiply to the number of devices.
    """
    sizes = dict.fromkeys(AXES, 1)
    for part in spec.split(","):
        name, _, size = part.strip().partition(":")
        if name not in AXES or not re.fullmatch(r"-1|[1-9]\d*", size):
            raise InputError(
                f"mesh={spec!r}: cannot read {part!r}; expected axis:size with an axis of "
                f"{', '.join(AXES)} and a positive size or -1, for instance data:-1,fsdp:1"
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
        spec = PartitionSpec() if leaf.ndim == 0 else _rule(name)
        for size, axis in zip(leaf.shape, spec, strict=False):
            if axis is not None and size % mesh.shape[axis]:
                raise InputError(
                    f"{name} of shape {leaf.shape}: {size} is not divisible by the mesh axis "
                    f"{axis}:{mesh.shape[axis]}; choose another mesh"
                )
        logging.info("%s %s -> %s", name, leaf.shape, spec)
        return NamedSharding(mesh, spec)

    return jax.tree_util.tree_map_with_path(place, state)


def _rule(name: str) -> PartitionSpec:
    for pattern, spec in RULES:
        if re.search(pattern, name):
            return spec
    raise InputError(f"no sharding rule matches {name}; add one to RULES in sharding.py")


def put_batch(mesh: Mesh, batch: Any) -> Any:
    """This process's share of a batch (arrays with a leading scene axis) as global arrays."""
    sharding = NamedSharding(mesh, BATCH)
    return jax.tree.map(
        lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), batch
    )


def replicate(mesh: Mesh, tree: Any) -> Any:
    """Arrays, the same in every process, whole on every device."""
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))
