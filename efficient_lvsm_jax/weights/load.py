"""A model from whatever holds one: its name, weights folder, training workdir, published file."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax

from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.models.families import configure, families, family_named
from efficient_lvsm_jax.models.geometry_model import GeometryModel
from efficient_lvsm_jax.models.model import Model
from efficient_lvsm_jax.models.scene_geometry import SceneGeometry
from efficient_lvsm_jax.models.view_synthesis import ViewModel
from efficient_lvsm_jax.shipped import models
from efficient_lvsm_jax.weights.folder import WEIGHTS_FILE, load_weights, read_sizes
from efficient_lvsm_jax.weights.kept import kept
from efficient_lvsm_jax.weights.published import read_file
from efficient_lvsm_jax.weights.scaled import check_products, in_eight_bits
from efficient_lvsm_jax.weights.shards import find_index
from efficient_lvsm_jax.weights.source import HUB, fetch
from efficient_lvsm_jax.weights.workdir import MODEL_FILE, load_workdir


def load_renderer(
    path: str | Path, *, entry: str | None = None, products: str | None = None
) -> Model:
    """A model that renders views, from what `load` takes, and arguments as there.

    Raises:
      InputError: a model of geometry; or as `load`.
    """
    if products is not None:
        check_products(products)
        return in_eight_bits(load_renderer(path, entry=entry), products)
    model = load(path, entry=entry)
    if isinstance(model, GeometryModel):
        raise InputError(
            f"{path}: a model of the family {model.family} sees cameras and depth, and renders no "
            f"views; expected one of {', '.join(families(ViewModel))}"
        )
    return model


def load_geometry(path: str | Path) -> GeometryModel:
    """A model that sees cameras and depth, from what `load` takes.

    Raises:
      InputError: a model that renders views; or as `load`.
    """
    model = load(path)
    if not isinstance(model, GeometryModel):
        raise InputError(
            f"{path}: a model of the family {model.family} renders views, and sees no cameras; "
            f"expected one of {', '.join(families(SceneGeometry))}"
        )
    return model


def load(
    path: str | Path, *, entry: str | None = None, products: str | None = None
) -> Model | GeometryModel:
    """A model by its name, from a weights folder, a training workdir or a PyTorch checkpoint file.

    Args:
      path: "rooms" or "rooms-geometry", which come with the package ("./rooms" is a folder of that
        name); or a folder written by `elvsm convert`; or the `--workdir` of
        train.py (its newest step; the averaged parameters if it keeps them); or a `.pt`, `.pth`,
        `.ckpt` or `.safetensors` file in the published layout (converted in memory on every load),
        or several with an index (`model.safetensors.index.json`), by their folder or the index; or
        hf://OWNER/REPO/FILE, one of these on the hub, downloaded and converted once (but read as it
        is if it is in eight bits).
      entry: which entry of a published file is taken, e.g. `ema`; by default what was trained.
      products: "int8" or "fp8": a renderer's layers then multiply eight-bit numbers, see
        `weights.scaled.in_eight_bits`; by default weights become floats, however they are stored.

    Raises:
      InputError: nothing usable there; the message names the file and what was expected. Or
        products of a model of geometry, or that the device cannot make.
    """
    if products is not None:
        return load_renderer(path, entry=entry, products=products)
    if str(path).startswith(HUB):
        path = kept(str(path), entry)
        entry = entry if path.is_file() else None  # which a folder was made of
    path = fetch(path) if path in models() else Path(path)
    if path.is_file() or (path.is_dir() and not _is_ours(path) and find_index(path)):
        model = read_published(path, entry=entry)
        return dataclasses.replace(model, params=jax.device_put(model.params))
    if entry is not None and _is_ours(path):
        raise InputError(f"{path}: has no entries to choose from; published files have")
    if (path / WEIGHTS_FILE).is_file():
        params, info = load_weights(path)
        family, config = info["family"], configure(info["family"], info["config"])
        return _model(family, config, params, read_sizes(info, path / WEIGHTS_FILE))
    if (path / MODEL_FILE).is_file():
        return _model(*load_workdir(path))
    what = "is empty" if path.is_dir() and not any(path.iterdir()) else "holds no weights"
    if not path.exists():
        what = "does not exist"
    raise InputError(
        f"{path} {what}: expected a folder with {WEIGHTS_FILE} (made by elvsm convert), a workdir "
        f"with {MODEL_FILE} (made by elvsm train), or a .pt, .pth, .ckpt or .safetensors file or "
        "an index of several, one of them of the hub (hf://OWNER/REPO/FILE), or a model that comes "
        f"with the package: {', '.join(models())}"
    )


def _is_ours(folder: Path) -> bool:
    return any((folder / name).is_file() for name in (WEIGHTS_FILE, MODEL_FILE))


def _model(
    family: str, config: Any, params: dict, sizes: tuple[tuple[int, int], ...] = ()
) -> Model | GeometryModel:
    """Of the kind that its family is."""
    kind = GeometryModel if issubclass(family_named(family).module, SceneGeometry) else Model
    return kind(family, config, params, sizes)


def read_published(source: str | Path, *, entry: str | None = None) -> Model | GeometryModel:
    """The model of a published file, its parameters float32 NumPy arrays.

    Raises:
      InputError: as `convert`.
    """
    published = read_file(fetch(source), entry)
    return _model(published.family, published.config, published.params, published.sizes)
