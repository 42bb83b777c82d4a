"""Lines, dots and letters for drawings, smooth because everything is drawn larger and reduced.

Positions and sizes are (x, y) pixels of the finished drawing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

SMOOTHING = 2  # drawn larger by this factor
BACKGROUND, INK, FAINT = (255, 255, 255), (40, 44, 52), (226, 229, 233)

Colour = tuple[int, int, int]


def canvas(width: int, height: int) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    """An empty drawing and what draws on it; `finish` it."""
    image = Image.new("RGB", (width * SMOOTHING, height * SMOOTHING), BACKGROUND)
    return image, ImageDraw.Draw(image)


def finish(image: Image.Image) -> Image.Image:
    """The drawing at its own size."""
    size = (image.width // SMOOTHING, image.height // SMOOTHING)
    return image.resize(size, Image.Resampling.LANCZOS)


def line(draw: ImageDraw.ImageDraw, corners: Sequence, colour: Colour, width: float) -> None:
    """A line through the corners."""
    flat = [(float(x) * SMOOTHING, float(y) * SMOOTHING) for x, y in corners]
    draw.line(flat, fill=colour, width=max(1, round(width * SMOOTHING)), joint="curve")


def dot(draw: ImageDraw.ImageDraw, at: Sequence, radius: float, colour: Colour) -> None:
    """A filled circle."""
    x, y, radius = at[0] * SMOOTHING, at[1] * SMOOTHING, radius * SMOOTHING
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)


def text(
    draw: ImageDraw.ImageDraw,
    at: Sequence,
    words: str,
    size: int,
    *,
    anchor: str = "la",
    halo: bool = False,
) -> None:
    """Words at a place; `anchor` as in Pillow, `halo` keeps them readable on lines."""
    font = ImageFont.load_default(size * SMOOTHING)
    place = (float(at[0]) * SMOOTHING, float(at[1]) * SMOOTHING)
    stroke = {"stroke_width": 2 * SMOOTHING, "stroke_fill": BACKGROUND} if halo else {}
    draw.text(place, words, fill=INK, font=font, anchor=anchor, **stroke)


def nice_step(step: float) -> float:
    """1, 2 or 5 times a power of ten, at least `step`: a distance for the marks of an axis."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= step)
