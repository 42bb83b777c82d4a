"""A renderer's weights in eight bits, as a file that `load` takes; trained for it, if asked."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from efficient_lvsm_jax.compress.passes import score_lines
from efficient_lvsm_jax.compress.sparse_model import REPORT
from efficient_lvsm_jax.compress.straight_through import Training, trained
from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.files.safetensors_file import write_safetensors
from efficient_lvsm_jax.files.writing import json_safe, reporting_writes, write_json
from efficient_lvsm_jax.models.model import Model
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
      scores: of `passes.scored`, of the model in floats, in bits, and trained; none if it was not.
    """

    family: str
    parameters: int
    scaled: int
    plain: int
    nbytes: int
    scores: dict[str, Any]

    def __str__(self) -> str:
        share = self.nbytes / (4 * self.parameters)
        what = (
            f"{self.family}, {self.parameters} parameters in {self.nbytes} bytes ({share:.0%} of "
            f"float32): {self.scaled} tensors in eight bits, {self.plain} as they were"
        )
        return "\n".join([what, *(score_lines(self.scores) if self.scores else ())])


def store(
    source: str | Path,
    destination: str | Path,
    bits: str,
    training: Callable[[Model], Training] | None = None,
) -> Stored:
    """Writes the weights of a renderer with those of its layers in eight bits.

    Args:
      source: what `load.load` takes.
      destination: a new file that ends in .safetensors, in the published layout with scales.
      bits: "fp8" or "int8".
      training: of this model, before that; what it gains is written beside, see `report_of`.

    Raises:
      InputError: the source is no renderer of views, the destination exists, has another ending or
        cannot be written; values that are not finite; as `trained`.
    """
    destination = Path(destination)
    if destination.suffix != ".safetensors":
        raise InputError(f"{destination}: name a file that ends in .safetensors")
    for path in (destination, report_of(destination)):
        if os.path.lexists(path):
            raise InputError(f"{path} already exists; name another, or remove it first")
    model, report = load_renderer(source), {}
    if training is not None:
        model, report = trained(model, bits, training(model))
    tensors = scaled(
        bring_out(model.params, model.family, model.config), model.family, model.config, bits
    )
    write_safetensors(destination, tensors, metadata_of(model.config, model.trained_sizes))
    if report:
        with reporting_writes(destination):
            write_json(report_of(destination), json_safe(report))
    scales = sum(name.endswith(SCALE) for name in tensors)
    return Stored(
        model.family,
        sum(x.size for x in jax.tree.leaves(model.params)),
        scales,
        len(tensors) - 2 * scales,
        destination.stat().st_size,
        report.get("scores", {}),
    )


def report_of(destination: Path) -> Path:
    """Where it is said what training gained."""
    return destination.with_suffix(f".{REPORT}")
