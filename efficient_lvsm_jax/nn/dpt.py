"""A DPT head: tokens after four layers of a transformer, to a picture (arXiv:2103.13413).

As VGGT has it: all four maps have the same tokens, so three of them are resized first.

Axes: I image, Y X pixel, y x patch, N patch token, E channels of a token, C channel.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from efficient_lvsm_jax.nn.blocks import LayerNorm, Linear
from efficient_lvsm_jax.nn.flops import Flops, convolution, linear, resized
from efficient_lvsm_jax.nn.positions import BASE
from efficient_lvsm_jax.nn.resize import bilinear_aligned

LAST_CHANNELS = 32  # before the last convolution
POSITIONS_SHARE = 0.1  # of positions, beside features
PIXELS_AT_ONCE = 518 * 518  # of pictures that are read together

Maps = TypeVar("Maps")


class Conv(nnx.Module):
    """A convolution of maps [I, Y, X, C], with zeros around them so that stride 1 keeps sizes."""

    def __init__(self, side: int, inputs: int, outputs: int, *, stride: int = 1, bias: bool = True):
        self.side, self.stride = side, stride
        self.kernel = nnx.Param(jnp.zeros((side, side, inputs, outputs)))
        self.bias = nnx.Param(jnp.zeros((outputs,))) if bias else None

    def __call__(self, x: jax.Array) -> jax.Array:
        around = [(self.side // 2, self.side // 2)] * 2  # "SAME" would pad stride 2 otherwise
        layout = ("NHWC", "HWIO", "NHWC")
        strides = (self.stride, self.stride)
        x = jax.lax.conv_general_dilated(
            x, self.kernel[...], strides, around, dimension_numbers=layout
        )
        return x if self.bias is None else x + self.bias[...]


class Enlarge(nnx.Module):
    """A transposed convolution whose stride is its side: every pixel becomes side² of them."""

    def __init__(self, side: int, channels: int):
        self.map = Linear((side, side, channels, channels), (channels,))

    def __call__(self, x: jax.Array) -> jax.Array:
        images, height, width, channels = x.shape
        side = self.map.kernel.shape[0]
        x = self.map("IyxC,YXCD->IyYxXD", x)
        return x.reshape(images, height * side, width * side, channels)


class Residual(nnx.Module):
    """Two convolutions of relu(x), added to that (VGGT's ReLU works in place), or to x."""

    def __init__(self, channels: int, *, to_relu: bool):
        self.to_relu = to_relu
        self.conv1 = Conv(3, channels, channels)
        self.conv2 = Conv(3, channels, channels)

    def __call__(self, x: jax.Array) -> jax.Array:
        positive = jax.nn.relu(x)
        change = self.conv2(jax.nn.relu(self.conv1(positive)))
        return change + (positive if self.to_relu else x)


class Fusion(nnx.Module):
    """What comes from the coarser level, and this level's map, at the size of the next one."""

    def __init__(self, channels: int, *, coarsest: bool, to_relu: bool):
        self.unit1 = None if coarsest else Residual(channels, to_relu=to_relu)
        self.unit2 = Residual(channels, to_relu=to_relu)
        self.out = Conv(1, channels, channels)

    def __call__(self, x: jax.Array | None, level: jax.Array, size: tuple[int, int]) -> jax.Array:
        x = level if x is None else x + self.unit1(level)
        return self.out(bilinear_aligned(self.unit2(x), size))


class Fusions(nnx.Module):
    """Four levels of as many channels to one map, from the coarsest on."""

    def __init__(self, channels: int, *, to_relu: bool):
        for number in (1, 2, 3, 4):
            fusion = Fusion(channels, coarsest=number == 4, to_relu=to_relu)
            setattr(self, f"fuse{number}", fusion)

    def fuse(self, levels: list[jax.Array]) -> list[jax.Array]:
        """What is fused, coarsest first, each at the size of the level that is next."""
        sizes = [level.shape[1:3] for level in levels]
        sizes = [tuple(2 * side for side in sizes[0]), *sizes[:3]]
        x, found = None, []
        for number in (4, 3, 2, 1):
            x = getattr(self, f"fuse{number}")(x, levels[number - 1], sizes[number - 1])
            found.append(x)
        return found


class DPT(Fusions):
    """The head. Computed in float32.

    Args:
      width: E.
      channels: of the four levels, finest first.
      features: of every level while they are fused.
      outputs: channels of the result; 0: its features, at half the picture's size, are what is
        wanted, and no positions are added.
      to_relu: what residuals are added to, see `Residual`.
    """

    def __init__(
        self,
        width: int,
        channels: tuple[int, ...],
        features: int,
        outputs: int,
        *,
        to_relu: bool = True,
    ):
        super().__init__(features, to_relu=to_relu)
        finest, fine, _, coarsest = channels
        self.norm = LayerNorm(width, 1e-5)
        for number, count in enumerate(channels, 1):
            setattr(self, f"project{number}", Conv(1, width, count))
            setattr(self, f"reduce{number}", Conv(3, count, features, bias=False))
        self.resize1 = Enlarge(4, finest)
        self.resize2 = Enlarge(2, fine)
        self.resize4 = Conv(3, coarsest, coarsest, stride=2)
        neck = features // 2 if outputs else features
        self.neck = Conv(3, features, neck)
        self.last1 = Conv(3, neck, LAST_CHANNELS) if outputs else None
        self.last2 = Conv(1, LAST_CHANNELS, outputs) if outputs else None

    def __call__(self, taps: jax.Array, size: tuple[int, int], patch: int) -> jax.Array:
        """Tokens to a map.

        Args:
          taps: patch tokens after four layers, [4, I, N, E], earliest first.
          size: (Y, X) of the pictures, multiples of `patch`.
          patch: side of one in pixels.

        Returns:
          [I, Y, X, outputs] float32, or features [I, Y/2, X/2, C].
        """
        return self.finish(self.fused(self.levels(taps, size, patch))[-1], size)

    def finish(self, x: jax.Array, size: tuple[int, int]) -> jax.Array:
        """The map of what was fused last."""
        x = self.neck(x)
        if self.last1 is None:
            return bilinear_aligned(x, (size[0] // 2, size[1] // 2))
        x = placed(bilinear_aligned(x, size), size)
        return self.last2(jax.nn.relu(self.last1(x)))

    def levels(self, taps: jax.Array, size: tuple[int, int], patch: int) -> list[jax.Array]:
        """The four maps [I, …, …, C], finest first."""
        grid = size[0] // patch, size[1] // patch
        maps = []
        for number, tokens in enumerate(taps, 1):
            x = self.norm(tokens)
            x = x.reshape(x.shape[0], *grid, -1)
            x = getattr(self, f"project{number}")(x)
            x = x if self.last1 is None else placed(x, size)
            resize = getattr(self, f"resize{number}", None)
            maps.append(x if resize is None else resize(x))
        return maps

    def fused(self, levels: list[jax.Array]) -> list[jax.Array]:
        """`fuse` of the four maps of `levels`."""
        return self.fuse(self.reduced(levels))

    def reduced(self, levels: list[jax.Array]) -> list[jax.Array]:
        """The four maps, all of as many channels."""
        return [getattr(self, f"reduce{n}")(level) for n, level in enumerate(levels, 1)]


def read_in_parts(
    read: Callable[[jax.Array], Maps], taps: jax.Array, size: tuple[int, int], *, remat: bool
) -> Maps:
    """What a head makes of taps [4, B, R, N, E]: arrays [B, R, …].

    Large pictures are read frame by frame, which bounds memory, and all scenes at once, as a mesh
    spreads them. Small ones are read together: on a CPU gradients of convolutions take 17 times as
    long in a loop, even in one of a single turn.

    Args:
      read: [4, I, N, E] to arrays [I, …], or None for one that is not wanted.
      taps: of pictures of `size`, (Y, X).
      remat: nothing of a frame is kept for the backward pass, which reads it again.
    """
    batch, frames = taps.shape[1:3]
    if batch * frames * size[0] * size[1] <= PIXELS_AT_ONCE:
        maps = read(taps.reshape(4, -1, *taps.shape[3:]))
        return jax.tree.map(lambda x: x.reshape(batch, frames, *x.shape[1:]), maps)
    read = jax.checkpoint(read, prevent_cse=False) if remat else read
    maps = jax.lax.map(read, jnp.moveaxis(taps, 2, 0))
    return jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1), maps)


def placed(x: jax.Array, size: tuple[int, int]) -> jax.Array:
    """A map x [I, …, …, C] of a picture of `size` with positions added."""
    table = positions(x.shape[1:3], size[1] / size[0], x.shape[-1])
    return x + jnp.asarray(POSITIONS_SHARE * table, x.dtype)


def positions(size: tuple[int, int], aspect: float, channels: int) -> np.ndarray:
    """Sines and cosines [Y, X, C] of where the pixels of a map are, float64.

    Args:
      size: (Y, X) of the map.
      aspect: width over height of the picture, whose half diagonal is 1.
      channels: C, a multiple of 4; half of them tell the column, half the row.
    """
    count = channels // 4
    frequencies = BASE ** -(np.arange(count) / count)
    rows, columns = (
        np.concatenate([np.sin(angles), np.cos(angles)], axis=-1)
        for at in coordinates(size, aspect)
        for angles in [at[:, None] * frequencies]
    )
    shape = (*size, channels // 2)
    parts = np.broadcast_to(columns, shape), np.broadcast_to(rows[:, None], shape)
    return np.concatenate(parts, axis=-1)


def coordinates(size: tuple[int, int], aspect: float) -> tuple[np.ndarray, np.ndarray]:
    """Of pixel centres, rows [Y] and columns [X], from the middle; the half diagonal is 1."""
    diagonal = np.hypot(aspect, 1)
    spans = 1 / diagonal, aspect / diagonal
    ends = [span * (n - 1) / n for span, n in zip(spans, size, strict=True)]
    return tuple(np.linspace(-end, end, n) for end, n in zip(ends, size, strict=True))


def dpt_flops(
    width: int,
    channels: tuple[int, ...],
    features: int,
    outputs: int,
    size: tuple[int, int],
    patch: int,
) -> Flops:
    """FLOPs of a `DPT` head for a picture of `size` (Y, X); the other arguments as its own."""
    grid = size[0] // patch, size[1] // patch
    sizes = level_sizes(grid)
    total = fusion_flops(features, sizes)
    for count, of_level in zip(channels, sizes, strict=True):
        total += convolution(1, width, count, grid)
        total += convolution(3, count, features, of_level)
    finest, fine, _, coarsest = channels
    patches = grid[0] * grid[1]
    total += linear(finest, 16 * finest, patches) + linear(fine, 4 * fine, patches)
    total += convolution(3, coarsest, coarsest, sizes[3])
    last = tuple(2 * side for side in sizes[0])
    neck = features // 2 if outputs else features
    total += convolution(3, features, neck, last)
    if not outputs:
        return total + resized(neck, last, (size[0] // 2, size[1] // 2))
    total += resized(neck, last, size) + convolution(3, neck, LAST_CHANNELS, size)
    return total + convolution(1, LAST_CHANNELS, outputs, size)


def dpt_kept(
    width: int,
    channels: tuple[int, ...],
    features: int,
    outputs: int,
    size: tuple[int, int],
    patch: int,
) -> int:
    """Bytes that a `DPT` head keeps of a picture for the backward pass; arguments as `dpt_flops`.

    Read off the trace: numbers are float32, and a ReLU's mask is a quarter of one.
    """
    grid = size[0] // patch, size[1] // patch
    patches, sizes = math.prod(grid), [math.prod(level) for level in level_sizes(grid)]
    numbers = 16 * patches * width + patches * (sum(channels) - channels[2])
    numbers += sum(count * level for count, level in zip(channels, sizes, strict=True))
    numbers += features * (10 * sum(sizes[:3]) + 4.5 * sizes[3] + 8 * sizes[0])
    if outputs:
        numbers += math.prod(size) * (features / 2 + 2.25 * LAST_CHANNELS)
    return int(4 * numbers)


def fusion_flops(features: int, sizes: list[tuple[int, int]]) -> Flops:
    """Of `Fusions.fuse`, for levels of these sizes (Y, X), finest first."""
    total = Flops()
    nexts = [tuple(2 * side for side in sizes[0]), *sizes[:3]]
    for number, (size, to) in enumerate(zip(sizes, nexts, strict=True), 1):
        convolutions = 2 if number == 4 else 4
        total += convolution(3, features, features, size) * convolutions
        total += resized(features, size, to) + convolution(1, features, features, to)
    return total


def level_sizes(grid: tuple[int, int]) -> list[tuple[int, int]]:
    """Sizes (Y, X) of the four levels of a picture of so many patches, finest first."""
    halves = tuple(-(-side // 2) for side in grid)
    return [*(tuple(factor * side for side in grid) for factor in (4, 2, 1)), halves]
