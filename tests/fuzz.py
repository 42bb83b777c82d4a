"""Feeds mutated data sets to every reader of files that we did not write.

    python tests/fuzz.py --count 20000 --seed 0
    python tests/fuzz.py --seed 0 --only 1234          one input again, with its traceback

An input must be read, or refused with an InputError that names a file or the scene. Anything else is
a failure: another exception or warning, more than 10 seconds or 1.5 GB, a crash of the process, a
file opened outside of the data set, code compiled or run, a camera or picture that cannot be. Exit
status 1 if there is one. Inputs depend on seed and number alone. They are read in a process of their
own, whose death counts as a failure. Needs Linux.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import gzip
import io
import json
import os
import re
import resource
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

LIMIT_SECONDS = 10
LIMIT_BYTES = 1_500_000_000  # above what the process has when it begins
SHOWN_FAILURES = 10


# The process that reads


class Hang(BaseException):
    """Took too long."""


class Violation(BaseException):
    """Something that no file may bring about. No Exception: nothing may take it for damage."""


@dataclasses.dataclass(frozen=True)
class Target:
    """What is mutated, and how it is read.

    variants: sets of files to start from. read: reads all there is in a folder and returns the
    refusals. named: what a message may name instead of the folder. is_data_set: else the files are
    named by whoever reads them, who may follow links.
    """

    variants: list[dict[str, bytes]]
    read: Callable[[Path], list[Exception]]
    named: tuple[str, ...] = ()
    is_data_set: bool = True


def targets() -> dict[str, Target]:
    """All readers, each with small data sets that it can read."""
    from capture_writers import (
        blender,
        colmap,
        llff,
        nerfstudio,
        objects,
        posed_scenes,
        prepared,
        realestate,
        torch_chunks,
    )
    from five_cameras import five_cameras

    from data_pipeline.scenes import ReadOptions

    truth, other = five_cameras(), five_cameras(seed=1)
    shared, centred = five_cameras(same_intrinsics=True), five_cameras(centred=True)
    lens = [-0.05, 0.01, 0.002, -0.001]

    def two_lenses(folder: Path) -> None:
        nerfstudio.write(folder, shared)
        path = folder / "transforms.json"
        described = json.loads(path.read_text()) | {"k1": 0.05, "p1": -0.002}
        path.write_text(json.dumps(described))

    def jpeg_chunk(folder: Path) -> None:
        scenes = [torch_chunks.chunk_scene(scene) for scene in (truth, other)]
        for scene in scenes:
            scene["images"] = [as_array(reencode(image.tobytes(), 1)) for image in scene["images"]]
        folder.mkdir()
        torch_chunks.write_chunk(folder / "0.torch", scenes)

    def camera_path(folder: Path) -> None:
        from data_pipeline.camera_path_files import write_camera_path

        folder.mkdir()
        write_camera_path(folder / "path.json", centred.c2w, centred.fxfycxcy, (54, 96))

    def index(folder: Path) -> None:
        folder.mkdir()
        text = json.dumps({"a": {"context": [5, 9], "target": [6, 7, 8]}, "b": None}).encode()
        (folder / "index.json").write_bytes(text)
        (folder / "index.json.gz").write_bytes(gzip.compress(text))

    def captures(format: str, *writers: Callable[[Path], Any], **options: Any) -> Target:
        read_options = ReadOptions(**options)
        return Target(
            [written(writer) for writer in writers],
            lambda folder: read_scenes(folder, format, read_options),
            (truth.name, other.name, realestate.SCENE),
        )

    return {
        "posed_scenes": captures("posed_scenes", lambda f: posed_scenes.write(f, truth)),
        "realestate10k": captures(
            "realestate10k", lambda f: realestate.write(f, truth, split="test")
        ),
        "pixelsplat": captures(
            "pixelsplat", lambda f: torch_chunks.write(f, truth, others=[other]), jpeg_chunk
        ),
        "prepared": captures("prepared", lambda f: prepared.write(f, truth)),
        "nerfstudio": captures(
            "nerfstudio",
            lambda f: nerfstudio.write(f, truth, per_frame=True),
            lambda f: nerfstudio.write(f, shared, scale=4, described_in="colmap"),
            two_lenses,
        ),
        "blender": captures("blender", lambda f: blender.write(f, centred)),
        "llff": captures("llff", lambda f: llff.write(f, centred)),
        "colmap": captures(
            "colmap",
            lambda f: colmap.write(f, truth),
            lambda f: colmap.write(f, truth, binary=False),
            lambda f: colmap.write(f, truth, model="OPENCV", lens=lens),
            lambda f: colmap.write(f, truth, binary=False, model="OPENCV_FISHEYE", lens=lens),
        ),
        "objects": captures(
            "objects",
            lambda f: objects.write(f, centred),
            vertical_fov=objects.vertical_fov(centred),
        ),
        "evaluation index": Target([written(index)], read_indices, is_data_set=False),
        "camera path": Target([written(camera_path)], read_camera_paths, is_data_set=False),
    }


def written(write: Callable[[Path], Any]) -> dict[str, bytes]:
    """The files that a writer makes, with pictures of several kinds among them."""
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / "data"
        write(folder)
        files = {
            str(path.relative_to(folder)): path.read_bytes()
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }
    pictures = [name for name in files if name.endswith(".png")]
    for kind, name in enumerate(pictures):
        files[name] = reencode(files[name], kind)
    return files


def reencode(png: bytes, kind: int) -> bytes:
    """The picture in another way: as it is, JPEG with EXIF, with alpha, with a palette, grey."""
    from PIL import Image

    image, buffer = Image.open(io.BytesIO(png)), io.BytesIO()
    match kind % 5:
        case 0:
            return png
        case 1:
            exif = Image.Exif()
            exif[0x0112] = 3
            image.save(buffer, "JPEG", exif=exif, quality=90)
        case 2:
            image.convert("RGBA").save(buffer, "PNG")
        case 3:
            image.convert("P").save(buffer, "PNG", transparency=7)
        case 4:
            image.convert("L").save(buffer, "JPEG", progressive=True)
    return buffer.getvalue()


def as_array(data: bytes) -> Any:
    import numpy as np

    return np.frombuffer(data, np.uint8)


def read_scenes(folder: Path, format: str, options: Any) -> list[Exception]:
    """Everything that `open_scenes` gives."""
    from data_pipeline.formats import array_record, torch_chunks
    from data_pipeline.scenes import open_scenes
    from efficient_lvsm_jax.cameras import check_cameras

    refusals: list[Exception] = []
    with refusing(refusals):
        scenes = open_scenes(folder, options, format=format)
        for index in range(len(scenes)):
            with refusing(refusals):
                scene = scenes[index]
                with refusing(refusals):
                    check_cameras(scene.c2w, scene.fxfycxcy)
                for number in range(len(scene.frames)):
                    with refusing(refusals):
                        frame = scene.frames[number]
                        check_frame(frame)
                with refusing(refusals):
                    if scene.observations:
                        check_observations(scene)
    array_record._reader.cache_clear()
    torch_chunks._open_chunk.cache_clear()
    return refusals


def check_frame(frame: Any) -> None:
    import numpy as np

    from data_pipeline.images import decode_jpeg_into

    image = frame.image()
    if image.dtype != np.uint8 or image.shape != (frame.height, frame.width, 3):
        raise Violation(f"picture {image.dtype} {image.shape} of {frame}")
    if frame.encoded:
        again = np.empty_like(image)
        decode_jpeg_into(frame.encoded(), again, str(frame))
        if not np.array_equal(again, image):
            raise Violation(f"the encoded picture of {frame} is another one")


def check_observations(scene: Any) -> None:
    import numpy as np

    seen = scene.observations()
    if not (np.isfinite(seen.pixels).all() and np.isfinite(seen.points).all()):
        raise Violation("observations that are not finite")


def read_indices(folder: Path) -> list[Exception]:
    from data_pipeline.evaluation_index import read_index

    refusals: list[Exception] = []
    for path in sorted(folder.iterdir()):
        with refusing(refusals):
            index = read_index(path)
            for scene in index.context:
                with refusing(refusals):
                    index.choose(scene, 4, 1)
    return refusals


def read_camera_paths(folder: Path) -> list[Exception]:
    from data_pipeline.camera_path_files import read_camera_path

    refusals: list[Exception] = []
    for path in sorted(folder.iterdir()):
        with refusing(refusals):
            read_camera_path(path)
    return refusals


@contextlib.contextmanager
def refusing(refusals: list[Exception]) -> Iterator[None]:
    """Collects an InputError, so that what follows is read all the same."""
    from efficient_lvsm_jax.errors import InputError

    try:
        yield
    except InputError as error:
        refusals.append(error)


class Guard:
    """Watches what the interpreter does while `folder` is set; never leaves the process."""

    HARMLESS = re.compile(
        r"os\.(listdir|scandir)|glob\.|pathlib\.|mmap\.__new__|sys\._getframe|object\.__|"
        r"builtins\.id|time\.|sys\.(unraisablehook|excepthook)|_thread|signal|gc\.|array\."
    )

    def __init__(self):
        self.folder = ""
        sys.addaudithook(self._audit)

    def _audit(self, event: str, arguments: tuple) -> None:
        if not self.folder or self.HARMLESS.match(event):
            return
        if event == "open" and isinstance(arguments[0], str | bytes | os.PathLike):
            path = os.path.realpath(os.fsdecode(arguments[0]))
            writing = arguments[1] if isinstance(arguments[1], str) else ""
            if not path.startswith(f"{self.folder}/") or set(writing) & set("wax+"):
                raise Violation(f"opens {path} ({arguments[1]})")
        elif event == "compile" and arguments[1] == "<unknown>":
            pass  # ast.literal_eval of an .npy header: parsed, not run
        elif event != "open":
            raise Violation(f"{event} {arguments!r:.200}")


class Memory:
    """Peak of the process's memory above what it was before, bytes."""

    def __init__(self):
        Path("/proc/self/clear_refs").write_text("5")
        self._before = self._status("VmRSS")

    def peak(self) -> int:
        return self._status("VmHWM") - self._before

    @staticmethod
    def _status(key: str) -> int:
        status = Path("/proc/self/status").read_text()
        return 1024 * int(re.search(rf"{key}:\s+(\d+)", status)[1])


