"""The published layouts of the model families.

Axes: D width, H head, K head dim, F hidden channels of an MLP, Z latent; I, T, O the values of a
patch in a posed input picture (9 channels), in target rays (6) and in the output (3); L layer.
"""

from __future__ import annotations

import collections
import functools
import math
from collections.abc import Collection, Mapping

from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.models.families import configure
from efficient_lvsm_jax.models.view_synthesis import ModelConfig
from efficient_lvsm_jax.weights import depth_anything3, vggt
from efficient_lvsm_jax.weights.table import Layout, Votes, most_voted, rules_of

# Published name (* is the layer), parameter, published axes, our axes without L; see `Rule`.
EFFICIENT_LVSM = """
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

# Of any stack of LVSM's layers, {theirs} and {ours} being its names.
LVSM_LAYERS = """
{theirs}.*.norm1.weight                             {ours}/attention/norm/scale            D      D
{theirs}.*.attn.to_qkv.weight                       {ours}/attention/qkv/kernel            3HK,D  D3HK
{theirs}.*.attn.fc.weight                           {ours}/attention/out/kernel            D,HK   HKD
{theirs}.*.attn.q_norm.weight                       {ours}/attention/q_norm/scale          K      K
{theirs}.*.attn.k_norm.weight                       {ours}/attention/k_norm/scale          K      K
{theirs}.*.norm2.weight                             {ours}/mlp/norm/scale                  D      D
{theirs}.*.mlp.mlp.0.weight                         {ours}/mlp/up/kernel                   F,D    DF
{theirs}.*.mlp.mlp.2.weight                         {ours}/mlp/down/kernel                 D,F    FD
"""  # noqa: E501 - a table is read by its columns
LVSM_ENDS = """
image_tokenizer.1.weight                            input_tokenizer/kernel                 D,I    ID
target_pose_tokenizer.1.weight                      target_tokenizer/kernel                D,T    TD
image_token_decoder.0.weight                        head_norm/scale                        D      D
image_token_decoder.1.weight                        head/kernel                            O,D    DO
"""
DECODER_ONLY = f"""{LVSM_ENDS}
transformer_input_layernorm.weight                  input_norm/scale                       D      D
{LVSM_LAYERS.format(theirs="transformer_blocks", ours="decoder")}
"""
ENCODER_DECODER = f"""{LVSM_ENDS}
transformer_input_layernorm_decoder.weight          input_norm/scale                       D      D
n_light_field_latent                                latents                                Z,D    ZD
{LVSM_LAYERS.format(theirs="transformer_encoder", ours="encoder")}
{LVSM_LAYERS.format(theirs="transformer_decoder", ours="decoder")}
"""

# Everything else in a file is an error; these are left out, and why.
LOSSES = {r"loss_computer\..+": "perceptual loss network, used only in training"}
TEACHERS = {
    r"(repa_encoder|image_encoder)\..+": "feature teacher, used only in training",
    r"repa_projector\.(input|target)\.\d+\.\d+\.[024]\.(weight|bias)": (
        "projection to teacher features, used only in training"
    ),
}
PATCH_CHANNELS = {"I": 9, "T": 6, "O": 3}


def axis_sizes(config: ModelConfig) -> dict[str, int]:
    """The size of every axis in the tables."""
    patches = {axis: n * config.patch**2 for axis, n in PATCH_CHANNELS.items()}
    return {
        **patches,
        "D": config.width,
        "H": config.width // config.head_dim,
        "K": config.head_dim,
        "F": config.mlp_ratio * config.width,
        "Z": config.architecture.get("latents", 0),
    }


def _infer(family: str, votes: Votes, numbers: Mapping[str, int]) -> ModelConfig:
    patches: collections.Counter = collections.Counter()
    for axis, channels in PATCH_CHANNELS.items():
        patches.update(side for size in votes[axis] if (side := math.isqrt(size // channels)))
    width, head_dim, hidden = (most_voted(votes, axis) for axis in "DKF")
    if width % head_dim or hidden % width:
        raise InputError(
            f"size: width {width}, head dim {head_dim} and {hidden} hidden channels do not belong "
            "together; expected a width of whole heads, and whole widths of hidden channels"
        )
    patch = most_voted({"of patches": patches}, "of patches")
    settings = dict(numbers, width=width, head_dim=head_dim, patch=patch, mlp_ratio=hidden // width)
    if votes["Z"]:
        settings["latents"] = most_voted(votes, "Z")
    return configure(family, settings)


# By family. Told apart by their stacks, in this order.
LAYOUTS = {
    family: Layout(
        family,
        title,
        rules_of(table),
        functools.partial(_infer, family),
        axis_sizes,
        depths=depths,
        left_out=left_out,
    )
    for family, title, table, depths, left_out in (
        (
            "efficient_lvsm",
            "Efficient-LVSM",
            EFFICIENT_LVSM,
            {"input_self_attn_blocks": "layers", "self_cross_blocks": "layers"},
            LOSSES | TEACHERS,
        ),
        (
            "lvsm_decoder_only",
            "decoder-only LVSM",
            DECODER_ONLY,
            {"transformer_blocks": "layers"},
            LOSSES,
        ),
        (
            "lvsm_encoder_decoder",
            "encoder-decoder LVSM",
            ENCODER_DECODER,
            {"transformer_encoder": "encoder_layers", "transformer_decoder": "decoder_layers"},
            LOSSES,
        ),
    )
} | {layout.family: layout for layout in (vggt.LAYOUT, depth_anything3.LAYOUT)}


def layout_of(names: Collection[str]) -> Layout | None:
    """The layout that published names belong to, by their stacks of layers; None if to none."""
    for layout in LAYOUTS.values():
        stacks = tuple(f"{stack}." for stack in layout.depths)
        if any(name.startswith(stacks) for name in names):
            return layout
    return None


def layout_named(family: str) -> Layout:
    """The layout of a family. Raises InputError if it has none."""
    if family not in LAYOUTS:
        raise InputError(f"{family} has no published layout; {', '.join(LAYOUTS)} have")
    return LAYOUTS[family]
