"""Memory that each thread keeps and writes over: fresh pages cost more than what is put in them."""

from __future__ import annotations

import threading

import numpy as np

_thread = threading.local()


def scratch(name: str, shape: tuple[int, ...], dtype: type) -> np.ndarray:
    """This thread's array of that name, with whatever was last written to it.

    It is valid until the same thread asks for the name again.
    """
    array = getattr(_thread, name, None)
    if array is None or array.shape != shape or array.dtype != dtype:
        array = np.empty(shape, dtype)
        setattr(_thread, name, array)
    return array