def limit_memory() -> None:
    status = Path("/proc/self/statm").read_text()
    used = int(status.split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + LIMIT_BYTES,) * 2)


def work(seed: int, numbers: range) -> None:
    """Reads inputs and prints one line of JSON for each."""
    sys.path.insert(0, str(Path(__file__).parents[1]))
    import logging

    from mutations import SECRET

    logging.disable(logging.CRITICAL)
    all_targets = targets()
    root = Path(os.path.realpath(tempfile.mkdtemp(prefix="fuzz-")))
    (root / SECRET).write_bytes(next(iter(all_targets["blender"].variants[0].values())))
    try:
        for codec in ("utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"):
            json.loads("1".encode(codec))
        for target in all_targets.values():  # so that all modules are there
            for files in target.variants:
                store(root / "warm", files)
                if refusals := target.read(root / "warm"):
                    raise refusals[0]
                shutil.rmtree(root / "warm")
        guard = Guard()
        limit_memory()
        signal.signal(signal.SIGALRM, _hang)
        for number in numbers:
            print(json.dumps(one_input(all_targets, seed, number, root, guard)), flush=True)
    finally:
        guard.folder = ""
        shutil.rmtree(root)


def _hang(*_) -> None:
    raise Hang(f"took more than {LIMIT_SECONDS} s")


