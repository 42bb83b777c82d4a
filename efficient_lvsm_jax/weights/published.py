"""Published checkpoints of the model families, as models and back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.files.stored import printable
from efficient_lvsm_jax.models.view_synthesis import ModelConfig
from efficient_lvsm_jax.weights.entries import bare_name
from efficient_lvsm_jax.weights.layouts import LAYOUTS, layout_named, layout_of
from efficient_lvsm_jax.weights.tensors import Published, params_of, tensors_of


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


def bring_out(params: Mapping[str, Any], family: str, config: ModelConfig) -> dict[str, np.ndarray]:
    """Parameters as float32 tensors with published names and layout; undoes `bring_in`."""
    return tensors_of(params, layout_named(family), config, config.architecture)


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
