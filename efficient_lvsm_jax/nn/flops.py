"""Analytic FLOPs of the parts of networks: products alone, two FLOPs a multiply-add.

Compilers cannot be asked: they count the body of a loop once and a kernel as nothing. What turns
channels by positions is left out: 16 D FLOPs a token and layer, beside some 24 D².

Axes: D width, L layer.
"""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Flops:
    """FLOPs of products with parameters, and of the two products inside attention.

    They are kept apart because a matrix unit is used well by the first and, at a head dim of 64,
    badly by the second.
    """

    linear: int = 0
    attention: int = 0

    @property
    def total(self) -> int:
        """Both together."""
        return self.linear + self.attention

    def __add__(self, other: Flops) -> Flops:
        return Flops(self.linear + other.linear, self.attention + other.attention)

    def __mul__(self, times: int) -> Flops:
        return Flops(self.linear * times, self.attention * times)


def projections(width: int, tokens: int, widths: int) -> Flops:
    """Maps of tokens from D to `widths` times D channels."""
    return Flops(linear=2 * tokens * width * widths * width)


def scores(width: int, queries: int, keys: int) -> Flops:
    """q kᵀ and weights·v, over all heads."""
    return Flops(attention=2 * 2 * queries * keys * width)


def layer(width: int, tokens: int, keys: int | None = None) -> Flops:
    """A block with an MLP of four times its width; tokens see so many keys, or themselves."""
    seen = scores(width, tokens, tokens if keys is None else keys)
    return projections(width, tokens, 4 + 2 * 4) + seen


def linear(inputs: int, outputs: int, count: int = 1) -> Flops:
    """A map of so many vectors."""
    return Flops(linear=2 * count * inputs * outputs)


def convolution(side: int, inputs: int, outputs: int, size: tuple[int, int]) -> Flops:
    """A convolution whose result has `size` (Y, X)."""
    return linear(side * side * inputs, outputs, size[0] * size[1])


def resized(channels: int, size: tuple[int, int], to: tuple[int, int]) -> Flops:
    """A map from a size (Y, X) to another, by a matrix for each axis that changes (`resize`)."""
    rows = to[0] * size[0] * size[1] if to[0] != size[0] else 0
    columns = to[0] * size[1] * to[1] if to[1] != size[1] else 0
    return Flops(linear=2 * channels * (rows + columns))
