"""A prepared data set: made in parallel, resumed wherever it was stopped, verified."""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import fcntl
import hashlib
import math
import multiprocessing
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from data_pipeline.batches.workers import SHARED_MEMORY, end_when_closed, interrupts_held
from data_pipeline.formats.array_record import check_shard, listed_shards
from data_pipeline.posed_scenes import FOLDER
from data_pipeline.prepare.shards import (
    HELD_OUT,
    Preparation,
    held_out,
    open_source,
    sha256,
    write_shard,
)
from data_pipeline.scenes import Scenes
from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.files.reading import listing, read_json_object
from efficient_lvsm_jax.files.writing import write_json
from efficient_lvsm_jax.media.progress import Progress, counted

SCENES_PER_SHARD = 200  # half a gigabyte of RealEstate10K at 256 px, and some 300 files
PLAN = "plan.json"  # of what the unfinished shards beside it are made
MIN_SHARDS = 16  # so that small data sets are prepared in parallel, too


def prepare(preparation: Preparation, out: str | Path, *, workers: int = 1) -> dict[str, Any]:
    """Prepares a source, or goes on where an earlier call was stopped.

    Args:
      preparation: what to make of which source.
      out: data folder, may hold other splits already.
      workers: processes.

    Returns:
      The manifest of its split; that of the split HELD_OUT, if any, is beside it.

    Raises:
      InputError: nothing readable at the source, `out` is the source, holds another preparation of
        one of the splits, is being written to by another process, or cannot be written; every scene
        of a split was rejected.
    """
    if workers < 1:
        raise InputError(f"workers={workers}: must be at least 1")
    folder = Path(out) / FOLDER
    scenes = open_source(preparation)
    if Path(out).resolve() == Path(preparation.source).resolve():
        raise InputError(
            f"{out}: is the source itself, which would no longer open as what it is; name another "
            "folder to write to"
        )
    plan = {
        "settings": dataclasses.asdict(preparation) | {"source": Path(preparation.source).name},
        "scenes": len(scenes),
        "scene_names_sha256": hashlib.sha256("\n".join(scenes.names).encode()).hexdigest(),
    }
    splits = [preparation.split, HELD_OUT] if preparation.hold_out else [preparation.split]
    with contextlib.ExitStack() as stack:
        for split in splits:
            stack.enter_context(_writing(folder, split))
        manifests = {split: folder / f"manifest-{split}.json" for split in splits}
        for split, path in manifests.items():  # before anything is written
            if path.exists():
                found, shards = read_json_object(path), f"posed_scenes-{split}.array_record-*"
                _same_plan(found.get("plan"), plan, path, f"{path} and {folder / shards}")
        if not all(path.exists() for path in manifests.values()):
            parts, held = _parts(preparation, scenes)
            missing = [part for part in parts if not manifests[part.preparation.split].exists()]
            # Of all before one is published: a split is of no use without the other.
            written = [_write_parts(part, folder, plan, workers) for part in missing]
            for part, shards in zip(missing, written, strict=True):
                if not any(shard["frames"] for shard in shards):
                    for each in missing:  # so that the same command looks again
                        shutil.rmtree(_unfinished(folder, each.preparation.split))
                    name, reason = shards[0]["rejected"][0]
                    raise InputError(
                        f"{preparation.source}: every scene was rejected, the first ({name}) "
                        f"because {reason}"
                        + (" (of those held out)" if part is not parts[-1] else "")
                    )
            for part, shards in zip(missing, written, strict=True):
                _publish(part.preparation.split, folder, shards, {"plan": plan} | held)
        return read_json_object(manifests[preparation.split])


class Part(NamedTuple):
    """What of a source becomes a split.

    preparation: of the split. scenes: their numbers. frames: of a single capture, the positions of
    those in the split; None for all.
    """

    preparation: Preparation
    scenes: Sequence[int]
    frames: Sequence[int] | None = None


