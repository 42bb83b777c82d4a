"""What we say when the input is wrong."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable


class InputError(ValueError):
    """A file, value or argument from outside that cannot be used.

    The message is for the person who gave it: which file or value, what was expected, what to do.
    """


def main_exit(main: Callable[[], int | None]) -> None:
    """Runs a command-line `main` and exits; an `InputError` becomes one line and exit status 2.

    Warnings of the library become lines on stderr, each said once.
    """
    logging.basicConfig(format="warning: %(message)s", level=logging.WARNING, force=True)
    for handler in logging.getLogger().handlers:
        handler.addFilter(_Once())
    try:
        status = main()
    except InputError as error:
        print(f"error: {_printable(str(error))}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    sys.exit(status or 0)


def _printable(text: str) -> str:
    """The text without control characters, which names in files may have, for a terminal."""
    return "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text)


class _Once(logging.Filter):
    """Lets a message through once, printable: a scene that is read again is no news."""

    def __init__(self):
        super().__init__()
        self._said: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = _printable(record.getMessage()), ()
        new = record.msg not in self._said
        self._said.add(record.msg)
        return new
