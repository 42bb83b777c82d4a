"""The published layout of Depth Anything 3: Small, Base and Large.

Axes as in `vggt`, and: J channels of a head of the camera encoder, e half a width, z channels of a
ray.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.models.depth_anything3 import DepthAnything3Config
from efficient_lvsm_jax.models.depth_anything3_heads import RAY, RAY_CONVOLUTIONS
from efficient_lvsm_jax.models.families import configure
from efficient_lvsm_jax.weights.table import Layout, Votes, most_voted, rules_of
from efficient_lvsm_jax.weights.vggt import (
    BLOCKS,
    DPT,
    DPT_OUTPUT,
    QK_NORMS,
    fusions,
    shared_sizes,
)

STACK, TRUNK = "backbone.pretrained.blocks", "cam_enc.trunk"
ENDS = """
backbone.pretrained.cls_token                encoder/cls                        1,1,D    11D
backbone.pretrained.camera_token             camera_token                       1,2,D    2D
backbone.pretrained.pos_embed                encoder/positions                  1,T,D    1TD
backbone.pretrained.patch_embed.proj.weight  encoder/patches/kernel             D,3,Y,X  YX3D
backbone.pretrained.patch_embed.proj.bias    encoder/patches/bias               D        D
backbone.pretrained.norm.weight              norm/scale                         D        D
backbone.pretrained.norm.bias                norm/bias                          D        D
cam_enc.pose_branch.fc1.weight               camera_encoder/up/kernel           e,9      9e
cam_enc.pose_branch.fc1.bias                 camera_encoder/up/bias             e        e
cam_enc.pose_branch.fc2.weight               camera_encoder/down/kernel         D,e      eD
cam_enc.pose_branch.fc2.bias                 camera_encoder/down/bias           D        D
cam_enc.token_norm.weight                    camera_encoder/token_norm/scale    D        D
cam_enc.token_norm.bias                      camera_encoder/token_norm/bias     D        D
cam_enc.trunk_norm.weight                    camera_encoder/trunk_norm/scale    D        D
cam_enc.trunk_norm.bias                      camera_encoder/trunk_norm/bias     D        D
cam_dec.backbone.0.weight                    camera_decoder/hidden1/kernel      E,ε      εE
cam_dec.backbone.0.bias                      camera_decoder/hidden1/bias        E        E
cam_dec.backbone.2.weight                    camera_decoder/hidden2/kernel      E,ε      εE
cam_dec.backbone.2.bias                      camera_decoder/hidden2/bias        E        E
cam_dec.fc_t.weight                          camera_decoder/translation/kernel  3,E      E3
cam_dec.fc_t.bias                            camera_decoder/translation/bias    3        3
cam_dec.fc_qvec.weight                       camera_decoder/quaternion/kernel   4,E      E4
cam_dec.fc_qvec.bias                         camera_decoder/quaternion/bias     4        4
cam_dec.fc_fov.0.weight                      camera_decoder/field_of_view/kernel  2,E    E2
cam_dec.fc_fov.0.bias                        camera_decoder/field_of_view/bias    2      2
"""
# Of four levels of rays the last one alone is read; {i} and {o} are f and p by turns.
RAY_CONVOLUTION = """
head.scratch.output_conv1_aux.3.{n}.weight  ray_head/neck{m}/kernel  {o},{i},y,x  yx{i}{o}
head.scratch.output_conv1_aux.3.{n}.bias    ray_head/neck{m}/bias    {o}          {o}
"""
RAY_OUTPUT = """
head.scratch.output_conv2_aux.3.0.weight    ray_head/last1/kernel    l,p,y,x      yxpl
head.scratch.output_conv2_aux.3.0.bias      ray_head/last1/bias      l            l
{norms}.weight                              ray_head/norm/scale      l            l
{norms}.bias                                ray_head/norm/bias       l            l
head.scratch.output_conv2_aux.3.5.weight    ray_head/last2/kernel    z,l,1,1      11lz
head.scratch.output_conv2_aux.3.5.bias      ray_head/last2/bias      z            z
"""
# One norm for all levels, which .safetensors has under the first name alone.
RAY_NORMS = [f"head.scratch.output_conv2_aux.{level}.2" for level in range(4)]
LEFT_OUT = {
    r"head\.scratch\.output_conv(1_aux\.[012]\.[0-4]|2_aux\.[012]\.[05])\.(weight|bias)": (
        "levels of rays that the published program computes and throws away, or never reads"
    ),
    r"gs_(head|adapter)\..+": "Gaussians, of which nothing here is made",
}


def _table() -> str:
    tables = [ENDS]
    for ours in ("encoder/blocks", "within", "among", "camera_encoder/trunk"):
        theirs, heads = (TRUNK, "GJ") if ours.endswith("trunk") else (STACK, "HK")
        tables.append(BLOCKS.format(theirs=theirs, ours=ours, D="D", HK=heads, F="F"))
        if ours in ("within", "among"):
            tables.append(QK_NORMS.format(theirs=theirs, ours=ours))
    names = {"theirs": "head", "ours": "depth_head", "f": "f", "g": "φ", "p": "p"}
    tables += [DPT.format(**names), DPT_OUTPUT.format(o="q", **names), fusions(**names)]
    tables.append(fusions("_aux", **names | {"ours": "ray_head"}))
    for n in range(RAY_CONVOLUTIONS):
        i, o = "pf" if n % 2 else "fp"
        tables.append(RAY_CONVOLUTION.format(n=n, m=n + 1, i=i, o=o))
    rays = RAY_OUTPUT
    for part in ("weight", "bias"):
        alternatives = "|".join(f"{norm}.{part}" for norm in RAY_NORMS)
        rays = rays.replace(f"{{norms}}.{part}", alternatives)
    return "\n".join([*tables, rays])


def _infer(votes: Votes, numbers: Mapping[str, int]) -> DepthAnything3Config:
    rounds = (numbers["layers"] - numbers["encoder_layers"]) // 2
    if "taps" not in numbers and (rounds < 4 or rounds % 4):
        raise InputError(
            f"taps: {numbers['layers']} layers, of which {numbers['encoder_layers']} have no norm "
            "of queries and keys, leave no rounds of two that four taps are evenly spread over; "
            "say which are taken: --setting taps=[1,2,3,4]"
        )
    settings = {
        "width": most_voted(votes, "D"),
        "head_dim": most_voted(votes, "K"),
        "patch": most_voted(votes, "Y"),
        "position_side": math.isqrt(most_voted(votes, "T") - 1),
        "channels": tuple(most_voted(votes, axis) for axis in "abcd"),
        "features": most_voted(votes, "f"),
        "taps": tuple(rounds // 4 * number for number in (1, 2, 3, 4)),
    }
    return configure("depth_anything3", settings | dict(numbers))


def axis_sizes(config: DepthAnything3Config) -> dict[str, int]:
    """The size of every axis in the table."""
    return {
        **shared_sizes(config),
        "J": config.width // config.camera_heads,
        "e": config.width // 2,
        "z": RAY,
    }


LAYOUT = Layout(
    "depth_anything3",
    "Depth Anything 3",
    rules_of(_table()),
    _infer,
    axis_sizes,
    depths={STACK: "layers", TRUNK: "camera_layers"},
    starts={STACK: ("attn.q_norm.", "encoder_layers")},
    shares={
        "encoder/": lambda numbers: range(numbers["encoder_layers"]),
        "within/": lambda numbers: range(numbers["encoder_layers"], numbers["layers"], 2),
        "among/": lambda numbers: range(numbers["encoder_layers"] + 1, numbers["layers"], 2),
    },
    left_out=LEFT_OUT,
)
