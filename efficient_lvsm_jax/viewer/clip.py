"""A clip without cameras, seen frame by frame: its keyframes become the photos of a scene."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from data_pipeline.unposed.sources import open_photos
from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.sessions.unposed import Keyframes, SeenFrame, see
from efficient_lvsm_jax.weights.load import load_geometry

WIDEST = 640  # pixels of the long side of the newest picture


class Clip:
    """Frames that are seen one by one, until all were or there are enough keyframes.

    Attributes:
      name: of the clip.
      count: frames that it should have.
      together: none is known before all are seen, as whoever sees them takes them as a whole.
      keyframes, chosen: of those seen so far.
      seen: how many were.
      over: no more will be.
    """

    def __init__(
        self,
        name: str,
        count: int,
        frames: Iterator[SeenFrame],
        *,
        most: int,
        together: bool = False,
    ):
        """`most` is how many keyframes are enough."""
        self.name, self.count, self.together = name, count, together
        self.keyframes = Keyframes()
        self.chosen: list[SeenFrame] = []
        self.seen, self.over = 0, False
        self._frames, self._most = frames, most
        self._newest: np.ndarray | None = None

    @property
    def can_start(self) -> bool:
        """Whether the keyframes fix the frame and the scale of a scene, or no better ones come."""
        chosen = len(self.chosen)
        return self.keyframes.frame is not None or (self.over and chosen > 1)

    @property
    def picture(self) -> np.ndarray | None:
        """That was seen last, small, uint8 [Y, X, 3]; None before the first."""
        if self._newest is None:
            return None
        image = Image.fromarray(self._newest)
        image.thumbnail((WIDEST, WIDEST))
        return np.asarray(image)

    def __str__(self) -> str:
        return f"{self.seen} frames" if self.over else f"{self.seen} of {self.count} frames"

    def read(self) -> None:
        """Sees the next frame. Raises InputError of one that says nothing; it is over then."""
        try:
            frame = next(self._frames, None)
        except BaseException:
            self.over = True
            raise
        if frame is not None:
            self._newest, self.seen = frame.photo.image, self.seen + 1
            if self.keyframes.take(frame):
                self.chosen.append(frame)
        self.over = frame is None or len(self.chosen) >= self._most

    def check(self) -> None:
        """Raises an InputError if it is over before its end, or came to nothing."""
        if not self.over:
            return
        if len(self.chosen) < 2:
            raise InputError(
                f"{self.name}: all {self.seen} pictures were taken from one place; expected a "
                "camera that walks"
            )
        if self.seen < self.count:
            enough = len(self.chosen) >= self._most
            raise InputError(
                f"{self.name}: {self.seen} of {self.count} pictures were read, "
                + (f"as {self._most} are enough (--photos)" if enough else "the others cannot be")
            )


def open_clip(arguments: argparse.Namespace) -> Clip:
    """What --geometry is to see.

    Raises:
      InputError: no such pictures or weights.
    """
    if arguments.count is not None and arguments.count < 2:
        raise InputError(f"--count {arguments.count}: expected at least 2")
    if arguments.geometry == "colmap":
        raise InputError(
            "--geometry colmap: sees no picture before it has all; elvsm reconstruct "
            f"{arguments.capture} OUT --with colmap, then elvsm view OUT"
        )
    network = load_geometry(arguments.geometry)  # first: a video takes a while
    photos = open_photos(arguments.capture, every=arguments.every, scene=arguments.scene)
    return Clip(
        Path(arguments.capture).stem,
        photos.count,
        see(network, photos),
        most=arguments.photos,
        together=not network.config.causal,
    )
