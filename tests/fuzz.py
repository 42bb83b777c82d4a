"""Feeds mutated data sets to every reader of files that we did not write.

    python tests/fuzz.py --count 20000 --seed 0
    python tests/fuzz.py --seed 0 --only 1234          one input again: what was done and said

An input must be read, or refused with an InputError that names a file or the scene. Anything else
is a failure: another exception, an overflow, more than 10 seconds or 1.5 GB, a crash of the
process, a file opened outside of the data set, code compiled or run, a module imported, a camera or
picture that cannot be. Exit status 1 if there is one. Inputs depend on seed and number alone. They
are read in a process of their own, whose death counts as a failure. Needs Linux.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

LIMIT_SECONDS = 10
LIMIT_BYTES = 1_500_000_000  # above what the process has when it begins
PATIENCE = 90  # seconds without a result after which the process is killed
SHOWN_FAILURES = 10
COLUMNS = ("format", "inputs", "read", "refused", "failed", "seconds", "peak MB")


# The process that reads


class Hang(BaseException):
    """Took too long."""


class Guard:
    """Watches what the interpreter does while `folder` is set; never leaves the process."""

    HARMLESS = re.compile(
        r"os\.(listdir|scandir)|glob\.|pathlib\.|builtins\.id$|(mmap|array)\.__new__|sys\._getframe"
    )

    def __init__(self, violation: type[BaseException]):
        self.folder, self._violation = "", violation
        sys.addaudithook(self._audit)

    def _audit(self, event: str, arguments: tuple) -> None:
        if not self.folder or self.HARMLESS.match(event):
            return
        if event == "open":
            path, mode = os.path.realpath(os.fsdecode(arguments[0])), arguments[1] or ""
            if path.startswith(f"{self.folder}/") and not set(mode) & set("wax+"):
                return
        elif event == "compile" and arguments[1] == "<unknown>":
            return  # ast.literal_eval of an .npy header: parsed, and not run
        self._violation_found(event, arguments)

    def _violation_found(self, event: str, arguments: tuple) -> None:
        self.folder = ""
        raise self._violation(f"{event} {arguments!r:.300}")


class Memory:
    """Peak of the process's memory above what it was before, bytes."""

    def __init__(self):
        Path("/proc/self/clear_refs").write_text("5")
        self._before = self._status("VmRSS")

    def peak(self) -> int:
        return max(0, self._status("VmHWM") - self._before)

    @staticmethod
    def _status(key: str) -> int:
        status = Path("/proc/self/status").read_text()
        return 1024 * int(re.search(rf"{key}:\s+(\d+)", status)[1])


def limit_memory() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + LIMIT_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def work(seed: int, numbers: range, root: Path) -> None:
    """Reads inputs, stored in `root` for a while, and prints one line of JSON for each."""
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from fuzz_targets import Violation, targets
    from mutations import SECRET

    logging.disable(logging.CRITICAL)
    all_targets = targets()
    (root / SECRET).write_bytes(next(iter(all_targets["blender"].variants[0].values())))
    for codec in ("utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"):  # JSON's
        json.loads("1".encode(codec))
    for target in all_targets.values():  # so that all modules are there
        for files in target.variants:
            store(root / "warm", files)
            if refusals := target.read(root / "warm"):
                raise refusals[0]
            shutil.rmtree(root / "warm")
    guard = Guard(Violation)
    limit_memory()
    signal.signal(signal.SIGALRM, _hang)
    for number in numbers:
        print(json.dumps(one_input(all_targets, seed, number, root, guard)), flush=True)


def _hang(*_) -> None:
    raise Hang(f"took more than {LIMIT_SECONDS} s")


