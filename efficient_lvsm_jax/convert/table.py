"""Which published tensor is which parameter, in both directions.

A published tensor is a PyTorch weight [out, in], layers apart; a parameter has named axes and its
layers stacked on axis 0. A rule says both layouts, with the axes

    D width  F hidden channels of an MLP  H head  K head dim
    I, T, O values of a patch: posed picture (9 channels), rays (6), picture out (3)

and the rest follows from it: the shape to expect, the way in, the way out.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from efficient_lvsm_jax.convert.stored import StoredTensor, printable
from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.models import ModelConfig

LAYER = "{layer}"
PREFIX = re.compile(r"^(module\.|_orig_mod\.)+")  # of data parallel and compiled training
MAX_LAYERS = 1000
FLOATS = ("float32", "float16", "bfloat16")


@dataclasses.dataclass(frozen=True)
class Rule:
    """A published name, the parameter it is, and the layouts of both."""

    source: str
    target: str
    source_axes: str
    target_axes: str

    @property
    def stacked(self) -> bool:
        """Whether there is one such tensor a layer."""
        return LAYER in self.source

    def shape(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """Of the published tensor."""
        return tuple(
            int(np.prod([sizes[axis] for axis in group])) for group in self.source_axes.split()
        )

    def bring_in(self, tensor: np.ndarray, sizes: Mapping[str, int]) -> np.ndarray:
        """Published layout to ours."""
        axes = self.source_axes.replace(" ", "")
        split = tensor.reshape([sizes[axis] for axis in axes])
        return split.transpose([axes.index(axis) for axis in self.target_axes])

    def bring_out(self, value: np.ndarray, sizes: Mapping[str, int]) -> np.ndarray:
        """Our layout to the published one."""
        axes = self.source_axes.replace(" ", "")
        split = value.transpose([self.target_axes.index(axis) for axis in axes])
        return split.reshape(self.shape(sizes))


def _attention(source: str, target: str, projections: tuple[tuple[str, str], ...]) -> list[Rule]:
    rules = []
    for name, parts in projections:
        rows, axes = f"{parts}HK", f"D{parts}HK"
        rules.append(
            Rule(f"{source}.to_{name}.weight", f"{target}/{name}/kernel", f"{rows} D", axes)
        )
    rules.append(Rule(f"{source}.fc.weight", f"{target}/out/kernel", "D HK", "HKD"))
    for norm in ("q_norm", "k_norm"):
        rules.append(Rule(f"{source}.{norm}.weight", f"{target}/{norm}/scale", "K", "K"))
    return rules


def _mlp(source: str, target: str) -> list[Rule]:
    return [
        Rule(f"{source}.mlp.mlp.0.weight", f"{target}/mlp/up/kernel", "F D", "DF"),
        Rule(f"{source}.mlp.mlp.2.weight", f"{target}/mlp/down/kernel", "D F", "FD"),
    ]
