"""Compares numbers of few bits with those that were recorded from the published programs.

- FP8 rows: `rows_*`, `bf16_*`, `nonfinite_*`, of P by head `headwise_*`, and the `e4m3_table`;
- a linear layer: `linear_*`, its gradients that of the sum of its outputs times `_out_weight`;
- weight-only export in a dtype: `deploy_{dtype}_*`;
- integers of {n} bits: `int_rows_out_{n}bit`, `int_weight_out_{n}bit`, `…_ragged_…`;
- a linear layer of them: `int_linear_w{n}a{m}_*`, `int_linear_w{n}_*` of inputs as they are, and
  `int_linear_smoothed_*`. Its weights have a scale for 32 inputs.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from efficient_lvsm_jax.compress.lines import Arrays, Line, cases, checked, exact, shares
from efficient_lvsm_jax.nn.eight_bits import (
    FP8,
    GROUP,
    exported_codes,
    fake_fp8,
    fake_integers,
    fp8_codes,
    fp8_values,
    linear,
    smoothing,
)

# In shares of the largest value of an array; those of bfloat16 are rounded to three digits.
PRODUCTS, HALF_PRODUCTS, SMOOTHING = 1e-5, 1e-2, 1e-6
LINEAR_GROUP = 32
SMOOTHED_BITS = {"weight": 4, "inputs": 8}


def is_of(names: set[str]) -> bool:
    """Whether arrays of these names are a recording of this."""
    told = r"e4m3_table|(rows|nonfinite|bf16|linear|headwise|deploy|int)_"
    return any(re.match(told, name) for name in names)


@checked
def compare(arrays: Arrays) -> Iterator[Line]:
    """Quantity, name, value, recorded value and limit of all that is recorded."""
    table = jax.lax.bitcast_convert_type(jnp.arange(256, dtype=jnp.uint8), FP8)
    yield from exact("FP8 table", "e4m3_table", table, arrays)
    for part, dtype in (("rows", jnp.float32), ("nonfinite", jnp.float32), ("bf16", jnp.bfloat16)):
        if f"{part}_in" in arrays:
            yield from _fp8_rows(arrays, part, dtype)
    for layer in ("linear", "headwise"):
        if f"{layer}_x" in arrays:
            yield from _linears(arrays, layer, LINEARS)
    for dtype in cases(arrays, r"deploy_(float32|bfloat16)_\w+"):
        yield from _exported(arrays, dtype)
    for name in sorted(arrays):
        if found := re.fullmatch(r"(int_.+)_out_(\d+)bit", name):
            group = GROUP if found[1].startswith("int_weight") else None
            rounding = functools.partial(fake_integers, bits=int(found[2]), group=group)
            got = jax.jit(rounding)(arrays[f"{found[1]}_in"])
            yield from exact("integers", name, got, arrays)
    if "int_linear_x" in arrays:
        yield from _integer_linears(arrays)


def _fp8_rows(arrays: Arrays, part: str, dtype: jnp.dtype) -> Iterator[Line]:
    x = jnp.asarray(arrays[f"{part}_in"], dtype)
    codes, scale = jax.jit(fp8_codes)(x)
    found = {
        "scale": scale,
        "codes": jax.lax.bitcast_convert_type(codes, jnp.uint8),
        "values": codes,
        "dequantised": jax.jit(fp8_values)(codes, scale),
        "out": jax.jit(fake_fp8)(x),
    }
    if f"{part}_out_weight" in arrays:
        found["grad"] = _gradient(fake_fp8, arrays[f"{part}_out_weight"], x)[0]
    for name, got in found.items():
        yield from exact("FP8 rows", f"{part}_{name}", got, arrays)


LINEARS = {
    "": functools.partial(linear, of_inputs=fake_fp8),
    "weight_only_": linear,
    "float_": functools.partial(linear, of_weight=None),
}


def _linears(arrays: Arrays, layer: str, kinds: Mapping[str, Callable]) -> Iterator[Line]:
    """Outputs and gradients of a layer, computed in several ways, by the beginning of names."""
    bias = ["bias"] if f"{layer}_bias" in arrays else []  # P has none
    parts = ["x", "weight", *bias]
    operands = [arrays[f"{layer}_{part}"] for part in parts]
    quantity = "integer linear" if layer.startswith("int") else "FP8 linear"
    for kind, function in kinds.items():
        if (name := f"{layer}_{kind}out") in arrays:
            yield from shares(quantity, name, jax.jit(function)(*operands), arrays, PRODUCTS)
        names = [f"{layer}_{kind}grad_{part}" for part in parts]
        if any(name in arrays for name in names):
            gradients = _gradient(function, arrays[f"{layer}_out_weight"], *operands)
            for name, got in zip(names, gradients, strict=True):
                yield from shares(f"{quantity} gradients", name, got, arrays, PRODUCTS)


def _exported(arrays: Arrays, dtype: str) -> Iterator[Line]:
    name = f"deploy_{dtype}"
    codes, scale = jax.jit(exported_codes)(jnp.asarray(arrays["deploy_weight"], dtype))
    values = jax.jit(fp8_values)(codes, scale)
    bits = jax.lax.bitcast_convert_type(codes, jnp.uint8)
    for part, got in (("codes", bits), ("scale", scale), ("dequantised", values)):
        yield from exact("FP8 export", f"{name}_{part}", got, arrays)
    if f"{name}_out" not in arrays:
        return
    x, bias = (jnp.asarray(arrays[f"deploy_{part}"], dtype) for part in ("x", "bias"))
    got = jax.jit(functools.partial(linear, of_weight=None))(x, values, bias)
    limit = HALF_PRODUCTS if dtype == "bfloat16" else PRODUCTS
    yield from shares(f"FP8 export, {dtype} linear", f"{name}_out", got, arrays, limit)


def _integer_linears(arrays: Arrays) -> Iterator[Line]:
    def integers(bits: str | int, group: int | None = None) -> Callable:
        return functools.partial(fake_integers, bits=int(bits), group=group)

    kinds = {}
    for kind in cases(arrays, r"int_linear_(w\d+(?:a\d+)?_)(?:out|grad_\w+)"):
        weight, inputs = re.fullmatch(r"w(\d+)(?:a(\d+))?_", kind).groups()
        kinds[kind] = functools.partial(
            linear,
            of_weight=integers(weight, LINEAR_GROUP),
            of_inputs=integers(inputs) if inputs else None,
        )
    if "int_linear_calibration_x" in arrays:
        calibration, weight = arrays["int_linear_calibration_x"], arrays["int_linear_weight"]
        got = jax.jit(smoothing)(calibration, weight)
        yield from shares("smoothing", "int_linear_smooth", got, arrays, SMOOTHING)
        yield from shares("smoothing", "int_linear_folded_weight", weight * got, arrays, SMOOTHING)
        smooth = arrays.get("int_linear_smooth", got)
        kinds["smoothed_"] = functools.partial(
            linear,
            of_weight=integers(SMOOTHED_BITS["weight"], LINEAR_GROUP),
            of_inputs=integers(SMOOTHED_BITS["inputs"]),
            smooth=smooth,
        )
    yield from _linears(arrays, "int_linear", kinds)


def _gradient(function: Callable, weight: np.ndarray, *operands: jax.Array) -> tuple:
    """Of the sum of outputs times `weight`, for every operand."""
    total = jax.jit(jax.grad(lambda *x: (function(*x) * weight).sum(), range(len(operands))))
    return total(*operands)
