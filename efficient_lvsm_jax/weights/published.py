"""Published checkpoints to parameters and back: every tensor is used or accounted for."""

from __future__ import annotations

import collections
import dataclasses
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.files.stored import StoredTensor, printable
from efficient_lvsm_jax.models.view_synthesis import ModelConfig
from efficient_lvsm_jax.weights.layouts import LAYOUTS, Layout, layout_named, layout_of
from efficient_lvsm_jax.weights.table import FLOATS, Rule

PREFIXES = re.compile(r"(module\.|_orig_mod\.)*")  # of data-parallel and compiled training
PATCH_CHANNELS = {"I": 9, "T": 6, "O": 3}


@dataclasses.dataclass(frozen=True)
class Published:
    """A published checkpoint as a model.

    Attributes:
      family: its name in `models.families`.
      params: nested dict of float32 arrays.
      config: inferred from the shapes.
      tensors: how many tensors the parameters were made from.
      left_out: how many others were left out, by reason.
    """

    family: str
    params: dict
    config: ModelConfig
    tensors: int
    left_out: dict[str, int]


def bring_in(path: Path, state: Mapping[str, Any]) -> Published:
    """Parameters and configuration from a published state dict.

    Args:
      path: the file, for messages; no more bytes are read than it has.
      state: tensors by published name, with or without prefixes.

    Raises:
      InputError: tensors of no family that is known; one report of all tensors that are missing,
        unexpected, of a wrong shape or of a wrong dtype; or the names of tensors with NaN or
        infinite values.
    """
    entries, problems = _without_prefixes(state)
    layout = layout_of(entries)
    if layout is None:
        raise InputError(f"{path}: {_unknown(entries)}")
    tensors, left_out = _sort_out(entries, layout)
    layers = layout.count_layers(tensors)
    expected = layout.names(layers)
    problems += [f"missing: {name}" for name in expected if name not in tensors]
    problems += [f"unexpected: {printable(name)}" for name in tensors if name not in expected]
    found = {name: tensor for name, tensor in tensors.items() if name in expected}
    problems += [
        f"not a tensor: {name} is a {type(value).__name__}"
        for name, value in found.items()
        if not isinstance(value, StoredTensor)
    ]
    found = {name: value for name, value in found.items() if isinstance(value, StoredTensor)}
    config = _infer(found, layout, layers)
    sizes = config and axis_sizes(config)
    for name, tensor in found.items():
        problems += _misfits(name, tensor, expected[name], sizes)
    if problems or config is None:
        problems = problems or ["the sizes of its tensors do not belong together"]
        raise InputError(
            f"{path}: not the weights of a model (read as {layout.title}); {len(problems)} "
            "problems:\n  " + "\n  ".join(problems)
        )

    needed = sum(tensor.storage.nbytes for tensor in tensors.values())
    if needed > path.stat().st_size:
        raise InputError(
            f"{path}: its tensors share their values ({needed} bytes would be read); save copies "
            "of them"
        )
    params: dict = {}
    not_finite = []
    for rule in layout.rules:
        names = layout.names_of(rule, layers)
        shape = [sizes[axis] for axis in rule.target_axes]
        value = np.empty((len(names), *shape), np.float32)
        for layer, name in enumerate(names):
            value[layer] = rule.bring_in(tensors[name].numpy(), sizes)
            if not np.isfinite(value[layer]).all():
                not_finite.append(name)
        _put(params, rule.target, value if rule.stacked else value[0])
    if not_finite:
        raise InputError(f"{path}: NaN or infinite values in {', '.join(not_finite)}")
    return Published(layout.family, params, config, len(tensors), left_out)


def bring_out(params: Mapping[str, Any], family: str, config: ModelConfig) -> dict[str, np.ndarray]:
    """Parameters as float32 tensors with published names and layout; undoes `bring_in`."""
    layout = layout_named(family)
    sizes = axis_sizes(config)
    tensors = {}
    for rule in layout.rules:
        value = params
        for key in rule.target.split("/"):
            value = value[key]
        value = np.asarray(value)
        names = layout.names_of(rule, config.architecture)
        for name, layer in zip(names, value if rule.stacked else [value], strict=True):
            tensors[name] = rule.bring_out(layer, sizes)
    return tensors


