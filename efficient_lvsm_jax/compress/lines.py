"""A recorded array beside what is computed here: what comparisons yield, a line for each."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.files.stored import printable

Arrays = Mapping[str, np.ndarray]
Line = tuple[str, str, np.ndarray, np.ndarray, float]  # quantity, name, value, recorded, limit


def checked(compare: Callable[[Arrays], Iterator[Line]]) -> Callable[[Arrays], Iterator[Line]]:
    """A comparison that says of arrays that they are no numbers, or do not belong together.

    Raises:
      InputError: they are not, or do not.
    """

    @functools.wraps(compare)
    def lines(arrays: Arrays) -> Iterator[Line]:
        for name in arrays:
            # Looked at as a whole: nothing counts as compared by it.
            dtype = dict.__getitem__(arrays, name).dtype
            if dtype.kind not in "fiub":
                raise InputError(f"{name}: expected numbers, not {dtype}")
        try:
            yield from compare(arrays)
        except (TypeError, ValueError, IndexError) as error:
            reason = printable(str(error).splitlines()[0] if str(error) else type(error).__name__)
            raise InputError(f"its arrays do not belong together ({reason})") from error

    return lines


def exact(quantity: str, name: str, got: Any, arrays: Arrays) -> Iterator[Line]:
    """Of values that have to be equal, NaN where NaN is recorded; nothing if they were not."""
    if name not in arrays:
        return
    got, recorded = (np.asarray(x, np.float64) for x in (got, arrays[name]))
    if got.shape == recorded.shape:
        both = np.isnan(got) & np.isnan(recorded)
        got, recorded = np.where(both, 0.0, got), np.where(both, 0.0, recorded)
    yield quantity, name, got, recorded, 0.0


def shares(quantity: str, name: str, got: Any, arrays: Arrays, limit: float) -> Iterator[Line]:
    """Of sums: values in shares of the largest that is recorded; nothing if none is."""
    if name not in arrays:
        return
    recorded = np.asarray(arrays[name], np.float64)
    largest = np.abs(recorded).max(initial=0.0) or 1.0
    got = np.asarray(got, np.float64) / largest
    yield f"{quantity} (of the largest value)", name, got, recorded / largest, limit


def cases(arrays: Arrays, pattern: str) -> list[str]:
    """What the one group of a pattern stands for in the names of arrays, each once."""
    found = map(re.compile(pattern).fullmatch, sorted(arrays))
    return list(dict.fromkeys(each[1] for each in found if each))
