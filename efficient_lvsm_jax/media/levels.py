"""Pictures as floats in [0, 1] and as bytes."""

from __future__ import annotations

import numpy as np


def to_bytes(image: np.ndarray) -> np.ndarray:
    """Floats in [0, 1] to the nearest of 256 levels."""
    return np.round(np.clip(np.asarray(image), 0, 1) * 255).astype(np.uint8)


def from_bytes(image: np.ndarray) -> np.ndarray:
    """256 levels to float32 in [0, 1]."""
    return np.divide(image, 255, dtype=np.float32)
