"""What StreamVGGT's programs recorded that needs no weights: pose encodings, points, pictures.

And what else files of the network share, see `geometry_reference`: every function gives lines of
quantity, name, value, recorded value and limit.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np
from PIL import Image

from data_pipeline.pictures.unposed import fit_long_side, fit_padded, fit_width, same_size
from efficient_lvsm_jax.geometry.cameras import Cameras
from efficient_lvsm_jax.geometry.points import unproject
from efficient_lvsm_jax.geometry.pose_encoding import decode, encode
from efficient_lvsm_jax.models.geometry_model import GeometryModel
from efficient_lvsm_jax.models.running import run
from efficient_lvsm_jax.nn.dpt import coordinates, positions

# Errors of dense maps, and of what else DENSE limits, count in shares of values above 1.
TOKENS, POSES, DENSE = 1e-5, 1e-5, 1e-4
# How pictures were prepared, and the names of what was recorded of one or several then.
WAYS = {"crop": fit_width, "pad": fit_padded, "depth_benchmark": fit_long_side}
PREPARED = rf"(?P<way>{'|'.join(WAYS)})_(?P<of>\w+?)_(?:shape|sub7|sum|row_sums|column_sums)"
Arrays = Mapping[str, np.ndarray]


def geometry(model: GeometryModel, reference: Any) -> Iterator[tuple]:
    """Encodings of cameras and back, unprojected depth, positions of DPT heads."""
    data = reference.arrays
    if "pose_encoding" in data:
        size = tuple(map(int, data["image_size_hw"]))
        cameras = cameras_of(data["extrinsics"], data["intrinsics"], size)
        yield "pose encodings", "pose_encoding", run(encode, cameras), data["pose_encoding"], POSES
    if "random_encoding" in data:
        size = tuple(map(int, data["image_size_hw"]))
        got = run(functools.partial(decode, size=size), data["random_encoding"])
        yield from cameras_lines(got, data, "", start="decoded_")
    if "unproject_points" in data:
        depth = data["unproject_depth"]
        cameras = cameras_of(
            data["unproject_extrinsics"], data["unproject_intrinsics"], depth.shape[1:]
        )
        got = run(functools.partial(unproject, centre=0), depth, cameras)
        yield "unprojected points", "unproject_points", got, data["unproject_points"], POSES
    for name in sorted(data):
        if name.startswith(("uv_", "dpt_position_")) and (found := size_of(name)):
            aspect = float(data["dpt_position_aspect"])
            at = found[1], found[0]  # named by columns and rows
            if name.startswith("uv_"):
                rows, columns = coordinates(at, aspect)
                got = np.stack(np.broadcast_arrays(columns, rows[:, None]), axis=-1)
            else:
                got = positions(at, aspect, data[name].shape[-1])
            yield "positions of DPT heads", name, got, data[name], TOKENS


def c2w_of(extrinsics: np.ndarray) -> np.ndarray:
    """Published world to camera [..., 3 or 4, 4] the other way round, [..., 4, 4] float64."""
    rotation = np.float64(extrinsics[..., :3, :3])
    c2w = np.broadcast_to(np.eye(4), (*extrinsics.shape[:-2], 4, 4)).copy()
    c2w[..., :3, :3] = np.swapaxes(rotation, -1, -2)
    c2w[..., :3, 3] = -np.einsum("...ji,...j->...i", rotation, extrinsics[..., :3, 3])
    return c2w


def cameras_of(extrinsics: np.ndarray, intrinsics: np.ndarray, size: tuple[int, int]) -> Cameras:
    """Published world to camera and [..., 3, 3] in our conventions, float64."""
    fxfycxcy = np.stack([intrinsics[..., i, j] for i, j in ((0, 0), (1, 1), (0, 2), (1, 2))], -1)
    return Cameras(c2w_of(extrinsics), fxfycxcy, *size)


def pictures(model: GeometryModel, reference: Any) -> Iterator[tuple]:
    """Sums and samples of prepared pictures; levels of 0 to 255, of which none may differ."""
    data = reference.arrays
    raw = {name.removeprefix("raw_"): data[name] for name in data if name.startswith("raw_")}
    if "big_size_hw" in data:
        raw["big"] = drawn(tuple(data["big_size_hw"]))
    prepared = map(re.compile(PREPARED).fullmatch, sorted(data))
    for way, of in dict.fromkeys((found["way"], found["of"]) for found in prepared if found):
        stem = f"{way}_{of}"
        names = _several(of.removeprefix("mixed_"), raw) if of.startswith("mixed_") else [of]
        together = same_size([WAYS[way](Image.fromarray(raw[each])) for each in names])
        got = np.moveaxis(together, -1, 1)
        for what, found in (
            ("shape", got.shape),
            ("sub7", got[..., ::7, ::7]),
            ("sum", got.sum(dtype=int)),
            ("row_sums", got.sum((0, 1, 3), dtype=int)),
            ("column_sums", got.sum((0, 1, 2), dtype=int)),
        ):
            if f"{stem}_{what}" in data:
                yield "prepared pictures", f"{stem}_{what}", found, data[f"{stem}_{what}"], 0.0


def _several(names: str, known: Collection[str]) -> list[str]:
    """Names joined by _ , some of which hold one."""
    found = []
    while names:
        each = max(name for name in known if f"{names}_".startswith(f"{name}_"))
        found.append(each)
        names = names.removeprefix(each).removeprefix("_")
    return found


def cameras_lines(cameras: Cameras, data: Arrays, end: str, *, start: str = "") -> Iterator[tuple]:
    """Published matrices of the last encodings; focal lengths as the angles that they stand for."""
    if (name := f"{start}extrinsics{end}") in data:
        got = c2w_of(np.asarray(cameras.c2w))[..., :3, :]  # a rigid motion is undone like that
        yield "cameras", name, got, data[name], DENSE
    if (name := f"{start}intrinsics{end}") in data:
        size = np.array([cameras.width, cameras.height])
        focal = np.stack([data[name][..., i, i] for i in (0, 1)], axis=-1)
        got, expected = (np.arctan2(size / 2, f) for f in (cameras.fxfycxcy[..., :2], focal))
        yield "fields of view", name, got, expected, POSES


def size_of(name: str) -> tuple[int, int] | None:
    """The size in the name of an array."""
    found = re.search(r"_(\d+)x(\d+)", name)
    return found and (int(found[1]), int(found[2]))


def sizes(data: Arrays, stem: str) -> list[str]:
    """What names go on with that begin with `stem`."""
    return [name.removeprefix(stem) for name in sorted(data) if name.startswith(stem)]


def drawn(size: tuple[int, int]) -> np.ndarray:
    """The drawn picture of recordings, uint8 [Y, X, 3]."""
    y, x, c = np.meshgrid(np.arange(size[0]), np.arange(size[1]), np.arange(3), indexing="ij")
    return ((3 * x + 5 * y + 40 * c + x * y // 16) % 256).astype(np.uint8)
