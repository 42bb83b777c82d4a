"""Values of a JSON file that we did not write, checked: the type, the shape, finite, in range.

`where` names the value for the message, e.g. "scene/transforms.json, frame 3: fl_x".
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from efficient_lvsm_jax.errors import InputError

MAX_SIDE = 1_000_000  # of a picture, pixels


def number(value: Any, where: str) -> float:
    """A finite number; not a bool, and no text that looks like a number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InputError(f"{where}: expected a number, found {_shown(value)}")
    try:
        converted = float(value)
    except OverflowError:
        converted = math.inf
    if not math.isfinite(converted):
        raise InputError(f"{where}: expected a finite number, found {_shown(value)}")
    return converted


def whole_number(value: Any, where: str, *, lowest: int, highest: int) -> int:
    """A whole number from `lowest` to `highest`; 480.0, as some programs write it, is one too."""
    converted = number(value, where)
    if not lowest <= converted <= highest or not converted.is_integer():
        raise InputError(
            f"{where}: expected a whole number from {lowest} to {highest}, found {_shown(value)}"
        )
    return int(converted)


def numbers(value: Any, shape: Sequence[int], where: str) -> np.ndarray:
    """Finite numbers, in lists nested as `shape` says, as float64 of that shape."""
    flat: list[float] = []
    _collect(value, tuple(shape), where, flat)
    return np.array(flat, np.float64).reshape(shape)


def _collect(value: Any, shape: tuple[int, ...], where: str, flat: list[float]) -> None:
    """Appends the numbers of `value`, lists nested as `shape` says, to `flat`."""
    if not shape:
        flat.append(number(value, where))
        return
    if not isinstance(value, list) or len(value) != shape[0]:
        raise InputError(
            f"{where}: expected {shape[0]} {'lists' if shape[1:] else 'numbers'} in a list, "
            f"found {_shown(value)}"
        )
    for index, item in enumerate(value):
        _collect(item, shape[1:], f"{where}[{index}]", flat)


def text(value: Any, where: str) -> str:
    """A text that is not empty."""
    if not isinstance(value, str) or not value:
        raise InputError(f"{where}: expected a text, found {_shown(value)}")
    return value


def truth(value: Any, where: str) -> bool:
    """True or false."""
    if not isinstance(value, bool):
        raise InputError(f"{where}: expected true or false, found {_shown(value)}")
    return value


def items(value: Any, where: str) -> list:
    """A list of any length."""
    if not isinstance(value, list):
        raise InputError(f"{where}: expected a list, found {_shown(value)}")
    return value


def fields(value: Any, where: str) -> dict[str, Any]:
    """An object."""
    if not isinstance(value, dict):
        raise InputError(f"{where}: expected an object, found {_shown(value)}")
    return value


def required(value: dict[str, Any], key: str, where: str) -> Any:
    """The field `key` of an object."""
    if key not in value:
        raise InputError(f"{where}: {key} is missing")
    return value[key]


def _shown(value: Any) -> str:
    """What to call a value in a message, in one short line."""
    if value is None:
        return "null"
    if isinstance(value, list):
        return f"a list of {len(value)}: {reprlib.repr(value)}"
    return f"{type(value).__name__} {reprlib.repr(value)}"