def one_input(
    all_targets: dict[str, Any], seed: int, number: int, root: Path, guard: Guard
) -> dict[str, Any]:
    """Makes an input, reads it, and says what happened."""
    import numpy as np
    from mutations import mutate
    from PIL import Image

    format = list(all_targets)[number % len(all_targets)]
    target = all_targets[format]
    rng = np.random.default_rng([seed, number])
    variant = target.variants[rng.integers(len(target.variants))]
    folder, failure, refusals = root / str(number), "", []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", RuntimeWarning)  # overflow and the like
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # refused all the same
        files, mutations = mutate(variant, rng)
        if not target.is_data_set:
            files = {name: content for name, content in files.items() if isinstance(content, bytes)}
        store(folder, files)
        memory, start = Memory(), time.perf_counter()
        try:
            signal.setitimer(signal.ITIMER_REAL, LIMIT_SECONDS)
            guard.folder = str(folder)
            refusals = target.read(folder)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            guard.folder = ""
            failure = "".join(traceback.format_exception(error)[-6:])
        finally:
            guard.folder = ""
            signal.setitimer(signal.ITIMER_REAL, 0)
        seconds, peak = time.perf_counter() - start, memory.peak()
    messages = [str(refusal).replace(str(folder), "DATA") for refusal in refusals]
    for message in messages:
        if not any(name in message for name in ("DATA", *target.named)):
            failure = failure or f"message without a file: {message}"
    shutil.rmtree(folder)
    return {
        "number": number,
        "format": format,
        "mutations": mutations,
        "messages": messages,
        "seconds": seconds,
        "peak": peak,
        "failure": failure,
    }


def store(folder: Path, files: dict[str, bytes | Path]) -> None:
    """Writes the files; a path is a link to it, seen from the data set's folder."""
    folder.mkdir()
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            path.symlink_to(os.path.relpath(folder / content, path.parent))


# The process that watches


def supervise(seed: int, numbers: range) -> Iterator[dict[str, Any]]:
    """The result of every input, whatever becomes of the process that reads it."""
    while numbers:
        command = [sys.executable, __file__, "--seed", str(seed)]
        command += ["--first", str(numbers.start), "--count", str(len(numbers))]
        with (
            tempfile.TemporaryDirectory(prefix="fuzz-") as root,
            tempfile.TemporaryFile() as errors,
            subprocess.Popen([*command, root], stdout=subprocess.PIPE, stderr=errors) as worker,
        ):
            while numbers:
                patience = threading.Timer(PATIENCE, worker.kill)
                patience.start()
                line = worker.stdout.readline()
                patience.cancel()
                if not line:
                    break
                yield json.loads(line)
                numbers = numbers[1:]
            worker.kill()
            worker.wait()
            if numbers:
                errors.seek(0)
                said = errors.read()[-3000:].decode(errors="replace")
                yield {
                    "number": numbers.start,
                    "format": "(process died)",
                    "mutations": [],
                    "messages": [],
                    "seconds": 0.0,
                    "peak": 0,
                    "failure": f"status {worker.returncode}\n{said}",
                }
                numbers = numbers[1:]


def table(results: list[dict[str, Any]]) -> str:
    """The results by format, in Markdown."""
    rows = [COLUMNS, ("---", *["---:"] * (len(COLUMNS) - 1))]
    formats = list(dict.fromkeys(result["format"] for result in results))
    for format in (*formats, "all"):
        mine = [result for result in results if format in (result["format"], "all")]
        failed = sum(bool(result["failure"]) for result in mine)
        refused = sum(bool(result["messages"]) and not result["failure"] for result in mine)
        seconds = sum(result["seconds"] for result in mine)
        peak = max(result["peak"] for result in mine) / 1e6
        counts = (len(mine), len(mine) - failed - refused, refused, failed)
        rows.append((format, *counts, f"{seconds:.1f}", f"{peak:.1f}"))
    return "\n".join(f"| {' | '.join(map(str, row))} |" for row in rows)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--count", type=int, default=20_000, help="inputs (default: 20000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="number of one input to read again")
    parser.add_argument("--first", type=int, default=0, help="number to begin with (default: 0)")
    parser.add_argument("worker_in", nargs="?", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    numbers = range(arguments.first, arguments.first + arguments.count)
    if arguments.only is not None:
        numbers = range(arguments.only, arguments.only + 1)
    if arguments.worker_in:
        work(arguments.seed, numbers, arguments.worker_in.resolve())
        return 0
    results = []
    for result in supervise(arguments.seed, numbers):
        results.append(result)
        if result["failure"] and sum(bool(r["failure"]) for r in results) <= SHOWN_FAILURES:
            print(f"FAILED {result['format']} {result['mutations']}\n{result['failure']}")
            print(f"again: tests/fuzz.py --seed {arguments.seed} --only {result['number']}\n")
        elif arguments.only is not None:
            print("\n".join([*result["mutations"], *result["messages"]]))
    print(table(results))
    return int(any(result["failure"] for result in results))


if __name__ == "__main__":
    sys.exit(main())
