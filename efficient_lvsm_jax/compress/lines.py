"""A recorded array beside what is computed here: what comparisons yield, a line for each."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

Arrays = Mapping[str, np.ndarray]
Line = tuple[str, str, np.ndarray, np.ndarray, float]  # quantity, name, value, recorded, limit


def exact(quantity: str, name: str, got: Any, arrays: Arrays) -> Line:
    """Of values that have to be equal, NaN where NaN is recorded."""
    got, recorded = (np.asarray(x, np.float64) for x in (got, arrays[name]))
    if got.shape == recorded.shape:
        both = np.isnan(got) & np.isnan(recorded)
        got, recorded = np.where(both, 0.0, got), np.where(both, 0.0, recorded)
    return quantity, name, got, recorded, 0.0


def shares(quantity: str, name: str, got: Any, arrays: Arrays, limit: float) -> Line:
    """Of sums: values in shares of the largest that is recorded."""
    recorded = np.asarray(arrays[name], np.float64)
    largest = np.abs(recorded).max(initial=0.0) or 1.0
    return quantity, name, np.asarray(got, np.float64) / largest, recorded / largest, limit


def cases(arrays: Arrays, pattern: str) -> list[str]:
    """What the one group of a pattern stands for in the names of arrays."""
    return [found[1] for found in map(re.compile(pattern).fullmatch, sorted(arrays)) if found]
