"""Compares VGGT with attention replaced by sparse-linear attention with what Lite3R made of it.

A file has `config` (JSON text of sizes), `images_u8` [1, S, 3, Y, X], `frames_token` (those of the
variants by tokens), `dense_frame` (of which dense arrays are) and the projection `P:{name}` [out,
in] of every attention, by its published name. Variants, see `VARIANTS`, are what these begin with:

- `_encoder` (patch tokens), `_round{i}`, `_pose_iterations`, `_depth`, `_depth_conf`, `_points`,
  `_points_conf`; `_sub2` is every second pixel;
- of an attention `_in:{name}` (before its first product), `_out:{name}` (after its last) and
  `_selected:{name}` (kept tokens; of the camera head, in its first iteration).

`fp8_*` have linear maps in eight bits besides and projections `fp8_P:{name}`; `step_*` are steps of
training, see `step_reference`. Neither densities nor sizes of blocks are recorded, see `_density`
and `_blocks`.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from efficient_lvsm_jax.compress import step_reference
from efficient_lvsm_jax.compress.eight_bit_model import in_eight_bits
from efficient_lvsm_jax.compress.fit import replaced
from efficient_lvsm_jax.compress.lines import Arrays, Line
from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.files.recorded import settings_told
from efficient_lvsm_jax.models.geometry_model import GeometryModel
from efficient_lvsm_jax.models.model import with_projections
from efficient_lvsm_jax.models.running import bound, floats, normalised, run
from efficient_lvsm_jax.models.vggt import VGGT, VGGTConfig
from efficient_lvsm_jax.models.vggt_camera_head import normed
from efficient_lvsm_jax.nn.paged import Pages
from efficient_lvsm_jax.nn.rotary import patch_rotation
from efficient_lvsm_jax.nn.sparse_linear import chosen
from efficient_lvsm_jax.weights.load import load
from efficient_lvsm_jax.weights.published import read_file
from efficient_lvsm_jax.weights.source import fetch
from efficient_lvsm_jax.weights.vggt import STACKS, settings_of

LIMIT = 1e-4
DENSITY, CRITICAL = 0.3, 0.05  # as published: by tokens and blocks, and of critical blocks
BLOCK = 5  # as was recorded first
# What variants replace, and by what; {d} is a density, {b} a size of blocks.
EVERYWHERE = ",".join(f"{place}={{d}}:from0" for place in VGGTConfig.places)
VARIANTS = {
    "token": EVERYWHERE.replace("{d}", "{d}:token"),
    "rounds_only": "frame={d}:token:from0,global={d}:token:from0",
    "block": EVERYWHERE.replace("{d}", "{d}:block{b}"),
    "three": EVERYWHERE.replace("{d}", f"{CRITICAL}:class{{b}}"),
    "fp8": EVERYWHERE.replace("{d}", "{d}:token"),  # and linear maps in eight bits
}
DENSE = ("depth", "depth_conf", "points", "points_conf")


def is_of(names: set[str]) -> bool:
    """Whether a file with these arrays is one of a model with replaced attention."""
    return "images_u8" in names and any(name.startswith("P:") for name in names)


def compare(arrays: Arrays, weights: str | Path) -> Iterator[Line]:
    """Lines of quantity, name, value, recorded value and limit.

    Raises:
      InputError: weights of another family or other sizes, or arrays that do not belong to them.
      KeyError: an array is missing.
    """
    model = _read(arrays, weights)
    images = floats(arrays["images_u8"])

    def heads(params: dict, taps: jax.Array) -> tuple:
        return bound(model, params).dense(taps, images.shape[2:4])

    def dense(taps: jax.Array) -> tuple:
        """Of one frame; these heads know nothing of attention, so one program does for all."""
        frame = int(arrays["dense_frame"])
        return run(heads, model.ready, taps[:, :, frame : frame + 1])

    for variant, text in VARIANTS.items():
        start = f"{variant}_"
        names = [x for x in sorted(arrays) if x.startswith(start) and f"{start}P:" not in x]
        if not names:
            continue
        of_tokens = variant in ("token", "rounds_only", "fp8")
        seen = images[:, arrays["frames_token"]] if of_tokens else images
        density = _density(arrays)
        block = 0 if of_tokens else _blocks(model, seen.shape)
        if block == 1:
            continue  # frames share no size of blocks: the original attended to zeros
        sparse = _replaced(model, arrays, text.format(d=density, b=block), variant)
        yield from _lines(sparse, arrays, variant, names, seen, dense)
    for start, variant in (("step_", "token"), ("step_fp8_", "fp8")):
        if f"{start}rows" in arrays:
            text = VARIANTS[variant].format(d=_density(arrays))
            student = _replaced(model, arrays, text, variant)
            seen = images[:, arrays["frames_token"]]
            how = bound if variant == "token" else _rounded
            yield from step_reference.steps(model, student, how, arrays, seen, start)


def _read(arrays: Arrays, weights: str | Path) -> GeometryModel:
    """The dense model, of the sizes that the file states, without causal masks."""
    told = settings_told(arrays["config"], settings_of) | {"causal": False}
    path = fetch(weights)
    if not path.is_dir():
        published = read_file(path, told=told, family="vggt")
        return GeometryModel(published.family, published.config, published.params)
    model = load(path)
    if model.family != "vggt":
        raise InputError(f"weights {weights}: of the family {model.family}; expected vggt")
    return dataclasses.replace(model, config=dataclasses.replace(model.config, **told))


def _rounded(model: GeometryModel, params: dict) -> VGGT:
    return in_eight_bits(bound(model, params))


def _replaced(model: GeometryModel, arrays: Arrays, text: str, variant: str) -> GeometryModel:
    """The model with attention replaced at some places, and the recorded projections there."""
    start = "fp8_P:" if variant == "fp8" else "P:"
    config = dataclasses.replace(model.config, attention_sparsity=text)
    fits = {}
    for (theirs, (ours, depth)), place in zip(STACKS.items(), VGGTConfig.places, strict=True):
        if config.sparsity(place) is not None:
            names = [f"{start}{theirs}.{layer}.attn" for layer in range(getattr(config, depth))]
            kernels = [np.float32(arrays[name]).T for name in names]
            fits[ours] = {"kernel": np.stack(kernels)}
    params = with_projections(replaced(model.params, fits), model.family, config)
    return dataclasses.replace(model, config=config, params=params)


def _density(arrays: Arrays) -> float:
    """The published one, or else the shortest number that keeps as many tokens as were recorded."""
    chosen = re.compile(r"(token|rounds_only|fp8)_selected:.*")
    counts = [x.shape[-2:] for name, x in arrays.items() if chosen.fullmatch(name) and x.ndim == 4]

    def fits(density: float) -> bool:
        return all(max(1, int(density * tokens)) == kept for tokens, kept in counts)

    shorter = (n / 10**digits for digits in (1, 2, 3) for n in range(1, 10**digits + 1))
    found = next(filter(fits, (DENSITY, *shorter)), None)
    if found is None:
        raise InputError(f"selected tokens {counts} (all, kept): no density keeps so many")
    return found


def _blocks(model: GeometryModel, shape: tuple[int, ...]) -> int:
    """The size of blocks: 5, or the largest, that fills frames and camera tokens.

    The original, which knows no mask, needs one that does.
    """
    patch = model.config.patch
    tokens = 1 + model.config.registers + shape[2] // patch * (shape[3] // patch)
    largest = math.gcd(tokens, shape[1])
    return largest if largest % BLOCK else BLOCK


def _lines(
    model: GeometryModel,
    arrays: Arrays,
    variant: str,
    names: list[str],
    images: jax.Array,
    dense: Callable[[jax.Array], tuple],
) -> Iterator[Line]:
    config = model.config
    build = _rounded if variant == "fp8" else bound

    def clip(params: dict, images: jax.Array) -> tuple:
        network = build(model, params)
        sight = network.sight(None, images.shape[1])
        x, taps, _ = network.rounds(None, images, sight)
        cameras = x[:, :, 0]
        return network.encode(images), taps, cameras, network.camera_head(cameras, sight, None)[0]

    encoder, taps, cameras, encodings = run(clip, model.ready, images)
    found = {"encoder": ("tokens", encoder), "pose_iterations": ("poses", encodings)}
    for tap, tokens in zip(config.taps, taps, strict=True):
        found[f"round{tap - 1}"] = ("tokens", tokens)
    if any(name.removeprefix(f"{variant}_").startswith(DENSE) for name in names):
        for what, got in zip(DENSE, dense(taps), strict=True):
            found[what] = ("dense maps", got)
            found[f"{what}_sub2"] = ("dense maps", got[:, :, ::2, ::2])
    for name in names:
        what, _, module = name.removeprefix(f"{variant}_").partition(":")
        if not module and what in found:
            quantity, got = found[what]
            # Errors of dense maps count in shares of values, of small ones absolutely.
            besides = (1.0,) if quantity == "dense maps" else ()
            yield f"{variant}: {quantity}", name, got, arrays[name], LIMIT, *besides
    for module in sorted({name.partition(":")[2] for name in names if ":" in name}):
        stack, _, layer = module.removesuffix(".attn").rpartition(".")
        if stack not in STACKS or not layer.isdigit():
            continue
        where = STACKS[stack][0], int(layer)

        def inside(params: dict, *given: jax.Array, where: tuple = where) -> tuple | None:
            return _inside(model, build(model, params), *where, *given)

        before, out, selected = run(inside, model.ready, images, taps, cameras)
        for what, quantity, got, limit in (
            ("in", "attention", before, LIMIT),
            ("out", "attention", out, LIMIT),
            ("selected", "choice", selected, 0.0),
        ):
            if (name := f"{variant}_{what}:{module}") in names and got is not None:
                yield f"{variant}: {quantity}", name, got, arrays[name], limit


def _inside(
    model: GeometryModel,
    network: VGGT,
    stack: str,
    layer: int,
    images: jax.Array,
    taps: jax.Array,
    cameras: jax.Array,
) -> tuple[jax.Array | None, ...]:
    """Tokens before and after an attention, and what is chosen there; None: they are not known.

    Those before it come of the encoder, of the round before, which must be one of `taps`, or of
    the first iteration of the camera head.
    """
    config = model.config
    batch, frames, height, width = images.shape[:4]
    grid = height // config.patch, width // config.patch
    rotation, groups = patch_rotation(*grid, config.head_dim, 1 + config.registers), 2
    among = stack == "among"
    if stack in ("within", "among"):
        blocks = network.within if stack == "within" else network.among
        after = dict(zip(config.taps, taps, strict=True)) | {0: network.tokens(None, images)}
        if (rounds := layer + among) not in after:
            return None, None, None
        x = after[rounds]
        x = x[..., : config.width] if among else x[..., -config.width :]
        x = x.reshape(-1, *x.shape[2:])
    else:
        rotation, groups = None, 1
        if stack == "encoder/blocks":
            blocks, pictures = network.encoder.blocks, images.reshape(-1, *images.shape[2:])
            x, _ = network.encoder.embed(normalised(pictures), grid)
        else:
            blocks, head = network.camera_head.trunk, network.camera_head
            tokens = head.token_norm(cameras)
            known = jnp.broadcast_to(head.empty[...], (batch, frames, head.empty.shape[0]))
            x = head.modulated(tokens, normed(tokens), known)
        for before in range(layer):
            x = jax.tree.map(lambda p, n=before: p[n], blocks)(x, None)
    block = jax.tree.map(lambda p: p[layer], blocks)
    q, k, v = block.heads(x, rotation, groups=groups)
    before = block.norm1(x)
    if among:
        before = before.reshape(batch, -1, config.width)
        q, k, v = (
            jnp.moveaxis(y.reshape(batch, frames, *y.shape[1:]), 1, 2).reshape(
                batch, y.shape[1], -1, y.shape[-1]
            )
            for y in (q, k, v)
        )
    if block.sparse is None:
        return before, None, None
    mixed = block.sparse(q, Pages(k[:, :, None], v[:, :, None]))
    return before, block.out("IHTK,HKD->ITD", mixed), chosen(q, k, block.sparse.sparsity)
