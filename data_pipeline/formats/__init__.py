"""One reader per format. A reader module has

    NAME         what the format is called
    LOOKS_FOR    what makes a folder look like it, for messages
    detect(path) whether path (a folder or a file) looks like it, from names alone; never raises

and either `read_scene(path, options) -> Scene`, if a folder is one capture, or
`open_data_set(path, options) -> Scenes`, if it holds many scenes.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import ModuleType

from data_pipeline.formats import (
    array_record,
    blender,
    colmap,
    llff,
    nerfstudio,
    objects,
    prepared,
    realestate,
    torch_chunks,
)
from data_pipeline.pictures.places import picture_files
from data_pipeline.read_options import ReadOptions
from data_pipeline.scenes import Scene, Scenes, log
from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.files.reading import inside, listing

# In the order in which they are tried: a folder may look like several. Captures made with COLMAP
# keep its model beside the file that was made of it; that file comes first, since it may leave
# frames out or split them.
_READERS: tuple[ModuleType, ...] = (
    array_record,
    realestate,
    torch_chunks,
    prepared,
    nerfstudio,
    blender,
    llff,
    colmap,
    objects,
)
FORMATS: dict[str, ModuleType] = {reader.NAME: reader for reader in _READERS}
CAPTURE_DEPTH = 2  # folders below the opened one in which captures are looked for


def open_scenes(
    path: str | Path, options: ReadOptions | None = None, *, format: str | None = None
) -> Scenes:
    """Opens a data set or a single capture; docs/data.md lists the formats.

    A folder that is no data set itself, but has captures of one format in its folders (or theirs),
    opens as all of them, named by their folders.

    Args:
      path: folder, or the file that describes a capture (e.g. a transforms.json).
      options: see `ReadOptions`.
      format: a key of FORMATS, instead of finding out.

    Raises:
      InputError: nothing that can be read there, or damaged; the message names the file.
    """
    path, options = Path(path), options or ReadOptions()
    if not path.exists():
        raise InputError(f"{path}: no such file or folder")
    if format is not None and format not in FORMATS:
        raise InputError(f"format={format!r}: expected one of {', '.join(FORMATS)}")
    reader = FORMATS[format] if format else _detect(path)
    if reader is None:
        return _captures(path, options)
    if hasattr(reader, "open_data_set"):
        return reader.open_data_set(path, options)
    name = (path if path.is_dir() else path.parent).resolve().name
    return Scenes(
        reader.NAME, path, [name], lambda _: replace(reader.read_scene(path, options), name=name)
    )


def formats_of(path: Path) -> list[str]:
    """Every format that a folder or file looks like, the one that is taken first."""
    return [reader.NAME for reader in _READERS if reader.detect(path)]


def _detect(path: Path) -> ModuleType | None:
    return next((reader for reader in _READERS if reader.detect(path)), None)


def _captures(path: Path, options: ReadOptions) -> Scenes:
    """All captures of one format in the folders of `path`, or in theirs."""
    found: dict[Path, ModuleType] = {}
    other: list[Path] = []
    level = [path]
    for _ in range(CAPTURE_DEPTH):
        folders = [folder for parent in level for folder in listing(parent) if folder.is_dir()]
        readers = {folder: _detect(folder) for folder in folders}
        captures = {
            folder: reader for folder, reader in readers.items() if hasattr(reader, "read_scene")
        }
        found |= captures
        level = other = [folder for folder in folders if folder not in captures]
        if captures:
            break
    if not found:
        hint = ""
        if path.is_file() or picture_files(path) or picture_files(path / "images"):
            hint = " (photos or a video without cameras: run elvsm reconstruct on them first)"
        raise InputError(
            f"{path}: not a data set that can be read{hint}; looked for "
            + "; ".join(f"{reader.LOOKS_FOR} ({reader.NAME})" for reader in _READERS)
        )
    kinds = Counter(reader.NAME for reader in found.values())
    if len(kinds) > 1:
        raise InputError(
            f"{path}: captures of several formats ({', '.join(sorted(kinds))}); open them one by "
            "one, or name one with format"
        )
    if other:
        log.warning(
            "%s: %d of %d folders hold no capture and are left out: %s",
            path,
            len(other),
            len(other) + len(found),
            ", ".join(folder.name for folder in other[:3]) + (", …" if len(other) > 3 else ""),
        )
    folders = sorted(found)
    names = [folder.relative_to(path).as_posix() for folder in folders]
    for name in names:
        inside(path, name, str(path))

    def read(index: int) -> Scene:
        folder = folders[index]
        return replace(found[folder].read_scene(folder, options), name=names[index])

    return Scenes(next(iter(kinds)), path, names, read)
