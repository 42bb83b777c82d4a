"""Compares Depth Anything 3 with outputs recorded from the published program.

Files (.npz) have no axis of scenes, and are told apart by their arrays; `{case}` is `v4` for four
views and `v4_cam` for four with known cameras, and a file may have any of them.

- views: `images_u8` [R, 3, Y, X], of which every case takes the first, `block_index`, and for every
  case tokens, cameras and maps, see `_views`; `config` as JSON text;
- rays: `ray`, `ray_conf`, `sample_index`, `image_hw` to cameras;
- reference views: `cls_{n}` [S, R, D] of S scenes to `index_{strategy}_{n}` and `order_{n}`;
- parts: pose encodings, known cameras, alignments, position tables and rotations;
- fitted pictures: drawn ones, see `drawn`, of the sizes in the names of arrays.

Every comparison gives lines of quantity, name, value, recorded value and limit; a number after that
says that errors count in shares of it and the recorded value together.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from efficient_lvsm_jax.convert import depth_anything3_alone
from efficient_lvsm_jax.convert.depth_anything3_alone import FITTED, cameras_lines
from efficient_lvsm_jax.convert.recorded_alone import POSES, TOKENS, Arrays, cameras_of
from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.geometry.cameras import Cameras
from efficient_lvsm_jax.geometry.pose_encoding import encode
from efficient_lvsm_jax.models.geometry_model import GeometryModel
from efficient_lvsm_jax.models.reference_view import STRATEGIES, order_from
from efficient_lvsm_jax.models.running import bound, floats, normalised, run, with_settings

FAMILY = "depth_anything3"
MAPS = 2e-5, 5.0  # 1e-4, and 2e-5 of the value
RAY_VIEWS = 3  # of so many views the rays of one are recorded
CASE = r"v\d+(?:_cam)?"
# What a file's `config` says, as settings; besides those that `told` makes of several numbers.
SETTINGS = {
    "width": "width",
    "depth": "layers",
    "alt_start": "encoder_layers",
    "head_features": "features",
    "head_channels": "channels",
    "cam_enc_heads": "camera_heads",
    "cam_enc_depth": "camera_layers",
    "patch": "patch",
    "position_grid": "position_side",
}
STARTS = ("alt_start", "qknorm_start", "rope_start")


def told(stated: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that a file's `config` says, whose lists are tuples.

    Raises:
      InputError: numbers that are not those of such a network.
      KeyError, TypeError, ValueError, ZeroDivisionError: numbers that are missing, or are none.
    """
    start = stated["alt_start"]
    if {stated[name] for name in STARTS} != {start}:
        found = ", ".join(f"{name}={stated[name]}" for name in STARTS)
        raise InputError(f"config: {found}; expected three equal numbers")
    taps = stated["out_layers"]
    if any(tap < start or (tap + 1 - start) % 2 for tap in taps):
        raise InputError(
            f"config: out_layers={list(taps)}: expected layers, counted from 0, that end a round "
            f"of two after the first {start}"
        )
    settings = {ours: stated[theirs] for theirs, ours in SETTINGS.items() if theirs in stated}
    settings["taps"] = tuple((tap + 1 - start) // 2 for tap in taps)
    settings["head_dim"] = stated["width"] // stated["num_heads"]
    return settings


def _views(model: GeometryModel, data: Arrays) -> Iterator[tuple]:
    """What the whole network says of views, and what is on the way."""
    images = data["images_u8"]
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1] != 3:
        raise InputError(f"images_u8 is {images.dtype} {images.shape}: expected uint8 [R, 3, Y, X]")
    model = with_settings(model, rays="kept", reference=STRATEGIES[0])
    index, blocks = data["block_index"], model.config.layers
    if not (np.issubdtype(index.dtype, np.integer) and ((index >= 0) & (index < blocks)).all()):
        raise InputError(
            f"block_index is {index.tolist()}: expected numbers from 0 to {blocks - 1}"
        )
    cases = {found[0] for found in map(re.compile(rf"{CASE}$").search, data) if found}
    for case in sorted(cases):
        views = int(case.removesuffix("_cam")[1:])
        if not 1 <= views <= len(images):
            raise InputError(f"case {case}: images_u8 has {len(images)} views, expected {views}")
        yield from _case(model, data, case, floats(images[:views])[None])


def _case(model: GeometryModel, data: Arrays, case: str, images: jax.Array) -> Iterator[tuple]:
    size, given = images.shape[2:4], None
    if case.endswith("_cam"):
        known = (data[f"given_{name}_{case}"] for name in ("extrinsics", "intrinsics"))
        given = jax.tree.map(lambda x: np.float32(x)[None], cameras_of(*known, size))
    _, geometry = model.observe(None, images, cameras=given)
    got = run(functools.partial(_inside, model), model.ready, images, given)
    got["tokens_after_blocks"] = got["tokens_after_blocks"][data["block_index"]]
    for quantity, names in (
        ("tokens", ("tokens_in", "tokens_after_blocks", *(f"tap{n}" for n in range(4)))),
        ("camera tokens", ("camera_token", "camera_condition")),
    ):
        for name in names:
            if (full := f"{name}_{case}") in data and name in got:
                yield quantity, full, got[name], data[full], TOKENS
    if (name := f"pose_encoding_{case}") in data:
        yield "poses", name, geometry.encodings[0, 0], data[name], POSES
    cameras = jax.tree.map(lambda x: x[0], geometry.cameras)
    yield from cameras_lines(cameras, data, "", f"_{case}")
    for quantity, theirs, x in (
        ("depth", "depth", geometry.depth),
        ("depth confidence", "depth_conf", geometry.depth_confidence),
        ("rays", "ray", geometry.rays[:, ::RAY_VIEWS]),
        ("rays confidence", "ray_conf", geometry.rays_confidence[:, ::RAY_VIEWS]),
    ):
        if (name := f"{theirs}_{case}") in data:
            yield quantity, name, x[0], data[name], *MAPS
    yield from _heads(model, data, case, got["taps"], size)
    if given is None:
        yield from _others(model, data, case, images, geometry.reference)