def _parts(preparation: Preparation, scenes: Scenes) -> tuple[list[Part], dict[str, Any]]:
    """The splits to write, and what their manifests say of a hold-out, see `HoldOut`."""
    everything = range(len(scenes))
    if not preparation.hold_out:
        return [Part(preparation, everything)], {}
    test = dataclasses.replace(preparation, split=HELD_OUT, hold_out=0.0)
    names = {"of": preparation.split, "split": HELD_OUT}
    if len(scenes) > 1:
        held = held_out(len(scenes), preparation.hold_out)
        kept = sorted({*everything} - {*held})
        return [Part(test, held), Part(preparation, kept)], {"held_out": names | {"frames": []}}
    count = len(scenes[0].frames)
    held = held_out(count, preparation.hold_out)
    kept = sorted({*range(count)} - {*held})
    test = dataclasses.replace(test, min_frames=1)
    parts = [Part(test, everything, held), Part(preparation, everything, kept)]
    return parts, {"held_out": names | {"frames": held}}


def verify(out: str | Path) -> list[str]:
    """Compares every shard of a data folder with its manifest; returns one line per fault.

    Raises:
      InputError: no manifest there, or a damaged one.
    """
    manifests = listing(Path(out) / FOLDER, "manifest-*.json")
    if not manifests:
        raise InputError(f"{out}: no prepared data (no {FOLDER}/manifest-SPLIT.json)")
    faults = []
    for path in manifests:
        shards = listed_shards(path, read_json_object(path))
        for shard in counted(shards, path.stem, len(shards), "shards"):
            file = path.parent / shard.file
            try:
                check_shard(file, shard.bytes)
                if sha256(file) != shard.sha256:
                    faults.append(f"{file}: SHA-256 differs from the manifest's")
            except InputError as error:
                faults.append(str(error))
    return faults


@contextlib.contextmanager
def _writing(folder: Path, split: str) -> Iterator[None]:
    """Holds the folder for this process; the lock goes with the process, however it ends."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / f".lock-{split}").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise InputError(f"{folder}: another process is preparing {split} there") from None
            yield
    except OSError as error:
        raise InputError(f"{folder}: cannot be written ({error.strerror})") from error


def _same_plan(found: Any, plan: dict, path: Path, files: str) -> None:
    """Raises an InputError unless what was found in `path`, of the said files, is the plan."""
    found = found if isinstance(found, dict) else {}
    # Data prepared before there were hold-outs says nothing of them.
    settings = {"hold_out": 0.0} | found.get("settings", {})
    if found | {"settings": settings} != plan:
        old = {**found, **settings}
        new = {**plan, **plan["settings"]}
        differing = ", ".join(
            f"{key} {old.get(key)!r} is now {new[key]!r}"
            for key in new
            if key not in ("settings", "scene_names_sha256") and old.get(key) != new[key]
        )
        raise InputError(
            f"{path}: prepared with other settings ({differing or 'other scenes'}); write to "
            f"another folder or --split, or delete {files} first"
        )


def _unfinished(folder: Path, split: str) -> Path:
    """The folder of shards that are not published yet."""
    return folder / f".parts-{split}"


def _write_parts(
    part: Part, folder: Path, plan: dict[str, Any], workers: int
) -> list[dict[str, Any]]:
    """All shards' descriptions; writes those that are not complete to a folder of their own."""
    preparation, num_scenes = part.preparation, len(part.scenes)
    parts = _unfinished(folder, preparation.split)
    if (parts / PLAN).exists():
        _same_plan(read_json_object(parts / PLAN), plan, parts / PLAN, str(parts))
    else:  # whatever is there, no one knows of what it was made
        shutil.rmtree(parts, ignore_errors=True)
        parts.mkdir()
        write_json(parts / PLAN, plan)
    size = max(1, min(SCENES_PER_SHARD, math.ceil(num_scenes / MIN_SHARDS)))
    ranges = [part.scenes[start : start + size] for start in range(0, num_scenes, size)]
    done = {
        number: read_json_object(parts / f"{number:05d}.json")
        for number in range(len(ranges))
        if (parts / f"{number:05d}.json").exists()
    }
    missing = [number for number in range(len(ranges)) if number not in done]
    before = sum(len(ranges[number]) for number in done)
    progress = Progress(f"preparing {preparation.split}", num_scenes, "scenes", done=before)
    # Spawned, not forked: the parent has threads.
    spawning = multiprocessing.get_context("spawn")
    parent_ended, lifeline = spawning.Pipe(duplex=False)
    try:
        pool = concurrent.futures.ProcessPoolExecutor(
            max(1, min(workers, len(missing))), spawning, end_when_closed, (parent_ended,)
        )
    except OSError as error:
        raise InputError(
            f"processes cannot be started: {error.strerror}; free {SHARED_MEMORY}, where they "
            "keep their locks, or what else the system ran out of"
        ) from error
    with progress, parent_ended, lifeline, pool:
        try:
            with interrupts_held():  # workers inherit that: Ctrl-C is for the parent alone
                waiting = {
                    pool.submit(
                        write_shard, preparation, parts, number, ranges[number], part.frames
                    ): number
                    for number in missing
                }
            for future in concurrent.futures.as_completed(waiting):
                number = waiting[future]
                done[number] = future.result()
                progress.advance(len(ranges[number]))
        except concurrent.futures.BrokenExecutor as error:
            raise InputError(
                "a process that prepares scenes died (out of memory?); the same command goes on "
                "where it stopped, perhaps with fewer --workers"
            ) from error
        except BaseException:
            lifeline.close()  # no one waits for shards half done
            pool.shutdown(cancel_futures=True)
            raise
    return [done[number] for number in range(len(ranges))]


