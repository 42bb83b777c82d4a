"""What we say when the input is wrong."""

from __future__ import annotations


class InputError(ValueError):
    """A file, value or argument from outside that cannot be used.

    The message is for the person who gave it: which file or value, what was expected, what to do.
    """
