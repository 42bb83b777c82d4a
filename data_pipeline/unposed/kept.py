"""Pictures without cameras as files in a folder, where they stay the same, however they came."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

from PIL import Image

from data_pipeline.pictures.images import load_image
from data_pipeline.unposed.photos import Photo, Photos
from efficient_lvsm_jax.files.reading import read_bytes
from efficient_lvsm_jax.files.writing import folder_written_whole, read_json, write_json
from efficient_lvsm_jax.media.progress import Progress

LIST = "photos.json"


def kept_photos(opened: Callable[[], Photos], folder: Path) -> Photos:
    """Photos read from `folder`, each of a file there.

    Args:
      opened: gives what is to be kept; not called if `folder` has it from an earlier call.
      folder: is written whole or not at all.

    Raises:
      InputError: as `opened` and reading from it.
      OSError: it cannot be written.
    """
    if not folder.exists():
        photos = opened()
        with folder_written_whole(folder) as partial:
            _keep(photos, partial)
    listed = read_json(folder / LIST)

    def read() -> Iterator[Photo]:
        for row in listed["photos"]:
            file = folder / row["file"]
            yield Photo(row["name"], load_image(file), read_bytes(file), row["focal"], file)

    return Photos(listed["name"], listed["count"], listed["film"], read)


def _keep(photos: Photos, folder: Path) -> None:
    rows = []
    with Progress("reading", photos.count, "pictures") as progress:
        for photo in photos:
            # No name of theirs, which may have blanks: COLMAP's lists of pairs are parted by them.
            file = folder / f"{len(rows):06d}{PurePosixPath(photo.name).suffix.lower()}"
            file.write_bytes(photo.stored or _png(photo))
            rows.append({"name": photo.name, "file": file.name, "focal": photo.focal})
            progress.advance()
    about = {"name": photos.name, "count": photos.count, "film": photos.film, "photos": rows}
    write_json(folder / LIST, about)


def _png(photo: Photo) -> bytes:
    file = io.BytesIO()
    Image.fromarray(photo.image).save(file, "PNG")
    return file.getvalue()
