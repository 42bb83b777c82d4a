"""Which published tensor is which parameter of a DINOv3 or DINOv2 teacher, and reading their files.

Axes: D width, H head, K head dim, F hidden channels of an MLP, Y X pixel of a patch, C colour,
S storage token, T entry of the position table, P rotary period; A B axes of one. Layers are
stacked on axis 0.
"""

from __future__ import annotations

import collections
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from efficient_lvsm_jax.backbones.backbone import Teacher, TeacherConfig, abstract_params
from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.files.stored import StoredTensor, printable
from efficient_lvsm_jax.weights.source import fetch, open_state_dict
from efficient_lvsm_jax.weights.table import FLOATS, Rule

# As in `table`: published name (* is the layer), parameter, published axes, our axes.
SHARED = """
cls_token                 cls                  A,B,D    ABD
patch_embed.proj.weight   patches/kernel       D,C,Y,X  YXCD
patch_embed.proj.bias     patches/bias         D        D
blocks.*.norm1.weight     blocks/norm1/scale   D        D
blocks.*.norm1.bias       blocks/norm1/bias    D        D
blocks.*.attn.qkv.weight  blocks/qkv/kernel    3HK,D    D3HK
blocks.*.attn.qkv.bias    blocks/qkv/bias      3HK      3HK
blocks.*.attn.proj.weight blocks/out/kernel    D,HK     HKD
blocks.*.attn.proj.bias   blocks/out/bias      D        D
blocks.*.ls1.gamma        blocks/scale1        D        D
blocks.*.norm2.weight     blocks/norm2/scale   D        D
blocks.*.norm2.bias       blocks/norm2/bias    D        D
blocks.*.mlp.fc1.weight   blocks/up/kernel     F,D      DF
blocks.*.mlp.fc1.bias     blocks/up/bias       F        F
blocks.*.mlp.fc2.weight   blocks/down/kernel   D,F      FD
blocks.*.mlp.fc2.bias     blocks/down/bias     D        D
blocks.*.ls2.gamma        blocks/scale2        D        D
"""
OWN = {
    "dinov3": """
storage_tokens            storage              A,S,D    ASD
rope_embed.periods        periods              P        P
blocks.*.attn.qkv.bias_mask  blocks/qkv/bias   3HK      3HK
""",
    "dinov2": """
pos_embed                 positions            A,T,D    ATD
""",
}
RULES = {
    family: tuple(Rule(*line.split()) for line in (SHARED + own).split("\n") if line)
    for family, own in OWN.items()
}
# Everything else in a file is an error; these are left out, and why.
LEFT_OUT = {
    "mask_token": "stands for hidden patches, of which there are none",
    r"norm\.(weight|bias)": "final norm; features are taken before it",
}
# Two tensors fill one parameter here: their product.
PRODUCT = "blocks/qkv/bias"

PUBLISHED_HEAD_DIM = 64
MAX_LAYERS = 256
OTHER_NAMING = re.compile(r"(dinov2\.|model\.)?(embeddings\.|encoder\.layer\.|(model\.)?layer\.\d)")
HOW_TO_GET_WEIGHTS = (
    "DINOv3 ViT-B/16 is dinov3_vitb16_pretrain_lvd1689m-73cec8be.pth, sent after accepting the "
    "licence at https://ai.meta.com/resources/models-and-libraries/dinov3-downloads/; DINOv2 "
    "ViT-B/14 is https://dl.fbaipublicfiles.com/dinov2/dinov2_vitb14/dinov2_vitb14_pretrain.pth"
)


def load_teacher(source: str | Path, *, head_dim: int | None = None) -> Teacher:
    """A teacher from a file as its authors publish it; which one it is follows from the tensors.

    Args:
      source: a .pth, .pt or .safetensors file with the published names, or hf://OWNER/REPO/FILE.
        Reading it never executes anything.
      head_dim: of DINOv2, where nothing in the file tells it; None is the published 64. DINOv3's
        follows from its rotary periods.

    Returns:
      All layers, float32, on the host; see `Teacher.frozen`.

    Raises:
      InputError: no such file (says where people get it), not one that can be read, or one report
        of all tensors that are missing, unexpected, of a wrong shape or dtype, or not finite.
    """
    path = fetch(source)
    if not path.exists():
        raise InputError(f"{source}: no such file. {HOW_TO_GET_WEIGHTS}")
    with open_state_dict(path) as state:
        config, rules, tensors = _plan(path, state, head_dim)
        return Teacher(config, _bring_in(path, config, rules, tensors))


