"""Numbers of few bits: what training with them rounds to, and what is stored (Lite3R, §2 there).

Fake quantisation rounds values to those that few bits can tell apart and gives back floats; its
gradient is that of the identity (straight through), and products have gradients of the rounded
operands. FP8 is e4m3: 448 is the largest number.

Weights are as published, [O, I]. Axes: O output, I input, T token or other leading axes.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from efficient_lvsm_jax.errors import InputError

FP8 = jnp.float8_e4m3fn
LARGEST = 448.0
LEAST = 1e-8  # largest value of a row that is taken for zeros
LEAST_EXPORTED_SCALE = 2.0**-23
GROUP = 128  # inputs of a weight that have one scale as integers

Rounding = Callable[[jax.Array], jax.Array]


def fp8_codes(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Rows [..., I] as numbers of FP8 and the scale [...] that each is multiplied by.

    In the dtype of x, float32 or bfloat16, whose rounding every step has. A row with a value that
    is not finite is NaN, as are its numbers or its scale times them.
    """
    rounded = _rounding_to(x.dtype)
    wide = x.astype(jnp.float32)
    largest = jnp.abs(wide).max(axis=-1)
    scale = rounded(_divide(jnp.maximum(largest, rounded(jnp.float32(LEAST))), LARGEST))
    codes = jnp.clip(rounded(_divide(wide, scale[..., None])), -LARGEST, LARGEST).astype(FP8)
    return codes, scale.astype(x.dtype)


def fp8_values(codes: jax.Array, scale: jax.Array) -> jax.Array:
    """What codes [..., I] with scales [...] stand for, in the dtype of the scales."""
    values = codes.astype(jnp.float32) * scale.astype(jnp.float32)[..., None]
    return _rounding_to(scale.dtype)(values).astype(scale.dtype)


def fake_fp8(x: jax.Array) -> jax.Array:
    """Rows [..., I] rounded to FP8, each by its largest value: of a token, a head, an output."""
    return _straight_through(lambda x: fp8_values(*fp8_codes(x)), x)


def integer_codes(x: jax.Array, bits: int) -> tuple[jax.Array, jax.Array]:
    """Rows [..., I] of float32 as integers of so many bits, in float32, and their scales [...].

    Raises:
      InputError: no such number of bits.
    """
    if not 2 <= bits <= 16:
        raise InputError(f"integers of {bits} bits: expected 2 to 16")
    limit = 2 ** (bits - 1) - 1
    scale = _divide(jnp.maximum(jnp.abs(x).max(axis=-1), LEAST), limit)
    return jnp.clip(jnp.round(_divide(x, scale[..., None])), -limit - 1, limit), scale


def fake_integers(x: jax.Array, bits: int, group: int | None = None) -> jax.Array:
    """Rows [..., I] rounded to integers of so many bits, symmetric, with a scale for each group.

    Args:
      x: float32.
      bits: from 2 to 16.
      group: inputs that share a scale; None, or a number that does not divide I: all of a row.

    Raises:
      InputError: no such number of bits.
    """

    def rounded(x: jax.Array) -> jax.Array:
        groups = x.reshape(*x.shape[:-1], -1, group) if group and x.shape[-1] % group == 0 else x
        codes, scale = integer_codes(groups, bits)
        return (codes * scale[..., None]).reshape(x.shape)

    return _straight_through(rounded, x)


def smoothing(x: jax.Array, weight: jax.Array) -> jax.Array:
    """What inputs [..., I] are divided by and a weight [O, I] is multiplied by, [I].

    It moves outliers of the inputs into the weight, half of them as powers go.
    """

    def largest(x: jax.Array) -> jax.Array:
        return jnp.maximum(jnp.abs(x).max(axis=tuple(range(x.ndim - 1))), LEAST)

    return jnp.sqrt(largest(x)) / jnp.sqrt(largest(weight))


def linear(
    x: jax.Array,
    weight: jax.Array,
    bias: jax.Array | None = None,
    *,
    of_inputs: Rounding | None = None,
    of_weight: Rounding | None = fake_fp8,
    smooth: jax.Array | None = None,
) -> jax.Array:
    """A linear layer of rounded operands, [..., I] to [..., O].

    Args:
      x: [..., I]; of an axis of heads or tokens each row is rounded by itself.
      weight: [O, I]. bias: [O].
      of_inputs, of_weight: how operands are rounded; None leaves them.
      smooth: as of `smoothing`, applied before they are.
    """
    if smooth is not None:
        x, weight = _divide(x, smooth), weight * smooth
    x, weight = (
        operand if rounding is None else rounding(operand)
        for operand, rounding in ((x, of_inputs), (weight, of_weight))
    )
    product = jnp.einsum("...I,OI->...O", x, weight, preferred_element_type=jnp.float32)
    return (product if bias is None else product + bias).astype(x.dtype)


