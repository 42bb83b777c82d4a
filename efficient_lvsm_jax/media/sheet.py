"""Sheets of pictures: rows of groups, each picture with a line below it; and frames of films."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

SMALL, LARGE = 128, 256  # pixels: smaller pictures are enlarged, larger ones reduced
GAP, GROUP_GAP, LINE = 6, 26, 24  # pixels between pictures, between groups, of a line of text
FILMED, ROW, MOST_INPUTS = 320, 4, 16  # least height in a film; inputs in a row, or twice as many


def sheet(
    title: str,
    names: Sequence[str],
    rows: Sequence[Sequence[np.ndarray]],
    captions: Sequence[Sequence[Sequence[str]]],
) -> np.ndarray:
    """Pictures in rows of groups.

    Args:
      title: the line above.
      names: of the groups, above them.
      rows: for each row and group uint8 [P, Y, X, 3], alike in all rows; all of one size.
      captions: for each row and group P lines, or none.

    Returns:
      uint8 [Y, X, 3].
    """
    height, width = _shown_size(*rows[0][0].shape[1:3])
    lefts, left = [], GAP
    for group in rows[0]:
        lefts.append(left)
        left += len(group) * (width + GAP) + GROUP_GAP
    row_height = height + LINE
    top = 2 * LINE + GAP
    image = Image.new("RGB", (left - GROUP_GAP, top + len(rows) * row_height), "white")
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(14)
    draw.text((GAP, 5), title, fill="black", font=font)
    for name, at in zip(names, lefts, strict=True):
        draw.text((at, LINE + GAP), name, fill="black", font=font)
    for i, (row, lines) in enumerate(zip(rows, captions, strict=True)):
        for at, group, below in zip(lefts, row, lines, strict=True):
            for j, picture in enumerate(group):
                place = (at + j * (width + GAP), top + i * row_height)
                image.paste(_resized(picture, (height, width)), place)
                if below:
                    draw.text((place[0], place[1] + height + 3), below[j], fill="black", font=font)
    return np.asarray(image)


def beside(
    rendered: np.ndarray, truth: np.ndarray | None, about_truth: str, inputs: np.ndarray
) -> np.ndarray:
    """A frame of a film: a rendered picture, the true one beside it, the inputs small below.

    Args:
      rendered: uint8 [Y, X, 3].
      truth: the same, or None where there is none: its place stays grey.
      about_truth: the line above it.
      inputs: uint8 [V, Y, X, 3]; of more than MOST_INPUTS, so many of them evenly.

    Returns:
      uint8 [Y, X, 3], larger; of one size for one V.
    """
    factor = -(-FILMED // rendered.shape[0])
    height, width = (side * factor for side in rendered.shape[:2])
    chosen = np.unique(np.linspace(0, len(inputs) - 1, MOST_INPUTS).round().astype(int))
    row = ROW if len(chosen) <= ROW else 2 * ROW
    small_width = (2 * width + GAP) // row - GAP
    small = (small_width * height // width, small_width)
    below = 2 * LINE + height
    rows = -(-len(chosen) // row)
    whole = (2 * width + 3 * GAP, below + rows * (small[0] + GAP))
    image = Image.new("RGB", whole, "white")
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(19)
    right = width + 2 * GAP
    some = f"{len(chosen)} of " if len(chosen) < len(inputs) else ""
    count = f"{some}{len(inputs)} input" + ("" if len(inputs) == 1 else "s")
    for left, top, words in (
        (GAP, 0, "rendered"),
        (right, 0, about_truth),
        (GAP, LINE + height, count),
    ):
        draw.text((left, top), words, fill="black", font=font)
    draw.rectangle((right, LINE, right + width - 1, LINE + height - 1), fill="#d8d8d8")
    for left, picture in ((GAP, rendered), (right, truth)):
        if picture is not None:
            image.paste(_resized(picture, (height, width)), (left, LINE))
    for i, picture in enumerate(inputs[chosen]):
        place = (GAP + i % row * (small[1] + GAP), below + i // row * (small[0] + GAP))
        image.paste(_resized(picture, small), place)
    return np.asarray(image)


def _shown_size(height: int, width: int) -> tuple[int, int]:
    longest = max(height, width)
    if longest <= SMALL:
        factor = LARGE * 3 // 4 // longest
        return height * factor, width * factor
    scale = min(1.0, LARGE / longest)
    return round(height * scale), round(width * scale)


def _resized(picture: np.ndarray, size: tuple[int, int]) -> Image.Image:
    """Enlarged so that pixels stay visible, or reduced smoothly."""
    enlarged = size[0] > picture.shape[0]
    how = Image.Resampling.NEAREST if enlarged else Image.Resampling.LANCZOS
    return Image.fromarray(picture).resize(size[::-1], how)
