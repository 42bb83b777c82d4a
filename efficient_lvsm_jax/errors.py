"""What we say when the input is wrong."""

from __future__ import annotations

import sys
from collections.abc import Callable


class InputError(ValueError):
    """A file, value or argument from outside that cannot be used.

    The message is for the person who gave it: which file or value, what was expected, what to do.
    """


def main_exit(main: Callable[[], int | None]) -> None:
    """Runs a command-line `main` and exits; an `InputError` becomes one line and exit status 2."""
    try:
        status = main()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    sys.exit(status or 0)
