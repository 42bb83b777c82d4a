"""nerfstudio camera paths: flights as a JSON file, which its viewer and Blender add-on write too.

    {"render_width": 640, "render_height": 360, "camera_type": "perspective", "fps": 24,
     "seconds": 2.0, "camera_path": [{"camera_to_world": [16 numbers], "fov": 50.0}, …]}

Poses are row by row, camera-to-world in OpenGL axes; fov is vertical, in degrees. The format knows
square pixels and a principal point in the middle, nothing else. Poses are in the world of whoever
wrote the file: the nerfstudio viewer turns, moves and scales a capture's world first, and says how
in dataparser_transforms.json, `{"transform": [3][4], "scale": s}`: a point p of the capture is at
s · (transform p).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data_pipeline.formats.json_values import (
    MAX_SIDE,
    fields,
    items,
    number,
    numbers,
    required,
    text,
    whole_number,
)
from data_pipeline.pictures.frames import opencv_from_opengl
from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.files.reading import read_json_object
from efficient_lvsm_jax.files.writing import write_json
from efficient_lvsm_jax.geometry.cameras import check_cameras

PERSPECTIVE = "perspective"
MIN_SCALE = 1e-9  # of a viewer's world
MIN_FOV = 1e-4  # degrees; a telescope's, and large enough to divide by its tangent


def read_camera_path(
    path: str | Path,
) -> tuple[np.ndarray, np.ndarray, tuple[int, int]]:
    """The cameras of a camera path file. Keyframes, crops and aspects beside them are not read.

    Returns:
      c2w [F, 4, 4] float64, OpenCV axes; fxfycxcy [F, 4] float64, pixels of a picture of the
      rendered size; that size, (height, width).

    Raises:
      InputError: not such a file, no camera in it, a camera type other than perspective, or a
        camera that cannot be; the message names file and camera.
    """
    path = Path(path)
    stored = read_json_object(path)
    camera_type = text(stored.get("camera_type", PERSPECTIVE), f"{path}: camera_type")
    if camera_type != PERSPECTIVE:
        raise InputError(
            f"{path}: camera_type {camera_type!r}: only {PERSPECTIVE!r} cameras can be rendered; "
            "export the path again as that"
        )
    height, width = (
        whole_number(required(stored, key, str(path)), f"{path}: {key}", lowest=1, highest=MAX_SIDE)
        for key in ("render_height", "render_width")
    )
    cameras = items(required(stored, "camera_path", str(path)), f"{path}: camera_path")
    if not cameras:
        raise InputError(f"{path}: camera_path is empty; expected at least one camera")

    poses, intrinsics = [], []
    for index, camera in enumerate(cameras):
        where = f"{path}: camera_path[{index}]"
        camera = fields(camera, where)
        matrix = required(camera, "camera_to_world", where)
        poses.append(numbers(matrix, (16,), f"{where}.camera_to_world").reshape(4, 4))
        fov = number(required(camera, "fov", where), f"{where}.fov")
        if not MIN_FOV <= fov < 180:
            raise InputError(f"{where}.fov: {fov} degrees: must be between {MIN_FOV:g} and 180")
        focal = height / 2 / np.tan(np.deg2rad(fov) / 2)
        intrinsics.append([focal, focal, width / 2, height / 2])
    c2w, fxfycxcy = opencv_from_opengl(np.stack(poses)), np.array(intrinsics)
    check_cameras(c2w, fxfycxcy, f"{path}: camera_path")
    return c2w, fxfycxcy, (height, width)


def capture_from_viewer(path: str | Path, c2w: np.ndarray) -> np.ndarray:
    """Poses [F, 4, 4] of a nerfstudio viewer's world in the world of the capture, float64.

    Args:
      path: of the dataparser_transforms.json of the run that was viewed.
      c2w: as `read_camera_path` returns them.

    Raises:
      InputError: no such file, or a transform that is no rotation and shift, or a scale that is
        not above 0.
    """
    path = Path(path)
    stored = read_json_object(path)
    transform = np.eye(4)
    transform[:3] = numbers(required(stored, "transform", str(path)), (3, 4), f"{path}: transform")
    check_cameras(transform, np.ones(4), f"{path}: transform")
    scale = number(required(stored, "scale", str(path)), f"{path}: scale")
    if not MIN_SCALE <= scale <= 1 / MIN_SCALE:
        raise InputError(f"{path}: scale {scale}: expected {MIN_SCALE:g} to {1 / MIN_SCALE:g}")
    poses = np.array(c2w, np.float64)
    poses[:, :3, 3] /= scale
    poses = np.linalg.inv(transform) @ poses
    check_cameras(poses, np.ones((len(poses), 4)), f"cameras turned back by {path}")
    return poses


def write_camera_path(
    path: str | Path,
    c2w: np.ndarray,
    fxfycxcy: np.ndarray,
    size: Sequence[int],
    *,
    fps: float = 30,
) -> None:
    """Writes a camera path file, beside and then renamed.

    Args:
      c2w: [F, 4, 4], OpenCV axes, F >= 1.
      fxfycxcy: [F, 4], pixels of a picture of `size`; fx = fy and cx, cy in the middle, both to
        1e-6 of the height, because the format holds no others.
      size: (height, width) of the pictures, pixels.
      fps: frames a second.

    Raises:
      InputError: cameras that cannot be or that the format does not hold, no camera, or a file that
        cannot be written.
    """
    path = Path(path)
    c2w, fxfycxcy = np.asarray(c2w, np.float64), np.asarray(fxfycxcy, np.float64)
    check_cameras(c2w, fxfycxcy, f"cameras for {path}")
    if c2w.ndim != 3 or not len(c2w):
        raise InputError(f"cameras for {path}: c2w of shape {c2w.shape}: expected [F, 4, 4]")
    height, width = (int(side) for side in size)
    held = fxfycxcy[:, [1, 1, 2, 3]]
    held[:, 2:] = width / 2, height / 2
    for camera in np.argwhere(np.abs(fxfycxcy - held).max(1) > 1e-6 * height)[:1, 0]:
        raise InputError(
            f"cameras for {path}[{camera}]: fxfycxcy {fxfycxcy[camera].tolist()}: a camera path "
            f"holds only fx = fy and the middle, {width / 2:g}, {height / 2:g}, as principal "
            "point; render with such intrinsics"
        )
    fov = np.rad2deg(2 * np.arctan(height / 2 / fxfycxcy[:, 1]))
    opengl = opencv_from_opengl(c2w)  # the same flip both ways
    stored = {
        "render_width": width,
        "render_height": height,
        "camera_type": PERSPECTIVE,
        "fps": fps,
        "seconds": len(c2w) / fps,
        "camera_path": [
            {"camera_to_world": pose.ravel().tolist(), "fov": float(f), "aspect": width / height}
            for pose, f in zip(opengl, fov, strict=True)
        ],
    }
    try:
        write_json(path, stored)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror})") from error
