"""A renderer's weights in eight bits, as a file that `load` takes."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import jax

from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.files.safetensors_file import write_safetensors
from efficient_lvsm_jax.weights.load import load_renderer
from efficient_lvsm_jax.weights.published import bring_out, metadata_of
from efficient_lvsm_jax.weights.scaled import SCALE, scaled


@dataclasses.dataclass(frozen=True)
class Stored:
    """What `store` wrote.

    Attributes:
      family: of the model.
      parameters: number of values.
      scaled, plain: tensors in eight bits, and those that stay float32.
      nbytes: of the file.
    """

    family: str
    parameters: int
    scaled: int
    plain: int
    nbytes: int

    def __str__(self) -> str:
        share = self.nbytes / (4 * self.parameters)
        return (
            f"{self.family}, {self.parameters} parameters in {self.nbytes} bytes ({share:.0%} of "
            f"float32): {self.scaled} tensors in eight bits, {self.plain} as they were"
        )


def store(source: str | Path, destination: str | Path, bits: str) -> Stored:
    """Writes the weights of a renderer with those of its layers in eight bits.

    Args:
      source: what `load.load` takes.
      destination: a new file that ends in .safetensors, in the published layout with scales.
      bits: "fp8" or "int8".

    Raises:
      InputError: the source is no renderer of views, the destination exists, has another ending or
        cannot be written; values that are not finite.
    """
    destination = Path(destination)
    if destination.suffix != ".safetensors":
        raise InputError(f"{destination}: name a file that ends in .safetensors")
    if os.path.lexists(destination):
        raise InputError(f"{destination} already exists; name another, or remove it first")
    model = load_renderer(source)
    tensors = scaled(
        bring_out(model.params, model.family, model.config), model.family, model.config, bits
    )
    write_safetensors(destination, tensors, metadata_of(model.config, model.trained_sizes))
    scales = sum(name.endswith(SCALE) for name in tensors)
    return Stored(
        model.family,
        sum(x.size for x in jax.tree.leaves(model.params)),
        scales,
        len(tensors) - 2 * scales,
        destination.stat().st_size,
    )
