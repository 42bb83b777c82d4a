"""Arrays recorded from published programs, and how near a model comes to them."""

from __future__ import annotations

import contextlib
import dataclasses
import zipfile
from collections.abc import Collection, Iterator
from pathlib import Path

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
