"""Compares a model with outputs recorded from the published program.

A reference file (.npz) has, channel-first as the published program keeps them: `image`
[B, V, 3, Y, X], `c2w` [B, V, 4, 4], `fxfycxcy` [B, V, 4], `num_input` (the first views are inputs,
the rest targets) and at least `render` [B, T, 3, Y, X]. It may have

- `render_incremental` [inputs, B, T, 3, Y, X]: the render after each added input;
- `cache_first_layer_k`, `cache_first_layer_v`, `cache_last_layer_k` [B, inputs·N, H, K];
- `input_tokens_after_tokenizer` [B·inputs, N, D], `target_tokens_after_tokenizer` [B·T, N, D];
- `ray_o`, `ray_d` [B, V, 3, …, …]; origins are the same at every pixel, so any number of pixels.
"""

from __future__ import annotations

import dataclasses
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import numpy as np

from efficient_lvsm_jax import cache as pages
from efficient_lvsm_jax.cameras import Cameras, Views, check_cameras, rays
from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.models import Model

# Largest absolute difference between two correct float32 implementations, with room to spare.
LIMITS = {
    "render": 2e-5,
    "render_incremental": 2e-5,
    "cache": 1e-4,
    "tokens": 1e-5,
    "rays": 1e-5,
}
NEEDED = ("image", "c2w", "fxfycxcy", "num_input", "render")
OPTIONAL = {
    "render_incremental": ("render_incremental",),
    "cache": ("cache_first_layer_k", "cache_first_layer_v", "cache_last_layer_k"),
    "tokens": ("input_tokens_after_tokenizer", "target_tokens_after_tokenizer"),
    "rays": ("ray_o", "ray_d"),
}
MAX_FILE_BYTES = 2**31


@dataclasses.dataclass(frozen=True)
class Reference:
    """A reference file. `recorded` has the arrays of every quantity it can be compared by."""

    path: Path
    views: Views
    cameras: Cameras
    recorded: dict[str, dict[str, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Difference:
    """The largest absolute error of a quantity, NaN if a value is NaN, and its limit."""

    quantity: str
    error: float

    @property
    def limit(self) -> float:
        """The largest error a correct port may have."""
        return LIMITS[self.quantity]

    @property
    def within(self) -> bool:
        """Whether it is small enough; NaN is not."""
        return self.error <= self.limit

    def __str__(self) -> str:
        return (
            f"reference {self.quantity} max_abs_error={self.error:.3g} limit={self.limit:.0e}"
        )
