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

from data_pipeline.scratch import scratch

LOBES = 3
_BLOCK = 16  # rows of a weight matrix multiplied at once: it is a band, most of it is zero


def resize_region(
    image: np.ndarray, width: int, height: int, left: int, top: int, side: int
) -> np.ndarray:
    """A square of `image` resized to width x height, without computing the rest of it.

    Args:
      image: uint8 [Y, X, 3].
      width, height: of the whole resized picture.
      left, top, side: the square in it, pixels.

    Returns:
      uint8 [side, side, 3].
    """
    rows = _bands(image.shape[0], height, top, side)
    columns = _bands(image.shape[1], width, left, side)
    first, last = columns[0][0], columns[-1][1]  # the columns of the image that matter
    source = scratch("source", (image.shape[0], (last - first) * 3), np.float32)
    source.reshape(-1, last - first, 3)[:] = image[:, first:last]

    down = scratch("down", (side, source.shape[1]), np.float32)  # [S, x·C]
    for number, (start, stop, weights) in enumerate(rows):
        target = down[number * _BLOCK : number * _BLOCK + len(weights)]
        np.matmul(weights, source[start:stop], out=target)
    planes = scratch("planes", (3 * side, last - first), np.float32)  # [C·S, x]
    planes.reshape(3, side, -1)[:] = down.reshape(side, -1, 3).transpose(2, 0, 1)

    across = scratch("across", (3 * side, side), np.float32)
    for number, (start, stop, weights) in enumerate(columns):
        target = across[:, number * _BLOCK : number * _BLOCK + len(weights)]
        np.matmul(planes[:, start - first : stop - first], weights.T, out=target)
    levels = scratch("levels", across.shape, np.uint8)
    np.copyto(levels, np.clip(np.rint(across, out=across), 0, 255, out=across), casting="unsafe")
    return cv2.merge(list(levels.reshape(3, side, side)))


@functools.lru_cache(maxsize=64)
def _bands(
    source: int, target: int, first: int, count: int
) -> tuple[tuple[int, int, np.ndarray], ...]:
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
