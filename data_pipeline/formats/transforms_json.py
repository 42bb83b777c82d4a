"""What nerfstudio's and Blender's transforms files have in common: frames, intrinsics, lens.

Poses are camera-to-world in OpenGL axes (x right, y up, z backward), or OpenCV's where the options
say so. Intrinsics and lens stand in the file once for all frames, or in each frame.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from data_pipeline.formats import colmap
from data_pipeline.formats.depth_maps import FIELD, read_depth
from data_pipeline.formats.json_values import (
    MAX_SIDE,
    fields,
    items,
    number,
    numbers,
    required,
    text,
    truth,
    whole_number,
)
from data_pipeline.pictures import distortion
from data_pipeline.pictures.frames import opencv_from_opengl, picture_frame
from data_pipeline.pictures.images import oriented_size
from data_pipeline.pictures.places import Found, has_picture_suffix
from data_pipeline.read_options import ReadOptions
from data_pipeline.scenes import Cloud, Frame, Scene, check_unique, scene_of
from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.files.reading import inside, read_json_object
from efficient_lvsm_jax.geometry.cameras import check_cameras

# What each camera_model's coefficients mean; None: it has none.
CAMERA_MODELS = {
    "SIMPLE_PINHOLE": None,
    "PINHOLE": None,
    "SIMPLE_RADIAL": distortion.PERSPECTIVE,
    "RADIAL": distortion.PERSPECTIVE,
    "OPENCV": distortion.PERSPECTIVE,
    "OPENCV_FISHEYE": distortion.FISHEYE,
}
MIN_ANGLE = 1e-6  # radians; a telescope's, and large enough to divide by its tangent
COEFFICIENTS = ("k1", "k2", "k3", "k4", "p1", "p2")  # in the order of distortion_params
# More words for lenses that bend: instant-ngp's f-theta and panoramas, calibration programs'.
OTHER_LENS = re.compile(r"k[5-9]|[bs][1-4]|ftheta_p[0-9]|latlong")


@dataclasses.dataclass(frozen=True)
class ListedFrame:
    """An entry of `frames`, its camera's pose checked.

    name: its file_path. where: what to call it in messages. c2w: [4, 4], OpenCV axes. own, common:
    its fields and those of the whole file.
    """

    name: str
    where: str
    c2w: np.ndarray
    own: Mapping[str, Any]
    common: Mapping[str, Any]

    def field(self, key: str, convert: Callable[[Any, str], Any]) -> Any:
        """The field `key`, converted, or None; an InputError if frame and file contradict."""
        found = [
            convert(place[key], f"{self.where}: {key}")
            for place in (self.own, self.common)
            if key in place
        ]
        # Some programs prefer the frame's value and some the file's.
        if len(found) == 2 and not np.array_equal(*found):
            raise InputError(
                f"{self.where}: {key} is {found[0]} in the frame but {found[1]} for the whole "
                "file; leave one out"
            )
        return found[0] if found else None


def read_frames(path: Path, options: ReadOptions) -> tuple[dict[str, Any], list[ListedFrame]]:
    """The fields and the frames of a transforms file, in its order.

    Raises:
      InputError: no such file, not JSON, no frames, two of one file_path, or a bad pose.
    """
    common = read_json_object(path)
    listed = []
    for index, entry in enumerate(items(required(common, "frames", str(path)), f"{path}: frames")):
        where = f"{path}, frame {index}"
        own = fields(entry, where)
        name = listed_name(required(own, "file_path", where), f"{where}: file_path")
        where = f"{where} ({name})"
        matrix = numbers(
            required(own, "transform_matrix", where), (4, 4), f"{where}: transform_matrix"
        )
        c2w = opencv_from_opengl(matrix) if options.axes == "opengl" else matrix
        check_cameras(c2w, np.ones(4), f"{where}: transform_matrix")
        listed.append(ListedFrame(name, where, c2w, own, common))
    if not listed:
        raise InputError(f"{path}: frames is empty; expected at least one posed picture")
    check_unique([frame.name for frame in listed], f"{path}: frames")
    return common, listed


def listed_name(value: Any, where: str) -> str:
    """A file_path as the name of a frame: ./images\\a.png and images/a.png are the same."""
    return PurePosixPath(text(value, where).replace("\\", "/")).as_posix()


def read_listed(
    path: Path,
    listed: Sequence[ListedFrame],
    pictures: Found,
    options: ReadOptions,
    *,
    cloud: Callable[[int], Cloud] | None = None,
) -> Scene:
    """The scene of the listed frames whose picture is there.

    A frame listed without the suffix of its picture is named with it.

    Args:
      path: of the transforms file.
      pictures: by frames' names.
      cloud: see `Scene`.

    Raises:
      InputError: no picture is there, or a picture, its intrinsics or its lens are unusable.
    """
    paths = pictures.paths
    usual = next((picture.suffix for picture in paths.values()), "")
    names = {frame.name: _full_name(frame.name, paths.get(frame.name), usual) for frame in listed}
    absent = [names[frame.name] for frame in listed if frame.name not in paths]
    if len(absent) == len(listed):
        raise InputError(
            f"{path}: none of the {len(listed)} listed pictures is there, e.g. {absent[0]}; "
            "put them beside it, as listed"
        )
    frames = [
        _with_depth(
            _frame(frame, names[frame.name], paths[frame.name], is_copy=bool(pictures.copy)),
            frame,
            path.parent,
        )
        for frame in listed
        if frame.name in paths
    ]
    lenses = [_lens(frame) for frame in listed]
    notes = []
    if all(lens is None or lens.is_none for lens in lenses):
        centred = not any("cx" in frame.own or "cx" in frame.common for frame in listed)
        notes = colmap.lens_notes(path.parent, path.name, centred=centred)
    name = path.parent.resolve().name
    return scene_of(name, frames, absent, options, cloud=cloud, notes=notes)


def _full_name(name: str, picture: Path | None, usual: str) -> str:
    """A listed name with its picture's suffix, of one that is absent with the usual one."""
    if has_picture_suffix(name) or (picture and picture.name == PurePosixPath(name).name):
        return name
    return name + (picture.suffix if picture else usual)


