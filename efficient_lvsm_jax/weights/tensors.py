"""Published tensors to parameters and back, by a layout: every tensor is used or accounted for."""

from __future__ import annotations

import collections
import dataclasses
import itertools
import re
import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.files.stored import (
    Placeholder,
    ScaledTensor,
    StoredTensor,
    described,
    printable,
)
from efficient_lvsm_jax.weights.entries import bare_name
from efficient_lvsm_jax.weights.shards import files_of
from efficient_lvsm_jax.weights.table import TIMES, Layout, Places, Rule, Votes

FLOATS = ("float32", "float16", "bfloat16")
CONSTANTS = "constants, equal to ours"


@dataclasses.dataclass(frozen=True)
class Published:
    """A published checkpoint as a network.

    Attributes:
      family: its name, as in its layout.
      params: nested dict of float32 arrays.
      config: inferred from the shapes.
      tensors: how many tensors the parameters were made from.
      left_out: how many others were left out, by reason.
      sizes: (height, width) of the pictures it was trained on, where the file says so.
    """

    family: str
    params: dict
    config: Any
    tensors: int
    left_out: dict[str, int]
    sizes: tuple[tuple[int, int], ...] = ()


def params_of(
    files: Sequence[tuple[Path, Mapping[str, Any]]],
    layout: Layout,
    told: Mapping[str, Any] = types.MappingProxyType({}),
) -> Published:
    """Parameters and configuration from published tensors.

    Values are read one tensor at a time, the bytes that tensors are parts of once, and no more of
    them than the files have.

    Args:
      files: one or several (or the index of several) that together have all tensors, each with its
        entries by published name, with or without words of wrappers.
      layout: how they are published.
      told: settings of the configuration that files do not say.

    Raises:
      InputError: one report of all tensors that are missing, unexpected, given twice, of a wrong
        dtype or shape, not finite, other than the constant or the other copy that they should
        equal, or that share their values; and of settings that tensors contradict.
    """
    tensors, left_out, problems = _sort_out(files, layout)
    numbers = layout.numbers(tensors)
    places = layout.places(numbers)
    rules = {name: rule for rule, rows in places.items() for names in rows for name in names}
    problems += [
        f"missing: {names[0]}"
        for rule, rows in places.items()
        for names in rows
        if rule.constant is None and not any(name in tensors for name in names)
    ]
    config = sizes = None
    try:
        config = layout.infer(_votes(tensors, rules), {**told, **numbers})
        sizes = layout.sizes(config)
        problems += [
            f"setting: {name}={value} was told, but its tensors say {getattr(config, name)}"
            for name, value in told.items()
            if getattr(config, name) != value
        ]
    except InputError as error:
        problems.append(str(error))
    misfits = {name: _misfits(name, x, rules.get(name), sizes) for name, x in tensors.items()}
    problems += [problem for misfit in misfits.values() for problem in misfit]
    found = {name: tensor for name, tensor in tensors.items() if not misfits[name]}
    # Other names of a tensor do not count: a saved module may have one tensor under both.
    first = (next(filter(found.get, names), None) for rows in places.values() for names in rows)
    needed = {name: found[name] for name in first if name}
    size = sum(file.stat().st_size for path, _ in files for file in files_of(path))
    total = sum(tensor.nbytes for tensor in needed.values())
    problems += _overlaps(needed)
    if total > size:
        problems.append(
            f"its tensors share their values ({total} bytes would be read of {size}); save copies "
            "of them"
        )
    elif sizes is not None:
        params, flaws = _read(found, places, sizes, keep=not problems)
        problems += flaws
    if problems:
        raise InputError(
            f"{', '.join(str(path) for path, _ in files)}: not the weights of a model (read as "
            f"{layout.title}); {len(problems)} problems:\n  "
            + "\n  ".join(problems)
            + (f"\n{layout.where}" if layout.where else "")
        )
    constants = sum(rules[name].constant is not None for name in tensors)
    left_out += {CONSTANTS: constants}
    return Published(layout.family, params, config, len(tensors) - constants, dict(left_out))


def tensors_of(
    params: Mapping[str, Any], layout: Layout, config: Any, numbers: Mapping[str, int]
) -> dict[str, np.ndarray]:
    """Parameters as float32 tensors with published names and layout; undoes `params_of`.

    Args:
      params: nested dict of arrays.
      layout: one without products; its constants are left out.
      config: of the network.
      numbers: layers of every stack and 0 or 1 of every optional part, by setting.
    """
    sizes = layout.sizes(config)
    tensors = {}
    for rule, rows in layout.places(numbers).items():
        if rule.constant is None:
            value = params
            for key in rule.target.split("/"):
                value = value[key]
            value = np.asarray(value)
            for names, layer in zip(rows, value if rule.stacked else [value], strict=True):
                tensors[names[0]] = rule.bring_out(layer, sizes)
    return tensors


