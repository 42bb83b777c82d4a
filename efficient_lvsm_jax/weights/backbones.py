"""Which published tensor is which parameter of a DINOv3 or DINOv2 teacher, and reading their files.

Axes: D width, H head, K head dim, F hidden channels of an MLP, Y X pixel of a patch, S storage
token, T entry of the position table, P rotary period. Layers are stacked on axis 0.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Mapping
from pathlib import Path

from efficient_lvsm_jax.backbones.backbone import Teacher, TeacherConfig
from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.weights.entries import bare_name
from efficient_lvsm_jax.weights.source import fetch, open_state_dict
from efficient_lvsm_jax.weights.table import Layout, Votes, most_voted, rules_of
from efficient_lvsm_jax.weights.tensors import params_of

# Published name (* is the layer), parameter, published axes, our axes; see `Rule`.
SHARED = """
cls_token                 cls                  1,1,D    11D
patch_embed.proj.weight   patches/kernel       D,3,Y,X  YX3D
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
storage_tokens            storage              1,S,D    1SD
rope_embed.periods        periods              P        P
blocks.*.attn.qkv.bias_mask  ×blocks/qkv/bias  3HK     3HK
""",
    "dinov2": """
pos_embed                 positions            1,T,D    1TD
""",
}
# Everything else in a file is an error; these are left out, and why.
LEFT_OUT = {
    "mask_token": "stands for hidden patches, of which there are none",
    r"norm\.(weight|bias)": "final norm; features are taken before it",
}
DINOV2_HEAD_DIM = 64  # nothing in the file tells
OTHER_NAMING = re.compile(r"(dinov2\.|model\.)?(embeddings\.|encoder\.layer\.|(model\.)?layer\.\d)")
HOW_TO_GET_WEIGHTS = (
    "DINOv3 ViT-B/16 is dinov3_vitb16_pretrain_lvd1689m-73cec8be.pth, sent after accepting the "
    "licence at https://ai.meta.com/resources/models-and-libraries/dinov3-downloads/; DINOv2 "
    "ViT-B/14 is https://dl.fbaipublicfiles.com/dinov2/dinov2_vitb14/dinov2_vitb14_pretrain.pth"
)


def load_teacher(source: str | Path) -> Teacher:
    """A teacher from a file as its authors publish it; which one it is follows from the tensors.

    Args:
      source: a .pth, .pt or .safetensors file with the published names, or hf://OWNER/REPO/FILE.
        Reading it never executes anything.

    Returns:
      All layers, float32, on the host; see `Teacher.frozen`.

    Raises:
      InputError: no such file (says where people get it), not one that can be read, or as
        `params_of`.
    """
    path = fetch(source)
    if not path.exists():
        raise InputError(f"{source}: no such file. {HOW_TO_GET_WEIGHTS}")
    with open_state_dict(path) as state:
        names = [bare_name(name) for name in state]
        if any(OTHER_NAMING.match(name) for name in names):
            raise InputError(
                f"{path}: names its tensors as the Transformers library does; expected the file "
                f"its authors publish. {HOW_TO_GET_WEIGHTS}"
            )
        layout = LAYOUTS["dinov2" if "pos_embed" in names else "dinov3"]
        published = params_of([(path, state)], layout)
    return Teacher(published.config, published.params)


def _infer(family: str, votes: Votes, numbers: Mapping[str, int]) -> TeacherConfig:
    width, hidden, patch = (most_voted(votes, axis) for axis in "DFY")
    if family == "dinov3":
        own = {"head_dim": 4 * most_voted(votes, "P"), "storage_tokens": most_voted(votes, "S")}
    else:
        side = math.isqrt(most_voted(votes, "T") - 1)
        own = {"head_dim": DINOV2_HEAD_DIM, "position_side": side}
    return TeacherConfig(family, width=width, hidden=hidden, patch=patch, **own, **numbers)


def _axis_sizes(config: TeacherConfig) -> dict[str, int]:
    return {
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


LAYOUTS = {
    family: Layout(
        family,
        title,
        rules_of(SHARED + OWN[family]),
        functools.partial(_infer, family),
        _axis_sizes,
        depths={"blocks": "layers"},
        left_out=LEFT_OUT,
        where=HOW_TO_GET_WEIGHTS,
    )
    for family, title in {"dinov3": "DINOv3", "dinov2": "DINOv2"}.items()
}
