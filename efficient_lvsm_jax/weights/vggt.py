"""The published layout of VGGT and StreamVGGT, which name their tensors alike.

Axes, besides those of `layouts`: E two widths; G camera head, J its channels, O hidden channels of
the camera head's MLPs; Y X pixel of a patch, y x of a kernel of 3, u v of 4, m n of 2; T entry of
the position table, S register of DINOv2, R register; a b c d channels of a DPT head's levels, f
features, p half of them, l channels before its last convolution, q and r outputs; t features of the
tracker, W its width, h k its heads, g hidden channels, V virtual track, N channels of a token, P
values of all windows, Z of a change. Greek letters stand for the same sizes as Latin ones.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.models.families import configure
from efficient_lvsm_jax.models.scene_geometry import GeometryConfig
from efficient_lvsm_jax.models.vggt import VGGTConfig
from efficient_lvsm_jax.nn.dpt import LAST_CHANNELS
from efficient_lvsm_jax.weights.table import Layout, Votes, most_voted, rules_of

# A block: {theirs} and {ours} are its names, {D} its width, {HK} its heads, {F} hidden channels.
BLOCKS = """
{theirs}.*.norm1.weight        {ours}/norm1/scale    {D}        {D}
{theirs}.*.norm1.bias          {ours}/norm1/bias     {D}        {D}
{theirs}.*.attn.qkv.weight     {ours}/qkv/kernel     3{HK},{D}  {D}3{HK}
{theirs}.*.attn.qkv.bias       {ours}/qkv/bias       3{HK}      3{HK}
{theirs}.*.attn.proj.weight    {ours}/out/kernel     {D},{HK}   {HK}{D}
{theirs}.*.attn.proj.bias      {ours}/out/bias       {D}        {D}
{theirs}.*.ls1.gamma           {ours}/scale1         {D}        {D}
{theirs}.*.norm2.weight        {ours}/norm2/scale    {D}        {D}
{theirs}.*.norm2.bias          {ours}/norm2/bias     {D}        {D}
{theirs}.*.mlp.fc1.weight      {ours}/up/kernel      {F},{D}    {D}{F}
{theirs}.*.mlp.fc1.bias        {ours}/up/bias        {F}        {F}
{theirs}.*.mlp.fc2.weight      {ours}/down/kernel    {D},{F}    {F}{D}
{theirs}.*.mlp.fc2.bias        {ours}/down/bias      {D}        {D}
{theirs}.*.ls2.gamma           {ours}/scale2         {D}        {D}
"""
QK_NORMS = """
{theirs}.*.attn.q_norm.weight  {ours}/q_norm/scale   K          K
{theirs}.*.attn.q_norm.bias    {ours}/q_norm/bias    K          K
{theirs}.*.attn.k_norm.weight  {ours}/k_norm/scale   K          K
{theirs}.*.attn.k_norm.bias    {ours}/k_norm/bias    K          K
"""
AGGREGATOR = """
aggregator.camera_token                         camera_token            1,2,1,D   21D
aggregator.register_token                       register_tokens         1,2,R,D   2RD
aggregator.patch_embed.cls_token                encoder/cls             1,1,D     11D
aggregator.patch_embed.pos_embed                encoder/positions       1,T,D     1TD
aggregator.patch_embed.register_tokens          encoder/storage         1,S,D     1SD
aggregator.patch_embed.mask_token               mask_token              1,D       D
aggregator.patch_embed.patch_embed.proj.weight  encoder/patches/kernel  D,3,Y,X   YX3D
aggregator.patch_embed.patch_embed.proj.bias    encoder/patches/bias    D         D
aggregator.patch_embed.norm.weight              encoder/norm/scale      D         D
aggregator.patch_embed.norm.bias                encoder/norm/bias       D         D
"""
CAMERA_HEAD = """
camera_head.empty_pose_tokens                   camera_head/empty              1,1,9   9
camera_head.token_norm.weight                   camera_head/token_norm/scale   E       E
camera_head.token_norm.bias                     camera_head/token_norm/bias    E       E
camera_head.trunk_norm.weight                   camera_head/trunk_norm/scale   E       E
camera_head.trunk_norm.bias                     camera_head/trunk_norm/bias    E       E
camera_head.embed_pose.weight                   camera_head/embed/kernel       E,9     9E
camera_head.embed_pose.bias                     camera_head/embed/bias         E       E
camera_head.poseLN_modulation.1.weight          camera_head/modulation/kernel  3E,ε    ε3E
camera_head.poseLN_modulation.1.bias            camera_head/modulation/bias    3E      3E
camera_head.pose_branch.fc1.weight              camera_head/up/kernel          D,E     ED
camera_head.pose_branch.fc1.bias                camera_head/up/bias            D       D
camera_head.pose_branch.fc2.weight              camera_head/down/kernel        9,D     D9
camera_head.pose_branch.fc2.bias                camera_head/down/bias          9       9
"""
# A DPT head, {f} and {g} being its features and {p} what they become.
DPT = """
{theirs}.norm.weight                   {ours}/norm/scale          E        E
{theirs}.norm.bias                     {ours}/norm/bias           E        E
{theirs}.projects.0.weight             {ours}/project1/kernel     a,E,1,1  11Ea
{theirs}.projects.0.bias               {ours}/project1/bias       a        a
{theirs}.projects.1.weight             {ours}/project2/kernel     b,E,1,1  11Eb
{theirs}.projects.1.bias               {ours}/project2/bias       b        b
{theirs}.projects.2.weight             {ours}/project3/kernel     c,E,1,1  11Ec
{theirs}.projects.2.bias               {ours}/project3/bias       c        c
{theirs}.projects.3.weight             {ours}/project4/kernel     d,E,1,1  11Ed
{theirs}.projects.3.bias               {ours}/project4/bias       d        d
{theirs}.resize_layers.0.weight        {ours}/resize1/map/kernel  α,a,u,v  uvαa
{theirs}.resize_layers.0.bias          {ours}/resize1/map/bias    a        a
{theirs}.resize_layers.1.weight        {ours}/resize2/map/kernel  β,b,m,n  mnβb
{theirs}.resize_layers.1.bias          {ours}/resize2/map/bias    b        b
{theirs}.resize_layers.3.weight        {ours}/resize4/kernel      d,δ,y,x  yxδd
{theirs}.resize_layers.3.bias          {ours}/resize4/bias        d        d
{theirs}.scratch.layer1_rn.weight      {ours}/reduce1/kernel      {f},a,y,x  yxa{f}
{theirs}.scratch.layer2_rn.weight      {ours}/reduce2/kernel      {f},b,y,x  yxb{f}
{theirs}.scratch.layer3_rn.weight      {ours}/reduce3/kernel      {f},c,y,x  yxc{f}
{theirs}.scratch.layer4_rn.weight      {ours}/reduce4/kernel      {f},d,y,x  yxd{f}
{theirs}.scratch.output_conv1.weight   {ours}/neck/kernel         {p},{f},y,x  yx{f}{p}
{theirs}.scratch.output_conv1.bias     {ours}/neck/bias           {p}      {p}
"""
DPT_OUTPUT = """
{theirs}.scratch.output_conv2.0.weight  {ours}/last1/kernel  l,p,y,x    yxpl
{theirs}.scratch.output_conv2.0.bias    {ours}/last1/bias    l          l
{theirs}.scratch.output_conv2.2.weight  {ours}/last2/kernel  {o},l,1,1  11l{o}
{theirs}.scratch.output_conv2.2.bias    {ours}/last2/bias    {o}        {o}
"""
FUSION = """
{theirs}.scratch.refinenet{n}{branch}.out_conv.weight  {ours}/fuse{n}/out/kernel  {f},{g},1,1  11{g}{f}
{theirs}.scratch.refinenet{n}{branch}.out_conv.bias    {ours}/fuse{n}/out/bias    {f}          {f}
"""  # noqa: E501 - a table is read by its columns
UNIT = """
{theirs}.scratch.refinenet{n}{branch}.resConfUnit{u}.conv{c}.weight  {ours}/fuse{n}/unit{u}/conv{c}/kernel  {f},{g},y,x  yx{g}{f}
{theirs}.scratch.refinenet{n}{branch}.resConfUnit{u}.conv{c}.bias    {ours}/fuse{n}/unit{u}/conv{c}/bias    {f}          {f}
"""  # noqa: E501 - a table is read by its columns
TRACKER = """
track_head.tracker.query_ref_token                     tracker/first_or_later          1,2,N    2N
track_head.tracker.corr_mlp.fc1.weight                 tracker/compare1/kernel         W,P      PW
track_head.tracker.corr_mlp.fc1.bias                   tracker/compare1/bias           W        W
track_head.tracker.corr_mlp.fc2.weight                 tracker/compare2/kernel         t,W      Wt
track_head.tracker.corr_mlp.fc2.bias                   tracker/compare2/bias           t        t
track_head.tracker.fmap_norm.weight                    tracker/map_norm/scale          t        t
track_head.tracker.fmap_norm.bias                      tracker/map_norm/bias           t        t
track_head.tracker.ffeat_norm.weight                   tracker/feature_norm/scale      t        t
track_head.tracker.ffeat_norm.bias                     tracker/feature_norm/bias       t        t
track_head.tracker.ffeat_updater.0.weight              tracker/feature_update/kernel   t,τ      τt
track_head.tracker.ffeat_updater.0.bias                tracker/feature_update/bias     t        t
track_head.tracker.vis_predictor.0.weight              tracker/visible/kernel          1,t      t1
track_head.tracker.vis_predictor.0.bias                tracker/visible/bias            1        1
track_head.tracker.conf_predictor.0.weight             tracker/confidence/kernel       1,t      t1
track_head.tracker.conf_predictor.0.bias               tracker/confidence/bias         1        1
track_head.tracker.updateformer.virual_tracks          tracker/updater/virtual_tracks  1,V,1,W  V1W
track_head.tracker.updateformer.input_norm.weight      tracker/updater/input_norm/scale   N     N
track_head.tracker.updateformer.input_norm.bias        tracker/updater/input_norm/bias    N     N
track_head.tracker.updateformer.input_transform.weight tracker/updater/input/kernel       W,N   NW
track_head.tracker.updateformer.input_transform.bias   tracker/updater/input/bias         W     W
track_head.tracker.updateformer.output_norm.weight     tracker/updater/output_norm/scale  W     W
track_head.tracker.updateformer.output_norm.bias       tracker/updater/output_norm/bias   W     W
track_head.tracker.updateformer.flow_head.weight       tracker/updater/output/kernel      Z,W   WZ
track_head.tracker.updateformer.flow_head.bias         tracker/updater/output/bias        Z     Z
"""
TRACK_BLOCKS = """
{theirs}.*.norm1.weight           {ours}/norm1/scale  W      W
{theirs}.*.norm1.bias             {ours}/norm1/bias   W      W
{theirs}.*.{attn}.in_proj_weight  {ours}/qkv/kernel   3hk,W  W3hk
{theirs}.*.{attn}.in_proj_bias    {ours}/qkv/bias     3hk    3hk
{theirs}.*.{attn}.out_proj.weight {ours}/out/kernel   W,hk   hkW
{theirs}.*.{attn}.out_proj.bias   {ours}/out/bias     W      W
{theirs}.*.norm2.weight           {ours}/norm2/scale  W      W
{theirs}.*.norm2.bias             {ours}/norm2/bias   W      W
{theirs}.*.mlp.fc1.weight         {ours}/up/kernel    g,W    Wg
{theirs}.*.mlp.fc1.bias           {ours}/up/bias      g      g
{theirs}.*.mlp.fc2.weight         {ours}/down/kernel  W,g    gW
{theirs}.*.mlp.fc2.bias           {ours}/down/bias    W      W
"""
CONTEXT_NORM = """
{theirs}.*.norm_context.weight    {ours}/norm_context/scale  W  W
{theirs}.*.norm_context.bias      {ours}/norm_context/bias   W  W
"""

# Published name of every stack of layers, ours, and the setting that says how many.
STACKS = {
    "aggregator.patch_embed.blocks": ("encoder/blocks", "encoder_layers"),
    "aggregator.frame_blocks": ("within", "layers"),
    "aggregator.global_blocks": ("among", "layers"),
    "camera_head.trunk": ("camera_head/trunk", "camera_layers"),
}
TRACK_STACKS = {
    "time_blocks": "time",
    "space_virtual_blocks": "virtual",
    "space_virtual2point_blocks": "virtual_from_points",
    "space_point2virtual_blocks": "points_from_virtual",
}
UPDATER = "track_head.tracker.updateformer"
DPT_HEADS = {  # ours, and its outputs
    "depth_head": ("depth_head", "q"),
    "point_head": ("point_head", "r"),
    "track_head.feature_extractor": ("tracker/features", None),
}
# Nothing in a file says how many heads the camera head has: as published, if they are not tiny.
CAMERA_HEADS, LEAST_HEAD = 16, 16
PUBLISHED_TAPS = {24: (5, 12, 18, 24), 4: (1, 2, 3, 4)}  # by rounds; those of four are all

# What the published programs' sizes are called, and our settings.
SETTINGS = {
    "embed_dim": "width",
    "patch_size": "patch",
    "register_tokens": "registers",
    "encoder_depth": "encoder_layers",
    "depth": "layers",
    "camera_depth": "camera_layers",
    "camera_heads": "camera_heads",
    "camera_iterations": "camera_iterations",
    "dpt_features": "features",
    "dpt_out_channels": "channels",
    "track_features": "track_features",
    "track_hidden": "track_width",
    "track_heads": "track_heads",
    "track_depth": "track_layers",
    "virtual_tracks": "virtual_tracks",
    "corr_levels": "correlation_levels",
    "corr_radius": "correlation_radius",
    "track_iterations": "track_iterations",
}


def _table() -> str:
    tables = [AGGREGATOR, CAMERA_HEAD, TRACKER]
    for theirs, (ours, _) in STACKS.items():
        sizes = {"D": "D", "HK": "HK", "F": "F"}
        if theirs == "camera_head.trunk":
            sizes = {"D": "E", "HK": "GJ", "F": "O"}
        tables.append(BLOCKS.format(theirs=theirs, ours=ours, **sizes))
        if ours in ("within", "among"):
            tables.append(QK_NORMS.format(theirs=theirs, ours=ours))
    for theirs, (ours, outputs) in DPT_HEADS.items():
        letters = {"f": "f", "g": "φ", "p": "p"} if outputs else {"f": "t", "g": "τ", "p": "τ"}
        names = {"theirs": theirs, "ours": ours, **letters}
        tables += [DPT.format(**names)]
        tables += [DPT_OUTPUT.format(o=outputs, **names)] if outputs else []
        tables.append(fusions(**names))
    for name, ours in TRACK_STACKS.items():
        names = {"theirs": f"{UPDATER}.{name}", "ours": f"tracker/updater/{ours}"}
        cross = "2" in name
        tables.append(TRACK_BLOCKS.format(attn="cross_attn" if cross else "attn", **names))
        tables += [CONTEXT_NORM.format(**names)] if cross else []
    return "\n".join(tables)


def fusions(branch: str = "", **names: str) -> str:
    """The table of the four fusions of a head, of a branch of its own if it is named."""
    tables = []
    for n in (1, 2, 3, 4):
        tables.append(FUSION.format(n=n, branch=branch, **names))
        units = [(u, c) for u in (1, 2) for c in (1, 2) if (n, u) != (4, 1)]
        tables += [UNIT.format(n=n, u=u, c=c, branch=branch, **names) for u, c in units]
    return "\n".join(tables)


def _infer(votes: Votes, numbers: Mapping[str, int]) -> VGGTConfig:
    width, head_dim, windows = (most_voted(votes, axis) for axis in "DKP")
    if numbers["layers"] not in PUBLISHED_TAPS and "taps" not in numbers:
        raise InputError(
            f"taps: which of {numbers['layers']} rounds the heads read is not known; say so, as "
            "taps=5,12,18,24 of 24"
        )
    radius = max(r for r in range(64) if windows % (2 * r + 1) ** 2 == 0)
    guessed = {
        "camera_heads": max(1, min(CAMERA_HEADS, 2 * width // LEAST_HEAD)),
        "correlation_levels": windows // (2 * radius + 1) ** 2,
        "correlation_radius": radius,
        "taps": PUBLISHED_TAPS.get(numbers["layers"], ()),
    }
    said = {
        "width": width,
        "head_dim": head_dim,
        "patch": most_voted(votes, "Y"),
        "registers": most_voted(votes, "R"),
        "encoder_registers": most_voted(votes, "S"),
        "position_side": math.isqrt(most_voted(votes, "T") - 1),
        "channels": tuple(most_voted(votes, axis) for axis in "abcd"),
        "features": most_voted(votes, "f"),
        "track_features": most_voted(votes, "t"),
        "track_width": most_voted(votes, "W"),
        "virtual_tracks": most_voted(votes, "V"),
    }
    return configure("vggt", {**guessed, **numbers, **said})


def settings_of(stated: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of the sizes that a recorded file states, by the published names.

    Raises:
      InputError: heads that differ; KeyError: a size is missing.
    """
    told = {ours: stated[theirs] for theirs, ours in SETTINGS.items() if theirs in stated}
    told["taps"] = tuple(tap + 1 for tap in stated["taps"])
    told["head_dim"] = stated["embed_dim"] // stated["heads"]
    if stated["heads"] != stated["encoder_heads"]:
        raise InputError("config: heads and encoder_heads differ; expected as many")
    return told


