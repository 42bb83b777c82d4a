"""Pictures of targets as files: those we render, to be kept, and those of others, to be scored.

    FOLDER/SCENE/000033.png     target at position 33 of scene SCENE

PNG (8-bit RGB) or .npy (float [Y, X, 3] in [0, 1], or uint8). Axis: T target view.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from data_pipeline.evaluation.scenes import EvaluationScene
from data_pipeline.pictures.images import load_image
from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.files.reading import inside, listing, read_bytes
from efficient_lvsm_jax.files.writing import written_whole
from efficient_lvsm_jax.media.levels import from_bytes
from efficient_lvsm_jax.metrics.pictures import check_range

ENDINGS = (".png", ".npy")
NAMED = ("frame", "order")
SUBFOLDER = "color"  # where pixelSplat and its followers put the pictures of a scene


def picture_path(folder: Path, scene: str, frame: int) -> Path:
    """Where the picture of a frame is kept.

    Raises:
      InputError: a scene's name that leads out of the folder.
    """
    return inside(folder, scene, f"name of scene {scene!r}") / f"{frame:06d}.png"


def save_pictures(folder: Path, scene: str, frames: tuple[int, ...], images: np.ndarray) -> None:
    """Writes pictures uint8 [T, Y, X, 3] of the frames of a scene, each beside and then renamed."""
    for frame, image in zip(frames, images, strict=True):
        path = picture_path(folder, scene, frame)
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with written_whole(path) as partial:
                Image.fromarray(image).save(partial, "PNG")
        except OSError as error:
            raise InputError(f"{path}: cannot be written ({error.strerror or error})") from error


class Predictions:
    """Pictures of another method, or saved ones of ours, in a folder.

    The pictures of a scene lie in FOLDER/SCENE or FOLDER/SCENE/color. They are found by the frame
    (`named="frame"`): the file's name without ending is the target's position in the scene, with
    any number of leading zeros, or what the data set calls the frame. Or by order
    (`named="order"`): there are as many as targets, and sorted by name, numbers by value, they are
    the targets in the order of the protocol.
    """

    def __init__(self, folder: str | Path, *, named: str = "frame"):
        self.folder, self.named = Path(folder), named
        if named not in NAMED:
            raise InputError(f"--predictions-named={named}: expected one of {', '.join(NAMED)}")
        if not self.folder.is_dir():
            raise InputError(f"{folder}: no such folder of predictions")

    def check(self, scenes: Sequence[str]) -> None:
        """Raises an InputError that lists the scenes without a folder, before any is scored."""
        missing = [scene for scene in scenes if not self._folder_of(scene).is_dir()]
        if missing:
            shown = ", ".join(missing[:5]) + (", …" if len(missing) > 5 else "")
            raise InputError(
                f"{self.folder}: no folder for {len(missing)} of {len(scenes)} scenes: {shown}; "
                f"expected FOLDER/SCENE/FRAME.png for every target"
            )

    def sha256(self, scenes: Sequence[str]) -> str:
        """Over names and contents of all pictures of the scenes, so that a changed one shows."""
        total = hashlib.sha256()
        for scene in scenes:
            for path in sorted(_pictures_in(self._folder_of(scene))):
                total.update(f"{scene}/{path.name}\n".encode())
                total.update(hashlib.sha256(read_bytes(path)).digest())
        return total.hexdigest()

    def read(self, scene: EvaluationScene) -> np.ndarray:
        """The pictures of the targets of a scene, float32 [T, Y, X, 3] in [0, 1].

        Raises:
          InputError: pictures are missing (all are named), of another size, unreadable, or not in
            [0, 1].
        """
        size = scene.targets.image.shape[1:3]
        return np.stack([_read_picture(path, size) for path in self.files(scene)])

    def files(self, scene: EvaluationScene) -> list[Path]:
        """The file of every target of a scene."""
        folder = self._folder_of(scene.name)
        found = _pictures_in(folder)
        if self.named == "order":
            return _by_order(folder, found, len(scene.chosen.targets))
        by_stem: dict[str, Path] = {}
        for path in found:
            key = _without_zeros(path.stem)
            if key in by_stem:
                raise InputError(f"{path}: the same frame as {by_stem[key].name}; keep one")
            by_stem[key] = path
        files, missing = [], []
        for position, name in zip(scene.chosen.targets, scene.target_names, strict=True):
            stem = PurePosixPath(name).stem
            path = by_stem.get(str(position)) or by_stem.get(_without_zeros(stem))
            files.append(path)
            if path is None:
                missing.append(
                    f"{position:06d}.png" + ("" if stem.isdigit() else f" or {stem}.png")
                )
        if missing:
            raise InputError(
                f"{folder}: no picture for {len(missing)} of {len(files)} targets: "
                f"{', '.join(missing)}; there are {len(found)} pictures, the protocol wants the "
                f"frames {', '.join(map(str, scene.chosen.targets))} (or, with "
                "--predictions-named=order, one picture per target, sorted by name)"
            )
        return files

    def _folder_of(self, scene: str) -> Path:
        folder = inside(self.folder, scene, f"name of scene {scene!r}")
        return folder / SUBFOLDER if (folder / SUBFOLDER).is_dir() else folder


def _pictures_in(folder: Path) -> list[Path]:
    return [path for path in listing(folder) if path.suffix.lower() in ENDINGS]


def _by_order(folder: Path, found: list[Path], count: int) -> list[Path]:
    if len(found) != count:
        raise InputError(
            f"{folder}: {len(found)} pictures for {count} targets; by order there must be one each"
        )
    return sorted(found, key=lambda path: _number_parts(path.stem))


def _number_parts(stem: str) -> list[tuple[int, int, str]]:
    """A key under which frame_2 comes before frame_10."""
    parts = re.findall(r"\d+|\D+", stem)
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts]


def _without_zeros(stem: str) -> str:
    return str(int(stem)) if stem.isdecimal() else stem


def _read_picture(path: Path, size: tuple[int, int]) -> np.ndarray:
    image = _read_array(path) if path.suffix.lower() == ".npy" else load_image(path)
    if image.shape != (*size, 3):
        raise InputError(
            f"{path}: {'x'.join(map(str, image.shape))}, the protocol wants "
            f"{size[0]}x{size[1]}x3 (height x width x channels); render at that size, since "
            "resized pictures score differently"
        )
    if image.dtype == np.uint8:
        return from_bytes(image)
    if not np.issubdtype(image.dtype, np.floating):
        raise InputError(f"{path}: {image.dtype}; expected uint8, or floats in [0, 1]")
    check_range(image, str(path))
    return image.astype(np.float32)


def _read_array(path: Path) -> np.ndarray:
    try:
        # Mapped: a header that promises more than the file holds allocates nothing, and pickled
        # objects cannot be mapped.
        return np.lib.format.open_memmap(path, mode="r")
    except Exception as error:  # NumPy raises many kinds for damaged headers
        raise InputError(f"{path}: cannot be read as an array ({error})") from error
