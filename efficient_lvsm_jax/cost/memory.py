"""Will it fit? Memory of a training step per device, for any settings, without compiling.

What lives between steps is counted exactly, from abstract shapes and the sharding rules. What lives
within a step follows from the model: in units of one view's tokens [N, D] in the compute dtype,
how many are kept for the backward pass, and how many are in use at once at its peak. The numbers of
units were read off the traced step and off compiled ones (docs/training.md says how near it comes).

Axes: V input view, T target view, N patch token, D width, H head, K head dim, L layer.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any

import jax
from jax.sharding import AbstractMesh, AxisType

from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.models.efficient_lvsm import EfficientLVSMConfig
from efficient_lvsm_jax.models.families import family_named
from efficient_lvsm_jax.models.scene_geometry import GeometryConfig
from efficient_lvsm_jax.models.view_synthesis import LayerUnits, ModelConfig
from efficient_lvsm_jax.parallel.sharding import state_shardings

GIB, MIB = 2**30, 2**20
USABLE = 0.92  # of a device's memory: the rest is the allocator's, and what programs need
CGROUPS, OWN_GROUP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
# On a TPU the fastest axis of an array takes a multiple of this many places.
TPU_LANES = 128


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Bytes of one device by what they are for.

    Attributes:
      bytes: kind to bytes: parameters, average (EMA), optimizer state (with REPA's projectors),
        gradients (with parameters in the compute dtype), teacher of geometry, batch, kept for the
        backward pass, in use at once.
      scenes: of one device, in one micro-batch.
    """

    bytes: dict[str, int]
    scenes: int

    @property
    def total(self) -> int:
        """All of them."""
        return sum(self.bytes.values())

    def _unit(self) -> tuple[int, str]:
        return (GIB, "GiB") if self.total >= GIB else (MIB, "MiB")

    def __str__(self) -> str:
        largest = sorted(self.bytes.items(), key=lambda item: -item[1])[:3]
        unit, name = self._unit()
        parts = ", ".join(f"{kind} {size / unit:.1f}" for kind, size in largest)
        return (
            f"about {self.total / unit:.1f} {name} a device ({parts}, …), {self.scenes} scenes "
            "at once"
        )


def estimate(
    model: Any,
    state: Any,
    mesh_sizes: Mapping[str, int],
    *,
    batch_size: int,
    inputs: int,
    targets: int,
    pixels: int,
    platform: str,
    micro_batches: int = 1,
    teacher: Any = None,
    queries: int = 0,
    points: bool = True,
    frozen: Container[str] = (),
) -> Estimate:
    """Memory of a training step on each device.

    Args:
      model: configuration of what is trained.
      state: shapes of its `training.step.TrainState`.
      mesh_sizes: size of every mesh axis, see `parallel.sharding.mesh_sizes`.
      batch_size: scenes of all devices.
      inputs, targets: V, the most there are, and T.
      pixels: of one view, height * width.
      micro_batches: parts in which the batch is walked.
      platform: "tpu", "gpu" or "cpu", as `jax.default_backend` says. TPUs pad arrays of heads;
        elsewhere than on a CPU, attention without a fused kernel keeps all scores.
      teacher: shapes of a model of geometry that says the truth, if one does; it is placed as the
        student is. Other networks of losses are left out.
      queries: points of a clip that are tracked.
      points: whether a loss looks at a clip's maps of points.
      frozen: names of parts without gradients.

    Returns:
      An estimate: within a quarter of what compilers say for the published model on TPUs and CPUs,
      rather above than below. Attention on GPUs was not compared.

    Raises:
      InputError: the batch does not divide, or as `state_shardings`.
    """
    places = mesh_sizes["data"] * mesh_sizes["fsdp"]
    if batch_size % (places * micro_batches):
        raise InputError(
            f"data.batch_size={batch_size} does not divide among data:{mesh_sizes['data']} x "
            f"fsdp:{mesh_sizes['fsdp']} devices x micro_batches={micro_batches}; make it a "
            f"multiple of {places * micro_batches}"
        )
    mesh = _mesh(mesh_sizes)
    between = state_bytes(state, state_shardings(mesh, state))
    scenes = batch_size // places
    inputs = math.ceil(inputs / mesh_sizes.get("context", 1))
    at_once = scenes // micro_batches
    if isinstance(model, GeometryConfig):
        size, lanes = (math.isqrt(pixels),) * 2, lanes_padding(model.head_dim, platform)
        kept, working = model.activation_bytes(
            inputs, size, queries, points=points, lanes=lanes, frozen=frozen
        )
    else:
        kept, working = activations(model, inputs, targets, pixels, platform=platform)
    compute_bytes = model.dtype.itemsize
    share = between["parameters"] // 4  # parameters are float32
    # Gradients arise in the compute dtype beside parameters in it, and are summed in float32.
    gradients = share * (compute_bytes if compute_bytes == 4 else 2 * compute_bytes)
    gradients += share * 4 * (micro_batches > 1)
    return Estimate(
        bytes={
            **between,
            "gradients": gradients,
            "teacher": bytes_per_device(teacher, state_shardings(mesh, teacher)),
            "batch": scenes * (inputs + targets) * (3 * pixels + (16 + 4) * 4),
            "kept for the backward pass": at_once * kept,
            "in use at once": at_once * working,
        },
        scenes=at_once,
    )


