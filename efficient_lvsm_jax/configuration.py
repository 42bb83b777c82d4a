"""Frozen dataclasses from plain values, with errors that name what was meant."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from efficient_lvsm_jax.errors import InputError

Settings = TypeVar("Settings")


def build(settings_class: type[Settings], values: Mapping[str, Any], where: str) -> Settings:
    """An instance of a dataclass from `values`; lists become tuples.

    Args:
      settings_class: a dataclass; its defaults fill what `values` leaves out.
      values: setting name to value.
      where: what to call the group in messages, e.g. "model".

    Raises:
      InputError: an unknown key (the message names the nearest known one) or a missing one.
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
