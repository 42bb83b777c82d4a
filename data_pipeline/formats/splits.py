"""Which part of a data set to read, where it keeps several."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from data_pipeline.read_options import ReadOptions
from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.files.reading import inside


def choose_split(path: Path, splits: Mapping[str, Path], options: ReadOptions) -> Path:
    """The split that the options name, or the only one there is; `splits` are within `path`.

    Raises:
      InputError: none named where there are several, one that is not there, or one behind a link
        out of `path`.
    """
    there = ", ".join(splits) or "none"
    if options.split:
        if options.split not in splits:
            raise InputError(f"{path}: no split {options.split!r}; it has {there}")
        name = options.split
    elif len(splits) == 1:
        (name,) = splits
    else:
        raise InputError(f"{path}: has the splits {there}; name one (--split), or open its folder")
    return inside(path, splits[name].relative_to(path).as_posix(), f"{path}, split {name}")
