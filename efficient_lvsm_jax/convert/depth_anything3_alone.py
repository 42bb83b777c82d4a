"""What Depth Anything 3's program recorded of parts: rays, references, cameras, pictures.

Every function gives lines as `depth_anything3_reference` says.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from data_pipeline.pictures.depth_anything3 import METHODS, fit, same_size
from efficient_lvsm_jax.convert.recorded_alone import (
    POSES,
    TOKENS,
    Arrays,
    c2w_of,
    cameras_of,
    drawn,
    size_of,
)
from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.geometry.alignment import as_trained, robust_similarity
from efficient_lvsm_jax.geometry.cameras import Cameras
from efficient_lvsm_jax.geometry.pose_encoding import decode, encode
from efficient_lvsm_jax.geometry.ray_cameras import (
    apart,
    cameras_of_rays,
    fitted,
    image_of,
    pixel_places,
)
from efficient_lvsm_jax.models.depth_anything3 import one_place
from efficient_lvsm_jax.models.geometry_model import GeometryModel
from efficient_lvsm_jax.models.reference_view import STRATEGIES, order_from, reference_view
from efficient_lvsm_jax.models.running import bound, run
from efficient_lvsm_jax.nn.dpt import POSITIONS_SHARE, positions
from efficient_lvsm_jax.nn.rotary import patch_rotation, rotate

# In shares of values and 1.
FOCAL = 1e-5, 1.0
# Pictures: ties of the area filter may round otherwise, by a level for each of two resizes.
LEVELS, APART, SUMS, INTRINSICS = 2, 0.006, 20, (1e-6, 1.0)
FITTED = rf"((\d+)x(\d+)_({'|'.join(METHODS)})_(\d+))(?:_[a-z_]+7?)?"


def cameras_lines(cameras: Cameras, data: Arrays, start: str, end: str) -> Iterator[tuple]:
    """World to camera, and matrices of intrinsics."""
    if (name := f"{start}extrinsics{end}") in data:
        yield "cameras", name, c2w_of(np.asarray(cameras.c2w))[..., :3, :], data[name], POSES
    if (name := f"{start}intrinsics{end}") in data:
        yield "intrinsics", name, _matrices(cameras.fxfycxcy), data[name], *FOCAL


def _matrices(fxfycxcy: np.ndarray) -> np.ndarray:
    """Intrinsics [..., 4] as matrices [..., 3, 3]."""
    matrices = np.broadcast_to(np.eye(3), (*np.shape(fxfycxcy)[:-1], 3, 3)).copy()
    matrices[..., [0, 1, 0, 1], [0, 1, 2, 2]] = fxfycxcy
    return matrices


def rays(model: GeometryModel, data: Arrays) -> Iterator[tuple]:
    """Cameras of rays, by the draws that were made."""
    size, draws = tuple(map(int, data["image_hw"])), data["sample_index"].astype(int)
    rays, confidence = data["ray"], data["ray_conf"]
    cameras = cameras_of_rays(rays, confidence, size, draws=draws)
    yield from cameras_lines(cameras, data, "", "")
    places = pixel_places(confidence.shape[1:])
    found = []
    for of_view, weights in zip(rays, confidence, strict=True):
        seen, weights = image_of(np.float64(of_view.reshape(-1, 6)[:, :3]), weights.ravel())
        matrix, agree = fitted(places, seen, weights, draws, np.random.default_rng(0))
        found.append((matrix, agree, *apart(matrix, "published")))
    matrices, agree, rotations, focal, principal = map(np.stack, zip(*found, strict=True))
    for quantity, name, got, limit in (
        ("matrices of rays", "homography", matrices, (POSES,)),
        ("rays that agree", "inlier_count", agree, (0.0,)),
        ("cameras", "rotation", rotations, (POSES,)),
        ("cameras", "translation", cameras.c2w[:, :3, 3], (POSES,)),
        ("intrinsics", "focal", focal, FOCAL),
        ("intrinsics", "principal", principal, FOCAL),
    ):
        if name in data:
            yield quantity, name, got, data[name], *limit


def references(model: GeometryModel, data: Arrays) -> Iterator[tuple]:
    """Which view is the reference by every strategy, and the order of views then."""
    for name in sorted(data):
        if not (found := re.fullmatch(r"cls_(\d+)", name)):
            continue
        tokens, end = data[name], found[1]
        for strategy in STRATEGIES:
            got = run(functools.partial(reference_view, strategy=strategy), tokens)
            if (index := f"index_{strategy}_{end}") in data:
                yield "reference views", index, got, data[index], 0.0
            if strategy == STRATEGIES[0] and (order := f"order_{end}") in data:
                got = order_from(got, tokens.shape[1])
                yield "orders of views", order, got, data[order], 0.0


def parts(model: GeometryModel, data: Arrays) -> Iterator[tuple]:
    """Encodings of cameras and back, known cameras, alignments, positions and rotations."""
    if "encode_extrinsics" in data:
        size = tuple(map(int, data["encode_hw"]))
        cameras = cameras_of(data["encode_extrinsics"], data["encode_intrinsics"], size)
        got = run(functools.partial(encode, c2w=True), cameras)
        yield "pose encodings", "pose_encoding", got, data.get("pose_encoding"), POSES

    def condition(params: dict, encodings: jax.Array) -> jax.Array:
        return bound(model, params).camera_encoder(encodings[None])[0]

    if (name := "camera_condition") in data:
        got = run(condition, model.ready, data["pose_encoding"])
        yield "camera tokens", name, got, data[name], TOKENS
    if "decode_encoding" in data:
        size = tuple(map(int, data["decode_hw"]))
        got = run(functools.partial(decode, size=size, c2w=True), data["decode_encoding"])
        yield from cameras_lines(got, data, "decode_", "")
    for name in sorted(data):
        if name.startswith("normalise_in_"):
            got, out = as_trained(c2w_of(data[name]))[0], name.replace("_in_", "_out_")
            yield "known cameras", out, c2w_of(got), data.get(out), POSES
        elif name.startswith("align_given_"):
            end = name.removeprefix("align_given")
            given, predicted = (c2w_of(data[f"align_{x}{end}"]) for x in ("given", "predicted"))
            found = robust_similarity(given[:, :3, 3], predicted[:, :3, 3])
            for part, got in (
                ("rotation", found.rotation),
                ("translation", found.translation),
                ("scale", found.scale),
                ("aligned", c2w_of(found.apply(given))),
            ):
                full = f"align_{part}{end}"
                yield "alignments", full, got, data.get(full), POSES
    yield from _positions(model, data)


def _positions(model: GeometryModel, data: Arrays) -> Iterator[tuple]:
    config = model.config

    def table(params: dict, size: tuple[int, int]) -> jax.Array:
        grid = (config.position_side,) * 2
        return bound(model, params).encoder.position_table(size, grid)[0]

    for name in sorted(data):
        size = size_of(name)
        if name.startswith("pos_embed_"):
            got = run(functools.partial(table, size=size), model.ready)
            yield "position tables", name, got[:, : data[name].shape[-1]], data[name], TOKENS
        elif found := re.fullmatch(r"dpt_position_(\d+)_(\d+)x(\d+)_image(\d+)x(\d+)", name):
            channels, columns, rows, width, height = map(int, found.groups())
            got = POSITIONS_SHARE * positions((rows, columns), width / height, channels)
            yield "positions of DPT heads", name, got, data[name], TOKENS
        elif name.startswith(("rope_local_", "rope_global_")):
            x = data["rope_in"]
            if name.startswith("rope_local_"):
                rotation = patch_rotation(*size, x.shape[-1], 1)
            else:
                rotation = one_place(x.shape[-2], x.shape[-1])
            got = rotate(jnp.asarray(x)[None], rotation, 2)[0]
            yield "rotary positions", name, got, data[name], TOKENS


def pictures(model: GeometryModel, data: Arrays) -> Iterator[tuple]:
    """Drawn pictures as they are fitted, and their intrinsics."""
    fitted = map(re.compile(FITTED).fullmatch, sorted(data))
    for case, height, width, method, side in dict.fromkeys(x.groups() for x in fitted if x):
        known = _fxfycxcy(data, f"{case}_intrinsics_in")
        picture = Image.fromarray(drawn((int(height), int(width))))
        pixels, known = fit(picture, known, side=int(side), method=method)
        name = f"{case}_shape"
        yield "sizes of pictures", name, pixels.shape[:2], data.get(name), 0.0
        got = np.moveaxis(pixels, -1, 0)
        for full, x in ((case, got), (f"{case}_sub7", got[:, ::7, ::7])):
            yield from _levels(data, full, x)
        for what, axis in (("row_sums", 2), ("column_sums", 1)):
            if (full := f"{case}_{what}") in data:
                yield "sums of pictures", full, got.sum(axis, dtype=int), data[full], SUMS
        yield from _known(data, f"{case}_intrinsics_out", known)
    if "mixed_sizes_hw" in data:
        found = re.fullmatch(rf"({'|'.join(METHODS)})_(\d+)", str(data["mixed_method"]))
        if not found:
            raise InputError(f"mixed_method is {str(data['mixed_method'])!r}: expected METHOD_SIDE")
        sizes, known = data["mixed_sizes_hw"], _fxfycxcy(data, "mixed_intrinsics_in")
        known = [None] * len(sizes) if known is None else known
        several = [
            fit(Image.fromarray(drawn(tuple(size))), each, side=int(found[2]), method=found[1])
            for size, each in zip(sizes, known, strict=True)
        ]
        pixels, known = same_size(*zip(*several, strict=True))
        yield from _levels(data, "mixed", np.moveaxis(pixels, -1, 1))
        yield from _known(data, "mixed_intrinsics_out", known)


def _fxfycxcy(data: Arrays, name: str) -> np.ndarray | None:
    matrices = data.get(name)
    if matrices is None:
        return None
    return np.stack([matrices[..., i, j] for i, j in ((0, 0), (1, 1), (0, 2), (1, 2))], axis=-1)


def _known(data: Arrays, name: str, fxfycxcy: np.ndarray) -> Iterator[tuple]:
    if name in data:
        yield "intrinsics of pictures", name, _matrices(fxfycxcy), data[name], *INTRINSICS


def _levels(data: Arrays, name: str, got: np.ndarray) -> Iterator[tuple]:
    if name in data:
        yield "levels of pictures", name, got, data[name], LEVELS
        share = np.mean(got != data[name])
        yield "share of pixels that differ", name, share, np.zeros(()), APART
