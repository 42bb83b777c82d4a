"""What a layout is: a table that says which published tensor is which parameter, and around it.

A published tensor is a PyTorch weight [out, in] of one layer; a parameter has an axis for every
meaning and its layers stacked on axis 0. A table names both and their axes, from which follow the
shapes to expect, the way in and the way out.
"""

from __future__ import annotations

import collections
import dataclasses
import math
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import numpy as np

from efficient_lvsm_jax.errors import InputError

MAX_LAYERS = 256
TIMES = "×"
Votes = Mapping[str, collections.Counter]


@dataclasses.dataclass(frozen=True)
class Rule:
    """A line of the table.

    Attributes:
      source: published name; * is the layer. Other names of the same tensor follow after |.
      target: path of the parameter. With × before it, what stands there is multiplied by the
        tensor; =0.5,1 is no parameter but what the tensor must hold, if it is there.
      source_axes: of the published tensor, separated by commas. A letter is a meaning and a digit
        its own size: rows of "3HK,D" are split into thirds, heads and head channels.
      target_axes: ours, without that of layers; the same letters. Axes of size 1 come and go.
    """

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

    @property
    def constant(self) -> list[float] | None:
        """The values that the tensor must hold, if it is no parameter."""
        is_constant = self.target.startswith("=")
        return [float(x) for x in self.target[1:].split(",")] if is_constant else None

    def names(self, layers: Iterable[int]) -> list[list[str]]:
        """Published names by layer, each with its alternatives."""
        names = self.source.split("|")
        return [[name.replace("*", str(layer)) for name in names] for layer in layers]

    def source_shape(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """Of the published tensor."""
        return tuple(math.prod(_shape(group, sizes)) for group in self.source_axes.split(","))

    def target_shape(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """Of the parameter, one layer."""
        return _shape(self.target_axes, sizes)

    def bring_in(self, tensor: np.ndarray, sizes: Mapping[str, int]) -> np.ndarray:
        """From the published layout to ours, one layer."""
        theirs, ours = _longer(self.source_axes), _longer(self.target_axes)
        split = tensor.reshape(_shape(theirs, sizes))
        turned = split.transpose([theirs.index(axis) for axis in ours])
        return turned.reshape(self.target_shape(sizes))

    def bring_out(self, value: np.ndarray, sizes: Mapping[str, int]) -> np.ndarray:
        """From our layout to the published one, one layer."""
        theirs, ours = _longer(self.source_axes), _longer(self.target_axes)
        split = value.reshape(_shape(ours, sizes))
        turned = split.transpose([ours.index(axis) for axis in theirs])
        return turned.reshape(self.source_shape(sizes))


Places = dict[Rule, list[list[str]]]


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a network is published.

    Attributes:
      family: its name in our files.
      title: its name in messages.
      rules: its table.
      infer: its configuration from the sizes that shapes speak for, see `most_voted`, and from
        `numbers`. Raises InputError if they do not belong together.
      sizes: the size of every axis in the table that is no digit, from the configuration.
      depths: published name of every stack of layers, and the setting that says how many.
      starts: beginning of the name, after that of the layer, of tensors that the first layers of a
        stack lack, by the stack, and the setting that says how many lack them.
      shares: where the parameters of a part of a stack are, and which layers these are by the
        settings above; a stack that is not named here has all.
      optional: published name of every part that may be absent as a whole, and the setting that
        says whether it is there.
      left_out: what else may be in a file (regular expressions), and why it is not needed.
      where: where people get the files, for messages.
    """

    family: str
    title: str
    rules: tuple[Rule, ...]
    infer: Callable[[Votes, Mapping[str, int]], Any]
    sizes: Callable[[Any], Mapping[str, int]]
    depths: Mapping[str, str] = dataclasses.field(default_factory=dict)
    starts: Mapping[str, tuple[str, str]] = dataclasses.field(default_factory=dict)
    shares: Mapping[str, Callable[[Mapping[str, int]], range]] = dataclasses.field(
        default_factory=dict
    )
    optional: Mapping[str, str] = dataclasses.field(default_factory=dict)
    left_out: Mapping[str, str] = dataclasses.field(default_factory=dict)
    where: str = ""

    def numbers(self, names: Collection[str]) -> dict[str, int]:
        """Layers of every stack and where tensors start, and 0 or 1 for optional parts, by setting.

        The highest layer counts, so a file without its last layers is a smaller model; stacks of
        one setting must agree.
        """
        numbers = dict.fromkeys(self.depths.values(), 1)
        for stack, setting in self.depths.items():
            layers = [layer + 1 for layer in _layers(stack, "", names)]
            numbers[setting] = max(numbers[setting], min(max(layers, default=1), MAX_LAYERS))
        for stack, (tensors, setting) in self.starts.items():
            numbers[setting] = min(_layers(stack, tensors, names), default=0)
        for part, setting in self.optional.items():
            numbers[setting] = int(any(name.startswith(f"{part}.") for name in names))
        return numbers

    def places(self, numbers: Mapping[str, int]) -> Places:
        """Published names of every rule by layer, each with its alternatives."""
        absent = tuple(f"{part}." for part, has in self.optional.items() if not numbers[has])
        return {
            rule: rule.names(self._layers(rule, numbers))
            for rule in self.rules
            if not rule.source.startswith(absent)
        }

    def _layers(self, rule: Rule, numbers: Mapping[str, int]) -> range:
        if not rule.stacked:
            return range(1)
        shares = (share for part, share in self.shares.items() if rule.target.startswith(part))
        every = range(numbers[self.depths[rule.stack]])
        return next((share(numbers) for share in shares), every)


def rules_of(table: str) -> tuple[Rule, ...]:
    """The rules of a table: a line each, columns separated by blanks."""
    return tuple(Rule(*line.split()) for line in table.splitlines() if line.strip())


def most_voted(votes: Votes, axis: str) -> int:
    """The size of an axis that most tensors have. Raises InputError if none has one."""
    if not votes[axis]:
        raise InputError(f"size: no tensor says how long axis {axis} is")
    return max(votes[axis], key=votes[axis].get)


def _layers(stack: str, tensors: str, names: Collection[str]) -> list[int]:
    """Layers of a stack that have tensors whose names go on like that."""
    found = re.compile(rf"{re.escape(stack)}\.(\d{{1,4}})\.{re.escape(tensors)}")
    return [int(match[1]) for match in map(found.match, names) if match]


def _longer(axes: str) -> str:
    """Axes that are no separators and not of size 1."""
    return axes.replace(",", "").replace("1", "")


def _shape(axes: str, sizes: Mapping[str, int]) -> tuple[int, ...]:
    return tuple(int(axis) if axis.isdigit() else sizes[axis] for axis in axes)