def one_input(
    all_targets: dict[str, Target], seed: int, number: int, root: Path, guard: Guard
) -> dict[str, Any]:
    import numpy as np
    from mutations import mutate
    from PIL import Image

    format = list(all_targets)[number % len(all_targets)]
    target = all_targets[format]
    rng = np.random.default_rng([seed, number])
    variant = target.variants[rng.integers(len(target.variants))]
    with warnings.catch_warnings(action="ignore"):
        files, done = mutate(variant, rng)
    if not target.is_data_set:
        files = {name: content for name, content in files.items() if isinstance(content, bytes)}
    folder = root / f"{number}"
    store(folder, files)
    memory, start, failure, refusals = Memory(), time.perf_counter(), "", []
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", RuntimeWarning)  # overflow and the like
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # and is refused
            signal.setitimer(signal.ITIMER_REAL, LIMIT_SECONDS)
            guard.folder = str(folder)
            refusals = target.read(folder)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        guard.folder = ""
        failure = "".join(traceback.format_exception(error)[-6:])
    finally:
        guard.folder = ""
        signal.setitimer(signal.ITIMER_REAL, 0)
    seconds, peak = time.perf_counter() - start, memory.peak()
    for refusal in refusals:
        if not any(name in str(refusal) for name in (str(folder), *target.named)):
            failure = failure or f"message without a file: {refusal}"
    shutil.rmtree(folder)
    return {
        "number": number,
        "format": format,
        "mutations": done,
        "refused": bool(refusals),
        "seconds": seconds,
        "peak": peak,
        "failure": failure,
        "message": str(refusals[0]).replace(str(folder), "DATA") if refusals else "",
    }