def count_tensors(family: str, config: ModelConfig) -> int:
    """How many tensors a published model has: 207 of an Efficient-LVSM with twelve layers."""
    return len(layout_named(family).names(config.architecture))


def axis_sizes(config: ModelConfig) -> dict[str, int]:
    """The size of every axis in the table."""
    patches = {axis: n * config.patch**2 for axis, n in PATCH_CHANNELS.items()}
    return {
        **patches,
        "D": config.width,
        "H": config.width // config.head_dim,
        "K": config.head_dim,
        "F": config.mlp_ratio * config.width,
        "Z": config.architecture.get("latents", 0),
        "2": 2,
        "3": 3,
    }


def _without_prefixes(state: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Entries by name without prefixes, and names given twice."""
    entries: dict[str, Any] = {}
    twice = []
    for full_name, value in state.items():
        name = PREFIXES.sub("", str(full_name), count=1)
        if name in entries:
            twice.append(f"twice: {printable(name)}")
        entries.setdefault(name, value)
    return entries, twice


def _sort_out(entries: Mapping[str, Any], layout: Layout) -> tuple[dict[str, Any], dict[str, int]]:
    """Entries of the model, and how many others were left out why."""
    tensors: dict[str, Any] = {}
    left_out: collections.Counter = collections.Counter()
    for name, value in entries.items():
        reasons = (why for what, why in layout.left_out.items() if re.fullmatch(what, name))
        if (reason := next(reasons, None)) is None:
            tensors[name] = value
        else:
            left_out[reason] += 1
    return tensors, dict(left_out)


def _unknown(names: Iterable[str]) -> str:
    known = "; ".join(
        f"{layout.title} ({', '.join(f'{stack}.*' for stack in layout.depths)})"
        for layout in LAYOUTS
    )
    names = [printable(name) for name in names]
    shown = ", ".join(names[:5]) + (", …" if len(names) > 5 else "")
    return (
        "not the weights of a family that this program knows, by the names of its tensors: "
        f"{shown or 'it has none'}. Known are {known}"
    )


def _infer(
    tensors: Mapping[str, StoredTensor], layout: Layout, layers: Mapping[str, int]
) -> ModelConfig | None:
    """The configuration that most shapes speak for; None if there is none."""
    rules = layout.names(layers)
    votes: dict[str, collections.Counter] = collections.defaultdict(collections.Counter)
    for name, tensor in tensors.items():
        axes = rules[name].source_axes.split(",")
        if len(axes) == len(tensor.shape):
            for axis, size in zip(axes, tensor.shape, strict=True):
                votes[axis][size] += 1
    for axis, channels in PATCH_CHANNELS.items():
        votes["patch"].update(math.isqrt(size // channels) for size in votes[axis])
    width, hidden, head_dim, patch = (
        max(votes[axis], key=votes[axis].get, default=0) for axis in ("D", "F", "K", "patch")
    )
    if not (width and hidden and head_dim and patch) or width % head_dim or hidden % width:
        return None
    numbers = dict(layers, width=width, head_dim=head_dim, patch=patch, mlp_ratio=hidden // width)
    if any("Z" in rule.source_axes for rule in layout.rules):
        if not any(votes["Z"]):
            return None
        numbers["latents"] = max(votes["Z"], key=votes["Z"].get)
    return layout.configure(numbers)


def _misfits(
    name: str, tensor: StoredTensor, rule: Rule, sizes: Mapping[str, int] | None
) -> list[str]:
    problems = []
    if tensor.dtype.name not in FLOATS:
        problems.append(f"dtype: {name} is {tensor.dtype}, expected one of {', '.join(FLOATS)}")
    axes = rule.source_axes.count(",") + 1
    if sizes is None and len(tensor.shape) != axes:
        problems.append(f"shape: {name} is {tensor.shape}, expected {axes} axes")
    if sizes is not None and tensor.shape != rule.shape(sizes):
        problems.append(f"shape: {name} is {tensor.shape}, expected {rule.shape(sizes)}")
    return problems


def _put(tree: dict, path: str, value: np.ndarray) -> None:
    *folders, leaf = path.split("/")
    for folder in folders:
        tree = tree.setdefault(folder, {})
    tree[leaf] = value