def shared_sizes(config: GeometryConfig) -> dict[str, int]:
    """The sizes of axes of blocks, of DINOv2 and of DPT heads."""
    width, features = config.width, config.features
    a, b, c, d = config.channels
    return {
        "D": width,
        "H": width // config.head_dim,
        "K": config.head_dim,
        "F": 4 * width,
        "E": 2 * width,
        "ε": 2 * width,
        "G": config.camera_heads,
        **{axis: config.patch for axis in "YX"},
        **dict.fromkeys("yx", 3),
        **dict.fromkeys("uv", 4),
        **dict.fromkeys("mn", 2),
        "T": 1 + config.position_side**2,
        **{"a": a, "α": a, "b": b, "β": b, "c": c, "d": d, "δ": d},
        **{"f": features, "φ": features, "p": features // 2, "l": LAST_CHANNELS, "q": 2},
    }


def axis_sizes(config: VGGTConfig) -> dict[str, int]:
    """The size of every axis in the table."""
    width, tracked = config.width, config.track_features
    return {
        **shared_sizes(config),
        "J": 2 * width // config.camera_heads,
        "O": 8 * width,
        "S": config.encoder_registers,
        "R": config.registers,
        "r": 4,
        **{"t": tracked, "τ": tracked, "N": 3 * tracked + 4, "Z": tracked + 2},
        "W": config.track_width,
        "h": config.track_heads,
        "k": config.track_width // config.track_heads,
        "g": 4 * config.track_width,
        "V": config.virtual_tracks,
        "P": config.correlation_levels * (2 * config.correlation_radius + 1) ** 2,
    }


LAYOUT = Layout(
    "vggt",
    "VGGT or StreamVGGT",
    rules_of(_table()),
    _infer,
    axis_sizes,
    depths={theirs: setting for theirs, (_, setting) in STACKS.items()}
    | {f"{UPDATER}.{name}": "track_layers" for name in TRACK_STACKS},
)
