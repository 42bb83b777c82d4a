"""Published checkpoints of the model families, as models and back."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from efficient_lvsm_jax.configuration import check_key
from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.files.safetensors_file import read_metadata
from efficient_lvsm_jax.files.stored import printable
from efficient_lvsm_jax.models.view_synthesis import ModelConfig
from efficient_lvsm_jax.weights.entries import bare_name
from efficient_lvsm_jax.weights.folder import SIZES, read_sizes
from efficient_lvsm_jax.weights.layouts import LAYOUTS, layout_named, layout_of
from efficient_lvsm_jax.weights.source import open_state_dict
from efficient_lvsm_jax.weights.tensors import Published, params_of, tensors_of

TOLD = "efficient_lvsm_jax"  # in the metadata of a .safetensors file, see `metadata_of`


def bring_in(path: Path, state: Mapping[str, Any]) -> Published:
    """A model from a published state dict; which family it is follows from the names.

    Args:
      path: the file, for messages; no more bytes are read than it has.
      state: tensors by published name, with or without words of wrappers.

    Raises:
      InputError: tensors of no family that is known; or as `params_of`.
    """
    layout = layout_of([bare_name(name) for name in state])
    if layout is None:
        raise InputError(f"{path}: {_unknown(map(bare_name, state))}")
    return params_of([(path, state)], layout)


def read_file(path: Path, entry: str | None = None) -> Published:
    """The model of a file in the published layout, its parameters float32 NumPy arrays.

    Raises:
      InputError: as `open_state_dict`, `bring_in` and `as_told`.
    """
    with open_state_dict(path, entry) as state:
        published = bring_in(path, state)
    return as_told(path, published)


def info_of(
    published: Published, source: str, sha256: str, entry: str | None = None
) -> dict[str, Any]:
    """What `weights.json` says of a published file that was brought in, see `save_weights`."""
    info = {
        "family": published.family,
        "config": {**published.config.architecture, **published.config.unshown},
        "source": source,
        "sha256": sha256,
        "tensors": published.tensors,
    }
    if published.sizes:
        info[SIZES] = published.sizes
    if entry is not None:
        info["entry"] = entry
    return info


def bring_out(params: Mapping[str, Any], family: str, config: ModelConfig) -> dict[str, np.ndarray]:
    """Parameters as float32 tensors with published names and layout; undoes `bring_in`."""
    return tensors_of(params, layout_named(family), config, config.architecture)


def metadata_of(config: ModelConfig, sizes: Sequence[tuple[int, int]]) -> dict[str, str]:
    """What a .safetensors file has to say besides its tensors: `config.unshown`, trained sizes.

    Nothing for a model as published, of sizes that are not known.
    """
    told = dict(config.unshown)
    if sizes:
        told[SIZES] = [list(size) for size in sizes]
    return {TOLD: json.dumps(told, sort_keys=True)} if told else {}


def as_told(path: Path, published: Published) -> Published:
    """With the settings and sizes that the metadata of a .safetensors file name, if any.

    Raises:
      InputError: they are not what `metadata_of` writes, or no model has them.
    """
    text = read_metadata(path).get(TOLD) if path.suffix == ".safetensors" else None
    if text is None:
        return published
    where = f"{path}: metadata {TOLD!r}"
    try:
        told = dict(json.loads(text))
    except (ValueError, TypeError, RecursionError) as error:
        raise InputError(f"{where}: expected a JSON object of settings, {error}") from error
    sizes = read_sizes(told, path)
    told.pop(SIZES, None)
    for name in told:
        check_key(name, published.config.unshown_settings, where)
    try:
        config = dataclasses.replace(published.config, **told)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
    return dataclasses.replace(published, config=config, sizes=sizes)


def count_tensors(family: str, config: ModelConfig) -> int:
    """How many tensors a published model has: 207 of an Efficient-LVSM with twelve layers."""
    return sum(map(len, layout_named(family).places(config.architecture).values()))


def _unknown(names: Iterable[str]) -> str:
    known = "; ".join(
        f"{layout.title} ({', '.join(f'{stack}.*' for stack in layout.depths)})"
        for layout in LAYOUTS.values()
    )
    names = [printable(name) for name in names]
    shown = ", ".join(names[:5]) + (", …" if len(names) > 5 else "")
    return (
        "not the weights of a family that this program knows, by the names of its tensors: "
        f"{shown or 'it has none'}. Known are {known}"
    )
