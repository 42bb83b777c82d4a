"""One shard of a preparation: scenes of any source as records of encoded pictures."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg

from data_pipeline.formats import open_scenes
from data_pipeline.pictures.transforms import portrait_to_square, resize_and_crop
from data_pipeline.read_options import AXES, ReadOptions
from data_pipeline.scenes import Frame, Scenes
from efficient_lvsm_jax.configuration import Settings, setting
from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.files.writing import write_json

HELD_OUT = "test"  # name of the split


@dataclasses.dataclass(frozen=True)
class Preparation(Settings):
    """What to make of a source.

    Attributes:
      source: what `open_scenes` reads.
      source_split, format: of the source, see `open_scenes`; "" and None where there is no choice.
      axes, vertical_fov: of the source, see `ReadOptions`.
      strict: reject scenes with absent or unreadable frames instead of noting the frames.
      split: name of the result, a word.
      size: height and width of the crops in pixels; 0 keeps the original frames.
      patch: the model's patch size, to which the resized width is rounded.
      quality: of the JPEGs made here, 1 to 100; originals that are JPEGs are copied as they are.
      min_frames: scenes with fewer readable frames are rejected.
      hold_out: fraction of the scenes, or of the frames of a single capture, that are written as
        the split HELD_OUT instead, see `held_out`.
    """

    source: str
    source_split: str = ""
    format: str | None = None
    axes: str = AXES[0]
    vertical_fov: float = ReadOptions.vertical_fov
    strict: bool = False
    split: str = "train"
    size: int = setting(0, at_least=0)
    patch: int = setting(8, at_least=1)
    quality: int = setting(95, at_least=1, at_most=100)
    min_frames: int = setting(2, at_least=1)
    hold_out: float = setting(0.0, at_least=0, at_most=0.5)

    def __post_init__(self):
        super().__post_init__()
        if not re.fullmatch(r"[a-z][a-z0-9_]*", self.split):
            raise InputError(f"split {self.split!r}: expected a lower-case word such as train")
        if self.size % self.patch:
            raise InputError(
                f"size {self.size}: expected a multiple of the patch size {self.patch}"
            )
        if self.hold_out and self.split == HELD_OUT:
            raise InputError(
                f"split {self.split!r}: is what the held-out part is called; name another --split"
            )


def held_out(count: int, fraction: float) -> list[int]:
    """Which of `count` scenes or frames are held out: one at least, in the middle of equal parts.

    So they are spread evenly, and the ends of a film are not among them.
    """
    number = max(1, round(fraction * count))
    return [(2 * part + 1) * count // (2 * number) for part in range(number)]


def open_source(preparation: Preparation) -> Scenes:
    """The scenes to prepare."""
    options = ReadOptions(
        strict=preparation.strict,
        split=preparation.source_split,
        axes=preparation.axes,
        vertical_fov=preparation.vertical_fov,
    )
    return open_scenes(preparation.source, options, format=preparation.format)


def write_shard(
    preparation: Preparation,
    parts: Path,
    number: int,
    indices: Sequence[int],
    frames: Sequence[int] | None = None,
) -> dict[str, Any]:
    """Writes one shard and its description; runs in a process of its own.

    Args:
      preparation: what to make of which source.
      parts: folder of unfinished work.
      number: of the shard; its files are named after it.
      indices: of the scenes in it.
      frames: of those, the positions of the frames in it; None for all.

    Returns:
      {"frames", "bytes", "sha256", "scenes": [name, first record, records, holes], "films":
      {name: `Scene.film`}, "absent": [name, listed frames left out], "rejected": [name, reason]},
      also written beside the shard, after it.

    Raises:
      InputError: it cannot be written.
    """
    from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter
    from tensorflow_datasets.proto import tf_example_pb2

    from data_pipeline.posed_scenes.posed_scenes_dataset_builder import FEATURES

    logging.disable(logging.WARNING)  # absent frames are in the manifest
    scenes = open_source(preparation)
    partial = parts / f"{number:05d}.partial"
    written, films, absent, rejected, count = [], {}, [], [], 0
    try:
        # One record a group, uncompressed: a picture is read alone, and JPEGs do not shrink.
        writer = ArrayRecordWriter(str(partial), "group_size:1,uncompressed")
        for index in indices:
            name = scenes.names[index]
            try:
                scene = scenes[index]
                if scene.held_out:
                    raise InputError(
                        f"{len(scene.held_out)} of its frames are held out, which this would mix "
                        "with those to train on; prepare what that data was made of instead"
                    )
                kept = range(len(scene.frames)) if frames is None else frames
                chosen = [scene.frames[i] for i in kept]
                records, holes = _records(preparation, scene.name, chosen)
            except InputError as error:
                rejected.append([name, str(error)])
                continue
            for record in records:
                # In a fixed order of fields: the same source gives the same bytes.
                example = tf_example_pb2.Example.FromString(FEATURES.serialize_example(record))
                writer.write(example.SerializeToString(deterministic=True))
            written.append([name, count, len(records), holes])
            if scene.film:
                place = {frame: number for number, frame in enumerate(kept)}
                films[name] = [place[frame] for frame in scene.film if frame in place]
            there = {frame.name for frame in scene.frames} if scene.absent else set()
            if left_out := [frame for frame in scene.absent if frame not in there]:
                absent.append([name, left_out])
            count += len(records)
        writer.close()
        if count and ArrayRecordReader(str(partial)).num_records() != count:
            raise OSError("not all records arrived")
        description = {
            "frames": count,
            "bytes": partial.stat().st_size,
            "sha256": sha256(partial),
            "scenes": written,
            "films": films,
            "absent": absent,
            "rejected": rejected,
        }
        os.replace(partial, parts / f"{number:05d}.array_record")
        write_json(parts / f"{number:05d}.json", description)
    except InputError:
        raise
    except (OSError, RuntimeError, ValueError) as error:  # the writer's, e.g. for a full disk
        raise InputError(
            f"{partial}: cannot be written ({error}); make room, then run the same command again"
        ) from error
    return description


def _records(
    preparation: Preparation, scene: str, frames: Sequence[Frame]
) -> tuple[list[dict[str, Any]], list[int]]:
    """The records of a scene's frames, and the indices of those whose picture cannot be read."""
    records, holes = [], []
    for index, frame in enumerate(frames):
        fxfycxcy, width, height = frame.fxfycxcy, frame.width, frame.height
        try:
            jpeg, fxfycxcy, width, height = _picture(preparation, frame)
        except InputError as error:
            if preparation.strict:
                raise
            jpeg, reason = b"", error
            holes.append(index)
        records.append(
            {
                "scene": scene,
                "index": index,
                "frame": frame.name,
                "timestamp": -1 if frame.timestamp is None else frame.timestamp,
                "image": jpeg,
                "width": width,
                "height": height,
                "c2w": frame.c2w,
                "fxfycxcy": fxfycxcy,
            }
        )
    readable = len(records) - len(holes)
    if readable < preparation.min_frames:
        raise InputError(
            f"{readable} readable frames, at least {preparation.min_frames} are needed"
            + (f" ({reason})" if holes else "")
        )
    return records, holes


def _picture(preparation: Preparation, frame: Frame) -> tuple[bytes, np.ndarray, int, int]:
    """The frame as JPEG, its intrinsics, width and height."""
    image = frame.image()  # also to see whether it can be decoded
    if not preparation.size:
        jpeg = frame.encoded() if frame.encoded else _encode(image, preparation.quality)
        return jpeg, frame.fxfycxcy, frame.width, frame.height
    size = preparation.size
    square = portrait_to_square(image, frame.fxfycxcy)
    image, fxfycxcy = resize_and_crop(*square, size, patch=preparation.patch)
    return _encode(image, preparation.quality), fxfycxcy, size, size


def _encode(image: np.ndarray, quality: int) -> bytes:
    return simplejpeg.encode_jpeg(image, quality=quality, colorsubsampling="420")


def sha256(path: Path) -> str:
    """Of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
