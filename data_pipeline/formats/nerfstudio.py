"""Captures described by a nerfstudio transforms.json; instant-ngp and DL3DV-10K write it too.

    capture/transforms.json           or, as in DL3DV's sample, capture/colmap/transforms.json
    capture/images/frame_00001.png    `pictures.places` says where else

Frames are in the order of their file names. The lens is undistorted. Depth is read where it is
asked for (`depth_maps`), of pictures without a lens to undo, and so are points (`point_clouds`);
masks are not read. applied_transform and applied_scale say how the world was moved before the file
was written; poses, points and pictures agree without them, so they are left alone.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from data_pipeline.formats import point_clouds
from data_pipeline.formats.json_values import items
from data_pipeline.formats.transforms_json import ListedFrame, listed_name, read_frames, read_listed
from data_pipeline.pictures.places import bare_name, find_pictures
from data_pipeline.read_options import ReadOptions
from data_pipeline.scenes import Cloud, Scene
from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.files.reading import inside

NAME = "nerfstudio"
LOOKS_FOR = "transforms.json or colmap/transforms.json"
PLACES = ("transforms.json", "colmap/transforms.json")
SPLITS = ("train", "val", "test")


def detect(path: Path) -> bool:
    """Whether path is a transforms.json or a folder with one."""
    if os.path.isfile(path):
        return path.name == "transforms.json"
    return any(os.path.isfile(path / place) for place in PLACES)


def read_scene(path: Path, options: ReadOptions) -> Scene:
    """The capture in a folder, or described by a JSON file of any name.

    `pictures.places` says where pictures are looked for.

    Raises:
      InputError: anything missing, malformed or contradictory; the message names file and frame.
    """
    description = _description(path)
    common, listed = read_frames(description, options)
    listed.sort(key=lambda frame: PurePosixPath(frame.name))
    listed = _of_split(common, listed, description, options.split)
    roots = [description.parent]
    if description.parent.resolve().name == "colmap":
        roots.append(description.parent.parent)  # DL3DV: the pictures are beside colmap
    names = {frame.name: f"{frame.where}: file_path" for frame in listed}
    cloud = common.get(point_clouds.FIELD)
    return read_listed(
        description,
        listed,
        find_pictures(roots, names),
        options,
        cloud=None if cloud is None else functools.partial(_cloud, description, cloud),
    )


def _cloud(description: Path, name: Any, most: int) -> Cloud:
    where = f"{description}: {point_clouds.FIELD}"
    return point_clouds.read_ply(inside(description.parent, name, where), most)


def _description(path: Path) -> Path:
    if not path.is_dir():
        return path
    for place in PLACES:
        if os.path.isfile(path / place):
            return inside(path, place, str(path))
    raise InputError(f"{path}: expected {LOOKS_FOR} in it")


def _of_split(
    common: dict[str, Any], listed: Sequence[ListedFrame], description: Path, split: str
) -> list[ListedFrame]:
    """The frames of a split; all of them if none is named."""
    if not split:
        return list(listed)
    key = f"{split}_filenames"
    if key not in common:
        there = [name for name in SPLITS if f"{name}_filenames" in common]
        raise InputError(
            f"{description}: split {split!r}, but there is no {key}; it lists "
            f"{' and '.join(there) or 'no splits'}{'' if there else ', so leave split empty'}"
        )
    where = f"{description}: {key}"
    wanted = {
        listed_name(value, f"{where}[{index}]")
        for index, value in enumerate(items(common[key], where))
    }
    names = {frame.name for frame in listed}
    if wanted - names:  # one of the two may leave the suffix of pictures out
        by_bare = {bare_name(name): name for name in sorted(names)}
        wanted = {by_bare.get(bare_name(name), name) for name in wanted}
    unknown = sorted(wanted - names)
    if unknown or not wanted:
        raise InputError(f"{where}: {unknown[0] + ' is not in frames' if unknown else 'is empty'}")
    return [frame for frame in listed if frame.name in wanted]