def _publish(
    split: str, folder: Path, shards: list[dict[str, Any]], beginning: dict[str, Any]
) -> None:
    """Names the shards as TFDS expects, writes its descriptions, then the manifest.

    beginning: of the manifest, what was asked for.
    """
    parts = _unfinished(folder, split)
    full = [number for number, shard in enumerate(shards) if shard["frames"]]
    rejected = [entry for shard in shards for entry in shard["rejected"]]
    absent = [entry for shard in shards for entry in shard["absent"]]
    names = {
        number: f"posed_scenes-{split}.array_record-{i:05d}-of-{len(full):05d}"
        for i, number in enumerate(full)
    }
    for number, name in names.items():
        part = parts / f"{number:05d}.array_record"
        if part.exists():  # an earlier call may have been stopped in between
            os.replace(part, folder / name)
    manifest = {
        **beginning,
        "counts": {
            "scenes": sum(len(shard["scenes"]) for shard in shards),
            "frames": sum(shard["frames"] for shard in shards),
            "bytes": sum(shard["bytes"] for shard in shards if shard["frames"]),
            "rejected_scenes": len(rejected),
            "absent_frames": sum(len(frames) for _, frames in absent),
            "unreadable_frames": sum(len(row[3]) for shard in shards for row in shard["scenes"]),
        },
        "rejected": rejected,
        "absent": absent,
        "shards": [
            {"file": names[number]}
            | {key: shards[number][key] for key in ("frames", "bytes", "sha256")}
            for number in full
        ],
        "scenes": [
            [name, i, first, count, holes]
            for i, number in enumerate(full)
            for name, first, count, holes in shards[number]["scenes"]
        ],
    }
    if films := {name: film for shard in shards for name, film in shard["films"].items()}:
        manifest["films"] = films
    _describe_for_tfds(folder, split, manifest)
    write_json(folder / f"manifest-{split}.json", manifest)
    shutil.rmtree(parts)


def _describe_for_tfds(folder: Path, split: str, manifest: dict[str, Any]) -> None:
    """Writes dataset_info.json and features.json with this split and those already there."""
    import tensorflow_datasets as tfds

    from data_pipeline.posed_scenes.posed_scenes_dataset_builder import Builder

    info = Builder(data_dir=folder.parent.parent, file_format="array_record").info
    template = tfds.core.ShardedFileTemplate(
        dataset_name=folder.parent.name, data_dir=folder, filetype_suffix="array_record"
    )
    manifests = {path: read_json_object(path) for path in listing(folder, "manifest-*.json")}
    manifests[folder / f"manifest-{split}.json"] = manifest
    splits = []
    for path, each in manifests.items():
        shards, name = listed_shards(path, each), path.stem.removeprefix("manifest-")
        splits.append(
            tfds.core.SplitInfo(
                name=name,
                shard_lengths=[shard.frames for shard in shards],
                num_bytes=sum(shard.bytes for shard in shards),
                filename_template=template.replace(split=name),
            )
        )
    info.set_splits(tfds.core.splits.SplitDict(splits))
    info.write_to_directory(folder)
