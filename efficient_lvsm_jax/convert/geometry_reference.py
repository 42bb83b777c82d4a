"""Compares VGGT and StreamVGGT with outputs recorded from the published programs.

Files (.npz) are told apart by their arrays; `{s}` is a size, "56x70" (height x width). Most have
`config`, JSON text with the sizes that tensors do not say.

- an encoder: `images_u8`, `tokens_in`, `tokens_after_blocks`, `patch_tokens`, `pos_embed_{s}`;
- clips: `pose_iterations_{s}` and what else `_clips` compares. With their frames `images_u8_{s}`
  they are of the masked network, without of the one without masks, on the frames of the file beside
  them whose name ends in `_causal.npz`;
- a stream with the published caches, tracks, both on the same frames;
- pose encodings and unprojection, and prepared pictures, which need no weights;
- losses and a step of distillation, see `distillation_reference`.

Those of Depth Anything 3 are read here too, and compared by `depth_anything3_reference`.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from efficient_lvsm_jax.convert import (
    depth_anything3_reference,
    distillation_reference,
    recorded_alone,
    track_reference,
)
from efficient_lvsm_jax.convert.recorded_alone import (
    DENSE,
    POSES,
    TOKENS,
    cameras_lines,
    drawn,
    size_of,
    sizes,
)
from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.files.recorded import (
    Difference,
    Read,
    array_names,
    difference,
    read_arrays,
    settings_told,
    worst,
)
from efficient_lvsm_jax.models.geometry_model import GeometryModel
from efficient_lvsm_jax.models.running import bound, floats, normalised, run, with_settings
from efficient_lvsm_jax.nn.rotary import patch_rotation, rotate
from efficient_lvsm_jax.weights.vggt import settings_of

# Names of arrays that a file has and no other, and what the file then is.
KINDS = {
    "tokens_after_blocks": "encoder",
    "camera_cache_k_first_t1": "stream",
    "corr_out|track_iterations_.+": "tracks",
    "pose_encoding|random_encoding|unproject_points|dpt_position_aspect": "geometry",
    recorded_alone.PREPARED: "pictures",
    "loss_.+": "losses",
    "weighted_L.+": "distillation",
    "pose_iterations_.+": "clip",
}
Arrays = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class GeometryReference:
    """A reference file: of which family and what it is, its arrays by name, settings that it tells.

    `frames` are the arrays of the file that has the frames, maybe the same.
    """

    path: Path
    family: str
    kind: str
    arrays: Read
    frames: Arrays
    told: dict[str, Any]

    @property
    def not_compared(self) -> list[str]:
        """Names of arrays that were no input and, once all lines came, not compared either."""
        return sorted(self.arrays.keys() - self.arrays.names)


def kind_of(names: Collection[str]) -> str | None:
    """What a file with these arrays is; None: nothing of a model of geometry."""
    if kind := depth_anything3_reference.kind_of(names):
        return kind
    for pattern, kind in KINDS.items():
        if any(re.fullmatch(pattern, name) for name in names):
            return kind
    return None


def read(path: Path, kind: str) -> GeometryReference:
    """Reads a reference file of that kind, and the one with its frames.

    Raises:
      InputError: not a readable file, values that are not finite, a configuration that says
        something else, or no file with the frames.
    """
    arrays = Read(read_arrays(path, array_names(path)))
    for name, array in arrays.items():
        if np.issubdtype(array.dtype, np.floating) and not np.isfinite(array).all():
            raise InputError(f"{path}: {name} has NaN or infinite values; expected finite ones")
    of_depth_anything3 = kind in depth_anything3_reference.KINDS
    settings = depth_anything3_reference.told if of_depth_anything3 else settings_of
    try:
        told = settings_told(arrays.get("config"), settings)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    if of_depth_anything3:
        return GeometryReference(path, depth_anything3_reference.FAMILY, kind, arrays, arrays, told)
    frames = arrays
    alone = kind in ("encoder", "geometry", "pictures", "losses")
    if not alone and not any(name.startswith("images_u8") for name in arrays):
        beside = path.with_name(re.sub(r"_[a-z]+\.npz$", "_causal.npz", path.name))
        if beside == path or not beside.is_file():
            raise InputError(
                f"{path}: has no images_u8 of its frames; expected them in {beside.name} beside it"
            )
        frames = read_arrays(beside, array_names(beside))
    return GeometryReference(path, "vggt", kind, arrays, frames, told)


def compare(model: GeometryModel, reference: GeometryReference) -> Iterator[Difference]:
    """Runs `model` on what a file was recorded from, quantity by quantity.

    Raises:
      InputError: a recorded array is missing or has another shape than the model's, there is none
        to compare, or the model is of another family.
    """
    if model.family != reference.family:
        raise InputError(
            f"{reference.path}: was recorded from {reference.family}, but the model is of the "
            f"family {model.family}; name weights of {reference.family}"
        )
    comparisons: dict[str, Callable] = {
        "encoder": _encoder,
        "clip": _clips,
        "stream": _stream,
        "tracks": track_reference.tracks,
        "geometry": recorded_alone.geometry,
        "pictures": recorded_alone.pictures,
        "losses": distillation_reference.losses,
        "distillation": distillation_reference.step,
    }
    if reference.kind in depth_anything3_reference.KINDS:
        _, comparison = depth_anything3_reference.KINDS[reference.kind]
        lines = comparison(model, reference.arrays)
    else:
        lines = comparisons[reference.kind](model, reference)
    # Accelerators would otherwise multiply float32 matrices with fewer bits.
    with jax.default_matmul_precision("highest"):
        yield from worst(
            reference.path,
            (
                difference(*line, relative=line[4] == DENSE)
                for line in lines
                if line[3] is not None  # it was not recorded
            ),
        )


def _encoder(model: GeometryModel, reference: GeometryReference) -> Iterator[tuple]:
    data, patch = reference.arrays, model.config.patch

    def tokens(params: dict, images: jax.Array) -> tuple:
        encoder = bound(model, params).encoder
        grid = images.shape[1] // patch, images.shape[2] // patch
        start, _ = encoder.embed(images, grid)
        _, after = jax.lax.scan(lambda x, block: (block(x, None),) * 2, start, encoder.blocks)
        return start, after, encoder.patch_tokens(images)

    found = run(tokens, model.ready, normalised(floats(data["images_u8"])))
    for name, got in zip(("tokens_in", "tokens_after_blocks", "patch_tokens"), found, strict=True):
        yield "encoder tokens", name, got, data.get(name), TOKENS

    def table(params: dict, size: tuple[int, int]) -> jax.Array:
        return bound(model, params).encoder.position_table(size, size)[0]

    def full(params: dict, image: jax.Array) -> jax.Array:
        return bound(model, params).encoder.patch_tokens(image)

    for name in sorted(data):
        size = size_of(name)
        if name.startswith("pos_embed_"):
            got = run(functools.partial(table, size=size), model.ready)
            yield "position tables", name, got[:, : data[name].shape[-1]], data[name], TOKENS
        elif name.startswith("patch_tokens_"):
            image = jnp.asarray(drawn(size), jnp.float32)[None] / 255
            stride = int(name.rpartition("every")[2])
            got = run(full, model.ready, normalised(image))[0, ::stride]
            yield "encoder tokens of full size", name, got, data[name], TOKENS


def _clips(model: GeometryModel, reference: GeometryReference) -> Iterator[tuple]:
    data = reference.arrays
    model = with_settings(model, causal=reference.frames is data)
    first = 1 + model.config.registers

    def clip(params: dict, images: jax.Array) -> tuple:
        network = bound(model, params)
        _, geometry, taps = network.observe_with_taps(None, images)
        head, size = network.depth_head, images.shape[2:4]
        levels = head.levels(taps[:, 0, :1, first:], size, model.config.patch)
        fused = head.fused(levels)
        inside = {f"level{n}": x for n, x in enumerate(levels, 1)}
        inside |= {f"fused{n}": x for n, x in zip((4, 3, 2, 1), fused, strict=True)}
        inside["output_conv1"] = head.neck(fused[-1])
        plain = network.encode(images)
        return geometry, taps, inside, plain

    for s in sizes(data, "pose_iterations_"):
        images = floats(reference.frames[f"images_u8_{s}"])
        geometry, taps, inside, plain = run(clip, model.ready, images)
        if f"encoder_{s}" in data:
            yield "encoder tokens", f"encoder_{s}", plain, data[f"encoder_{s}"], TOKENS
        for tap, tokens in zip(model.config.taps, taps, strict=True):
            if (name := f"round{tap - 1}_{s}") in data:
                yield "tokens", name, tokens, data[name], TOKENS
        name = f"pose_iterations_{s}"
        yield "poses", name, geometry.encodings, data[name], POSES
        yield from cameras_lines(geometry.cameras, data, f"_{s}")
        yield from _maps(geometry, data, f"_{s}", lambda x, s=s: x[:, data[f"frames_{s}"]])
        for part, got in inside.items():
            if (name := f"dpt_{part}_{s}") in data:
                yield "depth head inside", name, np.moveaxis(got[0], -1, 0), data[name], DENSE


def _maps(geometry: Any, data: Arrays, end: str, of: Callable) -> Iterator[tuple]:
    for quantity, theirs in (
        ("depth", "depth"),
        ("depth_confidence", "depth_conf"),
        ("points", "points"),
        ("points_confidence", "points_conf"),
    ):
        if (name := theirs + end) in data:
            got = of(np.asarray(getattr(geometry, quantity)))
            yield quantity.replace("_", " "), name, got, data[name], DENSE


def _stream(model: GeometryModel, reference: GeometryReference) -> Iterator[tuple]:
    """A stream with the published cache of cameras, frame by frame."""
    data = reference.arrays
    model = with_settings(model, causal=True, camera_cache="published")
    config, size = model.config, data["depth"].shape[1:3]
    images = floats(reference.frames["images_u8_{}x{}".format(*size)])

    def step(params: dict, memory: Any, image: jax.Array, queries: jax.Array) -> tuple:
        network = bound(model, params)
        memory, geometry, taps = network.observe_with_taps(memory, image)
        return memory, geometry, taps[-1], network.track(taps, size, queries)[1]

    def finished(params: dict, keys: jax.Array, layer: int) -> jax.Array:
        """Raw keys [1, H, T, P, K] of a layer as they are kept."""
        among = jax.tree.map(lambda x: x[layer], bound(model, params).among)
        rows, columns = (side // config.patch for side in size)
        rotation = patch_rotation(rows, columns, config.head_dim, 1 + config.registers)
        return rotate(among.k_norm(keys[0]), rotation, 2)[None]

    if "rope_out" in data:
        rotation = patch_rotation(
            *data["rope_positions"].max(axis=0), config.head_dim, 1 + config.registers
        )
        got = rotate(jnp.asarray(data["rope_in"]), rotation, 2)
        yield "rotary positions", "rope_out", got, data["rope_out"], TOKENS

    frames = images.shape[1]
    dense = data.get("dense_frames", np.arange(frames)).tolist()  # whose maps were recorded
    memory = model.start(frames, size)
    queries = jnp.asarray(data["query_points"])
    for count in range(1, frames + 1):
        memory, geometry, tokens, tracks = run(
            step, model.ready, memory, images[:, count - 1 : count], queries
        )
        here = {name: data[name][count - 1] for name in PER_FRAME if name in data}
        if count - 1 in dense:
            at = dense.index(count - 1)
            here |= {name: data[name][at] for name in MAPS if name in data}
        yield (
            "poses",
            "pose_iterations",
            geometry.encodings[:, 0, 0],
            here.get("pose_iterations"),
            POSES,
        )
        cameras = jax.tree.map(lambda x: x[0, 0], geometry.cameras)
        yield from cameras_lines(cameras, here, "")
        yield from _maps(geometry, here, "", lambda x: x[0, 0])
        if config.taps[-1] == config.layers and "round_last" in here:
            yield "tokens", "round_last", tokens[0, 0], here["round_last"], TOKENS
        # Every frame is published as a clip of its own, whose points stay at the queries.
        yield "tracks", "track", tracks.points[0, 0], here.get("track"), POSES
        yield "visibility", "vis", tracks.visible[0, 0], here.get("vis"), DENSE
        expected = here.get("track_conf")
        yield "track confidence", "track_conf", tracks.confidence[0, 0], expected, DENSE
        for where, layer in (("first", 0), ("last", -1)):
            for part in "kv":
                kept = getattr(memory.tokens, part)[layer, :, :, :count]
                if (name := f"cache_{part}_{where}_t{count}") in data:
                    expected = data[name]
                    if part == "k":
                        expected = finished(model.ready, jnp.asarray(expected), layer)
                    yield "cache", name, kept, expected, POSES
                if (name := f"finished_{part}_{where}_t{count}") in data:
                    yield "cache", name, kept, data[name], POSES
                if (name := f"camera_cache_{part}_{where}_t{count}") in data:
                    kept = getattr(memory.cameras, part)[layer]
                    got = kept[:, :, : count * config.camera_iterations]
                    yield "camera cache", name, got, data[name], POSES


MAPS = "depth", "depth_conf", "points", "points_conf"
PER_FRAME = (
    *("pose_iterations", "extrinsics", "intrinsics"),
    *("track", "vis", "track_conf", "round_last"),
)
