"""Which published tensor is which parameter of Efficient-LVSM, in both directions.

A published tensor is a PyTorch weight [out, in] of one layer; a parameter has an axis for every
meaning and its layers stacked on axis 0. The table names both and their layouts, from which follow
the shapes to expect, the way in and the way out.

Axes: D width, H head, K head dim, F hidden channels of an MLP; I, T, O the values of a patch in a
posed input picture (9 channels), in target rays (6) and in the output (3); L layer.
"""

from __future__ import annotations

import collections
import dataclasses
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from efficient_lvsm_jax.convert.stored import StoredTensor, printable
from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.models import ModelConfig

# Published name (* is the layer), parameter, published axes ("3HK,D": rows are split into thirds,
# heads and head channels), our axes without L.
TABLE = """
rgbp_tokenizer.1.weight                             input_tokenizer/kernel                 D,I    ID
target_pose_tokenizer.1.weight                      target_tokenizer/kernel                D,T    TD
image_token_decoder.1.weight                        head/kernel                            O,D    DO
input_self_attn_blocks.*.attn.to_qkv.weight         encoder/attention/qkv/kernel           3HK,D  D3HK
input_self_attn_blocks.*.attn.fc.weight             encoder/attention/out/kernel           D,HK   HKD
input_self_attn_blocks.*.attn.q_norm.weight         encoder/attention/q_norm/scale         K      K
input_self_attn_blocks.*.attn.k_norm.weight         encoder/attention/k_norm/scale         K      K
input_self_attn_blocks.*.mlp.mlp.0.weight           encoder/mlp/up/kernel                  F,D    DF
input_self_attn_blocks.*.mlp.mlp.2.weight           encoder/mlp/down/kernel                D,F    FD
self_cross_blocks.*.self_attn.to_qkv.weight         decoder/self_attention/qkv/kernel      3HK,D  D3HK
self_cross_blocks.*.self_attn.fc.weight             decoder/self_attention/out/kernel      D,HK   HKD
self_cross_blocks.*.self_attn.q_norm.weight         decoder/self_attention/q_norm/scale    K      K
self_cross_blocks.*.self_attn.k_norm.weight         decoder/self_attention/k_norm/scale    K      K
self_cross_blocks.*.cross_attn.to_q.weight          decoder/cross_attention/q/kernel       HK,D   DHK
self_cross_blocks.*.cross_attn.to_kv.weight         decoder/cross_attention/kv/kernel      2HK,D  D2HK
self_cross_blocks.*.cross_attn.fc.weight            decoder/cross_attention/out/kernel     D,HK   HKD
self_cross_blocks.*.cross_attn.q_norm.weight        decoder/cross_attention/q_norm/scale   K      K
self_cross_blocks.*.cross_attn.k_norm.weight        decoder/cross_attention/k_norm/scale   K      K
self_cross_blocks.*.mlp.mlp.0.weight                decoder/mlp/up/kernel                  F,D    DF
self_cross_blocks.*.mlp.mlp.2.weight                decoder/mlp/down/kernel                D,F    FD
"""  # noqa: E501 - a table is read by its columns

# Everything else in a file is an error; these are left out, and why.
LEFT_OUT = {
    r"loss_computer\..+": "perceptual loss network, used only in training",
    r"(repa_encoder|image_encoder)\..+": "feature teacher, used only in training",
    r"repa_projector\.(input|target)\.\d+\.\d+\.[024]\.(weight|bias)": (
        "projection to teacher features, used only in training"
    ),
}
PREFIXES = re.compile(r"(module\.|_orig_mod\.)*")  # of data-parallel and compiled training
FLOATS = ("float32", "float16", "bfloat16")
PATCH_CHANNELS = {"I": 9, "T": 6, "O": 3}
MAX_LAYERS = 256


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


RULES = tuple(Rule(*line.split()) for line in TABLE.strip().splitlines())


