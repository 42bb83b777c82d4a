"""The prepared layout of the LVSM programs: a JSON file per scene, and PNG frames.

    ROOT/{train,test}/metadata/SCENE.json    {"scene_name", "frames": [{"image_path", "fxfycxcy"
                                             (pixels), "w2c" (4x4, OpenCV axes)}]}
                      images/SCENE/00000.png, …
                      full_list.txt          of JSON files

Opens a split's folder, ROOT with `split`, or a list file: then its scenes only, in its order. The
paths written in these files are absolute on their writer's machine, so only the names are used:
SCENE.json beside, and the picture of that name in images/SCENE. Evaluation indices count the
entries of `frames`, so a frame whose picture is absent keeps its place.
"""

from __future__ import annotations

import functools
import re
from collections import Counter
from pathlib import Path

from data_pipeline.formats.json_values import fields, items, numbers, required, text
from data_pipeline.formats.splits import choose_split
from data_pipeline.pictures.frames import picture_frame, world_from_camera
from data_pipeline.pictures.images import load_image
from data_pipeline.pictures.places import find_pictures
from data_pipeline.read_options import ReadOptions
from data_pipeline.scenes import Frame, Scene, Scenes, scene_of
from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.files.reading import inside, is_data, listing, read_json_object, read_text

NAME = "prepared"
LOOKS_FOR = "metadata/SCENE.json beside images"


def detect(path: Path) -> bool:
    """Whether it is such a split, holds some, or is the list of one."""
    if path.is_file():
        return path.suffix == ".txt" and (path.parent / "metadata").is_dir()
    return (path / "metadata").is_dir() or bool(_splits(path))


def open_data_set(path: Path, options: ReadOptions) -> Scenes:
    """The scenes of a split or of a list.

    Raises:
      InputError: no split chosen where there are several, a listed scene without JSON file. Of a
        scene: values that are no frames, cameras that cannot be, none of its pictures there.
    """
    if path.is_file():
        folder, names = path.parent, _listed(path)
    else:
        folder = (
            path if (path / "metadata").is_dir() else choose_split(path, _splits(path), options)
        )
        names = [file.stem for file in listing(folder / "metadata", "*.json")]
    return Scenes(NAME, path, names, lambda index: _scene(folder, names[index], options))


def _splits(path: Path) -> dict[str, Path]:
    folders = {name: path / name for name in ("train", "test")}
    return {name: folder for name, folder in folders.items() if (folder / "metadata").is_dir()}


def _listed(path: Path) -> list[str]:
    """Scenes of a list of JSON files, whatever folders they once were in; none that is hidden."""
    names = []
    for number, line in enumerate(read_text(path).splitlines(), 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        name = _last_part(line.strip(), where).removesuffix(".json")
        if not is_data(name):
            continue
        if not inside(path.parent, f"metadata/{name}.json", where).is_file():
            raise InputError(f"{where}: no {name}.json in {path.parent / 'metadata'}")
        names.append(name)
    return names


def _scene(folder: Path, name: str, options: ReadOptions) -> Scene:
    where = inside(folder, f"metadata/{name}.json", str(folder))
    entries = items(required(read_json_object(where), "frames", str(where)), f"{where}: frames")
    labels, listed, cameras = [], [], []
    for index, entry in enumerate(entries):
        label = f"{where}, frame {index}"
        labels.append(label)
        entry = fields(entry, label)
        file = text(required(entry, "image_path", label), f"{label}: image_path")
        file = _last_part(file, f"{label}: image_path")
        listed.append(f"images/{name}/{file}")
        w2c = numbers(required(entry, "w2c", label), (4, 4), f"{label}: w2c")
        fxfycxcy = numbers(required(entry, "fxfycxcy", label), (4,), f"{label}: fxfycxcy")
        cameras.append((world_from_camera(w2c, label), fxfycxcy))

    found = find_pictures([folder], dict(zip(listed, labels, strict=True)))
    there = {} if found.copy else found.paths  # intrinsics are of pictures of full size
    pictures = [there.get(file, folder / file) for file in listed]
    frames: list[Frame | None] = [
        picture_frame(picture, picture.name, *camera, where=label) if picture.is_file() else None
        for label, picture, camera in zip(labels, pictures, cameras, strict=True)
    ]
    sizes = Counter((frame.width, frame.height) for frame in frames if frame)
    if not sizes:
        raise InputError(f"{where}: none of its {len(entries)} pictures is in {folder / 'images'}")
    usual = sizes.most_common(1)[0][0]
    holes = [index for index, frame in enumerate(frames) if frame is None]
    for hole in holes:
        picture = pictures[hole]
        frames[hole] = Frame(
            picture.name, *cameras[hole], *usual, functools.partial(load_image, picture)
        )
    return scene_of(name, frames, [], options, holes=holes)


def _last_part(path: str, where: str) -> str:
    """The file's name in a path of any system."""
    name = re.split(r"[/\\]", path)[-1]
    if name in ("", ".", ".."):
        raise InputError(f"{where}: the path {path!r:.200} names no file")
    return name
