"""PyTorch checkpoints of Efficient-LVSM to weights folders, and back, without PyTorch.

    python -m efficient_lvsm_jax.convert SOURCE DESTINATION [--reference REF.npz]
    python -m efficient_lvsm_jax.convert --lpips vgg16-397923af.pth vgg.pth DESTINATION

`source` finds the file, `torch_file` and `safetensors_file` the tensors in it, `table` says which
is which parameter, `reference` compares a converted model with recorded outputs. `lpips` does the
same for the weights of that metric.
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import jax

from efficient_lvsm_jax import checkpoints
from efficient_lvsm_jax.convert.safetensors_file import write_safetensors
from efficient_lvsm_jax.convert.source import HUB, fetch, open_state_dict, sha256
from efficient_lvsm_jax.convert.table import Published, bring_in, bring_out, count_tensors
from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.models import ModelConfig

__all__ = ["Conversion", "convert", "read_published"]

FAMILY = "efficient_lvsm"
ARCHITECTURE = ("width", "head_dim", "layers", "patch", "mlp_ratio")


@dataclasses.dataclass(frozen=True)
class Conversion:
    """What `convert` wrote.

    Attributes:
      family, config: of the model.
      parameters: number of values.
      tensors: number of published tensors.
      sha256: of the source file; of the written file if the source is a folder.
      left_out: number of tensors that were not taken over, by reason.
    """

    family: str
    config: ModelConfig
    parameters: int
    tensors: int
    sha256: str
    left_out: dict[str, int]


def convert(source: str | Path, destination: str | Path) -> Conversion:
    """Converts published weights to a weights folder, or any weights to a published file.

    Args:
      source: a .pt, .pth or .safetensors file in the published layout, or hf://OWNER/REPO/FILE;
        also a weights folder or training workdir if the destination is a file.
      destination: a new folder; or a new file that ends in .safetensors, which gets the published
        names and layout.

    Raises:
      InputError: the source is not what it should be, or damaged; the destination exists or cannot
        be written. Nothing is left at the destination then.
    """
    source_name, destination = str(source), Path(destination)
    if os.path.lexists(destination):
        raise InputError(f"{destination} already exists; name another, or remove it first")
    to_file = destination.suffix == ".safetensors"
    if to_file and not source_name.startswith(HUB) and Path(source).is_dir():
        published, digest = _published_from_folder(Path(source)), None
    else:
        path = fetch(source)
        published, digest = _read(path), sha256(path)

    if to_file:
        write_safetensors(destination, bring_out(published.params, published.config))
        digest = digest or sha256(destination)
    else:
        info = {
            "family": FAMILY,
            "config": {key: getattr(published.config, key) for key in ARCHITECTURE},
            "source": source_name if source_name.startswith(HUB) else Path(source).name,
            "sha256": digest,
            "tensors": published.tensors,
        }
        checkpoints.save_weights(destination, published.params, info)
    parameters = sum(x.size for x in jax.tree.leaves(published.params))
    return Conversion(
        FAMILY, published.config, parameters, published.tensors, digest, published.left_out
    )


def read_published(source: str | Path) -> tuple[dict, ModelConfig]:
    """Parameters (nested dict of float32 NumPy arrays) and configuration of a published file.

    Raises:
      InputError: as `convert`.
    """
    published = _read(fetch(source))
    return published.params, published.config


def _read(path: Path) -> Published:
    with open_state_dict(path) as state:
        return bring_in(path, state)


def _published_from_folder(folder: Path) -> Published:
    model = checkpoints.load(folder)
    if model.family != FAMILY:
        raise InputError(f"{folder}: {model.family} has no published layout; only {FAMILY} has")
    return Published(model.params, model.config, count_tensors(model.config), {})