def store(folder: Path, files: dict[str, Any]) -> None:
    """The files on disk; those whose name or place cannot be are left out."""
    folder.mkdir()
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            path.symlink_to(content if content.is_absolute() else up(path, folder, content))


def up(path: Path, folder: Path, content: Path) -> Path:
    """A link to something beside the data set, from wherever in it the link is."""
    depth = len(path.relative_to(folder).parts) - 1
    return Path(*[".."] * depth, content) if content.parts[0] == ".." else content


# The process that watches


def supervise(seed: int, numbers: range) -> Iterator[dict[str, Any]]:
    """The result of every input, whatever becomes of the process that reads it."""
    while numbers:
        command = [sys.executable, __file__, "--worker", "--seed", str(seed)]
        command += ["--first", str(numbers.start), "--count", str(len(numbers))]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as worker:
            os.set_blocking(worker.stderr.fileno(), False)
            reason = ""
            while numbers:
                patience = 3 * LIMIT_SECONDS + 60
                if not select.select([worker.stdout], [], [], patience)[0]:
                    reason = f"nothing for {patience} s, and no signal could stop it"
                    break
                line = worker.stdout.readline()
                if not line:
                    break
                yield json.loads(line)
                numbers = numbers[1:]
            worker.kill()
            worker.wait()
            if numbers:
                errors = (worker.stderr.read() or b"").decode(errors="replace")[-3000:]
                yield {
                    "number": numbers.start,
                    "format": "(the process)",
                    "mutations": [],
                    "refused": False,
                    "seconds": 0.0,
                    "peak": 0,
                    "failure": f"died with {worker.returncode}; {reason}\n{errors}",
                    "message": "",
                }
                numbers = numbers[1:]


def table(results: list[dict[str, Any]]) -> str:
    """Inputs by format, in Markdown."""
    rows = ["| format | inputs | read | refused | failed | seconds | peak MB |"]
    rows.append("|---|---:|---:|---:|---:|---:|---:|")
    formats = list(dict.fromkeys(result["format"] for result in results))
    for format in (*formats, "all"):
        mine = [result for result in results if format in (result["format"], "all")]
        failed = sum(bool(result["failure"]) for result in mine)
        refused = sum(result["refused"] and not result["failure"] for result in mine)
        seconds = sum(result["seconds"] for result in mine)
        peak = max(result["peak"] for result in mine) / 1e6
        read = len(mine) - failed - refused
        counts = f"{len(mine)} | {read} | {refused} | {failed}"
        rows.append(f"| {format} | {counts} | {seconds:.1f} | {peak:.1f} |")
    return "\n".join(rows)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--count", type=int, default=20_000, help="inputs (default: 20000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="number of one input to read again")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--first", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--show", action="store_true", help="what was done and said, per input")
    arguments = parser.parse_args()
    numbers = range(arguments.first, arguments.first + arguments.count)
    if arguments.only is not None:
        numbers = range(arguments.only, arguments.only + 1)
    if arguments.worker:
        work(arguments.seed, numbers)
        return 0
    results, failures = [], []
    for result in supervise(arguments.seed, numbers):
        results.append(result)
        if arguments.show or arguments.only is not None:
            said = result["message"][:300] or "read"
            print(f"{result['number']} {result['format']}: {result['mutations']} -> {said}")
        if result["failure"]:
            failures.append(result)
            if len(failures) <= SHOWN_FAILURES:
                print(f"FAILED {result['format']} {result['mutations']}\n{result['failure']}")
                print(f"again: {Path(__file__)} --seed {arguments.seed} --only {result['number']}")
    print(table(results))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
