"""Interrupts a long job between two of its steps, and compares what was written in the end."""

import contextlib

import pytest

from efficient_lvsm_jax.media.progress import Progress


@contextlib.contextmanager
def interrupted(what, after):
    """Ctrl-C in the block, when so much of that job is done."""
    advance = Progress.advance

    def advance_and_stop(progress, count=1):
        advance(progress, count)
        if progress._what == what and progress._done >= after:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Progress, "advance", advance_and_stop)
        yield


def contents(folder):
    """The bytes of all files, by path."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}
