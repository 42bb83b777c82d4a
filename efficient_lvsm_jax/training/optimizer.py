"""How parameters move: settings, learning rate over time, AdamW or Muon (published program, §6).

Axes: L layer, D width, H head, K head dim, F hidden.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from efficient_lvsm_jax.configuration import Settings, setting
from efficient_lvsm_jax.errors import InputError

TIMES = ("warmup_steps", "decay_start", "decay_end")
# How names of what is decayed end: matrices, and tokens that are learnt.
DECAYED = ("kernel", "latents", "virtual_tracks", "first_or_later")

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class OptimizerConfig(Settings):
    """How parameters move. The defaults are the published ones.

    `warmup_steps`, `decay_start` and `decay_end` are updates, or fractions of the run's `steps`,
    from 0.0 to 1.0, which change along with it; `over` makes updates of all.

    Attributes:
      name: "adamw", or "muon" (Muon on the matrices of the layers, AdamW on the rest).
      learning_rate: peak; update k (from 0) uses learning_rate * min(1, k / warmup_steps), times
        what `schedule` says.
      warmup_steps: updates until the peak; 3000, or 0.03 of `steps`.
      schedule: "constant"; or "linear" or "cosine" (half a cosine) from 1 at decay_start to
        final_fraction at decay_end, which it keeps.
      decay_start: update at which the decay begins, or 0.3 of `steps`; 0 begins it where the
        warm-up ends.
      decay_end: update at which the decay ends; 1.0 is the end of the run.
      final_fraction: of the peak, after the decay.
      beta1, beta2, epsilon: AdamW. beta1 is also Muon's momentum.
      weight_decay: on kernels and learnt tokens, not on norm scales and biases; with Muon on what
        Muon moves alone.
      clip_norm: global gradient norm is clipped to this.
      skip_factor: with a norm above clip_norm * skip_factor the update is left out.
      frozen: the parameters that stay as they are, by how their paths begin, such as "encoder" or
        "camera_head/empty"; no gradient is computed for them and no moments are kept.
      ema_decay: decay of an average of the parameters kept for rendering; 0 keeps none.
    """

    group = "optimizer"
    name: str = setting("adamw", choices=("adamw", "muon"))
    learning_rate: float = setting(4e-4, at_least=0)
    warmup_steps: int | float = setting(3000, at_least=0)
    schedule: str = setting("constant", choices=("constant", "linear", "cosine"))
    decay_start: int | float = setting(0, at_least=0)
    decay_end: int | float = setting(0, at_least=0)
    final_fraction: float = setting(0.0, at_least=0)
    beta1: float = setting(0.9, at_least=0, below=1)
    beta2: float = setting(0.95, at_least=0, below=1)
    epsilon: float = setting(1e-8, at_least=0)
    weight_decay: float = setting(0.05, at_least=0)
    clip_norm: float = setting(5.0, above=0)
    skip_factor: float = setting(10.0, above=0)
    frozen: tuple[str, ...] = ()
    ema_decay: float = setting(0.0, at_least=0, below=1)

    def __post_init__(self):
        super().__post_init__()
        for name in TIMES:
            value = getattr(self, name)
            if isinstance(value, float) and value > 1:
                if not value.is_integer():
                    raise InputError(
                        f"optimizer.{name}={value}: expected a whole number of updates, or a "
                        "fraction of config.steps from 0.0 to 1.0"
                    )
                # A ConfigDict makes 8.0 of an 8 that replaces a fraction.
                object.__setattr__(self, name, int(value))
        if self.schedule == "constant" and (self.decay_start or self.decay_end):
            raise InputError(
                "optimizer.schedule='constant' has no decay_start and decay_end: set them to 0, or "
                "choose linear or cosine"
            )
        comparable = isinstance(self.decay_end, float) == isinstance(self.decay_begins, float)
        if self.schedule != "constant" and comparable and self.decay_end <= self.decay_begins:
            raise InputError(
                f"optimizer.decay_end={self.decay_end}: expected an update after "
                f"{self.decay_begins}, where the decay begins"
            )

    @property
    def decay_begins(self) -> int | float:
        """Update, or fraction of the run, at which the decay begins."""
        return self.decay_start or self.warmup_steps

    def over(self, steps: int) -> OptimizerConfig:
        """With updates in place of fractions of a run of `steps`.

        Raises:
          InputError: the decay then ends before it begins.
        """
        values = {name: getattr(self, name) for name in TIMES}
        return dataclasses.replace(
            self,
            **{
                name: round(value * max(steps, 1)) if isinstance(value, float) else value
                for name, value in values.items()
            },
        )

    def planned(self, steps: int) -> dict[str, int]:
        """TIMES of a run of `steps` updates, after a line about each of its `doubts`."""
        for doubt in self.doubts(steps):
            log.warning("%s", doubt)
        return {name: getattr(self, name) for name in TIMES}

    def doubts(self, steps: int) -> list[str]:
        """What is plainly no plan for a run of `steps` updates; this one has no fractions."""
        found = []
        if 0 < steps <= self.warmup_steps:
            found.append(
                f"optimizer.warmup_steps={self.warmup_steps}: the learning rate never reaches its "
                f"peak in config.steps={steps}"
            )
        if self.schedule != "constant" and 0 < steps != self.decay_end:
            what = "the decay never ends"
            if (left := steps - self.decay_end) > 0:
                what = f"the last {left} updates have {self.final_fraction} of the peak"
            found.append(
                f"optimizer.decay_end={self.decay_end}: {what} in config.steps={steps}; 1.0 ends "
                "it with the run"
            )
        return found


def learning_rate(config: OptimizerConfig, step: jax.Array) -> jax.Array:
    """Learning rate of update `step`, counted from 0; `config` has no fractions, see `over`."""
    rate = config.learning_rate * jnp.minimum(1.0, step / max(config.warmup_steps, 1))
    if config.schedule == "constant":
        return rate
    done = (step - config.decay_begins) / (config.decay_end - config.decay_begins)
    done = jnp.clip(done, 0.0, 1.0)
    if config.schedule == "cosine":
        done = 0.5 * (1 - jnp.cos(jnp.pi * done))
    return rate * (1 - (1 - config.final_fraction) * done)


def make_optimizer(config: OptimizerConfig) -> optax.GradientTransformation:
    """The transformation at learning rate 1; a step multiplies its updates by the rate.

    It is of {"model": …, "projectors": …}.
    """
    moving = _moving(config)
    if not config.frozen:
        return moving
    return optax.partition({"moves": moving, "stays": optax.set_to_zero()}, _labels(config))


def held(config: OptimizerConfig, params: dict) -> dict:
    """A model's parameters with those that are frozen as constants."""
    return _per_leaf(
        lambda name, leaf: jax.lax.stop_gradient(leaf) if _is_frozen(config, name) else leaf, params
    )


