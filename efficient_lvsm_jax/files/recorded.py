"""Arrays recorded from published programs, and how near a model comes to them."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import zipfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.files.stored import printable

MAX_BYTES = 2**32


@dataclasses.dataclass(frozen=True)
class Difference:
    """The largest error of a quantity (NaN if a value is NaN) and the limit for it.

    `relative`: errors count in shares of values, of small ones absolutely.
    """

    quantity: str
    error: float
    limit: float
    relative: bool = False

    @property
    def within(self) -> bool:
        """Whether the error is small enough; NaN is not."""
        return self.error <= self.limit

    def __str__(self) -> str:
        what = "max_relative_error" if self.relative else "max_abs_error"
        return f"reference {self.quantity} {what}={self.error:.2e} limit={self.limit:.0e}"


class Read(dict):
    """Arrays by name, which know what was looked at."""

    def __init__(self, arrays: Mapping[str, np.ndarray]):
        super().__init__(arrays)
        self.names: set[str] = set()

    def __getitem__(self, name: str) -> np.ndarray:
        self.names.add(name)
        return super().__getitem__(name)

    def get(self, name: str, default: Any = None) -> Any:
        """The array, looked at, or else `default`."""
        return self[name] if name in self else default


def difference(
    quantity: str,
    name: str,
    got: Any,
    expected: np.ndarray,
    limit: float,
    besides: float | None = None,
    *,
    relative: bool = False,
) -> Difference:
    """How far what a model gives is from what was recorded.

    Args:
      quantity: what it is.
      name: of the recorded array, for messages.
      got, expected: arrays of one shape, or numbers.
      limit: of the error.
      besides: if told, errors count in shares of the value and of so much.
      relative: errors count in shares of values above 1.

    Raises:
      InputError: the shapes differ.
    """
    got, expected = np.asarray(got, np.float64), np.asarray(expected, np.float64)
    if got.shape != expected.shape:
        raise InputError(f"{name} is {expected.shape}, but this model gives {got.shape}")
    error = np.abs(got - expected)
    if besides is not None:
        error = error / (besides + np.abs(expected))
    elif relative:
        error = error / np.maximum(1, np.abs(expected))
    relative = relative or besides is not None
    return Difference(quantity, float(np.max(error, initial=0.0)), limit, relative)


def worst(path: Path, differences: Iterable[Difference]) -> list[Difference]:
    """Of every quantity the largest, in the order in which they come.

    Raises:
      InputError: there is none; or what comes while they are made, with the file that it is about,
        also if arrays do not belong together.
    """
    found: dict[str, Difference] = {}
    try:
        for new in differences:
            old = found.setdefault(new.quantity, new)
            if not new.error <= old.error:
                found[new.quantity] = new
    except KeyError as error:
        raise InputError(f"{path}: has no array {error.args[0]}") from None
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    except (TypeError, ValueError, IndexError, ArithmeticError) as error:
        reason = printable(str(error).splitlines()[0] if str(error) else type(error).__name__)
        raise InputError(f"{path}: its arrays do not belong together ({reason})") from error
    if not found:
        raise InputError(f"{path}: has no array that is compared; record more of them")
    return list(found.values())


def settings_told(
    config: np.ndarray | None, settings: Callable[[dict], dict[str, Any]]
) -> dict[str, Any]:
    """The settings in the text of the array `config`, which `settings` makes of its values.

    Raises:
      InputError: no such text.
    """
    if config is None:
        return {}
    try:
        stated: Mapping[str, Any] = json.loads(str(config))
        return settings({k: tuple(v) if isinstance(v, list) else v for k, v in stated.items()})
    except InputError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, ZeroDivisionError) as error:
        reason = printable(f"{type(error).__name__}: {error}")
        raise InputError(f"config: expected a JSON object of sizes ({reason})") from None


def array_names(path: Path) -> set[str]:
    """The names of the arrays in a .npz file.

    Raises:
      InputError: not such a file.
    """
    with _opened(path) as file:
        return set(file.files)


def read_arrays(path: Path, names: Collection[str]) -> dict[str, np.ndarray]:
    """Arrays of a .npz file by name.

    Raises:
      InputError: not such a file.
    """
    with _opened(path) as file:
        return {name: file[name] for name in names}


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[np.lib.npyio.NpzFile]:
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(member.file_size for member in archive.infolist())
        if size > MAX_BYTES:
            raise InputError(f"{path}: unpacks to {size} bytes; at most {MAX_BYTES} are read")
        with np.load(path, allow_pickle=False) as file:
            yield file
    except InputError:
        raise
    except (OSError, ValueError, LookupError, EOFError, zipfile.BadZipFile) as error:
        reason = printable(str(error).splitlines()[0] if str(error) else type(error).__name__)
        raise InputError(f"{path}: not a readable .npz file of plain arrays ({reason})") from error