def exported_codes(weight: jax.Array) -> tuple[jax.Array, jax.Array]:
    """A weight [O, I] as weight-only export stores it: FP8 numbers and a scale [O] in its dtype.

    Not the codes that `fake_fp8` trains with: a weight is multiplied by the rounded reciprocal of
    its scale, and the scale is bounded, not what it is made of.
    """
    rounded = _rounding_to(weight.dtype)
    wide = weight.astype(jnp.float32)
    largest = jnp.abs(wide).max(axis=-1)
    scale = jnp.maximum(rounded(_divide(largest, LARGEST)), LEAST_EXPORTED_SCALE)
    scaled = rounded(wide * rounded(1 / scale)[:, None])
    return jnp.clip(scaled, -LARGEST, LARGEST).astype(FP8), scale.astype(weight.dtype)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Kernel:
    """A kernel in eight bits, in place of the array [*I, *O] that a projection has.

    Attributes:
      codes: [O, I] or layers of them, as GPUs multiply FP8 and would turn it; int8, or uint8, the
        bits of FP8.
      scale: what outputs are multiplied by, float32 [O] or layers of them.
    """

    codes: jax.Array
    scale: jax.Array

    @property
    def bits(self) -> str:
        """ "int8" or "fp8"."""
        return "int8" if self.codes.dtype == jnp.int8 else "fp8"

    def __getitem__(self, index: Any) -> Kernel:
        """Both at an index, as of an array."""
        return Kernel(self.codes[index], self.scale[index])


def to_kernel(kernel: jax.Array, inputs: int, bits: str) -> Kernel:
    """Stacked kernels [L, *I, *O] in eight bits, rounded by output.

    Args:
      inputs: number of axes *I.
      bits: "fp8" or "int8".
    """
    outputs = math.prod(kernel.shape[1 + inputs :])
    matrix = jnp.swapaxes(kernel.reshape(kernel.shape[0], -1, outputs), 1, 2)
    codes, scale = codes_of(matrix.astype(jnp.float32), bits)
    return Kernel(
        codes if bits == "int8" else jax.lax.bitcast_convert_type(codes, jnp.uint8), scale
    )


def fake_kernel(kernel: jax.Array, inputs: int, bits: str) -> jax.Array:
    """Stacked kernels rounded as `to_kernel` rounds them, in floats; straight through.

    Args: as there.
    """

    def values(kernel: jax.Array) -> jax.Array:
        rounded = to_kernel(kernel, inputs, bits)
        codes = rounded.codes
        if bits == "fp8":
            codes = jax.lax.bitcast_convert_type(codes, FP8)
        rows = codes.astype(jnp.float32) * rounded.scale[..., None]
        return jnp.swapaxes(rows, 1, 2).reshape(kernel.shape)

    return _straight_through(values, kernel)


def multiply(rows: jax.Array, kernel: Kernel) -> jax.Array:
    """Rows [..., I] by a kernel of codes [O, I], as eight-bit numbers: [..., O].

    Rows are rounded as the kernel is, each by its largest value. The sums are exact for integers;
    for FP8 they are in the dtype of the rows, added up in float32. Both scales follow.
    """
    codes, scale = codes_of(rows.astype(jnp.float32), kernel.bits)
    return multiply_codes(codes, scale, kernel, dtype=rows.dtype)


def multiply_codes(
    codes: jax.Array, scale: jax.Array, kernel: Kernel, *, dtype: jnp.dtype
) -> jax.Array:
    """`multiply` of rows that are codes [..., I] with scales [...], in a dtype."""
    is_int8 = kernel.bits == "int8"
    other = kernel.codes if is_int8 else jax.lax.bitcast_convert_type(kernel.codes, FP8)
    total = jnp.int32 if is_int8 else dtype  # in float32 a GPU would write and read twice as much
    contracted = (((codes.ndim - 1,), (1,)), ((), ()))
    sums = jax.lax.dot_general(codes, other, contracted, preferred_element_type=total)
    return (sums.astype(jnp.float32) * scale[..., None] * kernel.scale).astype(dtype)


def codes_of(rows: jax.Array, bits: str) -> tuple[jax.Array, jax.Array]:
    """Rows [..., I] of float32 as FP8 or int8 numbers, and their scales [...]."""
    if bits == "fp8":
        return fp8_codes(rows)
    codes, scale = integer_codes(rows, 8)
    return codes.astype(jnp.int8), scale


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _straight_through(rounding: Rounding, x: jax.Array) -> jax.Array:
    return rounding(x)


@_straight_through.defjvp
def _identity(rounding: Rounding, primals: tuple, tangents: tuple) -> tuple[jax.Array, jax.Array]:
    return rounding(*primals), *tangents


def _divide(x: jax.Array, divisor: jax.Array | float) -> jax.Array:
    """x / divisor, of a constant or of one number for many, as XLA cannot see.

    It would multiply by the reciprocal: every other quotient would be the next number, and those
    near the middle of two codes would be rounded to the other.
    """
    return x / jnp.where(jnp.isnan(x), x, divisor)


def _rounding_to(dtype: jnp.dtype) -> Rounding:
    """Rounds float32 to what a dtype holds; casts there and back would be optimised away."""
    if dtype == jnp.float32:
        return lambda x: x
    info = jnp.finfo(dtype)
    return lambda x: jax.lax.reduce_precision(x, info.nexp, info.nmant)