def _sort_out(
    files: Sequence[tuple[Path, Mapping[str, Any]]], layout: Layout
) -> tuple[dict[str, Any], collections.Counter, list[str]]:
    """Entries of the network by bare name, how many others were left out why, what is repeated."""
    entries: dict[str, Any] = {}
    left_out: dict[str, str] = {}
    full_names: dict[str, str] = {}
    twice = []
    for full_name, value in (item for _, state in files for item in state.items()):
        name = bare_name(full_name)
        reasons = (why for what, why in layout.left_out.items() if re.fullmatch(what, name))
        if name in full_names:
            twice.append(
                f"twice: {printable(name)}, as {printable(str(full_names[name]))} and "
                f"{printable(str(full_name))}"
            )
            continue
        full_names[name] = full_name
        if reason := next(reasons, None):
            left_out[name] = reason
        else:
            entries[name] = value
    return entries, collections.Counter(left_out.values()), twice


def _votes(tensors: Mapping[str, Any], rules: Mapping[str, Rule]) -> Votes:
    """How many tensors have which size of an axis; empty axes have no vote."""
    votes: dict[str, collections.Counter] = collections.defaultdict(collections.Counter)
    for name, rule in rules.items():
        axes = rule.source_axes.split(",")
        shape = getattr(tensors.get(name), "shape", ())
        if len(axes) == len(shape):
            for axis, size in zip(axes, shape, strict=True):
                votes[axis].update([size] if size else [])
    return votes


def _misfits(
    name: str, value: Any, rule: Rule | None, sizes: Mapping[str, int] | None
) -> list[str]:
    """Why an entry is not the tensor that its place is for."""
    if rule is None:
        what = f", {value.what}" if isinstance(value, Placeholder) else ""
        return [f"unexpected: {printable(name)}{what}"]
    if not isinstance(value, StoredTensor):
        return [f"not a tensor: {name} is {described(value)}"]
    problems = []
    if value.dtype.name not in FLOATS and not isinstance(value, ScaledTensor):
        problems.append(f"dtype: {name} is {value.dtype}, expected one of {', '.join(FLOATS)}")
    axes = rule.source_axes.count(",") + 1
    if sizes is None and len(value.shape) != axes:
        problems.append(f"shape: {name} is {value.shape}, expected {axes} axes")
    if sizes is not None and value.shape != rule.source_shape(sizes):
        problems.append(f"shape: {name} is {value.shape}, expected {rule.source_shape(sizes)}")
    return problems


def _overlaps(tensors: Mapping[str, StoredTensor]) -> list[str]:
    """Which tensors lie over each other in part; the same tensor may have several names."""
    extents = sorted(
        (id(tensor.storage.read), start, start + tensor.nbytes, name)
        for name, tensor in tensors.items()
        if tensor.dense
        for start in [tensor.storage.start + tensor.offset * tensor.dtype.itemsize]
    )
    return [
        f"overlapping: {one} and {other} share some of their values; save copies of them"
        for (file, start, end, one), (again, next_start, next_end, other) in itertools.pairwise(
            extents
        )
        if file == again and next_start < end and (start, end) != (next_start, next_end)
    ]


def _read(
    found: Mapping[str, StoredTensor], places: Places, sizes: Mapping[str, int], *, keep: bool
) -> tuple[dict, list[str]]:
    """Parameters, empty unless `keep`, and what is wrong with values."""
    params: dict = {}
    problems: list[str] = []
    read = _reader(found)
    for rule, rows in places.items():
        values = (_values(found, names, read, problems) for names in rows)
        keeps = keep and rule.constant is None
        stacked = np.empty((len(rows), *rule.target_shape(sizes)), np.float32) if keeps else None
        for layer, value in enumerate(values):
            if keeps and value is not None:
                stacked[layer] = rule.bring_in(value, sizes)
            elif rule.constant and value is not None:
                if not np.allclose(given := value.ravel(), rule.constant, atol=1e-6):
                    problems.append(
                        f"constant: {rows[layer][0]} is {given.tolist()}, expected {rule.constant}"
                    )
        if keeps:
            _put(params, rule.target, stacked if rule.stacked else stacked[0])
    return params, problems


def _reader(found: Mapping[str, StoredTensor]) -> Callable[[StoredTensor], np.ndarray]:
    """Reads each of the tensors once, and the bytes that several are parts of once."""
    waiting = collections.Counter(tensor.storage.read for tensor in found.values())
    kept: dict[Callable, np.ndarray] = {}

    def read(tensor: StoredTensor) -> np.ndarray:
        source = tensor.storage.read
        data = kept.pop(source) if source in kept else source()
        waiting[source] -= 1
        if waiting[source]:
            kept[source] = data
        return tensor.laid_in(data)

    return read


def _values(
    found: Mapping[str, StoredTensor],
    names: Sequence[str],
    read: Callable[[StoredTensor], np.ndarray],
    problems: list[str],
) -> np.ndarray | None:
    """The values of the tensor with one of these names, float32; problems are added."""
    names = [name for name in names if name in found]
    first = None
    for name in names:
        value = read(found[name]).astype(np.float32, copy=False)
        if not np.isfinite(value).all():
            problems.append(f"not finite: {name} has NaN or infinite values")
        elif first is None:
            first = value
        elif not np.array_equal(first, value):
            problems.append(f"contradictory: {' and '.join(names)} should be equal")
    return first


def _put(tree: dict, target: str, value: np.ndarray) -> None:
    *folders, leaf = target.removeprefix(TIMES).split("/")
    for folder in folders:
        tree = tree.setdefault(folder, {})
    tree[leaf] = tree[leaf] * value if target.startswith(TIMES) else value
