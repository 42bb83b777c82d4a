"""The settings of a training run that belong to no group."""

from __future__ import annotations

import dataclasses

from efficient_lvsm_jax.configuration import Settings, setting
from efficient_lvsm_jax.models.families import families
from efficient_lvsm_jax.parallel.processes import CHOICES


@dataclasses.dataclass(frozen=True)
class TrainingConfig(Settings):
    """How long a run trains, from what, on what, and what it keeps.

    Attributes:
      family: of the model; decides what the group `model` has.
      seed: of the parameters, the order of scenes, the views drawn and generated scenes.
      steps: until training ends.
      micro_batches: a batch is walked in this many equal parts, for the memory of one part.
      init_from: weights to begin with (a workdir, a converted folder, a PyTorch file); "" draws
        them.
      mesh: axes of the devices and their sizes; -1 takes all that are left.
      processes: "auto", "one" or "all", see `parallel.processes.join_processes`.
      abort_after_skips: so many updates skipped in a row end the run; 0 never does.
      checkpoint_every: steps between two checkpoints.
      checkpoints_to_keep: the newest ones.
      checkpoint_keep_every: also keep the checkpoints of every multiple of this step; 0 for none.
    """

    family: str = setting("efficient_lvsm", choices=families())
    seed: int = setting(0, at_least=0)
    steps: int = setting(100_000, at_least=0)
    micro_batches: int = setting(1, at_least=1)
    init_from: str = ""
    mesh: str = "data:-1,fsdp:1"
    processes: str = setting("auto", choices=CHOICES)
    abort_after_skips: int = setting(100, at_least=0)
    checkpoint_every: int = setting(1000, at_least=1)
    checkpoints_to_keep: int = setting(3, at_least=1)
    checkpoint_keep_every: int = setting(0, at_least=0)