def _plan(
    path: Path, state: Mapping[str, Any], head_dim: int | None
) -> tuple[TeacherConfig, dict[str, Rule], dict[str, StoredTensor]]:
    """The configuration, and rules and tensors by published name, if every tensor is in place."""
    tensors = {
        name: value
        for name, value in ((str(name), value) for name, value in state.items())
        if not any(re.fullmatch(what, name) for what in LEFT_OUT)
    }
    if any(OTHER_NAMING.match(name) for name in tensors):
        raise InputError(
            f"{path}: names its tensors as the Transformers library does; expected the file its "
            f"authors publish. {HOW_TO_GET_WEIGHTS}"
        )
    family = "dinov2" if "pos_embed" in tensors else "dinov3"
    layers = _count_layers(tensors)
    rules = {name: rule for rule in RULES[family] for name in rule.names(layers)}
    problems = [f"missing: {name}" for name in rules if name not in tensors]
    problems += [f"unexpected: {printable(name)}" for name in tensors if name not in rules]
    for name, tensor in tensors.items():
        if name in rules and not isinstance(tensor, StoredTensor):
            problems.append(f"not a tensor: {name} is a {type(tensor).__name__}")
        elif name in rules and tensor.dtype.name not in FLOATS:
            expected = ", ".join(FLOATS)
            problems.append(f"dtype: {name} is {tensor.dtype}, expected one of {expected}")
    if not problems:
        config, problems = _configuration(family, layers, tensors, head_dim)
    if not problems:
        sizes = _axis_sizes(config)
        problems = [
            f"shape: {name} is {tensors[name].shape}, expected {rule.shape(sizes)}"
            for name, rule in rules.items()
            if tensors[name].shape != rule.shape(sizes)
        ]
    needed = sum(x.storage.nbytes for x in tensors.values() if isinstance(x, StoredTensor))
    if not problems and needed > path.stat().st_size:
        problems = [f"its tensors share their values ({needed} bytes would be read)"]
    if problems:
        raise InputError(
            f"{path}: not the weights of a DINOv3 or DINOv2 teacher (read as {family}); "
            f"{len(problems)} problems:\n  " + "\n  ".join(problems) + f"\n{HOW_TO_GET_WEIGHTS}"
        )
    return config, rules, tensors


def _count_layers(names: Iterable[str]) -> int:
    found = (re.match(r"blocks\.(\d{1,4})\.", name) for name in names)
    return min(max((int(match[1]) for match in found if match), default=0) + 1, MAX_LAYERS)


def _configuration(
    family: str, layers: int, tensors: Mapping[str, StoredTensor], head_dim: int | None
) -> tuple[TeacherConfig | None, list[str]]:
    """What the tensors that fix it say, or why they say nothing."""
    fixed_by = {
        "patch_embed.proj.weight": 4,
        "blocks.0.mlp.fc1.weight": 2,
        "pos_embed" if family == "dinov2" else "storage_tokens": 3,
    }
    fixed_by |= {"rope_embed.periods": 1} if family == "dinov3" else {}
    problems = [
        f"shape: {name} is {tensors[name].shape}, expected {axes} axes, none of them empty"
        for name, axes in fixed_by.items()
        if len(tensors[name].shape) != axes or 0 in tensors[name].shape
    ]
    if problems:
        return None, problems
    width, _, patch, _ = tensors["patch_embed.proj.weight"].shape
    if family == "dinov3":
        periods = 4 * tensors["rope_embed.periods"].shape[0]
        if head_dim not in (None, periods):
            problems.append(f"head_dim {head_dim}: the rotary periods are for {periods}")
        own = {"head_dim": periods, "storage_tokens": tensors["storage_tokens"].shape[1]}
    else:
        side = math.isqrt(max(0, tensors["pos_embed"].shape[1] - 1))
        own = {"head_dim": head_dim or PUBLISHED_HEAD_DIM, "position_side": side}
    if width % own["head_dim"]:
        problems.append(f"width {width} is not a multiple of head_dim {own['head_dim']}")
    if problems:
        return None, problems
    hidden = tensors["blocks.0.mlp.fc1.weight"].shape[0]
    shared = {"width": width, "layers": layers, "hidden": hidden, "patch": patch}
    return TeacherConfig(family, **shared, **own), []


def _axis_sizes(config: TeacherConfig) -> dict[str, int]:
    return {
        "A": 1,
        "B": 1,
        "C": 3,
        "3": 3,
        "D": config.width,
        "H": config.width // config.head_dim,
        "K": config.head_dim,
        "F": config.hidden,
        "Y": config.patch,
        "X": config.patch,
        "S": config.storage_tokens,
        "T": 1 + config.position_side**2,
        "P": config.head_dim // 4,
    }


def _bring_in(
    path: Path,
    config: TeacherConfig,
    rules: Mapping[str, Rule],
    tensors: Mapping[str, StoredTensor],
) -> dict:
    """Parameters as nested dicts of float32 arrays; every leaf is filled."""
    sizes = _axis_sizes(config)
    rows: dict[str, list] = collections.defaultdict(list)
    not_finite = []
    for name, rule in rules.items():
        value = tensors[name].numpy().astype(np.float32)
        # A DINOv3 that was built but never initialised has NaN for its bias mask.
        if not np.isfinite(value).all():
            not_finite.append(name)
        rows[rule.source, rule.target].append(rule.bring_in(value, sizes))
    if not_finite:
        raise InputError(f"{path}: NaN or infinite values in {', '.join(not_finite)}")

    values: dict[str, np.ndarray] = {}
    for (source, target), parts in rows.items():
        value = np.stack(parts) if "*" in source else np.ascontiguousarray(parts[0])
        values[target] = values[target] * value if target == PRODUCT in values else value

    def leaf(where: tuple, abstract: jax.ShapeDtypeStruct) -> np.ndarray:
        value = values.pop(jax.tree_util.keystr(where, simple=True, separator="/"))
        assert value.shape == abstract.shape
        return value

    params = jax.tree_util.tree_map_with_path(leaf, abstract_params(config))
    assert not values
    return params
