"""Synthetic scenes rendered with Blender, as NeRF published them.

    scene/transforms_train.json, scene/transforms_val.json, scene/transforms_test.json
    scene/train/r_0.png …

A frame's file_path mostly lacks the suffix (`pictures.places`). Frames keep the order of the file,
since that is how evaluation indices count them. Depth and normal maps in test/ are listed nowhere,
so not read.
"""

from __future__ import annotations

import os
from pathlib import Path

from data_pipeline.formats.transforms_json import read_frames, read_listed
from data_pipeline.pictures.places import find_pictures
from data_pipeline.read_options import ReadOptions
from data_pipeline.scenes import Scene
from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.files.reading import inside

NAME = "blender"
FILES = {split: f"transforms_{split}.json" for split in ("train", "val", "test")}
LOOKS_FOR = " or ".join(FILES.values())


def detect(path: Path) -> bool:
    """Whether path is one of the transforms files or a folder with one."""
    if os.path.isfile(path):
        return path.name in FILES.values()
    return any(os.path.isfile(path / name) for name in FILES.values())


def read_scene(path: Path, options: ReadOptions) -> Scene:
    """One split of a scene; `options.split` must name it if the folder holds several.

    Args:
      path: the scene's folder, or one of its transforms files.

    Raises:
      InputError: no such split, or anything missing or malformed; the message names the file.
    """
    description = _description(path, options.split)
    _, listed = read_frames(description, options)
    names = {frame.name: f"{frame.where}: file_path" for frame in listed}
    return read_listed(description, listed, find_pictures([description.parent], names), options)


def _description(path: Path, split: str) -> Path:
    """The transforms file of the split."""
    if not path.is_dir():
        if split and path.name != FILES.get(split):
            raise InputError(f"{path}: this is not split {split!r}; leave split empty")
        return path
    there = [name for name in FILES if os.path.isfile(path / FILES[name])]
    if not there:
        raise InputError(f"{path}: expected {LOOKS_FOR} in it")
    if not split and len(there) > 1:
        raise InputError(f"{path}: holds the splits {', '.join(there)}; name one with split")
    if split and split not in there:
        raise InputError(f"{path}: no split {split!r} in it, only {', '.join(there)}")
    return inside(path, FILES[split or there[0]], str(path))
