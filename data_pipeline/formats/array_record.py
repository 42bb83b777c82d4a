"""Our own prepared data: ArrayRecord shards written by `python -m data_pipeline.prepare`.

    OUT/posed_scenes/1.0.0/posed_scenes-SPLIT.array_record-00000-of-00010, …
                           manifest-SPLIT.json, dataset_info.json, features.json

Opens OUT or the innermost folder; `posed_scenes_dataset_builder` says what a record holds. A scene
opens without reading any picture, and a picture is read without its neighbours. Frames whose
picture was unreadable when the data was prepared keep their place and say so when asked.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data_pipeline.formats.splits import choose_split
from data_pipeline.pictures.images import decode_image
from data_pipeline.posed_scenes import FOLDER
from data_pipeline.read_options import ReadOptions
from data_pipeline.scenes import Frame, Scene, Scenes
from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.files.reading import inside, listing, read_json_object
from efficient_lvsm_jax.geometry.cameras import check_cameras

NAME = "posed_scenes"
LOOKS_FOR = "manifest-SPLIT.json of python -m data_pipeline.prepare"
WHOLE_NUMBERS = ("index", "timestamp", "width", "height")
OPEN_SHARDS = 512  # each costs a file handle and the positions of its records


def detect(path: Path) -> bool:
    """Whether prepared data is in the folder."""
    return bool(_splits(path))


def open_data_set(path: Path, options: ReadOptions) -> Scenes:
    """The scenes of the split that the options name, or of the only one.

    Raises:
      InputError: a damaged manifest, a shard that is not there or of another size than the
        manifest says.
    """
    manifest_path = choose_split(path, _splits(path), options)
    manifest = read_json_object(manifest_path)
    try:
        names = [str(name) for name, *_ in manifest["scenes"]]
        rows = [
            (int(shard), int(first), int(count), tuple(map(int, holes)))
            for _, shard, first, count, holes in manifest["scenes"]
        ]
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise _damaged(manifest_path, error) from error
    shards = listed_shards(manifest_path, manifest)
    for name, (shard, first, count, holes) in zip(names, rows, strict=True):
        if not (
            0 <= shard < len(shards)
            and first >= 0
            and 1 <= count <= shards[shard].frames - first
            and all(0 <= hole < count for hole in holes)
        ):
            raise InputError(f"{manifest_path}: scene {name!r} lies outside its shard")
    for shard in shards:
        check_shard(manifest_path.parent / shard.file, shard.bytes)

    def read(index: int) -> Scene:
        shard, first, count, holes = rows[index]
        path = manifest_path.parent / shards[shard].file
        stored = StoredFrames(path, names[index], first, count, holes)
        if holes and options.strict:
            raise InputError(
                f"{names[index]}: {len(holes)} of {count} pictures were unreadable when the data "
                "was prepared (refused because reading is strict)"
            )
        return Scene(names[index], stored, holes=holes)

    return Scenes(NAME, path, names, read)


class ListedShard(NamedTuple):
    """A shard as a manifest describes it; `file` lies inside the manifest's folder."""

    file: str
    frames: int
    bytes: int
    sha256: str


def listed_shards(manifest_path: Path, manifest: dict[str, Any]) -> list[ListedShard]:
    """The shards that the manifest read from `manifest_path` lists.

    Raises:
      InputError: a damaged manifest, or a shard elsewhere.
    """
    try:
        shards = [
            ListedShard(each["file"], int(each["frames"]), int(each["bytes"]), str(each["sha256"]))
            for each in manifest["shards"]
        ]
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise _damaged(manifest_path, error) from error
    for shard in shards:
        inside(manifest_path.parent, shard.file, str(manifest_path))
    return shards


def _damaged(manifest_path: Path, error: Exception) -> InputError:
    return InputError(f"{manifest_path}: damaged manifest ({error!r}); prepare again")


