"""Processes that work for another: they end when it ends, and Ctrl-C is its affair."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait

SHARED_MEMORY = "/dev/shm"


def end_when_closed(end: Connection | int) -> None:
    """Ends this process as soon as the other end of a pipe is closed.

    A parent that is killed closes nothing itself, but the system does. Its workers would otherwise
    wait for ever, or write what the next run writes, too.

    Args:
      end: to read from, on which nothing is ever sent; a file descriptor will do.
    """

    def watch() -> None:
        wait([end])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def serve_parent() -> None:
    """In a process that `multiprocessing` started: ends with its parent, leaves Ctrl-C to it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_when_closed(multiprocessing.parent_process().sentinel)


def how_to_go_on(why: str) -> str:
    """What to do about a worker process that failed, or could not be started.

    Args:
      why: what the system or grain says.
    """
    if "Too many open files" in why:
        return "allow more (ulimit -n), use fewer data.workers, or 0 for threads"
    if re.search(r"Read-only file system|Permission denied", why):
        return (
            f"if it is of {SHARED_MEMORY}, where workers hand batches over: make that writable, or "
            "use data.workers=0"
        )
    # A bus error is how a process ends that writes to shared memory of which there is none left.
    if not re.search(r"No space left on device|\bexit (code|status) -7\b|SIGBUS", why):
        return "if it was killed (out of memory?), use fewer data.workers, or 0 for threads"
    left = ""
    with contextlib.suppress(OSError):
        found = os.statvfs(SHARED_MEMORY)
        left = f" has {found.f_bavail * found.f_frsize} bytes left"
    return (
        f"{SHARED_MEMORY}{left}; workers hand batches over there: free it, start the container "
        "with a larger --shm-size, or use data.workers=0"
    )


class Watch:
    """Sees to it that nobody waits for ever for a worker that was killed.

    A killed process keeps the locks it held. Grain notices that a worker is gone, but may then wait
    for such a lock itself when it clears up, and nothing ends that but the end of this process.
    """

    def __init__(self, name: str, error: Callable[[str], str], seconds: float = 30.0):
        """Starts to watch processes that `multiprocessing` starts from now on; `close` ends it.

        Args:
          name: how the names of the workers begin.
          error: makes the message of what became of a worker. It is printed before this process
            ends with the exit status of an `InputError`.
          seconds: how long a wait may last with a dead worker.
        """
        # What a worker that died has left in shared memory is removed without a word.
        sys.warnoptions.append("ignore::UserWarning:multiprocessing.resource_tracker")
        self._name, self._error, self._seconds = name, error, seconds
        self._since: float | None = None  # when the wait began that goes on now
        self._others = set(multiprocessing.active_children())
        self._closed = threading.Event()
        threading.Thread(target=self._look_on, daemon=True).start()

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """In the block somebody waits for workers."""
        self._since = time.monotonic()
        try:
            yield
        finally:
            self._since = None

    def close(self) -> None:
        """Ends it."""
        self._closed.set()

    def _look_on(self) -> None:
        workers = set()
        while not self._closed.wait(0.5):
            started = set(multiprocessing.active_children()) - self._others
            workers |= {child for child in started if child.name.startswith(self._name)}
            dead = [worker for worker in workers if wait([worker.sentinel], 0) and worker.exitcode]
            since = self._since
            if dead and since is not None and time.monotonic() - since > self._seconds:
                message = self._error(f"ended with exit status {dead[0].exitcode}")
                print(f"error: {message}", file=sys.stderr, flush=True)
                sys.stdout.flush()
                os._exit(2)


@contextlib.contextmanager
def interrupts_held() -> Iterator[None]:
    """Ctrl-C has its effect at the end of the block; on processes started in it, none."""
    resource_tracker.ensure_running()  # which lets them through again when it is started
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
