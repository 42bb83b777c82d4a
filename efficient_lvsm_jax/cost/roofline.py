"""How fast a step could be at best: the time that data sheets leave no way around."""

from __future__ import annotations

import dataclasses

from efficient_lvsm_jax.cost.chips import Topology
from efficient_lvsm_jax.nn.flops import Flops


@dataclasses.dataclass(frozen=True)
class Roofline:
    """Seconds a step takes at least, by what takes them; they may overlap.

    Attributes:
      matrix_s: products with parameters, at the peak rate.
      attention_s: products inside attention, at the share of it their head dim fills.
      losses_s: convolutions of the losses' networks, at the peak rate.
      memory_s: what must go through HBM; activations are left out.
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
    topology: Topology,
    executed: Flops,
    *,
    model_flops: float,
    loss_flops: float,
    head_dim: int,
    moved_bytes: float,
    sent_bytes: float,
) -> Roofline:
    """The least time of a program.

    Args:
      topology: what it runs on.
      executed: FLOPs of one device.
      model_flops: of one device, without what is computed again.
      loss_flops: of one device, in the networks of losses.
      head_dim: K.
      moved_bytes: that one device must read or write in its memory.
      sent_bytes: that one device sends to others.
    """
    chip = topology.chip
    bound = Roofline(
        matrix_s=executed.linear / chip.peak,
        attention_s=executed.attention / (chip.peak * min(1.0, head_dim / chip.matrix_unit)),
        losses_s=loss_flops / chip.peak,
        memory_s=moved_bytes / chip.memory_rate,
        links_s=sent_bytes / topology.link_rate,
        mfu=0.0,
    )
    return dataclasses.replace(bound, mfu=model_flops / chip.peak / bound.step_s)
