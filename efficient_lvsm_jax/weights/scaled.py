"""Weights in eight bits: which tensors of a model have them, and their scales beside them.

Of a renderer of views the kernels of its layers do, by output channel; tokenizers, head and norms
stay float32. A published tensor [O, I] is then int8 or FP8 (e4m3), and its name with `_scale` is
what its rows are multiplied by, float32 [O, 1].
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.files.safetensors_file import read_safetensors
from efficient_lvsm_jax.files.stored import DTYPES, ScaledTensor, StoredTensor, printable
from efficient_lvsm_jax.models.model import Model
from efficient_lvsm_jax.nn.eight_bits import Kernel, codes_of, fake_kernel, to_kernel
from efficient_lvsm_jax.weights.layouts import layout_named
from efficient_lvsm_jax.weights.table import Places

SCALE = "_scale"
BITS = ("fp8", "int8")
FIRST_WITH_FP8 = 8.9  # compute capability
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
    kernels = {names[0] for rows in _kernels(family, config, bits).values() for names in rows}
    found: dict[str, np.ndarray] = {}
    for name, tensor in tensors.items():
        if name not in kernels:
            found[name] = tensor
            continue
        if not np.isfinite(tensor).all():
            raise InputError(f"tensor {name} has NaN or infinite values; eight bits hold none")
        codes, scale = codes_of(jnp.asarray(tensor), bits)
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


def has_scales(path: Path) -> bool:
    """Whether a .safetensors file has tensors in eight bits with scales."""
    tensors = with_scales(path, read_safetensors(path)).values()
    return any(isinstance(tensor, ScaledTensor) for tensor in tensors)


def in_eight_bits(model: Model, bits: str) -> Model:
    """A renderer that multiplies in eight bits, wherever its weights are `scaled` in them.

    Kernels are then kept as codes and scales, a quarter of float32's bytes; tokens are rounded too,
    each by its largest value.

    Raises:
      InputError: no such number of bits.
    """
    params = _with_kernels(_to_kernel, model.params, model.family, model.config, bits)
    return dataclasses.replace(model, params=params)


def products_of(params: dict) -> str:
    """In how many bits a renderer of these parameters multiplies, or "" if in floats."""
    kernels = jax.tree.leaves(params, is_leaf=lambda x: isinstance(x, Kernel))
    return next((x.bits for x in kernels if isinstance(x, Kernel)), "")


_to_kernel = jax.jit(to_kernel, static_argnums=(1, 2))


def rounded(params: dict, family: str, config: Any, bits: str) -> dict:
    """A renderer's parameters with the values that they have once they were `scaled`.

    Their gradients are those of the parameters (straight through). In a compiled program a few of
    100,000 values, which lie between two, are the other one.

    Raises:
      InputError: no such number of bits.
    """
    return _with_kernels(fake_kernel, params, family, config, bits)


def _with_kernels(
    change: Callable[[jax.Array, int, str], Any], params: dict, family: str, config: Any, bits: str
) -> dict:
    """Parameters with the kernels of layers changed, of so many axes of inputs, to bits."""
    params = jax.tree.map(lambda x: x, params)
    for rule in _kernels(family, config, bits):
        *folders, leaf = rule.target.split("/")
        folder = functools.reduce(lambda tree, key: tree[key], folders, params)
        folder[leaf] = change(folder[leaf], len(rule.source_axes.split(",")[1]), bits)
    return params


def check_products(bits: str) -> None:
    """Raises InputError if the device does not multiply numbers of these bits by itself.

    XLA would make wider ones of them first.
    """
    device = jax.devices()[0]
    capability = float(getattr(device, "compute_capability", 0))
    if bits == "fp8" and (device.platform != "gpu" or capability < FIRST_WITH_FP8):
        raise InputError(
            f"products='fp8': {device.device_kind} does not multiply FP8, which NVIDIA GPUs from "
            f"compute capability {FIRST_WITH_FP8} do; leave it out (weights in FP8 are then "
            "storage alone), or take int8"
        )


def _kernels(family: str, config: Any, bits: str) -> Places:
    """The rules of the table that are about kernels of layers, and their published names."""
    if bits not in BITS:
        raise InputError(f"bits {bits!r}: expected one of {', '.join(BITS)}")
    places = layout_named(family).places(config.architecture)
    return {
        rule: rows
        for rule, rows in places.items()
        if rule.stacked and rule.target.endswith("/kernel")
    }
