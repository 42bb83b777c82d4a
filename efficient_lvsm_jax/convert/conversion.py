"""A model's weights from published files, and back."""

from __future__ import annotations

import dataclasses
import os
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.files.safetensors_file import write_safetensors
from efficient_lvsm_jax.models.scene_geometry import GeometryConfig
from efficient_lvsm_jax.models.view_synthesis import ModelConfig
from efficient_lvsm_jax.weights.folder import save_weights
from efficient_lvsm_jax.weights.load import load
from efficient_lvsm_jax.weights.published import (
    Published,
    bring_out,
    count_tensors,
    info_of,
    metadata_of,
    read_file,
)
from efficient_lvsm_jax.weights.source import HUB, TORCH, fetch, sha256


@dataclasses.dataclass(frozen=True)
class Conversion:
    """What `convert` wrote.

    Attributes:
      family, config: of the model.
      parameters: number of values.
      tensors: number of published tensors.
      sha256: of the source, see `sha256`; of the written file if the source is a folder of ours.
      left_out: number of tensors that were not taken over, by reason.
    """

    family: str
    config: ModelConfig | GeometryConfig
    parameters: int
    tensors: int
    sha256: str
    left_out: dict[str, int]


def convert(
    source: str | Path,
    destination: str | Path,
    *,
    trained_size: tuple[int, int] | None = None,
    entry: str | None = None,
    told: Mapping[str, Any] = types.MappingProxyType({}),
    family: str | None = None,
    half: bool = False,
) -> Conversion:
    """Converts published weights to a weights folder, or any weights to a published file.

    Args:
      source: a .pt, .pth, .ckpt or .safetensors file in the published layout, the index of several
        or its folder, or hf://OWNER/REPO/FILE; also a weights folder or training workdir if the
        destination is a file.
      destination: a new folder; or a new file that ends in .safetensors, which gets the published
        names and layout.
      trained_size: (height, width) of the pictures it was trained on, which published files do not
        say; kept with the weights, see `Model.trained_sizes`.
      entry: which entry of a published file is taken, e.g. `ema`; by default what was trained.
      told: settings of the model that a published file does not say.
      family: which a published file has to be of, if any.
      half: writes float16 to a file; reading it gives float32 again.

    Raises:
      InputError: the source is not what it should be, or damaged; the destination exists or cannot
        be written; values that float16 does not hold. Nothing is left at the destination then.
    """
    source_name, destination = str(source), Path(destination)
    if os.path.lexists(destination):
        raise InputError(f"{destination} already exists; name another, or remove it first")
    if destination.suffix in TORCH:
        raise InputError(f"{destination}: files are written as .safetensors; name one, or a folder")
    to_file = destination.suffix == ".safetensors"
    path = fetch(source)
    if to_file and path.is_dir():
        published, digest = _published_from_folder(path, entry), None
    else:
        published, digest = read_file(path, entry, told, family), sha256(path)

    patch = published.config.patch
    if trained_size and any(side % patch for side in trained_size):
        height, width = trained_size
        raise InputError(f"size {height}x{width}: expected multiples of the patch size {patch}")
    sizes = published.sizes if trained_size is None else (trained_size,)
    if to_file:
        tensors = bring_out(published.params, published.family, published.config)
        if half:
            tensors = {name: _halved(name, tensor) for name, tensor in tensors.items()}
        write_safetensors(destination, tensors, metadata_of(published.config, sizes))
        digest = digest or sha256(destination)
    else:
        published = dataclasses.replace(published, sizes=sizes)
        name = source_name if source_name.startswith(HUB) else Path(source).name
        info = info_of(published, name, digest, entry)
        save_weights(destination, published.params, info)
    parameters = sum(x.size for x in jax.tree.leaves(published.params))
    return Conversion(
        published.family,
        published.config,
        parameters,
        published.tensors,
        digest,
        published.left_out,
    )


def _published_from_folder(folder: Path, entry: str | None) -> Published:
    model = load(folder, entry=entry)
    tensors = count_tensors(model.family, model.config)
    return Published(model.family, model.params, model.config, tensors, {}, model.trained_sizes)


def _halved(name: str, tensor: np.ndarray) -> np.ndarray:
    if np.abs(tensor).max(initial=0) > np.finfo(np.float16).max:
        raise InputError(f"tensor {name} has values above 65504, which float16 does not hold")
    return tensor.astype(np.float16)