def _frame(listed: ListedFrame, name: str, picture: Path, *, is_copy: bool) -> Frame:
    stated_size = _stated_size(listed)
    fxfycxcy = _intrinsics(listed, picture, stated_size, is_copy=is_copy)
    lens = _lens(listed)
    return picture_frame(
        picture,
        name,
        listed.c2w,
        fxfycxcy,
        where=listed.where,
        stated_size=stated_size,
        distortion=lens,
    )


def _with_depth(frame: Frame, listed: ListedFrame, root: Path) -> Frame:
    """The frame with what reads its depth, if a file of it is named."""
    if FIELD not in listed.own:
        return frame

    def read() -> np.ndarray:
        where = f"{listed.where}: {FIELD}"
        path = inside(root, text(listed.own[FIELD], where), where)
        lens = _lens(listed)
        if lens is not None and not lens.is_none:
            raise InputError(f"{where}: of a lens that bends; only the picture can be undistorted")
        return read_depth(path, (frame.height, frame.width), listed.where)

    return dataclasses.replace(frame, depth=read)


def _stated_size(listed: ListedFrame) -> tuple[int, int] | None:
    """(w, h) that the intrinsics are for, or None: the picture's own."""

    def side(value: Any, where: str) -> int:
        return whole_number(value, where, lowest=1, highest=MAX_SIDE)

    width, height = listed.field("w", side), listed.field("h", side)
    if (width is None) != (height is None):
        raise InputError(f"{listed.where}: one of w and h is missing; give both or neither")
    return None if width is None else (width, height)


