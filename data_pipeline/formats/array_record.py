"""Our own prepared data: ArrayRecord shards written by `elvsm prepare`.

    OUT/posed_scenes/1.0.0/posed_scenes-SPLIT.array_record-00000-of-00010, …
                           manifest-SPLIT.json, dataset_info.json, features.json

Opens OUT or the innermost folder; `posed_scenes_dataset_builder` says what a record holds. A scene
opens without reading any picture, and a picture is read without its neighbours. Frames whose
picture was unreadable when the data was prepared keep their place and say so when asked.

Of a capture of which frames were held out (`prepare --hold-out`), the split to train on has the
others alone. The split that holds them opens as the whole capture, in its order, and says which
they are.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
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
from efficient_lvsm_jax.geometry.intrinsics import check_intrinsics

NAME = "posed_scenes"
LOOKS_FOR = "manifest-SPLIT.json of elvsm prepare"
WHOLE_NUMBERS = ("index", "timestamp", "width", "height")
OPEN_SHARDS = 512  # each costs a file handle and the positions of its records


def detect(path: Path) -> bool:
    """Whether prepared data is in the folder."""
    return bool(_splits(path))


def open_data_set(path: Path, options: ReadOptions) -> Scenes:
    """The scenes of the split that the options name, or of the only one.

    Raises:
      InputError: a damaged manifest, a shard that is not there or of another size than the
        manifest says, or frames held out of a split that is not there.
    """
    splits = _splits(path)
    manifest_path = choose_split(path, splits, options)
    manifest = read_json_object(manifest_path)
    own = _stored_scenes(path, manifest_path, manifest, options)
    hold_out = _hold_out(path, splits, manifest_path, manifest)
    positions = hold_out.frames if hold_out else ()
    if not positions or manifest_path.name != f"manifest-{hold_out.split}.json":
        return own
    others = choose_split(path, splits, dataclasses.replace(options, split=hold_out.of))
    kept = _stored_scenes(path, others, read_json_object(others), options)
    if kept.names != own.names:
        raise InputError(
            f"{manifest_path}: frames of {own.names} were held out, {others} has {kept.names}; "
            "prepare both again"
        )

    def read(index: int) -> Scene:
        return _whole_capture(kept[index], own[index], positions, manifest_path)

    return Scenes(NAME, path, own.names, read)


class HoldOut(NamedTuple):
    """What `prepare --hold-out` held out of a split.

    of: the split to train on. split: the one held out. frames: of a single capture, the positions
    of those held out; () if whole scenes were.
    """

    of: str
    split: str
    frames: tuple[int, ...]


def hold_out_of(path: str | Path, split: str = "") -> HoldOut | None:
    """What was held out of prepared data; None where nothing was, and of any other data.

    Args:
      path: of the data.
      split: either of the two; "" finds them.

    Raises:
      InputError: nothing there, a damaged manifest, or two that do not belong together.
    """
    if not Path(path).exists():
        raise InputError(f"{path}: no such file or folder")
    path, splits = Path(path), _splits(Path(path))
    for name in [split] if split else splits:
        if name in splits:
            manifest_path = choose_split(path, splits, ReadOptions(split=name))
            found = _hold_out(path, splits, manifest_path, read_json_object(manifest_path))
            if found is not None:
                return found
    return None


def _hold_out(
    path: Path, splits: Mapping[str, Path], manifest_path: Path, manifest: dict[str, Any]
) -> HoldOut | None:
    """What a manifest says of a hold-out; the other split's, if there, must say the same."""
    if "held_out" not in manifest:
        return None
    try:
        stored = manifest["held_out"]
        frames = tuple(map(int, stored["frames"]))
        found = HoldOut(str(stored["of"]), str(stored["split"]), frames)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise _damaged(manifest_path, error) from error
    own = manifest_path.stem.removeprefix("manifest-")
    names_both = own in (found.of, found.split) and found.of != found.split
    if not names_both or list(frames) != sorted({*frames}) or min(frames, default=0) < 0:
        raise InputError(f"{manifest_path}: damaged manifest ({found}); prepare again")
    for name in {found.of, found.split} & {*splits}:
        other_path = choose_split(path, splits, ReadOptions(split=name))
        other = read_json_object(other_path)
        if any(other.get(key) != manifest.get(key) for key in ("held_out", "plan")):
            raise InputError(
                f"{manifest_path}: {found.split} was held out of {found.of}, but {other_path} was "
                "prepared otherwise; delete both splits and prepare them again"
            )
    return found


def _whole_capture(kept: Scene, held: Scene, positions: tuple[int, ...], where: Path) -> Scene:
    """A capture of which frames were held out, in its order; `positions` of those."""
    count = len(kept.frames) + len(held.frames)
    if len(positions) != len(held.frames) or positions[-1] >= count:
        raise InputError(
            f"{where}: lists {len(held.frames)} frames of the {count} in both splits, but "
            f"{positions} as held out; prepare both again"
        )
    others = iter(range(len(kept.frames)))
    places = [
        (held, positions.index(at)) if at in positions else (kept, next(others))
        for at in range(count)
    ]
    holes = tuple(at for at, (scene, index) in enumerate(places) if index in scene.holes)
    return Scene(held.name, CaptureFrames(places), holes=holes, held_out=positions)


def _stored_scenes(
    path: Path, manifest_path: Path, manifest: dict[str, Any], options: ReadOptions
) -> Scenes:
    """The scenes that a manifest lists, of its own shards."""
    try:
        names = [str(name) for name, *_ in manifest["scenes"]]
        rows = [
            (int(shard), int(first), int(count), tuple(map(int, holes)))
            for _, shard, first, count, holes in manifest["scenes"]
        ]
        films = {name: tuple(map(int, film)) for name, film in manifest.get("films", {}).items()}
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
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
        if name in films and sorted(films[name]) != list(range(count)):
            raise InputError(f"{manifest_path}: the film of scene {name!r} is not of its frames")
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
        return Scene(names[index], stored, holes=holes, film=films.get(names[index], ()))

    return Scenes(NAME, path, names, read)


class CaptureFrames(Sequence):
    """The frames of a capture that lies in two splits: (scene of a split, index there) of each."""

    def __init__(self, places: Sequence[tuple[Scene, int]]):
        self._places = places

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> Frame:
        scene, at = self._places[index]
        return scene.frames[at]


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
        check_intrinsics(record["fxfycxcy"], (record["width"], record["height"]), where)
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
