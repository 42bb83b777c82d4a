"""Lanczos resizing of only the part of a picture that a crop keeps, as matrix products.

The filter is PIL's (`Image.Resampling.LANCZOS`, three lobes, widened when shrinking). PIL rounds
and clips to bytes between its two passes and this does not, so values differ by a level or two of
255, by more only where the filter overshoots at a hard edge. It takes a quarter of PIL's time for
the published crop of a 640x360 frame, which decides whether two cores can feed training from
original frames (docs/data.md).
"""

from __future__ import annotations

import functools

import cv2
import numpy as np

from data_pipeline.pictures.scratch import scratch

_Bands = tuple[tuple[int, int, np.ndarray], ...]  # see `_bands`
LOBES = 3
_BLOCK = 8  # rows of a weight matrix multiplied at once: it is a band, most of it is zero


def resize_region(
    image: np.ndarray, width: int, height: int, left: int, top: int, out: np.ndarray
) -> None:
    """Writes a square of `image` resized to width x height, without computing the rest of it.

    Args:
      image: uint8 [Y, X, 3].
      width, height: of the whole resized picture.
      left, top: of the square in it, pixels.
      out: uint8 [side, side, 3], contiguous.
    """
    side = len(out)
    rows = _bands(image.shape[0], height, top, side)
    columns = _bands(image.shape[1], width, left, side)
    first, last = columns[0][0], columns[-1][1]  # the columns of the image that matter
    span = last - first
    source = scratch("source", (image.shape[0], span, 3), np.float32)
    source[:] = image[:, first:last]

    down = scratch("down", (side, span, 3), np.float32)
    _multiply(rows, source, 0, down)
    turned = scratch("turned", (span, side, 3), np.float32)
    cv2.transpose(down, turned)
    across = scratch("across", (side, side, 3), np.float32)  # columns first
    _multiply(columns, turned, first, across)
    levels = scratch("levels", across.shape, np.uint8)
    np.copyto(levels, np.clip(np.rint(across, out=across), 0, 255, out=across), casting="unsafe")
    cv2.transpose(levels, out)


def _multiply(bands: _Bands, source: np.ndarray, first: int, out: np.ndarray) -> None:
    """Weights times `source`, whose first row is number `first`, along its first axis."""
    flat_source, flat_out = source.reshape(len(source), -1), out.reshape(len(out), -1)
    for number, (start, stop, weights) in enumerate(bands):
        target = flat_out[number * _BLOCK : number * _BLOCK + len(weights)]
        np.matmul(weights, flat_source[start - first : stop - first], out=target)


@functools.lru_cache(maxsize=64)
def _bands(source: int, target: int, first: int, count: int) -> _Bands:
    """Weights of `count` resized samples from number `first` on, in blocks.

    Returns:
      For each block, the range of source samples with any weight, and the weights [block, range].
    """
    scale = source / target
    stretch = max(scale, 1.0)
    weights = np.zeros((count, source), np.float32)
    for row in range(count):
        centre = (first + row + 0.5) * scale
        start = max(int(centre - LOBES * stretch + 0.5), 0)
        stop = min(int(centre + LOBES * stretch + 0.5), source)
        distance = (np.arange(start, stop) + 0.5 - centre) / stretch
        taps = np.where(np.abs(distance) < LOBES, np.sinc(distance) * np.sinc(distance / LOBES), 0)
        weights[row, start:stop] = taps / taps.sum()
    blocks = []
    for row in range(0, count, _BLOCK):
        block = weights[row : row + _BLOCK]
        used = np.flatnonzero(block.any(axis=0))
        start, stop = int(used[0]), int(used[-1]) + 1
        blocks.append((start, stop, np.ascontiguousarray(block[:, start:stop])))
    return tuple(blocks)
