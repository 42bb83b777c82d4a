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
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_pipeline.batches.workers import end_when_closed, interrupts_held
from data_pipeline.formats.array_record import check_shard, listed_shards
from data_pipeline.posed_scenes import FOLDER
from data_pipeline.prepare.shards import Preparation, open_source, sha256, write_shard
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
      The manifest.

    Raises:
      InputError: nothing readable at the source, `out` is the source, holds another preparation of
        this split, is being written to by another process, or cannot be written; every scene was
        rejected.
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
    with _writing(folder, preparation.split):
        manifest_path = folder / f"manifest-{preparation.split}.json"
        if manifest_path.exists():
            manifest = read_json_object(manifest_path)
            shards = folder / f"posed_scenes-{preparation.split}.array_record-*"
            _same_plan(manifest.get("plan"), plan, manifest_path, f"{manifest_path} and {shards}")
            return manifest
        parts = folder / f".parts-{preparation.split}"
        if (parts / PLAN).exists():
            _same_plan(read_json_object(parts / PLAN), plan, parts / PLAN, str(parts))
        else:  # whatever is there, no one knows of what it was made
            shutil.rmtree(parts, ignore_errors=True)
            parts.mkdir()
            write_json(parts / PLAN, plan)
        shards = _write_parts(preparation, parts, len(scenes), workers)
        if not any(shard["frames"] for shard in shards):
            shutil.rmtree(parts)  # so that the same command looks again
            name, reason = shards[0]["rejected"][0]
            raise InputError(
                f"{preparation.source}: every scene was rejected, the first ({name}) because "
                f"{reason}"
            )
        manifest = _publish(preparation, folder, parts, shards, plan)
        shutil.rmtree(parts)
        return manifest


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
    if found != plan:
        found = found if isinstance(found, dict) else {}
        old = {**found, **found.get("settings", {})}
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


def _write_parts(
    preparation: Preparation, parts: Path, num_scenes: int, workers: int
) -> list[dict[str, Any]]:
    """All shards' descriptions; writes those that are not complete."""
    size = max(1, min(SCENES_PER_SHARD, math.ceil(num_scenes / MIN_SHARDS)))
    ranges = [range(start, min(start + size, num_scenes)) for start in range(0, num_scenes, size)]
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
    with (
        progress,
        parent_ended,
        lifeline,
        concurrent.futures.ProcessPoolExecutor(
            max(1, min(workers, len(missing))), spawning, end_when_closed, (parent_ended,)
        ) as pool,
    ):
        try:
            with interrupts_held():  # workers inherit that: Ctrl-C is for the parent alone
                waiting = {
                    pool.submit(write_shard, preparation, parts, number, ranges[number]): number
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
    preparation: Preparation,
    folder: Path,
    parts: Path,
    shards: list[dict[str, Any]],
    plan: dict[str, Any],
) -> dict[str, Any]:
    """Names the shards as TFDS expects, writes its descriptions, then the manifest."""
    full = [number for number, shard in enumerate(shards) if shard["frames"]]
    rejected = [entry for shard in shards for entry in shard["rejected"]]
    absent = [entry for shard in shards for entry in shard["absent"]]
    names = {
        number: f"posed_scenes-{preparation.split}.array_record-{i:05d}-of-{len(full):05d}"
        for i, number in enumerate(full)
    }
    for number, name in names.items():
        part = parts / f"{number:05d}.array_record"
        if part.exists():  # an earlier call may have been stopped in between
            os.replace(part, folder / name)
    manifest = {
        "plan": plan,
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
    _describe_for_tfds(folder, preparation.split, manifest)
    write_json(folder / f"manifest-{preparation.split}.json", manifest)
    return manifest


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