def _is_frozen(config: OptimizerConfig, name: str) -> bool:
    """Whether the model's parameter of that path is."""
    return any(f"{name}/".startswith(f"{part}/") for part in config.frozen)


def _labels(config: OptimizerConfig) -> Callable[[dict], dict]:
    """What of {"model": …, "projectors": …} moves and what stays.

    Raises:
      InputError: when asked, of a setting that no parameter's path begins with.
    """

    def labels(params: dict) -> dict:
        def label(name: str, _: Any) -> str:
            root, _, name = name.partition("/")
            return "stays" if root == "model" and _is_frozen(config, name) else "moves"

        names = jax.tree.leaves(_per_leaf(lambda name, _: name, params["model"]))
        for part in config.frozen:
            if not any(f"{name}/".startswith(f"{part}/") for name in names):
                known = sorted({name.partition("/")[0] for name in names})
                raise InputError(
                    f"optimizer.frozen: no parameter's path begins with {part!r}; they begin with "
                    f"{', '.join(known)}"
                )
        return _per_leaf(label, params)

    return labels


def _moving(config: OptimizerConfig) -> optax.GradientTransformation:
    if config.name == "adamw":
        return optax.adamw(
            1.0,
            b1=config.beta1,
            b2=config.beta2,
            eps=config.epsilon,
            weight_decay=config.weight_decay,
            mask=functools.partial(_per_leaf, lambda name, _: name.endswith(DECAYED)),
        )
    return optax.contrib.muon(
        1.0,
        beta=config.beta1,
        weight_decay=config.weight_decay,
        adam_b1=config.beta1,
        adam_b2=config.beta2,
        muon_weight_dimension_numbers=functools.partial(_per_leaf, _matrix_axes),
        consistent_rms=0.2,
    )


def _per_leaf(function: Callable[[str, Any], Any], params: dict) -> dict:
    """A function of every leaf's path and value."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: function(jax.tree_util.keystr(path, simple=True, separator="/"), leaf),
        params,
    )


def _matrix_axes(name: str, leaf: Any) -> optax.contrib.MuonDimensionNumbers | None:
    """Which axes of a layer kernel are a matrix's inputs and outputs; the rest are batches."""
    axes = {
        "qkv": ((1,), (3, 4)),  # [L, D, 3, H, K]
        "kv": ((1,), (3, 4)),  # [L, D, 2, H, K]
        "q": ((1,), (2, 3)),  # [L, D, H, K]
        "out": ((1, 2), (3,)),  # [L, H, K, D]
        "up": ((1,), (2,)),  # [L, D, F]
        "down": ((1,), (2,)),  # [L, F, D]
    }.get(name.split("/")[-2])
    if axes is None or leaf.ndim != max(axes[1]) + 1:  # a map of that name outside of layers
        return None
    return optax.contrib.MuonDimensionNumbers(*axes)
