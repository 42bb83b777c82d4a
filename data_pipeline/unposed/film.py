"""Frames of a video: which ones are worth a look, and these one by one, upright.

PyAV decodes. The way up is that of the file's display matrix, as phones write it.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np

from data_pipeline.unposed.photos import BLANK, LEAST_SIDE
from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.files.writing import first_line
from efficient_lvsm_jax.media.progress import Progress

log = logging.getLogger(__name__)

COUNT = 60  # frames, if not told
LOOK = 160  # pixels of the long side at which frames are judged
ABOUT = 0.9  # of its length, or of the frames that this and its rate promise
STILL = 1e-4  # of the long side, that are no motion from one frame to the next


@dataclasses.dataclass(frozen=True)
class Judged:
    """What is known of every frame [F] of a video.

    size: (width, height), of all. sharp: variance of the Laplacian. moved: since the frame before,
    the median flow in shares of the long side. blank: of one colour.
    """

    size: tuple[int, int]
    sharp: np.ndarray
    moved: np.ndarray
    blank: np.ndarray


def choose_frames(
    path: Path, *, every: int | None = None, count: int | None = None
) -> tuple[list[int], tuple[int, int]]:
    """Numbers of the frames to take, ascending, and their (width, height).

    Args:
      path: of the video.
      every: each so manieth frame.
      count: so many, or all of fewer: the video is parted where the picture has moved equally
        far, and of each part the sharpest frame is taken. COUNT, if neither is given.

    Frames of one colour, as those of a fade, are never taken.

    Raises:
      InputError: no video that can be read, of one size, with a frame that shows anything; with
        `count`, one in which nothing moves.
    """
    judged = _judged(path)
    shown = np.flatnonzero(~judged.blank)
    if not len(shown):
        raise InputError(
            f"{path}: all {len(judged.blank)} frames are of one colour; expected a video of a place"
        )
    if judged.blank.any():
        log.warning("%s: %d frames are of one colour, left out", path, judged.blank.sum())
    if every is not None:
        return [int(frame) for frame in shown if frame % every == 0], judged.size
    count = COUNT if count is None else count
    if len(shown) <= count:
        return shown.tolist(), judged.size
    # What a blank frame seems to move belongs to nothing.
    still = judged.blank | (judged.moved < STILL)
    moved = np.cumsum(np.where(still, 0, judged.moved)[shown])
    if not moved[-1] > 0:
        raise InputError(
            f"{path}: nothing moves in it, so no frame says where another was taken; expected a "
            "camera that walks"
        )
    part = np.minimum((moved / moved[-1] * count).astype(int), count - 1)
    best = [shown[part == each] for each in range(count)]
    return [int(each[judged.sharp[each].argmax()]) for each in best if len(each)], judged.size


def read_frames(path: Path, wanted: Sequence[int]) -> Iterator[np.ndarray]:
    """The frames of these numbers, ascending, uint8 [Y, X, 3], upright."""
    left = set(wanted)
    for number, frame in enumerate(_decoded(path, None)):
        if number in left:
            yield _upright(frame, frame.to_ndarray(format="rgb24"))
            left.remove(number)
        if not left:
            return


def _judged(path: Path) -> Judged:
    size, before, rows = None, None, []
    for number, frame in enumerate(_decoded(path, "looking")):
        found = frame.width, frame.height
        if min(found) < LEAST_SIDE:
            raise InputError(
                f"{path}: frames of {found[0]}x{found[1]} (width x height): expected sides of "
                f"{LEAST_SIDE} pixels or more"
            )
        if size not in (None, found):
            raise InputError(
                f"{path}: frame {number} is {found[0]}x{found[1]}, those before are "
                f"{size[0]}x{size[1]} (width x height): expected one size; cut the video there"
            )
        size, shrink = found, LOOK / max(found)
        grey = frame.to_ndarray(format="gray")
        sides = [max(LEAST_SIDE, round(side * shrink)) for side in found]
        grey = cv2.resize(grey, sides, interpolation=cv2.INTER_AREA)
        moved = 0.0
        if before is not None:
            flow = cv2.calcOpticalFlowFarneback(before, grey, None, 0.5, 3, 15, 2, 5, 1.1, 0)
            moved = float(np.median(np.linalg.norm(flow, axis=-1))) / LOOK
        rows.append((cv2.Laplacian(grey, cv2.CV_64F).var(), moved, grey.std() < BLANK))
        before, turned = grey, abs(frame.rotation) == 90
    if size is None:
        raise InputError(f"{path}: no frame in it can be decoded; expected a video")
    sharp, moved, blank = (np.array(column) for column in zip(*rows, strict=True))
    return Judged(size[::-1] if turned else size, sharp, moved, blank)


def _decoded(path: Path, what: str | None) -> Iterator:
    """PyAV's frames of the first video stream, up to the first that is damaged.

    `what` is done with them, if how far that is shall be said. InputError of what is no video.
    """
    try:
        import av
    except ImportError as error:
        raise InputError(
            f"{path}: reading a video needs av: pip install 'efficient-lvsm-jax[video]'"
        ) from error
    try:
        file = av.open(str(path))
    except (av.error.FFmpegError, OSError) as error:
        reason = error.strerror or first_line(error)
        raise InputError(f"{path}: cannot be read as a video ({reason})") from error
    with file:
        if not file.streams.video:
            raise InputError(f"{path}: has no video, only {len(file.streams)} other stream(s)")
        stream = file.streams.video[0]
        stream.thread_type = "AUTO"
        count, damage, start, end = 0, "", None, 0.0
        # Not all containers say how many there are; then about so many.
        seconds, rate = (file.duration or 0) / av.time_base, float(stream.average_rate or 0)
        total = stream.frames or max(1, round(seconds * rate))
        with Progress(what or "", total, "frames", shown=what is not None) as progress:
            try:
                for frame in file.decode(stream):
                    yield frame
                    count += 1
                    start = (frame.time or 0.0) if start is None else start
                    end = (frame.time or 0.0) - start + float(frame.duration * frame.time_base)
                    progress.advance()
            except av.error.FFmpegError as error:
                damage = f" ({first_line(error)})"
        if file.format.name == "gif" and not seconds and count < stream.frames:
            raise InputError(
                f"{path}: its {stream.frames} frames have no durations, and FFmpeg takes them for "
                "one; save it again with a duration, such as 100 ms, or as a video"
            )
        # A rate is of most frames: a film that stands still for a while has fewer, up to its end.
        short = count < ABOUT * total and end < ABOUT * seconds
        if damage or (count < stream.frames if stream.frames else short):
            of = f" of {stream.frames}" if stream.frames else f" of about {total}"
            log.warning(
                "%s: damaged or cut off after frame %d%s%s; going on with those before",
                path,
                count,
                of,
                damage,
            )


def _upright(frame, image: np.ndarray) -> np.ndarray:
    """The picture turned as the file says, by whole quarters."""
    return np.ascontiguousarray(np.rot90(image, round(frame.rotation / 90)))
