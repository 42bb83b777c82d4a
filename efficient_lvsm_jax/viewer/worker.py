"""One thread that does all work on the device, and always knows only the newest cameras.

A client has one slot: a camera that comes while another waits takes its place, so pictures never
queue up, and the last camera after a move always gets one. Commands wait in order. The thread
takes a command and a picture in turn, so that neither keeps the other waiting for long.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from typing import TypeVar

from efficient_lvsm_jax.errors import InputError

T = TypeVar("T")
Work = Callable[[], None]
MOST_COMMANDS = 1000  # that wait
SECONDS = 2.0  # that `stop` waits for what the thread is at

log = logging.getLogger(__name__)


class Worker:
    """The thread; it is started at once and lives until `stop`, whatever fails in it."""

    def __init__(self, failed: Callable[[Hashable, Exception], None]):
        """`failed` is told, in the thread, which client's work failed and how."""
        self._failed = failed
        self._turn = threading.Condition()
        self._pictures: dict[Hashable, Work] = {}  # by client, the one that waits longest first
        self._commands: deque[tuple[Hashable, Work]] = deque()
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="device", daemon=True)
        self._thread.start()

    def show(self, client: Hashable, picture: Work) -> None:
        """Makes a client's newest picture; one of its own that still waits is dropped."""
        with self._turn:
            self._pictures[client] = picture
            self._turn.notify()

    def do(self, client: Hashable, command: Work) -> None:
        """Does something for a client, after what was asked before.

        Raises:
          InputError: far too many commands wait.
        """
        with self._turn:
            if len(self._commands) >= MOST_COMMANDS:
                raise InputError(f"{MOST_COMMANDS} commands wait already; wait for some of them")
            self._commands.append((client, command))
            self._turn.notify()

    def call(self, client: Hashable, function: Callable[[], T]) -> T:
        """The result of a function that runs in the thread; never call it from there.

        Raises:
          what the function raises; InputError if the worker stopped before.
        """
        result: Future[T] = Future()

        def command() -> None:
            try:
                result.set_result(function())
            except Exception as error:
                result.set_exception(error)

        with self._turn:
            if self._stopped:
                raise InputError("the viewer is stopping")
            self._commands.append((client, command))
            self._turn.notify()
        while True:
            try:
                return result.result(timeout=1)
            except TimeoutError:
                if result.done():  # the function's own
                    raise
                if self._stopped:
                    raise InputError("the viewer is stopping") from None

    def forget(self, client: Hashable) -> None:
        """Drops the picture that waits for a client."""
        with self._turn:
            self._pictures.pop(client, None)

    def stop(self) -> None:
        """Ends the thread after what it is at, waiting SECONDS at most; what waits is dropped."""
        with self._turn:
            self._stopped = True
            self._turn.notify()
        self._thread.join(SECONDS)

    def _run(self) -> None:
        command_next = True
        while True:
            with self._turn:
                while not (self._stopped or self._pictures or self._commands):
                    self._turn.wait()
                if self._stopped:
                    return
                if self._commands and (command_next or not self._pictures):
                    client, work = self._commands.popleft()
                else:
                    client = next(iter(self._pictures))
                    work = self._pictures.pop(client)
                command_next = not command_next
            try:
                work()
            except Exception as error:
                self._tell(client, error)

    def _tell(self, client: Hashable, error: Exception) -> None:
        try:
            self._failed(client, error)
        except Exception:
            log.exception("a client could not be told of an error")
