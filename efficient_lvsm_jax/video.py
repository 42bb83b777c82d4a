"""Films of rendered frames: H.264 in an mp4 that browsers play."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from efficient_lvsm_jax.errors import InputError

MIN_HEIGHT = 384  # smaller frames are enlarged, pixel by pixel, to at least this


def write_film(path: str | Path, frames: np.ndarray, *, fps: int = 30) -> None:
    """Writes frames as an mp4 (H.264, yuv420p), beside and then renamed.

    Args:
      path: ends in .mp4.
      frames: uint8 [F, Y, X, 3]; an odd last row or column is repeated, as the format needs even
        sides.
      fps: frames a second.

    Raises:
      InputError: frames of another shape or dtype; imageio or av is not installed.
    """
    path, frames = Path(path), np.asarray(frames)
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3 or not frames.size:
        raise InputError(
            f"film frames {frames.dtype} {frames.shape}: expected uint8 [F, Y, X, 3], not empty"
        )
    try:
        import av  # noqa: F401 - imageio looks for it only when writing
        import imageio.v3 as imageio
    except ImportError as error:
        raise InputError(
            "writing a film needs imageio and av: pip install 'efficient-lvsm-jax[video]'"
        ) from error

    scale = -(-MIN_HEIGHT // frames.shape[1])
    partial = path.with_name(f".{path.stem}.partial.mp4")
    try:
        with imageio.imopen(partial, "w", plugin="pyav") as film:
            film.init_video_stream("libx264", fps=fps, pixel_format="yuv420p")
            for frame in frames:  # enlarged one by one: all at once may not fit
                film.write_frame(_enlarged(frame, scale))
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _enlarged(frame: np.ndarray, scale: int) -> np.ndarray:
    """Every pixel of [Y, X, 3] repeated `scale` times each way, then the sides made even."""
    frame = frame.repeat(scale, axis=0).repeat(scale, axis=1)
    return np.pad(frame, [(0, side % 2) for side in frame.shape[:2]] + [(0, 0)], mode="edge")