def check_shard(path: Path, size: int) -> None:
    """Raises an InputError unless the shard is there with as many bytes as its manifest says."""
    try:
        found = path.stat().st_size
    except OSError as error:
        raise InputError(
            f"{path}: the shard cannot be read ({error.strerror}), but the manifest lists it; copy "
            "the folder again or prepare it again"
        ) from error
    if found != size:
        raise InputError(
            f"{path}: {found} bytes, the manifest says {size}; copy the folder again or prepare it "
            "again"
        )


class StoredFrames(Sequence):
    """The frames of a scene in a shard; each is read when asked for.

    Their cameras are checked again: checksums are no proof of who wrote them.
    """

    def __init__(self, shard: Path, scene: str, first: int, count: int, holes: tuple[int, ...]):
        self._shard, self._scene, self._first, self._count = shard, scene, first, count
        self._holes = holes

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Frame:
        if not -self._count <= index < self._count:
            raise IndexError(f"frame {index} of {self._count}")
        index = int(index) % self._count
        record = read_record(self._shard, self._first + index)
        where = f"{self._shard}, record {self._first + index}"
        if record["scene"] != self._scene or record["index"] != index:
            raise InputError(
                f"{where}: is frame {record['index']} of {record['scene']!r}, expected "
                f"{index} of {self._scene!r}; shard and manifest do not belong together"
            )
        check_cameras(record["c2w"], record["fxfycxcy"], where)
        data, size = record["image"], (record["height"], record["width"])

        def picture() -> np.ndarray:
            if index in self._holes:
                raise InputError(f"{where}: its picture was unreadable when the data was prepared")
            image = decode_image(data, where)
            if image.shape[:2] != size:
                raise InputError(
                    f"{where}: its picture is of {image.shape[:2]} pixels, but its cameras are for "
                    f"{size} (height, width); prepare again"
                )
            return image

        return Frame(
            record["frame"],
            record["c2w"],
            record["fxfycxcy"],
            int(record["width"]),
            int(record["height"]),
            picture,
            None if index in self._holes else lambda: data,
            None if record["timestamp"] < 0 else int(record["timestamp"]),
        )


def read_record(shard: Path, position: int) -> dict[str, Any]:
    """The record as `posed_scenes_dataset_builder.FEATURES` describes it, texts as str.

    Raises:
      InputError: the shard is not there, or the record is damaged (its checksum is compared).
    """
    try:
        (data,) = _reader(shard).read([position])
        fields = _parser()(data).features.feature
        # By hand, not by TFDS: that takes longer than reading the record.
        return {
            "scene": fields["scene"].bytes_list.value[0].decode(),
            "frame": fields["frame"].bytes_list.value[0].decode(),
            "image": fields["image"].bytes_list.value[0],
            **{key: fields[key].int64_list.value[0] for key in WHOLE_NUMBERS},
            "c2w": np.frombuffer(fields["c2w"].bytes_list.value[0]).reshape(4, 4),
            "fxfycxcy": np.frombuffer(fields["fxfycxcy"].bytes_list.value[0]).reshape(4),
        }
    except InputError:
        raise
    # The reader raises RuntimeError or ValueError; protobuf has an exception of its own.
    except Exception as error:
        raise InputError(
            f"{shard}, record {position}: cannot be read ({' '.join(str(error).split())[:200]}); "
            "the shard is damaged: compare it with its SHA-256 in the manifest, copy it again"
        ) from error


@functools.cache
def _parser() -> Callable[[bytes], Any]:
    """From bytes to a tf.train.Example, as TFDS describes it."""
    from tensorflow_datasets.proto import tf_example_pb2  # slow to import

    return tf_example_pb2.Example.FromString


@functools.lru_cache(maxsize=OPEN_SHARDS)
def _reader(shard: Path) -> Any:
    from array_record.python.array_record_module import ArrayRecordReader

    if not shard.is_file():
        raise InputError(f"{shard}: the shard is gone; copy or prepare it again")
    # Without read-ahead: records are read one by one, in random order.
    return ArrayRecordReader(str(shard), "readahead_buffer_size:0")


def _splits(path: Path) -> dict[str, Path]:
    return {
        manifest.name.removeprefix("manifest-").removesuffix(".json"): manifest
        for folder in (path, path / FOLDER)
        for manifest in listing(folder, "manifest-*.json")
    }
