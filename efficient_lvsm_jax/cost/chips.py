"""Accelerators by their makers' data sheets, and groups of them by name: v5e:4x4, h100:8, …"""

from __future__ import annotations

import dataclasses
import math
import re

from efficient_lvsm_jax.errors import InputError

GIB = 2**30
MOST_IN_A_NODE = 8  # GPUs that a switch connects in one machine

# Peak of bfloat16 matrix products without sparsity, FLOP/s, by `jax.Device.device_kind`.
PEAK_FLOPS = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "TPU7x": 2307e12,
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA A100-PCIE-40GB": 312e12,
    "NVIDIA A100 80GB PCIe": 312e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H200": 989e12,
    "NVIDIA B200": 2250e12,
    "NVIDIA L4": 121e12,
}


@dataclasses.dataclass(frozen=True)
class Chip:
    """One TPU chip or GPU.

    Attributes:
      device_kind: as JAX names it.
      platform: "tpu" or "gpu".
      memory: bytes that a program can have. Of a TPU as its compiler says when they are too few; of
        a GPU 95 % of what it has (XLA_PYTHON_CLIENT_MEM_FRACTION=.95; JAX's own default is .75).
      memory_rate: bytes/s of HBM.
      link_rate: bytes/s over all links to other chips, one way; of a GPU to those of its machine.
      network_rate: bytes/s of a GPU to other machines, one way; 0 for TPUs, whose links go there.
      matrix_unit: edge of a matrix unit; a narrower product leaves the rest of it idle.
    """

    device_kind: str
    platform: str
    memory: float
    memory_rate: float
    link_rate: float
    matrix_unit: int
    network_rate: float = 0.0

    @property
    def peak(self) -> float:
        """bfloat16 FLOP/s of matrix products."""
        return PEAK_FLOPS[self.device_kind]


CHIPS = {
    "v5e": Chip("TPU v5 lite", "tpu", 15.75 * GIB, 819e9, 200e9, 128),
    "v5p": Chip("TPU v5", "tpu", 95.74 * GIB, 2765e9, 600e9, 128),
    "v6e": Chip("TPU v6 lite", "tpu", 31.25 * GIB, 1640e9, 400e9, 256),
    # SXM modules with NVLink; between machines one 200 or 400 Gbit/s port for each GPU.
    "a100": Chip("NVIDIA A100-SXM4-80GB", "gpu", 75.2 * GIB, 2039e9, 300e9, 64, 25e9),
    "h100": Chip("NVIDIA H100 80GB HBM3", "gpu", 75.2 * GIB, 3352e9, 450e9, 64, 50e9),
    "h200": Chip("NVIDIA H200", "gpu", 133.9 * GIB, 4800e9, 450e9, 64, 50e9),
    "b200": Chip("NVIDIA B200", "gpu", 170.1 * GIB, 8000e9, 900e9, 64, 50e9),
}


@dataclasses.dataclass(frozen=True)
class Topology:
    """Equal chips and how they are connected.

    Attributes:
      name: what it was read from.
      kind: of CHIPS.
      shape: of a TPU slice its edges; of GPUs (machines, GPUs of each).
    """

    name: str
    kind: str
    shape: tuple[int, ...]

    @property
    def chip(self) -> Chip:
        """What all of them are."""
        return CHIPS[self.kind]

    @property
    def devices(self) -> int:
        """How many."""
        return math.prod(self.shape)

    @property
    def link_rate(self) -> float:
        """bytes/s at which one device sends in a collective of all of them, at most.

        Between machines each GPU sends its share of what its machine has, over a port of its own.
        """
        chip = self.chip
        if chip.platform == "tpu" or self.shape[0] == 1:
            return chip.link_rate
        return min(chip.link_rate, self.shape[1] * chip.network_rate)


def read_topology(name: str) -> Topology:
    """Chips such as v5e:4x4, v5p:2x2x4, h100:8 (one machine) or h100:2x8 (machines x GPUs).

    Raises:
      InputError: no such chip, or no such shape.
    """
    kind, _, shape = name.partition(":")
    edges = tuple(int(edge) for edge in re.findall(r"\d+", shape))
    is_gpu = kind in CHIPS and CHIPS[kind].platform == "gpu"
    dimensions = "{0,1}" if is_gpu else "{1,2}"
    if kind not in CHIPS or not re.fullmatch(rf"[1-9]\d*(x[1-9]\d*){dimensions}", shape):
        raise InputError(
            f"topology {name!r}: expected chip:shape with a chip of {', '.join(CHIPS)}, for "
            "instance v5e:4x4, v6e:16x16 or v5p:2x2x4; h100:8 for one machine of GPUs, h100:2x8 "
            "for two"
        )
    if is_gpu and edges[-1] > MOST_IN_A_NODE:
        raise InputError(
            f"topology {name!r}: a machine has at most {MOST_IN_A_NODE} GPUs; say how many "
            f"machines, for instance {kind}:2x{MOST_IN_A_NODE}"
        )
    return Topology(name, kind, (1, *edges) if is_gpu and len(edges) == 1 else edges)
