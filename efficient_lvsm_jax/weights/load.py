"""A model from whatever holds one: weights folder, training workdir, published file."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax

from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.models.families import configure
from efficient_lvsm_jax.models.model import Model
from efficient_lvsm_jax.weights.folder import WEIGHTS_FILE, load_weights, read_sizes
from efficient_lvsm_jax.weights.published import Published, bring_in
from efficient_lvsm_jax.weights.source import fetch, open_state_dict
from efficient_lvsm_jax.weights.workdir import MODEL_FILE, load_workdir


def load(path: str | Path) -> Model:
    """A model from a weights folder, a training workdir or a PyTorch checkpoint file.

    Args:
      path: folder written by `python -m efficient_lvsm_jax.convert`, `--workdir` of train.py (its
        newest step; the averaged parameters if it keeps them), or a `.pt`, `.pth` or
        `.safetensors` file in the published layout (converted in memory on every load).

    Raises:
      InputError: nothing usable there; the message names the file and what was expected.
    """
    path = Path(path)
    if path.is_file():
        model = read_published(path)
        return dataclasses.replace(model, params=jax.device_put(model.params))
    if (path / WEIGHTS_FILE).is_file():
        params, info = load_weights(path)
        config, sizes = (
            configure(info["family"], info["config"]),
            read_sizes(info, path / WEIGHTS_FILE),
        )
        return Model(info["family"], config, params, sizes)
    if (path / MODEL_FILE).is_file():
        return load_workdir(path)
    what = "is empty" if path.is_dir() and not any(path.iterdir()) else "holds no weights"
    if not path.exists():
        what = "does not exist"
    raise InputError(
        f"{path} {what}: expected a folder with {WEIGHTS_FILE} (made by python -m "
        f"efficient_lvsm_jax.convert), a workdir with {MODEL_FILE} (made by train.py), or a .pt, "
        ".pth or .safetensors file"
    )


def read_published(source: str | Path) -> Model:
    """The model of a published file, its parameters float32 NumPy arrays.

    Raises:
      InputError: as `convert`.
    """
    published = read_file(fetch(source))
    return Model(published.family, published.config, published.params)


def read_file(path: Path) -> Published:
    """A file in the published layout. Errors as `read_published`."""
    with open_state_dict(path) as state:
        return bring_in(path, state)
