"""Films of rendered frames: H.264 in an mp4 that browsers play, and GIFs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.files.writing import written_whole

# Smaller frames are enlarged, pixel by pixel, to at least this height if they stay as narrow.
MIN_HEIGHT, MAX_WIDTH = 384, 4096


def write_film(path: str | Path, frames: Iterable[np.ndarray], *, fps: int = 30) -> int:
    """Writes frames as an mp4 (H.264, yuv420p), beside and then renamed.

    Args:
      path: ends in .mp4.
      frames: uint8 [F, Y, X, 3], or anything that yields its frames: one at a time is kept in
        memory. An odd last row or column is repeated, as the format needs even sides.
      fps: frames a second.

    Returns:
      F.

    Raises:
      InputError: no frames, or of another or changing shape or dtype; a file that cannot be
        written; imageio or av is not installed. Nothing is left behind, and a film that was there
        before stays.
    """
    path = Path(path)
    if path.suffix != ".mp4":
        raise InputError(f"{path}: a film's name must end in .mp4")
    if fps < 1:
        raise InputError(f"fps={fps}: expected at least 1 frame a second")
    try:
        import av  # noqa: F401 - imageio looks for it only when writing
        import imageio.v3 as imageio
    except ImportError as error:
        raise InputError(
            "writing a film needs imageio and av: pip install 'efficient-lvsm-jax[video]'"
        ) from error

    count, shape = 0, None
    try:
        with written_whole(path) as partial:
            partial.touch()  # before the first frame is made, which may take long
            with imageio.imopen(partial, "w", plugin="pyav", extension=".mp4") as film:
                for frame in frames:
                    frame = _checked(frame, count, shape)
                    if not count:
                        shape = frame.shape
                        film.init_video_stream("libx264", fps=fps, pixel_format="yuv420p")
                    height, width, _ = frame.shape
                    times = min(-(-MIN_HEIGHT // height), max(1, MAX_WIDTH // width))
                    film.write_frame(_enlarged(frame, times))
                    count += 1
                if not count:
                    raise InputError("film frames: none; expected uint8 [F, Y, X, 3], not empty")
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror or error})") from error
    return count


def write_gif(path: str | Path, frames: Iterable[np.ndarray], *, fps: int = 30) -> int:
    """Writes frames as a GIF that repeats, beside and then renamed.

    Args:
      path: ends in .gif.
      frames: as of `write_film`, one by one; not enlarged.
      fps: frames a second, 50 at most: the format counts hundredths of a second.

    Returns:
      F.

    Raises:
      InputError: as `write_film`.
    """
    path = Path(path)
    if path.suffix != ".gif":
        raise InputError(f"{path}: a GIF's name must end in .gif")
    if fps < 1:
        raise InputError(f"fps={fps}: expected at least 1 frame a second")
    count = 0

    def pictures() -> Iterator[Image.Image]:
        nonlocal count
        shape = None
        for frame in frames:
            frame = _checked(frame, count, shape)
            shape, count = frame.shape, count + 1
            yield Image.fromarray(frame).quantize()

    made = pictures()
    first = next(made, None)
    if first is None:
        raise InputError("film frames: none; expected uint8 [F, Y, X, 3], not empty")
    milliseconds = max(20, round(100 / fps) * 10)
    try:
        with written_whole(path) as partial:
            first.save(
                partial, "GIF", save_all=True, append_images=made, duration=milliseconds, loop=0
            )
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror or error})") from error
    return count


def _checked(frame: np.ndarray, index: int, shape: tuple[int, ...] | None) -> np.ndarray:
    """A frame that can be written after others of `shape`, if there were any."""
    frame = np.asarray(frame)
    if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3 or not frame.size:
        raise InputError(
            f"film frame {index}, {frame.dtype} {frame.shape}: expected uint8 [F, Y, X, 3], not "
            "empty"
        )
    if shape not in (None, frame.shape):
        raise InputError(f"film frame {index} is {frame.shape}, those before are {shape}")
    return frame


def _enlarged(frame: np.ndarray, scale: int) -> np.ndarray:
    """Every pixel of [Y, X, 3] repeated `scale` times each way, then the sides made even."""
    frame = frame.repeat(scale, axis=0).repeat(scale, axis=1)
    return np.pad(frame, [(0, side % 2) for side in frame.shape[:2]] + [(0, 0)], mode="edge")
