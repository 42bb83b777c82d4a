"""The settings of what a run shows."""

from __future__ import annotations

import dataclasses

from efficient_lvsm_jax.configuration import Settings, setting


@dataclasses.dataclass(frozen=True)
class LogConfig(Settings):
    """What a run shows while it trains.

    Attributes:
      every: steps between two rows of numbers.
      pictures_every: steps between two pictures of held-out predictions; 0 for none.
      pictures: held-out scenes of a picture, the first of the `evaluation` group.
      tensorboard: also write for TensorBoard.
      wandb: project of Weights & Biases; "" for none.
    """

    group = "log"
    every: int = setting(10, at_least=1)
    pictures_every: int = setting(0, at_least=0)
    pictures: int = setting(3, at_least=1)
    tensorboard: bool = True
    wandb: str = ""