def lanes_padding(head_dim: int, platform: str) -> float:
    """How many times as large arrays of heads [..., K] are: a TPU pads them to whole lanes."""
    if platform != "tpu":
        return 1
    return math.ceil(head_dim / TPU_LANES) * TPU_LANES / head_dim


def activations(
    config: ModelConfig, inputs: int, targets: int, pixels: int, *, platform: str
) -> tuple[int, int]:
    """Bytes kept for the backward pass, and in use at its peak, of one scene.

    Args:
      config: of the model; `remat` decides what is kept.
      inputs, targets: V and T on this device.
      pixels: of one view, height * width.
      platform: as in `estimate`.
    """
    tokens = pixels // config.patch**2
    unit = tokens * config.width * config.dtype.itemsize
    heads = lanes_padding(config.head_dim, platform)
    if config.remat == "full":
        with_self_attention = with_both = 1.0
    elif config.remat == "attention":
        with_self_attention, with_both = 1 + heads, 1 + 2 * heads
    elif config.remat == "products":
        # Layer inputs, queries, keys, values, mixed, projected back, hidden channels; the last
        # projection is what the next layer's input has more.
        with_self_attention = 5 + heads + config.mlp_ratio
        with_both = with_self_attention + 2 + heads
    else:
        # Read off the trace: 6 of D channels and 9 of heads stay in float32, whatever the dtype.
        wide = (6 + 9 * heads) * 4 / config.dtype.itemsize
        if platform == "gpu" and not config.scan_layers:  # as compiled: most are fused away
            wide = 6
        with_self_attention = wide + 10 + 2 * config.mlp_ratio
        with_both = with_self_attention + 1  # what one attention more mixes
    pages = 4 if config.remat != "products" else 4 + 3  # what they are made of, before norms
    layer = LayerUnits(with_self_attention, with_both, pages)
    kept, working = config.activation_units(layer, inputs, targets, tokens)
    return int(kept * unit), int(working * unit)


def memory_of(device: jax.Device) -> int:
    """Bytes of a device, 0 if it does not say; of a CPU what the machine, or the container, has."""
    if device.platform != "cpu":
        return int((device.memory_stats() or {}).get("bytes_limit", 0))
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for path in (*_own_limits(), CGROUPS / "memory.max"):
        with contextlib.suppress(OSError, ValueError):  # there is none, or it says "max"
            limits.append(int(path.read_text()))
    return min(limits)


def _own_limits() -> list[Path]:
    """Files that may limit the memory of this process's control group and those around it."""
    try:
        lines = OWN_GROUP.read_text().splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers in ("", "memory"):
            root = CGROUPS / controllers
            name = "memory.limit_in_bytes" if controllers else "memory.max"
            groups = [root / path.lstrip("/"), *(root / path.lstrip("/")).parents]
            found += [group / name for group in groups if group.is_relative_to(root)]
    return found


def bytes_of_page(config: EfficientLVSMConfig, pixels: int) -> int:
    """Bytes that one view takes in a cache in the compute dtype: keys, values and, where attention
    is sparse, a digest of every layer."""
    tokens, heads = pixels // config.patch**2, config.width // config.head_dim
    sparsity = config.sparsity("cross")
    digest = sparsity.digest_bytes(heads, config.head_dim, tokens) if sparsity else 0
    return config.layers * (2 * config.width * tokens * config.dtype.itemsize + digest)


def bytes_of_frame(family: str, config: GeometryConfig, size: tuple[int, int]) -> int:
    """Bytes that a frame of `size` (Y, X) takes in the memory of a model that streams."""
    module = family_named(family).module
    return jax.eval_shape(lambda: module.start(config, 1, size)).frame_bytes


def _mesh(sizes: Mapping[str, int]) -> AbstractMesh:
    """A mesh of these sizes without devices."""
    axes = (AxisType.Auto,) * len(sizes)
    return AbstractMesh(tuple(sizes.values()), tuple(sizes), axis_types=axes)


def state_bytes(state: Any, shardings: Any) -> dict[str, int]:
    """Bytes of one device's share of an abstract state by kind."""
    parameters, average = (
        bytes_per_device(getattr(state, name), getattr(shardings, name))
        for name in ("params", "ema")
    )
    rest = bytes_per_device(state, shardings) - parameters - average
    return {"parameters": parameters, "average": average, "optimizer state": rest}


def bytes_per_device(arrays: Any, shardings: Any) -> int:
    """Bytes of one device's share of a tree of abstract arrays."""
    return sum(
        math.prod(sharding.shard_shape(x.shape)) * x.dtype.itemsize
        for x, sharding in zip(jax.tree.leaves(arrays), jax.tree.leaves(shardings), strict=True)
    )