def _inside(
    model: GeometryModel, params: dict, images: jax.Array, cameras: Cameras | None
) -> dict[str, jax.Array]:
    """Tokens on the way through the transformer, by recorded name; `taps` as the network has it."""
    network, config = bound(model, params), model.config
    views, grid = images.shape[1], (config.position_side,) * 2
    start, _ = network.encoder.embed(normalised(images[0]), grid)
    _, encoded = jax.lax.scan(lambda x, block: (block(x, None),) * 2, start, network.encoder.blocks)
    x, reference = network.tokens(images, cameras)
    if reference is not None:
        # The reference comes first from the last layer of the encoder on.
        encoded = encoded.at[-1].set(encoded[-1, order_from(reference, views)[0]])
    step = network.step(images.shape[2:4])
    _, rounds = jax.lax.scan(
        lambda x, blocks: (step(x, blocks)[0],) * 2,
        jnp.concatenate([x, x], axis=-1),
        (network.within, network.among),
    )
    each = jnp.stack(jnp.split(rounds[:, 0], 2, axis=-1), axis=1)  # [rounds, 2, R, P, D]
    camera, taps, _ = network.rounds(images, cameras)
    found = {
        "tokens_in": start,
        "tokens_after_blocks": jnp.concatenate([encoded, each.reshape(-1, *each.shape[2:])]),
        "camera_token": camera[0],
        "taps": taps,
        **{f"tap{n}": tap[0] for n, tap in enumerate(taps)},
    }
    if cameras is not None:
        found["camera_condition"] = network.camera_encoder(encode(cameras, c2w=True))[0]
    return found


def _heads(
    model: GeometryModel, data: Arrays, case: str, taps: jax.Array, size: tuple[int, int]
) -> Iterator[tuple]:
    """Maps inside the heads, channel-first, of the first view."""

    def inside(params: dict, taps: jax.Array) -> dict[str, jax.Array]:
        network = bound(model, params)
        head, rays = network.depth_head, network.ray_head
        levels = head.levels(taps, size, model.config.patch)
        reduced = head.reduced(levels)
        depth, of_rays = head.fuse(reduced), rays.fuse(reduced)
        found = {f"level{n}": x for n, x in enumerate(levels, 1)}
        found |= {f"fused{n}": x for n, x in zip((4, 3, 2, 1), depth, strict=True)}
        found |= {f"ray_fused{n}": x for n, x in zip((4, 3, 2, 1), of_rays, strict=True)}
        return found | {"output_conv1": head.neck(depth[-1]), "ray_neck": rays.necked(of_rays[-1])}

    if any(re.fullmatch(rf"dpt_\w+[a-z0-9]_{case}", name) for name in data):
        for part, x in run(inside, model.ready, taps[:, 0, :1]).items():
            if (name := f"dpt_{part}_{case}") in data:
                yield "heads inside", name, np.moveaxis(x[0], -1, 0), data[name], *MAPS


def _others(
    model: GeometryModel, data: Arrays, case: str, images: jax.Array, first: jax.Array
) -> Iterator[tuple]:
    """Which view is the reference, as published, in the middle or the first; and poses then."""

    def poses(model: GeometryModel, params: dict, images: jax.Array) -> tuple:
        network = bound(model, params)
        camera, _, reference = network.rounds(images, None)
        return network.camera_decoder(camera)[0], reference

    chosen, references = [first], f"reference_view_{case}"
    for strategy in ("middle", "first"):
        name = f"pose_encoding_{strategy}_{case}"
        if name in data or references in data:
            other = with_settings(model, reference=strategy)
            got, reference = run(functools.partial(poses, other), model.ready, images)
            chosen.append(reference)
            if name in data:
                yield "poses", name, got, data[name], POSES
    if references in data:
        yield "reference views", references, np.concatenate(chosen), data[references], 0.0


PARTS = r"camera_condition|encode_extrinsics|decode_encoding|(normalise_in|align_given)_\d+"
# By the kind of a file: the names of arrays of which it has one, and how it is compared.
KINDS: dict[str, tuple[str, Callable[[GeometryModel, Arrays], Iterator[tuple]]]] = {
    "views": (rf"block_index|(tokens_in|depth|images_u8)_{CASE}", _views),
    "rays": ("sample_index|homography", depth_anything3_alone.rays),
    "reference views": (r"cls_\d+", depth_anything3_alone.references),
    "parts": (PARTS, depth_anything3_alone.parts),
    "fitted pictures": (rf"{FITTED}|mixed_sizes_hw", depth_anything3_alone.pictures),
}


def kind_of(names: Collection[str]) -> str | None:
    """What a file with these arrays is; None: nothing of Depth Anything 3."""
    for kind, (pattern, _) in KINDS.items():
        if any(re.fullmatch(pattern, name) for name in names):
            return kind
    return None
