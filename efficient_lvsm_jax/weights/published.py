"""Published checkpoints of the model families, as models and back."""

from __future__ import annotations

import dataclasses
import json
import types
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.files.safetensors_file import read_metadata
from efficient_lvsm_jax.files.stored import printable
from efficient_lvsm_jax.models.model import with_projections
from efficient_lvsm_jax.weights.entries import HOW_TO_CHOOSE, bare_name
from efficient_lvsm_jax.weights.folder import SIZES, read_sizes
from efficient_lvsm_jax.weights.layouts import LAYOUTS, layout_named, layout_of
from efficient_lvsm_jax.weights.source import open_state_dict
from efficient_lvsm_jax.weights.tensors import Published, params_of, tensors_of

TOLD = "efficient_lvsm_jax"  # in the metadata of a .safetensors file, see `metadata_of`


def bring_in(
    path: Path,
    state: Mapping[str, Any],
    told: Mapping[str, Any] = types.MappingProxyType({}),
    family: str | None = None,
) -> Published:
    """A model from a published state dict; which family it is follows from the names.

    Args:
      path: the file, for messages; no more bytes are read than it has.
      state: tensors by published name, with or without words of wrappers.
      told: settings of the model that tensors do not say.
      family: which it has to be, if any.

    Raises:
      InputError: tensors of no family that is known, or of another one; or as `params_of`.
    """
    layout = layout_of([bare_name(name) for name in state])
    if layout is None:
        raise InputError(f"{path}: {_unknown(map(bare_name, state))}")
    if family not in (None, layout.family):
        raise InputError(
            f"{path}: holds {layout.title} (family {layout.family}); expected weights of the "
            f"family {family}"
        )
    published = params_of([(path, state)], layout, told)
    params = with_projections(published.params, published.family, published.config)
    return dataclasses.replace(published, params=params)


def read_file(
    path: Path,
    entry: str | None = None,
    told: Mapping[str, Any] = types.MappingProxyType({}),
    family: str | None = None,
) -> Published:
    """The model of a file in the published layout, its parameters float32 NumPy arrays.

    Args:
      path: of the file, or of the index of several.
      entry: as `open_state_dict`.
      told: settings of the model that the file does not say.
      family: which it has to be, if any.

    Raises:
      InputError: as `open_state_dict` and `bring_in`; or metadata that `metadata_of` does not
        write.
    """
    settings, sizes = _metadata(path)
    with open_state_dict(path, entry) as state:
        published = bring_in(path, state, {**settings, **told}, family)
    return dataclasses.replace(published, sizes=sizes)


def info_of(
    published: Published, source: str, sha256: str, entry: str | None = None
) -> dict[str, Any]:
    """What `weights.json` says of a published file that was brought in, see `save_weights`."""
    info = {
        "family": published.family,
        "config": {**published.config.architecture, **unshown(published.config)},
        "source": source,
        "sha256": sha256,
        "tensors": published.tensors,
    }
    if published.sizes:
        info[SIZES] = published.sizes
    if entry is not None:
        info["entry"] = entry
    return info


def bring_out(params: Mapping[str, Any], family: str, config: Any) -> dict[str, np.ndarray]:
    """Parameters as float32 tensors with published names and layout; undoes `bring_in`.

    Raises:
      InputError: the model has projections of sparse attention, which have no published name.
    """
    if sparse := getattr(config, "attention_sparsity", ""):
        raise InputError(
            f"model.attention_sparsity={sparse!r}: its projections have no published name; write a "
            "weights folder"
        )
    return tensors_of(params, layout_named(family), config, config.architecture)


def metadata_of(config: Any, sizes: Sequence[tuple[int, int]]) -> dict[str, str]:
    """What a .safetensors file has to say besides its tensors: `unshown` settings, trained sizes.

    Nothing for a model as published, of sizes that are not known.
    """
    told = unshown(config)
    if sizes:
        told[SIZES] = [list(size) for size in sizes]
    return {TOLD: json.dumps(told, sort_keys=True)} if told else {}


def unshown(config: Any) -> dict[str, Any]:
    """Settings that weights were trained with and no shape shows, where not as published."""
    published = {field.name: field.default for field in dataclasses.fields(config)}
    values = {name: getattr(config, name) for name in config.unshown_settings}
    return {name: value for name, value in values.items() if value != published[name]}


def _metadata(path: Path) -> tuple[dict[str, Any], tuple[tuple[int, int], ...]]:
    """Settings and sizes that a .safetensors file names, which are looked at as any told are."""
    text = read_metadata(path).get(TOLD) if path.suffix == ".safetensors" else None
    if text is None:
        return {}, ()
    try:
        told = dict(json.loads(text))
    except (ValueError, TypeError, RecursionError) as error:
        raise InputError(
            f"{path}: metadata {TOLD!r}: expected a JSON object of settings, {error}"
        ) from error
    sizes = read_sizes(told, path)
    told.pop(SIZES, None)
    return {k: tuple(v) if isinstance(v, list) else v for k, v in told.items()}, sizes


def count_tensors(family: str, config: Any) -> int:
    """How many tensors a published model has: 207 of an Efficient-LVSM with twelve layers."""
    return sum(map(len, layout_named(family).places(config.architecture).values()))


def _unknown(names: Iterable[str]) -> str:
    known = "; ".join(
        f"{layout.title} ({', '.join(f'{stack}.*' for stack in layout.depths)})"
        for layout in LAYOUTS.values()
    )
    names = [printable(name) for name in names]
    shown = ", ".join(names[:5]) + (", …" if len(names) > 5 else "")
    stacks = [f".{stack}." for layout in LAYOUTS.values() for stack in layout.depths]
    before = sorted({name.partition(x)[0] for name in names for x in stacks if x in name})
    hint = (
        f". What stands before these in its names ({', '.join(before[:5])}) is part of the place "
        f"of its tensors, behind their entry if they are in one (state_dict.NAME): {HOW_TO_CHOOSE}"
    )
    return (
        "not the weights of a family that this program knows, by the names of its tensors: "
        f"{shown or 'it has none'}. Known are {known}{hint if before else ''}"
    )
