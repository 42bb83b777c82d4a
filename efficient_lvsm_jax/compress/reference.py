"""Compares this program with files that Lite3R's and the published SLA's programs recorded.

What a file is follows from its arrays, see `KINDS`; its name says nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import jax
import numpy as np

from efficient_lvsm_jax.compress import (
    distill_reference,
    fp8_reference,
    model_reference,
    sla_reference,
)
from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.files.recorded import (
    Difference,
    Read,
    array_names,
    difference,
    read_arrays,
    worst,
)


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of recorded file.

    Attributes:
      title: what it is of, for messages.
      is_of: whether a file with arrays of these names is one.
      compare: lines of quantity, name of the array, value, recorded value and limit (maybe what
        `files.recorded.difference` takes besides), of the arrays, and of weights if it needs them.
      left_out: names of arrays that a correct program does not give, and why.
      weights: whether it takes a model's weights.
    """

    title: str
    is_of: Callable[[set[str]], bool]
    compare: Callable[..., Iterator[tuple]]
    left_out: Callable[[Mapping[str, np.ndarray]], dict[str, str]] = lambda arrays: {}
    weights: bool = False


KINDS = (
    Kind(
        "sparse-linear attention",
        sla_reference.is_of,
        sla_reference.compare,
        sla_reference.left_out,
    ),
    Kind("numbers of few bits", fp8_reference.is_of, fp8_reference.compare),
    Kind("what is distilled by", distill_reference.is_of, distill_reference.compare),
    Kind(
        "VGGT with sparse-linear attention",
        model_reference.is_of,
        model_reference.compare,
        weights=True,
    ),
)


def compare(
    path: str | Path, weights: str | Path | None = None
) -> tuple[list[Difference], dict[str, list[str]]]:
    """The largest error of every quantity of a recorded file, and what was not compared.

    Args:
      path: of the file.
      weights: of the model that it was recorded from, where there is one: what `weights.load.load`
        takes.

    Returns:
      Differences; names of arrays that were neither compared nor an input, by the reason.

    Raises:
      InputError: a file of no known kind, a value that is not finite where none is meant, arrays
        that are missing or do not belong together, or weights that are missing or not asked for.
    """
    path = Path(path)
    names = array_names(path)
    kind = next((kind for kind in KINDS if kind.is_of(names)), None)
    if kind is None:
        known = ", ".join(kind.title for kind in KINDS)
        shown = ", ".join(sorted(names)[:5])
        raise InputError(f"{path}: has arrays {shown}, … of no known kind; known: {known}")
    if kind.weights != (weights is not None):
        what = "takes no weights; leave out" if weights else "was recorded from a model; name its"
        raise InputError(f"{path} ({kind.title}) {what} --weights")
    arrays = Read(read_arrays(path, names))
    given = (arrays,) if weights is None else (arrays, weights)
    # Accelerators would otherwise multiply float32 matrices with fewer bits.
    with jax.default_matmul_precision("highest"):
        found = worst(path, (difference(*line) for line in kind.compare(*given)))
    reasons = kind.left_out(arrays)
    rest: dict[str, list[str]] = {}
    for name in sorted(names - arrays.names | set(reasons)):
        rest.setdefault(reasons.get(name, "nothing here gives it"), []).append(name)
    return found, rest
