"""Where the pictures of a capture are: as listed, with a suffix, or as smaller copies.

One rule for all formats. `images/DJI_1/7.jpg` is looked for as listed; then as a copy of half, a
quarter, an eighth of the size in images_2/DJI_1, images/DJI_1_2, images_4/DJI_1, …: any of the
folders of its path may have the _2, the outermost first. Of several sizes the one counts that has
most of the pictures; of equals, the largest. A name listed without the suffix of a picture is
completed with one that lies there, and so is any where none of the pictures has the listed suffix
(copies of .JPG are often .png); of several, the first of PICTURE_SUFFIXES.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from data_pipeline.pictures.images import PICTURE_SUFFIXES
from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.files.reading import inside, listing

# After the name of a folder of pictures: itself and its smaller copies, largest first.
COPIES = ("", "_2", "_4", "_8")
PICTURE_FOLDERS = tuple(f"images{copy}" for copy in COPIES)


class Found(NamedTuple):
    """paths: of the pictures that are there, by listed name. copy: which of COPIES they are."""

    paths: dict[str, Path]
    copy: str


def picture_files(folder: Path) -> list[Path]:
    """The pictures in a folder, by their suffix, in the order of their names."""
    return [file for file in listing(folder) if has_picture_suffix(file.name)]


def has_picture_suffix(name: str) -> bool:
    """Whether a file of that name is a picture."""
    return PurePosixPath(name).suffix.lower() in PICTURE_SUFFIXES


def bare_name(name: str) -> str:
    """A picture's name without the suffix of a picture."""
    return name[: name.rindex(".")] if has_picture_suffix(name) else name


def find_pictures(roots: Sequence[Path], names: Mapping[str, str]) -> Found:
    """The pictures of a capture that are there, all from folders of one scale.

    Args:
      roots: folders that names are relative to, the likeliest first; a later one counts where it
        has more of the pictures.
      names: of pictures, with / between folders, each with what lists it, for messages.

    Raises:
      InputError: a name that leads out of a root, or two names of one picture.
    """
    best = _most_pictures(roots, names)
    listed_by: dict[Path, str] = {}
    for name, path in best.paths.items():
        if (other := listed_by.setdefault(path, name)) != name:
            raise InputError(
                f"{names[name]}: {name!r} is listed beside {other!r}, but there is one picture for "
                f"both, {path}; list it once"
            )
    return best


def _most_pictures(roots: Sequence[Path], names: Mapping[str, str]) -> Found:
    best = Found({}, "")
    for root in roots:
        for name, where in names.items():
            inside(root, name, where)
        folders = _Folders(root)
        for copy in COPIES:
            for any_suffix in (False, True):
                found = {
                    name: path
                    for name, where in names.items()
                    if (path := folders.picture(PurePosixPath(name), copy, any_suffix, where))
                }
                if found:
                    break
            if len(found) > len(best.paths):
                best = Found(found, copy)
            if len(best.paths) == len(names):
                return best
    return best


class _Folders:
    """Folders below a root, each listed once."""

    def __init__(self, root: Path):
        self._root = root
        self._stems: dict[PurePosixPath, dict[str, list[str]]] = {}

    def picture(self, name: PurePosixPath, copy: str, any_suffix: bool, where: str) -> Path | None:
        """The file of a picture in its folder or, if `copy` is one, in a folder of copies."""
        for place in _places(name, copy):
            for found in self._candidates(place, any_suffix, where):
                path = inside(self._root, str(found), where)
                if os.path.isfile(path):
                    return path
        return None

    def _candidates(
        self, name: PurePosixPath, any_suffix: bool, where: str
    ) -> Iterator[PurePosixPath]:
        yield name
        has_suffix = has_picture_suffix(name.name)
        if not name.name or (has_suffix and not any_suffix):
            return
        folder = name.parent
        if folder not in self._stems:
            stems: dict[str, list[str]] = {}
            for file in picture_files(inside(self._root, str(folder), where)):
                stems.setdefault(file.stem, []).append(file.name)
            self._stems[folder] = stems
        there = self._stems[folder].get(name.stem if has_suffix else name.name, [])
        yield from (folder / file for file in sorted(there, key=_preference))


def _preference(file: str) -> tuple[int, str]:
    return PICTURE_SUFFIXES.index(PurePosixPath(file).suffix.lower()), file


def _places(name: PurePosixPath, copy: str) -> Iterator[PurePosixPath]:
    """The name in each folder that may hold its copies, the outermost first."""
    folders = name.parent.parts
    if not copy:
        yield name
        return
    for level, folder in enumerate(folders):
        yield PurePosixPath(*folders[:level], folder + copy, *folders[level + 1 :], name.name)
