"""Which published tensor is which parameter of LPIPS with VGG16.

The usual downloads are torchvision's VGG16 and the linear layers of the lpips package; one file
with `lpips.LPIPS(net="vgg").state_dict()` has both under other names.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.files.stored import StoredTensor, printable
from efficient_lvsm_jax.metrics.lpips import (
    CONFIG,
    FAMILY,
    HOW_TO_GET_WEIGHTS,
    SCALE,
    SHIFT,
    WEIGHTS_FOLDER,
    Lpips,
    abstract_params,
)
from efficient_lvsm_jax.weights import folder as weights
from efficient_lvsm_jax.weights.source import HUB, fetch, open_state_dict, sha256
from efficient_lvsm_jax.weights.table import FLOATS

# Layer in the usual downloads, other name of it in a saved LPIPS module, parameters.
TABLE = """
features.0    net.slice1.0    conv1_1
features.2    net.slice1.2    conv1_2
features.5    net.slice2.5    conv2_1
features.7    net.slice2.7    conv2_2
features.10   net.slice3.10   conv3_1
features.12   net.slice3.12   conv3_2
features.14   net.slice3.14   conv3_3
features.17   net.slice4.17   conv4_1
features.19   net.slice4.19   conv4_2
features.21   net.slice4.21   conv4_3
features.24   net.slice5.24   conv5_1
features.26   net.slice5.26   conv5_2
features.28   net.slice5.28   conv5_3
lin0.model.1  lins.0.model.1  linear1
lin1.model.1  lins.1.model.1  linear2
lin2.model.1  lins.2.model.1  linear3
lin3.model.1  lins.3.model.1  linear4
lin4.model.1  lins.4.model.1  linear5
"""

# Everything else in a file is an error; these are left out, and why.
LEFT_OUT = {r"classifier\.[036]\.(weight|bias)": "VGG16's classifier, which LPIPS does not use"}
CONSTANTS = {"scaling_layer.shift": SHIFT, "scaling_layer.scale": SCALE}
CONSTANTS_REASON = "constants, equal to ours"
# Of the usual downloads, how their SHA-256 begins (torchvision's is part of the file name).
PUBLISHED = {"vgg16-397923af.pth": "397923af", "lpips v0.1 vgg.pth": "a78928a0af1e5f0f"}


@dataclasses.dataclass(frozen=True)
class LpipsConversion:
    """What `convert_lpips` wrote.

    Attributes:
      parameters: number of values.
      sources: name and SHA-256 of each file.
      unknown: names of files that are not among the usual downloads.
      left_out: number of tensors that were not taken over, by reason.
    """

    parameters: int
    sources: list[tuple[str, str]]
    unknown: list[str]
    left_out: dict[str, int]


def convert_lpips(sources: Sequence[str | Path], destination: str | Path) -> LpipsConversion:
    """Converts published weights of LPIPS 0.1 with VGG16 to a weights folder.

    Args:
      sources: files that together have all tensors, in any order, .pt, .pth or .safetensors, or
        hf://OWNER/REPO/FILE.
      destination: a new folder, for `efficient_lvsm_jax.metrics.lpips.load_lpips`.

    Raises:
      InputError: one report of all tensors that are missing, unexpected, contradictory, of a wrong
        shape or dtype, or not finite; or a file that cannot be read, or `destination` not written.
    """
    destination = Path(destination)
    if os.path.lexists(destination):
        raise InputError(f"{destination} already exists; name another, or remove it first")
    paths = [fetch(source) for source in sources]
    with contextlib.ExitStack() as stack:
        states = [stack.enter_context(open_state_dict(path)) for path in paths]
        params, left_out, problems = _bring_in(states)
    if problems:
        raise InputError(
            f"{', '.join(map(str, sources))}: not the weights of LPIPS 0.1 with VGG16; "
            f"{len(problems)} problems:\n  " + "\n  ".join(problems) + f"\n{HOW_TO_GET_WEIGHTS}"
        )
    names = [str(x) if str(x).startswith(HUB) else Path(x).name for x in sources]
    used = [(name, sha256(path)) for name, path in zip(names, paths, strict=True)]
    info = {
        "family": FAMILY,
        "config": CONFIG,
        "sources": [{"source": name, "sha256": digest} for name, digest in used],
    }
    weights.save_weights(destination, params, info)
    known = tuple(PUBLISHED.values())
    return LpipsConversion(
        parameters=sum(value.size for layer in params.values() for value in layer.values()),
        sources=used,
        unknown=[name for name, digest in used if not digest.startswith(known)],
        left_out=left_out,
    )


@dataclasses.dataclass(frozen=True)
class _Rule:
    """A parameter: its layer, leaf and shape, and the published names of its tensor."""

    layer: str
    leaf: str
    shape: tuple[int, ...]
    names: tuple[str, ...]

    @property
    def published_shape(self) -> tuple[int, ...]:
        """[out, in, y, x] of a convolution, [1, C, 1, 1] of channel weights, [C] of a bias."""
        match self.leaf, self.shape:
            case "kernel", (y, x, inputs, outputs):
                return (outputs, inputs, y, x)
            case "kernel", (channels,):
                return (1, channels, 1, 1)
        return self.shape

    def bring_in(self, tensor: np.ndarray) -> np.ndarray:
        """From the published layout to ours."""
        if len(self.shape) == 4:
            tensor = tensor.transpose(2, 3, 1, 0)
        return np.ascontiguousarray(tensor.reshape(self.shape))


def load_lpips(folder: str | Path) -> Lpips:
    """The distance from a folder that `python -m efficient_lvsm_jax.convert --lpips` wrote.

    Raises:
      InputError: no such folder (says where weights come from), other weights, or damaged ones.
    """
    folder = Path(folder)
    if not (folder / weights.WEIGHTS_FILE).is_file():
        raise InputError(f"{folder} holds no LPIPS weights: {HOW_TO_GET_WEIGHTS}")
    info = weights.read_weights_info(folder)
    if (info["family"], info["config"]) != (FAMILY, CONFIG):
        raise InputError(
            f"{folder}: holds weights of {info['family']} {info['config']}, not LPIPS 0.1 with "
            f"VGG16: {HOW_TO_GET_WEIGHTS}"
        )
    return Lpips(weights.restore_weights(folder, info, abstract_params()))


def find_lpips(folder: str | Path) -> Lpips | None:
    """The distance from `folder`; if it is "", from weights/lpips, or None if that does not exist.

    Raises:
      InputError: as `load_lpips`, also for a damaged weights/lpips.
    """
    if not str(folder) and not WEIGHTS_FOLDER.exists():
        return None
    return load_lpips(folder or WEIGHTS_FOLDER)


def _rules() -> list[_Rule]:
    abstract = abstract_params()
    leaves = {"kernel": "weight", "bias": "bias"}
    rules = []
    for line in TABLE.strip().splitlines():
        *names, layer = line.split()
        for leaf, value in abstract[layer].items():
            full_names = tuple(f"{name}.{leaves[leaf]}" for name in names)
            rules.append(_Rule(layer, leaf, value.shape, full_names))
    return rules


def _bring_in(states: Sequence[Mapping[str, Any]]) -> tuple[dict, dict[str, int], list[str]]:
    """Parameters (incomplete if there are problems), what was left out why, and all problems."""
    problems: list[str] = []
    tensors, left_out = _sort_out(states, problems)
    for name, expected in CONSTANTS.items():
        if name in tensors:
            value = _read(name, tensors.pop(name), (1, 3, 1, 1), problems)
            if value is not None and not np.allclose(value.ravel(), expected, atol=1e-6):
                problems.append(f"{name} is {value.ravel().tolist()}, expected {list(expected)}")
            left_out[CONSTANTS_REASON] += 1
    params: dict = {}
    for rule in _rules():
        found = [name for name in rule.names if name in tensors]
        values = [_read(name, tensors.pop(name), rule.published_shape, problems) for name in found]
        if not found:
            problems.append(f"missing: {rule.names[0]}")
        elif not any(value is None for value in values):
            if not all(np.array_equal(values[0], value) for value in values):
                problems.append(f"contradictory: {' and '.join(found)} should be equal")
            params.setdefault(rule.layer, {})[rule.leaf] = rule.bring_in(values[0])
    problems += [f"unexpected: {printable(name)}" for name in tensors]
    return params, dict(left_out), problems


def _sort_out(
    states: Sequence[Mapping[str, Any]], problems: list[str]
) -> tuple[dict[str, Any], collections.Counter]:
    """Entries of all files by name, and how many were left out why."""
    entries: dict[str, Any] = {}
    left_out: collections.Counter = collections.Counter()
    for name, value in ((str(name), value) for state in states for name, value in state.items()):
        reason = next((why for what, why in LEFT_OUT.items() if re.fullmatch(what, name)), None)
        if reason is not None:
            left_out[reason] += 1
        elif name in entries:
            problems.append(f"twice: {printable(name)}")
        else:
            entries[name] = value
    return entries, left_out


def _read(name: str, tensor: Any, shape: tuple[int, ...], problems: list[str]) -> np.ndarray | None:
    """The values as float32, or None and a problem why they cannot be used."""
    if not isinstance(tensor, StoredTensor):
        problems.append(f"not a tensor: {name} is a {type(tensor).__name__}")
    elif tensor.dtype.name not in FLOATS:
        problems.append(f"dtype: {name} is {tensor.dtype}, expected one of {', '.join(FLOATS)}")
    elif tensor.shape != shape:
        problems.append(f"shape: {name} is {tensor.shape}, expected {shape}")
    else:
        value = tensor.numpy().astype(np.float32)
        if np.isfinite(value).all():
            return value
        problems.append(f"not finite: {name} has NaN or infinite values")
    return None
