"""Frozen dataclasses of settings, made from plain values, with errors that name what was meant.

    @dataclasses.dataclass(frozen=True)
    class LogConfig(Settings):
        group = "log"
        every: int = setting(10, at_least=1)

Choices and bounds stand at the field, its meaning in the `Attributes:` of the docstring.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import inspect
import math
import operator
import re
import types
import typing
from collections.abc import Container, Iterable, Mapping
from typing import Any, ClassVar, TypeVar

from efficient_lvsm_jax.errors import InputError

KINDS = {int: "an integer", float: "a number", bool: "true or false", str: "text"}
BOUNDS = {
    "at least": operator.ge,
    "above": operator.gt,
    "at most": operator.le,
    "below": operator.lt,
}

Made = TypeVar("Made")


def setting(
    default: Any = dataclasses.MISSING,
    *,
    choices: Container[Any] | None = None,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
) -> Any:
    """A field of `Settings` that not every value of its type suits; of a tuple, each element."""
    limits = zip(BOUNDS, (at_least, above, at_most, below), strict=True)
    bounds = {word: limit for word, limit in limits if limit is not None}
    return dataclasses.field(default=default, metadata={"choices": choices, "bounds": bounds})


@dataclasses.dataclass(frozen=True)
class Settings:
    """Base of frozen dataclasses whose values are checked when they are made.

    A subclass that checks fields against each other does so in `__post_init__`, after this one's.

    Raises:
      InputError: a value of another type, that is no choice, out of bounds or not finite.
    """

    group: ClassVar[str] = ""  # what messages call it, as the command line does

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not _fits(value, _types(type(self))[field.name], field.metadata):
                name = f"{self.group}.{field.name}" if self.group else field.name
                raise InputError(f"{name}={value!r}: expected {expected(type(self), field)}")


@functools.cache
def _types(settings_class: type) -> dict[str, Any]:
    return typing.get_type_hints(settings_class)


def _fits(value: Any, kind: Any, rules: Mapping[str, Any]) -> bool:
    """Whether a value is of a type and keeps the rules of its field; other types hold anything."""
    inner = typing.get_args(kind)
    if isinstance(kind, types.UnionType):
        return any(_fits(value, each, rules) for each in inner)
    if typing.get_origin(kind) is tuple:
        right = isinstance(value, tuple) and (inner[-1] is ... or len(value) == len(inner))
        return right and all(_fits(each, inner[0], rules) for each in value)
    if kind not in KINDS:
        return kind is not types.NoneType or value is None
    kinds = (float, int) if kind is float else kind  # isinstance takes True for an int
    if not isinstance(value, kinds) or (isinstance(value, bool) and kind is not bool):
        return False
    if kind is float and not math.isfinite(value):
        return False
    choices, bounds = rules.get("choices"), rules.get("bounds", {})
    if choices is not None and value not in choices:
        return False
    return all(BOUNDS[word](value, limit) for word, limit in bounds.items())


def takes(settings_class: type, name: str, kind: Any) -> bool:
    """Whether a field has just this type."""
    return _types(settings_class).get(name) == kind


def expected(settings_class: type, field: dataclasses.Field) -> str:
    """In words, what a field may be: "a number, at least 0 and below 1"."""
    return _in_words(_types(settings_class)[field.name], field.metadata)


def _in_words(kind: Any, rules: Mapping[str, Any]) -> str:
    inner = typing.get_args(kind)
    if isinstance(kind, types.UnionType):
        return " or ".join(_in_words(each, rules) for each in inner)
    if typing.get_origin(kind) is tuple:
        count = "" if inner[-1] is ... else f" of {len(inner)}"
        return f"a tuple{count}, each {_in_words(inner[0], rules)}"
    if rules.get("choices") is not None:
        return " or ".join(str(choice) or "''" for choice in rules["choices"])
    words = KINDS.get(kind, getattr(kind, "__name__", str(kind)))
    bounds = " and ".join(f"{word} {limit}" for word, limit in rules.get("bounds", {}).items())
    return f"{words}, {bounds}" if bounds else words


def meanings(settings_class: type) -> dict[str, str]:
    """What the `Attributes:` of a class, and of those that it builds on, say of each field."""
    found = {}
    for each in reversed(settings_class.__mro__):
        _, _, section = inspect.cleandoc(each.__doc__ or "").partition("Attributes:\n  ")
        for entry in re.split(r"\n  (?=\S)", section.partition("\n\n")[0]):
            names, colon, meaning = entry.partition(": ")
            if colon:
                found |= dict.fromkeys(names.split(", "), " ".join(meaning.split()))
    return found


def build(settings_class: type[Made], values: Mapping[str, Any], where: str) -> Made:
    """An instance of a dataclass from `values`; lists become tuples.

    Args:
      settings_class: a dataclass; its defaults fill what `values` leaves out.
      values: setting name to value.
      where: what to call the group in messages, e.g. "model".

    Raises:
      InputError: an unknown key (the message names the nearest known one), a missing one, or a
        value that the class refuses.
    """
    fields = {field.name: field for field in dataclasses.fields(settings_class)}
    for key in values:
        check_key(key, fields, where)
    missing = [
        name
        for name, field in fields.items()
        if name not in values
        and field.default is dataclasses.MISSING
        and field.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise InputError(f"{where}: no value for {', '.join(missing)}")
    return settings_class(
        **{key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    )


def check_key(key: str, known: Iterable[str], where: str) -> None:
    """Raises an InputError, which names the nearest one, unless `key` is among `known`."""
    known = list(known)
    if key not in known:
        near = difflib.get_close_matches(key, known, n=1, cutoff=0.0)
        raise InputError(
            f"{where}.{key} is not a known setting; did you mean {where}.{near[0]}? "
            f"({where} has: {', '.join(known)})"
        )
