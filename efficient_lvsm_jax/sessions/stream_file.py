"""A running stream as a file: .safetensors with its memory, and what else it knows as its metadata.

The model is not in it: the file says which it was, and is read with that one alone.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np

from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.files.safetensors_file import (
    read_metadata,
    read_safetensors,
    write_safetensors,
)
from efficient_lvsm_jax.models.scene_geometry import SceneMemory

KEY = "efficient_lvsm_jax.stream"  # of the metadata
BITS = {np.dtype(np.uint16): np.int16}  # which the format has no name for


def write_stream(path: Path, memory: SceneMemory, about: dict[str, Any]) -> None:
    """Writes a memory, and JSON values about it, whole or not at all.

    Raises:
      InputError: `path` exists, or cannot be written.
    """
    arrays = {name: np.asarray(x) for name, x in _named(memory).items()}
    arrays = {name: x.view(BITS.get(x.dtype, x.dtype)) for name, x in arrays.items()}
    write_safetensors(path, arrays, {KEY: json.dumps(about)})


def read_about(path: Path) -> dict[str, Any]:
    """What a file says of its stream. Raises InputError: it is the file of none."""
    try:
        about = json.loads(read_metadata(path).get(KEY, "null"))
    except ValueError:
        about = None
    if not isinstance(about, dict):
        raise InputError(f"{path}: holds no stream; expected a file that Stream.save wrote")
    return about


def read_memory(path: Path, like: SceneMemory) -> SceneMemory:
    """The memory of a file, in place of one of that kind.

    Raises:
      InputError: the file is damaged, or of a memory of other shapes.
    """
    stored, expected = read_safetensors(path), _named(like)

    def kind(x: Any) -> str:
        dtype = np.dtype(x.dtype)
        return f"{np.dtype(BITS.get(dtype, dtype))}{list(x.shape)}"

    for name in sorted(stored.keys() | expected.keys()):
        found, wanted = (
            kind(arrays[name]) if name in arrays else "absent" for arrays in (stored, expected)
        )
        if found != wanted:
            raise InputError(
                f"{path}: {name} is {found}, expected {wanted}; the file is damaged: copy it again"
            )

    def read(path: tuple, old: jax.Array) -> jax.Array:
        values = stored[_name(path)].numpy().view(old.dtype)
        # A copy of its own, as the memory is given away at the next frame.
        return jax.numpy.array(values, device=old.sharding if old.committed else None)

    return jax.tree_util.tree_map_with_path(read, like)


def _named(memory: SceneMemory) -> dict[str, jax.Array]:
    return {_name(path): x for path, x in jax.tree_util.tree_leaves_with_path(memory)}


def _name(path: tuple) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".")
