"""What a network's parts show of their work to whoever watches it, also from within scanned layers.

A part calls `show`; without anybody watching that does nothing, and costs nothing. `watched` is
opened around a pass while it is traced, in the same function under `jax.jit`, and has what was
shown of arrays of that trace. Layers that may show something are scanned by `scan`, and not
rematerialised while they are watched.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Callable, Iterator
from typing import Any

import jax

Shown = dict[str, list[Any]]

_shown: contextvars.ContextVar[Shown | None] = contextvars.ContextVar("shown", default=None)


def show(name: str, value: Any) -> None:
    """Shows a tree of arrays under a name; another one under the same name comes after it."""
    shown = _shown.get()
    if shown is not None:
        shown.setdefault(name, []).append(value)


def is_watched() -> bool:
    """Whether somebody sees what is shown here."""
    return _shown.get() is not None


@contextlib.contextmanager
def watched() -> Iterator[Shown]:
    """What is shown from here on, in the order of calls."""
    shown: Shown = {}
    token = _shown.set(shown)
    try:
        yield shown
    finally:
        _shown.reset(token)


def scan(step: Callable, start: Any, xs: Any, *, unroll: bool = False) -> tuple[Any, Any]:
    """`jax.lax.scan`; what its steps show is shown once, stacked along a first axis."""
    if not is_watched():
        return jax.lax.scan(step, start, xs, unroll=unroll)

    def one(carry: Any, x: Any) -> tuple[Any, tuple]:
        with watched() as shown:
            carry, outputs = step(carry, x)
        return carry, (outputs, shown)

    end, (outputs, shown) = jax.lax.scan(one, start, xs, unroll=unroll)
    for name, values in shown.items():
        for value in values:
            show(name, value)
    return end, outputs
