"""A stream in a folder that outlives its process, with what it said of each frame."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.files.writing import written_whole
from efficient_lvsm_jax.models.geometry_model import GeometryModel
from efficient_lvsm_jax.sessions.streaming import Stream

SECONDS = 60.0  # of work that may be lost; more, where it takes long to save a stream
SHARE = 10  # of the time that saving takes, at least, until the next

log = logging.getLogger(__name__)


class KeptStream:
    """A stream that goes on from the last one saved in a folder.

    Attributes:
      stream: as it was saved last, or a new one.
    """

    def __init__(self, folder: Path, model: GeometryModel, **options: Any):
        """Options are those of `Stream`.

        Raises:
          InputError: as of `Stream` and `Stream.load`.
        """
        self._folder = folder
        folder.mkdir(exist_ok=True)
        saved = sorted(folder.glob("stream-*.safetensors"))
        self.stream = Stream.load(saved[-1], model) if saved else Stream(model, **options)
        self._due = time.monotonic() + SECONDS

    def said(self, frame: int) -> dict[str, np.ndarray]:
        """What was kept of a frame that the stream has seen."""
        with np.load(self._file(frame), allow_pickle=False) as file:
            return dict(file)

    def keep(self, said: Mapping[str, np.ndarray]) -> None:
        """Keeps what was said of the newest frame and, now and then, the stream itself.

        Raises:
          OSError: it cannot be written; that a stream cannot is a warning.
        """
        with written_whole(self._file(len(self.stream) - 1)) as partial:
            np.savez(partial, **said)
        if (start := time.monotonic()) < self._due:
            return
        before = sorted(self._folder.glob("stream-*.safetensors"))
        try:
            self.stream.save(self._folder / f"stream-{len(self.stream):09d}.safetensors")
        except InputError as error:
            log.warning("going on without keeping the stream: %s", error)
        else:
            for file in before:
                file.unlink()
        now = time.monotonic()
        self._due = now + max(SECONDS, SHARE * (now - start))

    def _file(self, frame: int) -> Path:
        return self._folder / f"{frame:09d}.npz"
