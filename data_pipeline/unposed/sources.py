"""What pictures without cameras come from: a folder of photos, a video, a capture.

photos = open_photos("holiday/")
photos[3].name, photos[3].image(), photos[3].focal
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from PIL import Image

from data_pipeline.captures.inputs import open_scene
from data_pipeline.formats import formats_of
from data_pipeline.pictures.images import (
    KINDS,
    PICTURE_SUFFIXES,
    exif_orientation,
    load_image,
    load_upright,
)
from data_pipeline.pictures.jpeg import JPEG_START
from data_pipeline.pictures.places import picture_files
from data_pipeline.unposed.film import choose_frames, read_frames
from data_pipeline.unposed.photos import ENOUGH, Photo, Photos
from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.files.reading import read_bytes
from efficient_lvsm_jax.files.writing import read_json, write_json

EXIF, FOCAL_IN_35MM, FOCAL = 0x8769, 0xA405, 0x920A  # tags
# Pixels of the sensor for each unit of length, that unit, and the width they are counted at.
DENSITY, UNIT, WIDTH = 0xA20E, 0xA210, 0xA002
MILLIMETRES = {2: 25.4, 3: 10.0, 4: 1.0, 5: 1e-3}  # of units
SHORTEST, LONGEST = 1, 10_000  # on 35 mm film, that are believed
DIAGONAL_OF_35MM = math.hypot(36, 24)  # of the film that such a focal length belongs to


def open_photos(
    source: str | Path,
    *,
    every: int | None = None,
    count: int | None = None,
    scene: str | None = None,
    choice: Path | None = None,
) -> Photos:
    """The pictures of a folder of photos, a video, or a capture, whose cameras are ignored.

    Args:
      source: one of these. Photos are taken in the order of their names.
      every, count: see `film.choose_frames`; of photos `every` alone.
      scene: of a capture with several.
      choice: a file that keeps which frames of a video were chosen, or has that already.

    Raises:
      InputError: none of these, or fewer than two pictures.
    """
    source = Path(source)
    for name, value in (("every", every), ("count", count)):
        if value is not None and value < 1:
            raise InputError(f"--{name} {value}: expected 1 or more")
    if every is not None and count is not None:
        raise InputError("--every and --count: give one of them")
    if not source.exists():
        raise InputError(f"{source}: no such file or folder")
    if source.is_file() and not formats_of(source):
        if source.suffix.lower() in PICTURE_SUFFIXES:
            raise InputError(f"{source}: a single picture; expected a folder of two or more")
        photos = _of_film(source, every, count, choice)
    else:
        if count is not None:
            raise InputError(f"--count {count}: is about videos; {source} is none")
        photos = _of_files(source, every or 1, scene)
    if photos.count < 2:
        raise InputError(f"{source}: {photos.count} picture {ENOUGH}")
    return photos


def same_name(name: str) -> str:
    """What is equal of names of the same picture in different captures."""
    path = PurePosixPath(name)
    while path.suffix.lower() in PICTURE_SUFFIXES:
        path = path.with_suffix("")
    return path.name


def state_of(source: str | Path, *, but: Path) -> str:
    """What differs if any file of a source of `open_photos` does: of names, sizes and times.

    Without those in the folder `but`.
    """
    source = Path(source).absolute()
    if source.is_file():
        files = [source]
    elif source.is_dir() and formats_of(source):
        files = sorted(path for path in source.rglob("*") if path.is_file())
        files = [path for path in files if but.absolute() not in path.parents]
    else:  # what else lies there may change
        files = _photo_files(source)
    total = hashlib.sha256()
    for file in files:
        stat = file.stat()
        total.update(f"{file} {stat.st_size} {stat.st_mtime_ns}\n".encode())
    return total.hexdigest()


def _photo_files(folder: Path) -> list[Path]:
    return picture_files(folder) or picture_files(folder / "images")


def _of_film(source: Path, every: int | None, count: int | None, choice: Path | None) -> Photos:
    if choice is not None and choice.exists():
        chosen = read_json(choice)["frames"]
    else:
        chosen, _ = choose_frames(source, every=every, count=count)
        if choice is not None:
            write_json(choice, {"frames": chosen})

    def read() -> Iterator[Photo]:
        for number, image in zip(chosen, read_frames(source, chosen), strict=True):
            yield Photo(f"{number:06d}.png", image)

    return Photos(str(source), len(chosen), True, read)


def _of_files(source: Path, every: int, scene: str | None) -> Photos:
    """Of a folder of photos, or of a capture: its files, as no camera is to be trusted."""
    files = _photo_files(source)
    if not files and not formats_of(source):
        raise InputError(
            f"{source}: no pictures there; expected a folder of photos (or with images/) as "
            f"{KINDS}, a video or a capture"
        )
    if formats_of(source):
        frames = open_scene(source, scene).frames
        names = _unlike([frame.name for frame in frames])
        readers = [
            functools.partial(_photo, frame.file, name)
            if frame.file is not None
            else functools.partial(_decoded_photo, frame, name)
            for frame, name in zip(frames, names, strict=True)
        ]
    else:
        readers = [functools.partial(_photo, file, file.name) for file in files]
    readers = readers[::every]
    return Photos(str(source), len(readers), False, lambda: (read() for read in readers))


def _unlike(names: list[str]) -> list[str]:
    """Names of files without folders, where these still differ."""
    short = [PurePosixPath(name).name for name in names]
    if len({*map(same_name, short)}) == len(names):
        return short
    return [name.replace("/", "_") for name in names]


def _decoded_photo(frame, name: str) -> Photo:
    return Photo(_png(name), frame.image())


def _photo(file: Path, name: str) -> Photo:
    """A photo file, its own bytes where they are a JPEG that stands upright."""
    upright = exif_orientation(file) == 1
    image = load_image(file) if upright else load_upright(file)
    data = read_bytes(file)
    is_plain = upright and data[: len(JPEG_START)] == JPEG_START
    name = name if is_plain else _png(name)
    return Photo(name, image, data if is_plain else None, _focal(file, image.shape[:2]))


def _png(name: str) -> str:
    return name if name.lower().endswith(".png") else f"{name}.png"


def _focal(file: Path, size: tuple[int, int]) -> float | None:
    """Pixels, of the focal length on 35 mm film, which is about the picture's diagonal.

    Where that is not told, of the lens's own and of how dense the sensor's pixels are.
    """
    film = math.hypot(*size) / DIAGONAL_OF_35MM  # pixels of a millimetre
    try:
        with Image.open(file) as image:
            told, width = image.getexif().get_ifd(EXIF), image.width
        focal = film * float(told.get(FOCAL_IN_35MM, 0))
        if not focal > 0:
            dense = float(told[DENSITY]) / MILLIMETRES[told.get(UNIT, 2)]
            focal = float(told[FOCAL]) * dense * width / float(told[WIDTH])
    except Exception:  # of any kind, see `pictures.images`; EXIF is a hint
        return None
    return focal if film * SHORTEST < focal < film * LONGEST else None
