"""How fast a step could be at best: chips, and the time their data sheets leave no way around."""

from __future__ import annotations

import dataclasses
import math
import re

from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.flops import TrainFlops
from efficient_lvsm_jax.progress import PEAK_FLOPS

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """One TPU chip, from Google's data sheets.

    Attributes:
      device_kind: as JAX names it.
      memory: bytes of HBM that a program can have, as the compiler says when they are too few.
      memory_rate: bytes/s of HBM.
      link_rate: bytes/s over all links to other chips, one way.
      matrix_unit: edge of a matrix unit; a narrower product leaves the rest of it idle.
    """

    device_kind: str
    memory: float
    memory_rate: float
    link_rate: float
    matrix_unit: int

    @property
    def peak(self) -> float:
        """bfloat16 FLOP/s of matrix products."""
        return PEAK_FLOPS[self.device_kind]


CHIPS = {
    "v5e": Chip("TPU v5 lite", 15.75 * GIB, 819e9, 200e9, 128),
    "v5p": Chip("TPU v5", 95.74 * GIB, 2765e9, 600e9, 128),
    "v6e": Chip("TPU v6 lite", 31.25 * GIB, 1640e9, 400e9, 256),
}


@dataclasses.dataclass(frozen=True)
class Roofline:
    """Seconds a step takes at least, by what takes them; they may overlap.

    Attributes:
      matrix_s: products with parameters, at the peak rate.
      attention_s: products inside attention, at the share of it their head dim fills.
      losses_s: convolutions of the losses' networks, at the peak rate.
      memory_s: parameters, moments and gradients through HBM; activations are left out.
      links_s: collectives, over all links at once.
      mfu: model FLOPs over peak in `step_s`.
    """

    matrix_s: float
    attention_s: float
    losses_s: float
    memory_s: float
    links_s: float
    mfu: float

    @property
    def step_s(self) -> float:
        """The longest, products being one: everything else hides behind it."""
        return max(self.products_s, self.memory_s, self.links_s)

    @property
    def products_s(self) -> float:
        """All products, one after another."""
        return self.matrix_s + self.attention_s + self.losses_s


def roofline(
    chip: Chip,
    flops: TrainFlops,
    *,
    loss_flops: float,
    head_dim: int,
    state_bytes: float,
    gradient_bytes: float,
    sent_bytes: float,
) -> Roofline:
    """The least time of a step.

    Args:
      chip: of which all are.
      flops: of one chip.
      loss_flops: of one chip, in the networks of losses.
      head_dim: K.
      state_bytes: of one chip's parameters, average and optimizer state; read and written once.
      gradient_bytes: of one chip's gradients and parameters in the compute dtype; written once
        and read twice.
      sent_bytes: that one chip sends to others.
    """
    executed = flops.executed
    matrix = executed.linear / chip.peak
    attention = executed.attention / (chip.peak * min(1.0, head_dim / chip.matrix_unit))
    bound = Roofline(
        matrix_s=matrix,
        attention_s=attention,
        losses_s=loss_flops / chip.peak,
        memory_s=(2 * state_bytes + 3 * gradient_bytes) / chip.memory_rate,
        links_s=sent_bytes / chip.link_rate,
        mfu=0.0,
    )
    return dataclasses.replace(bound, mfu=flops.model.total / chip.peak / bound.step_s)


def read_topology(name: str) -> tuple[Chip, int]:
    """The chip and the number of chips of a slice such as v5e:4x4 or v5p:2x2x4.

    Raises:
      InputError: no such chip, or no such shape.
    """
    kind, _, shape = name.partition(":")
    if kind not in CHIPS or not re.fullmatch(r"[1-9]\d*(x[1-9]\d*){1,2}", shape):
        raise InputError(
            f"topology {name!r}: expected chip:shape with a chip of {', '.join(CHIPS)}, for "
            "instance v5e:4x4, v6e:16x16 or v5p:2x2x4"
        )
    return CHIPS[kind], math.prod(int(edge) for edge in shape.split("x"))