def _intrinsics(
    listed: ListedFrame, picture: Path, stated_size: tuple[int, int] | None, *, is_copy: bool
) -> np.ndarray:
    """fxfycxcy [4] for a picture of the stated size, or of the picture's own if none is stated."""
    fx, fy, cx, cy = (listed.field(key, number) for key in ("fl_x", "fl_y", "cx", "cy"))
    in_pixels = any(value is not None for value in (fx, fy, cx, cy))
    if in_pixels and stated_size is None and is_copy:
        raise InputError(
            f"{listed.where}: intrinsics in pixels without w and h, but only a scaled copy is "
            f"there, {picture}; add the w and h that they belong to"
        )
    width, height = stated_size or oriented_size(picture, None)
    if fx is None:
        angle = listed.field("camera_angle_x", _angle)
        if angle is None:
            raise InputError(f"{listed.where}: neither fl_x nor camera_angle_x is given")
        fx = 0.5 * width / math.tan(0.5 * angle)
    if fy is None:
        angle = listed.field("camera_angle_y", _angle)
        # Without either, the format means square pixels; and without cx, cy, the middle.
        fy = fx if angle is None else 0.5 * height / math.tan(0.5 * angle)
    centre = (width / 2 if cx is None else cx, height / 2 if cy is None else cy)
    return np.array([fx, fy, *centre])


def _angle(value: Any, where: str) -> float:
    angle = number(value, where)
    if not MIN_ANGLE <= angle < math.pi:
        raise InputError(f"{where}: {angle} radians: must be between {MIN_ANGLE:g} and pi")
    return angle


def _lens(listed: ListedFrame) -> distortion.Distortion | None:
    """The lens, or None for a pinhole camera."""
    said = {**listed.common, **listed.own}
    if other := {key: said[key] for key in said if OTHER_LENS.fullmatch(key) and said[key]}:
        raise InputError(
            f"{listed.where}: a lens with {', '.join(f'{key}={other[key]}' for key in other)} "
            f"cannot be undistorted; expected {', '.join(COEFFICIENTS)} alone; undistort the "
            "pictures first"
        )
    stated = listed.field("camera_model", text) or "OPENCV"
    model = stated.upper()
    if model not in CAMERA_MODELS:
        raise InputError(
            f"{listed.where}: camera_model {stated!r} cannot be undistorted; expected one of "
            f"{', '.join(CAMERA_MODELS)}; undistort the pictures first"
        )
    family = CAMERA_MODELS[model]
    if listed.field("is_fisheye", truth):  # as instant-ngp says it
        if family != distortion.FISHEYE and listed.field("camera_model", text) is not None:
            raise InputError(f"{listed.where}: is_fisheye contradicts camera_model {model!r}")
        model, family = "is_fisheye", distortion.FISHEYE

    k1, k2, k3, k4, p1, p2 = values = _coefficients(listed)
    # OpenCV's k4 belongs to a quotient, nerfstudio's to a polynomial: the file does not say which.
    unknown = {None: values, distortion.PERSPECTIVE: (k4,), distortion.FISHEYE: (p1, p2)}[family]
    if any(unknown):
        shown = ", ".join(f"{key}={x}" for key, x in zip(COEFFICIENTS, values, strict=True))
        raise InputError(f"{listed.where}: {model} has no such distortion: {shown}")
    if family is None:
        return None
    try:
        if family == distortion.FISHEYE:
            return distortion.Distortion(family, (k1, k2, k3, k4))
        return distortion.perspective((k1, k2, k3), (p1, p2))
    except InputError as error:
        raise InputError(f"{listed.where}: {error}") from error


def _coefficients(listed: ListedFrame) -> tuple[float, ...]:
    """k1 k2 k3 k4 p1 p2; those that are not given are 0."""
    values = [listed.field(key, number) for key in COEFFICIENTS]
    together = listed.field(
        "distortion_params", lambda value, where: numbers(value, (len(COEFFICIENTS),), where)
    )
    if together is None:
        return tuple(value or 0.0 for value in values)
    if any(value is not None for value in values):
        raise InputError(
            f"{listed.where}: distortion_params and {', '.join(COEFFICIENTS)} are given; "
            "leave out one or the other"
        )
    return tuple(float(value) for value in together)
