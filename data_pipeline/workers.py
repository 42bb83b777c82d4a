"""Processes that work for another: they end when it ends, and Ctrl-C is its affair."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait


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


@contextlib.contextmanager
def interrupts_held() -> Iterator[None]:
    """Ctrl-C has its effect at the end of the block; on processes started in it, none."""
    resource_tracker.ensure_running()  # which lets them through again when it is started
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
