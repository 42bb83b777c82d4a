"""Pictures without cameras, as values: types alone, so that they need no reader."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from efficient_lvsm_jax.errors import InputError

log = logging.getLogger(__name__)

BLANK = 2.0  # levels by which a picture must vary around its mean to show anything
LEAST_SIDE = 16  # pixels
ENOUGH = "to go by: expected two or more, as places are only known relative to each other"


@dataclasses.dataclass(frozen=True)
class Photo:
    """A picture whose camera is not known.

    Attributes:
      name: of a file, with a suffix, different from that of all others.
      image: RGB uint8 [Y, X, 3], upright.
      stored: the file that shows exactly this; None if it was turned, blended or decoded.
      focal: its focal length in pixels, if its EXIF says so.
      file: that shows exactly this, if it is one of `kept_photos`.
    """

    name: str
    image: np.ndarray = dataclasses.field(repr=False)
    stored: bytes | None = dataclasses.field(default=None, repr=False)
    focal: float | None = None
    file: Path | None = None


@dataclasses.dataclass(frozen=True)
class Photos:
    """Pictures one by one, as often as asked for. Those of one colour are left out.

    Attributes:
      name: of the source.
      count: how many there are, of one colour or not.
      film: whether neighbours were taken one after the other.
    """

    name: str
    count: int
    film: bool
    read: Callable[[], Iterator[Photo]] = dataclasses.field(repr=False)

    def __iter__(self) -> Iterator[Photo]:
        shown = 0
        for photo in self.read():
            height, width = photo.image.shape[:2]
            if min(height, width) < LEAST_SIDE:
                raise InputError(
                    f"{photo.name} of {self.name}: {width}x{height} pixels (width x height): "
                    f"expected sides of {LEAST_SIDE} or more"
                )
            if photo.image.std() < BLANK:
                log.warning("%s: %s is of one colour, left out", self.name, photo.name)
                continue
            shown += 1
            yield photo
        if shown < 2:
            raise InputError(f"{self.name}: {shown} of {self.count} pictures {ENOUGH}")