@dataclasses.dataclass(frozen=True)
class Published:
    """A published checkpoint as a model.

    Attributes:
      params: nested dict of float32 arrays.
      config: inferred from the shapes.
      tensors: how many tensors the parameters were made from.
      left_out: how many others were left out, by reason.
    """

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
      InputError: one report of all tensors that are missing, unexpected, of a wrong shape or of a
        wrong dtype; or the names of tensors with NaN or infinite values.
    """
    tensors, left_out, problems = _sort_out(state)
    layers = _count_layers(tensors)
    expected = {name: rule for rule in RULES for name in rule.names(layers)}
    problems += [f"missing: {name}" for name in expected if name not in tensors]
    problems += [f"unexpected: {printable(name)}" for name in tensors if name not in expected]
    found = {name: tensor for name, tensor in tensors.items() if name in expected}
    problems += [
        f"not a tensor: {name} is a {type(value).__name__}"
        for name, value in found.items()
        if not isinstance(value, StoredTensor)
    ]
    found = {name: value for name, value in found.items() if isinstance(value, StoredTensor)}
    config = _infer(found, expected, layers)
    sizes = config and axis_sizes(config)
    for name, tensor in found.items():
        problems += _misfits(name, tensor, expected[name], sizes)
    if problems or config is None:
        problems = problems or ["the sizes of its tensors do not belong together"]
        raise InputError(
            f"{path}: not the weights of an Efficient-LVSM model; {len(problems)} problems:\n  "
            + "\n  ".join(problems)
        )

    needed = sum(tensor.storage.nbytes for tensor in tensors.values())
    if needed > path.stat().st_size:
        raise InputError(
            f"{path}: its tensors share their values ({needed} bytes would be read); save copies "
            "of them"
        )
    params: dict = {}
    not_finite = []
    for rule in RULES:
        names = rule.names(layers)
        shape = [sizes[axis] for axis in rule.target_axes]
        value = np.empty((len(names), *shape), np.float32)
        for layer, name in enumerate(names):
            value[layer] = rule.bring_in(tensors[name].numpy(), sizes)
            if not np.isfinite(value[layer]).all():
                not_finite.append(name)
        _put(params, rule.target, value if rule.stacked else value[0])
    if not_finite:
        raise InputError(f"{path}: NaN or infinite values in {', '.join(not_finite)}")
    return Published(params, config, len(tensors), left_out)


def bring_out(params: Mapping[str, Any], config: ModelConfig) -> dict[str, np.ndarray]:
    """Parameters as float32 tensors with published names and layout; undoes `bring_in`."""
    sizes = axis_sizes(config)
    tensors = {}
    for rule in RULES:
        value = params
        for key in rule.target.split("/"):
            value = value[key]
        value = np.asarray(value)
        for name, layer in zip(
            rule.names(config.layers), value if rule.stacked else [value], strict=True
        ):
            tensors[name] = rule.bring_out(layer, sizes)
    return tensors


def count_tensors(config: ModelConfig) -> int:
    """How many tensors a published model has: 207 with twelve layers."""
    return sum(len(rule.names(config.layers)) for rule in RULES)


def axis_sizes(config: ModelConfig) -> dict[str, int]:
    """The size of every axis in the table."""
    patches = {axis: n * config.patch**2 for axis, n in PATCH_CHANNELS.items()}
    return {
        **patches,
        "D": config.width,
        "H": config.width // config.head_dim,
        "K": config.head_dim,
        "F": config.mlp_ratio * config.width,
        "2": 2,
        "3": 3,
    }


def _sort_out(state: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, int], list[str]]:
    """Entries by name without prefixes, how many were left out why, and names given twice."""
    entries: dict[str, Any] = {}
    left_out: collections.Counter = collections.Counter()
    twice = []
    for full_name, value in state.items():
        name = PREFIXES.sub("", str(full_name), count=1)
        reason = next((why for what, why in LEFT_OUT.items() if re.fullmatch(what, name)), None)
        if reason is not None:
            left_out[reason] += 1
        elif name in entries:
            twice.append(f"twice: {printable(name)}")
        else:
            entries[name] = value
    return entries, dict(left_out), twice


def _count_layers(names: Iterable[str]) -> int:
    found = (
        re.match(r"(?:input_self_attn|self_cross)_blocks\.(\d{1,4})\.", name) for name in names
    )
    return min(max((int(match[1]) for match in found if match), default=0) + 1, MAX_LAYERS)


def _infer(
    tensors: Mapping[str, StoredTensor], rules: Mapping[str, Rule], layers: int
) -> ModelConfig | None:
    """The configuration that most shapes speak for; None if there is none."""
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
    return ModelConfig(
        width=width, head_dim=head_dim, layers=layers, patch=patch, mlp_ratio=hidden // width
    )


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
