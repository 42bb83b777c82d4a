"""Which pictures of a capture go into a model."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data_pipeline.formats import open_scenes
from data_pipeline.read_options import ReadOptions
from data_pipeline.scenes import Scene
from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.geometry.cameras import spread

INPUTS = 8  # if not told; all of a scene that has fewer


def open_scene(
    path: str | Path,
    name: str | None = None,
    *,
    options: ReadOptions | None = None,
    format: str | None = None,
) -> Scene:
    """The scene of a capture, or one of several.

    Args:
      path: of the capture or data set.
      name: of the scene, or its number from 0; None if there is one.
      options, format: see `open_scenes`.

    Raises:
      InputError: nothing readable there, no such scene, or several and no name.
    """
    scenes = open_scenes(path, options or ReadOptions(), format=format)
    if name is not None:
        return scenes[scenes.find(name)]
    if len(scenes) > 1:
        shown = ", ".join(scenes.names[:5]) + (", …" if len(scenes) > 5 else "")
        raise InputError(f"{path}: {len(scenes)} scenes; name one with --scene: {shown}")
    return scenes[0]


def spread_count(text: str) -> int:
    """n of "spread:n"; InputError for anything else."""
    if not re.fullmatch(r"spread:[0-9]{1,9}", text):
        raise InputError(f"--inputs {text}: expected frames, 0,7,12, or spread:n, e.g. spread:8")
    return int(text.partition(":")[2])


def choose_inputs(scene: Scene, inputs: int | str | Sequence[int] | None = None) -> list[int]:
    """Indices of the frames of a scene that are inputs.

    Args:
      scene: to choose from.
      inputs: how many, spread over the scene (`cameras.spread`), also as "spread:8"; or which
        ones; None is INPUTS, or all of fewer.

    Raises:
      InputError: an index without frame or picture, or an impossible number.
    """
    usable = scene.usable
    if isinstance(inputs, str):
        inputs = spread_count(inputs)
    if inputs is not None and not isinstance(inputs, int):
        for index in inputs:
            if index not in usable:
                raise InputError(
                    f"--inputs {index}: scene {scene.name} has frames 0 to {len(scene.frames) - 1}"
                    + (", this one without picture" if 0 <= index < len(scene.frames) else "")
                )
        return list(inputs)
    count = min(INPUTS, len(usable)) if inputs is None else inputs
    if not 2 <= count <= len(usable):
        raise InputError(
            f"{count} inputs of scene {scene.name}, which has {len(usable)} pictures: it takes at "
            "least 2 inputs, which say how large the scene is, and at most all pictures"
        )
    return [usable[i] for i in spread(np.stack([scene.frames[i].c2w for i in usable]), count)]
