"""The published layouts: which tensor of a checkpoint is which parameter, family by family.

A published tensor is a PyTorch weight [out, in] of one layer; a parameter has an axis for every
meaning and its layers stacked on axis 0. A table names both and their layouts, from which follow
the shapes to expect, the way in and the way out.

Axes: D width, H head, K head dim, F hidden channels of an MLP, Z latent; I, T, O the values of a
patch in a posed input picture (9 channels), in target rays (6) and in the output (3); L layer.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping

from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.models.families import configure
from efficient_lvsm_jax.models.view_synthesis import ModelConfig
from efficient_lvsm_jax.weights.table import Rule, rules_of

# Published name (* is the layer), parameter, published axes ("3HK,D": rows are split into thirds,
# heads and head channels), our axes without L.
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
MAX_LAYERS = 256


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a family is published.

    Attributes:
      family: its name in `models.families`.
      title: its name in messages.
      rules: its table.
      depths: published name of every stack of layers, and the setting that says how many.
      left_out: what else may be in a file (regular expressions), and why it is not needed.
    """

    family: str
    title: str
    rules: tuple[Rule, ...]
    depths: Mapping[str, str]
    left_out: Mapping[str, str]

    def names(self, layers: Mapping[str, int]) -> dict[str, Rule]:
        """Published name of every tensor, and its rule; `layers` by setting."""
        return {name: rule for rule in self.rules for name in self.names_of(rule, layers)}

    def names_of(self, rule: Rule, layers: Mapping[str, int]) -> list[str]:
        """Published names of a rule's tensors, by layer."""
        return rule.names(layers[self.depths[rule.stack]] if rule.stacked else 1)

    def count_layers(self, names: Iterable[str]) -> dict[str, int]:
        """Layers of every stack, by setting, from published names: the highest number counts.

        So a file without its last layers is a smaller model; stacks of one setting must agree.
        """
        counts = dict.fromkeys(self.depths.values(), 1)
        for name in names:
            stack, _, rest = name.partition(".")
            if stack in self.depths and (number := re.match(r"(\d{1,4})\.", rest)):
                setting = self.depths[stack]
                counts[setting] = max(counts[setting], min(int(number[1]) + 1, MAX_LAYERS))
        return counts

    def configure(self, numbers: Mapping[str, int]) -> ModelConfig:
        """The family's configuration."""
        return configure(self.family, numbers)


# Told apart by their stacks, in this order.
LAYOUTS = (
    Layout(
        "efficient_lvsm",
        "Efficient-LVSM",
        rules_of(EFFICIENT_LVSM),
        {"input_self_attn_blocks": "layers", "self_cross_blocks": "layers"},
        LOSSES | TEACHERS,
    ),
    Layout(
        "lvsm_decoder_only",
        "decoder-only LVSM",
        rules_of(DECODER_ONLY),
        {"transformer_blocks": "layers"},
        LOSSES,
    ),
    Layout(
        "lvsm_encoder_decoder",
        "encoder-decoder LVSM",
        rules_of(ENCODER_DECODER),
        {"transformer_encoder": "encoder_layers", "transformer_decoder": "decoder_layers"},
        LOSSES,
    ),
)


def layout_of(names: Iterable[str]) -> Layout | None:
    """The layout that published names belong to, by their stacks of layers; None if to none."""
    stacks = {name.partition(".")[0] for name in names}
    return next((layout for layout in LAYOUTS if stacks & set(layout.depths)), None)


def layout_named(family: str) -> Layout:
    """The layout of a family. Raises InputError if it has none."""
    for layout in LAYOUTS:
        if layout.family == family:
            return layout
    known = ", ".join(layout.family for layout in LAYOUTS)
    raise InputError(f"{family} has no published layout; {known} have")
