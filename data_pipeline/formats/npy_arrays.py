"""Arrays of numbers in .npy files that we did not write."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from efficient_lvsm_jax.errors import InputError


def read_numbers(path: Path, shape: tuple[int | None, ...]) -> np.ndarray:
    """The array in an .npy file, float64.

    Args:
      shape: it must have; None for a length that is free; none may be 0.

    Raises:
      InputError: not there, no .npy file, not of numbers, of another shape, not finite, or its
        header promises more than the file holds.
    """
    try:
        # Mapped: the file must be as long as its header says, so nothing larger is ever allocated,
        # and pickled objects cannot be mapped.
        mapped = np.lib.format.open_memmap(path, mode="r")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from error
    # NumPy raises many kinds for damaged headers: TypeError, OverflowError, TokenError, …
    except Exception as error:
        raise InputError(f"{path}: not a .npy file of numbers ({error})") from error
    expected = f"[{', '.join('N' if length is None else str(length) for length in shape)}]"
    if mapped.dtype.kind not in "fiu":
        raise InputError(f"{path}: holds {mapped.dtype}, expected numbers {expected}")
    if mapped.ndim != len(shape) or any(
        found == 0 or length not in (None, found)
        for length, found in zip(shape, mapped.shape, strict=True)
    ):
        raise InputError(f"{path}: shape {list(mapped.shape)}, expected {expected}")
    values = np.array(mapped, np.float64)
    if not np.isfinite(values).all():
        raise InputError(f"{path}: holds NaN or infinity; expected finite numbers {expected}")
    return values
