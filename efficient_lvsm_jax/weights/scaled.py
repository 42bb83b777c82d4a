"""Weights in eight bits: which tensors of a model have them, and their scales beside them.

Of a renderer of views the kernels of its layers do, by output channel; tokenizers, head and norms
stay float32. A published tensor [O, I] is then int8 or FP8 (e4m3), and its name with `_scale` is
what its rows are multiplied by, float32 [O, 1].
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.files.stored import DTYPES, ScaledTensor, StoredTensor, printable
from efficient_lvsm_jax.nn.eight_bits import fp8_codes, integer_codes
from efficient_lvsm_jax.weights.layouts import layout_named

SCALE = "_scale"
BITS = ("fp8", "int8")
CODES = (DTYPES["int8"], DTYPES["float8_e4m3fn"])


def scaled(
    tensors: Mapping[str, np.ndarray], family: str, config: Any, bits: str
) -> dict[str, np.ndarray]:
    """Published tensors with the kernels of layers in eight bits, each followed by its scale.

    Args:
      tensors: float32, as of `bring_out`.
      family, config: whose they are.
      bits: one of BITS.

    Raises:
      InputError: no such number of bits, or values that are not finite.
    """
    if bits not in BITS:
        raise InputError(f"bits {bits!r}: expected one of {', '.join(BITS)}")
    places = layout_named(family).places(config.architecture)
    kernels = {
        names[0]
        for rule, rows in places.items()
        if rule.stacked and rule.target.endswith("/kernel")
        for names in rows
    }
    found: dict[str, np.ndarray] = {}
    for name, tensor in tensors.items():
        if name not in kernels:
            found[name] = tensor
            continue
        if not np.isfinite(tensor).all():
            raise InputError(f"tensor {name} has NaN or infinite values; eight bits hold none")
        codes, scale = _codes(tensor, bits)
        found[name] = np.asarray(codes)
        found[name + SCALE] = np.asarray(scale)[:, None]
    return found


def with_scales(path: Path, tensors: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """Tensors of a file, those in eight bits as the floats that they and their scales stand for.

    Raises:
      InputError: a scale that is not one for each row.
    """
    found = dict(tensors)
    for name, tensor in tensors.items():
        scale = tensors.get(name + SCALE)
        if tensor.dtype not in CODES or scale is None:
            continue
        if scale.dtype != DTYPES["float32"] or scale.shape != (*tensor.shape[:1], 1):
            raise InputError(
                f"{path}: {printable(name + SCALE)} is {scale.dtype} {scale.shape}, expected a "
                f"scale for each row of {printable(name)}, float32 {(*tensor.shape[:1], 1)}"
            )
        del found[name + SCALE]
        layout = (tensor.storage, tensor.dtype, tensor.shape, tensor.strides, tensor.offset)
        found[name] = ScaledTensor(*layout, scale)
    return found


def _codes(tensor: np.ndarray, bits: str) -> tuple[jax.Array, jax.Array]:
    if bits == "fp8":
        return fp8_codes(tensor)
    codes, scale = integer_codes(tensor, 8)
    return codes.astype(np.int8), scale
