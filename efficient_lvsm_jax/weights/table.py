"""Lines of a table that says which published tensor is which parameter, and how it is laid out."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import numpy as np

FLOATS = ("float32", "float16", "bfloat16")


@dataclasses.dataclass(frozen=True)
class Rule:
    """A line of the table."""

    source: str
    target: str
    source_axes: str
    target_axes: str

    @property
    def stacked(self) -> bool:
        """Whether every layer has such a tensor."""
        return "*" in self.source

    @property
    def stack(self) -> str:
        """Published name of the stack of layers it belongs to."""
        return self.source.partition(".*")[0]

    def names(self, layers: int) -> list[str]:
        """Published names, by layer."""
        if not self.stacked:
            return [self.source]
        return [self.source.replace("*", str(layer)) for layer in range(layers)]

    def shape(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """Of the published tensor."""
        return tuple(
            math.prod(sizes[axis] for axis in group) for group in self.source_axes.split(",")
        )

    def bring_in(self, tensor: np.ndarray, sizes: Mapping[str, int]) -> np.ndarray:
        """From the published layout to ours, one layer."""
        axes = self.source_axes.replace(",", "")
        split = tensor.reshape([sizes[axis] for axis in axes])
        return split.transpose([axes.index(axis) for axis in self.target_axes])

    def bring_out(self, value: np.ndarray, sizes: Mapping[str, int]) -> np.ndarray:
        """From our layout to the published one, one layer."""
        axes = self.source_axes.replace(",", "")
        split = value.transpose([self.target_axes.index(axis) for axis in axes])
        return split.reshape(self.shape(sizes))


def rules_of(table: str) -> tuple[Rule, ...]:
    """The rules of a table: a line each, columns separated by blanks."""
    return tuple(Rule(*line.split()) for line in table.splitlines() if line.strip())
