"""Pictures with their cameras, written as a nerfstudio capture that `open_scenes` reads again.

capture/transforms.json
capture/images/00000.png, 00001.png, …
capture/depth/00000.npy, …        if depth is given, see `formats.depth_maps`
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image

from data_pipeline.formats.depth_maps import FIELD, write_depth
from data_pipeline.pictures.distortion import FISHEYE, Distortion
from data_pipeline.pictures.frames import opencv_from_opengl
from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.files.writing import write_json
from efficient_lvsm_jax.geometry.cameras import check_cameras

MAX_PICTURES = 100_000  # with five digits their order is that of their names
INTRINSICS = ("fl_x", "fl_y", "cx", "cy", "w", "h")
PERSPECTIVE_FIELDS = ("k1", "k2", "p1", "p2", "k3")
FISHEYE_FIELDS = ("k1", "k2", "k3", "k4")


class CaptureWriter:
    """Writes a capture picture by picture.

        with CaptureWriter("capture") as capture:
            capture.add(image, c2w, fxfycxcy)

    All goes to a hidden folder beside, which gets its name when the block ends without an error.

    Attributes:
      folder: the capture.
      partial: the hidden folder, once the block has begun; files put there come along.
      fields: of the whole capture, to be written into its file.

    Raises:
      InputError: `folder` exists, or cannot be written; then nothing is left behind.
    """

    def __init__(self, folder: str | Path, *, lens: Distortion | None = None):
        """`folder` must not exist; the one it is in is made. `lens` bent all pictures, if any did.

        Raises:
          InputError: a lens that the format does not hold.
        """
        self.folder = Path(folder).absolute()
        self.fields: dict[str, Any] = {}
        self._frames: list[tuple[dict, dict]] = []  # what is its own, and its lens
        self._lens = self._fields_of(lens)

    def _fields_of(self, lens: Distortion | None) -> dict[str, Any]:
        if lens is None or lens.is_none:
            return {"camera_model": "PINHOLE"}
        model, names = "OPENCV", PERSPECTIVE_FIELDS
        if lens.model == FISHEYE:
            model, names = "OPENCV_FISHEYE", FISHEYE_FIELDS
        if any(lens.coefficients[len(names) :]):
            raise InputError(
                f"{self.folder}: lens {list(lens.coefficients)}: a capture holds {', '.join(names)}"
            )
        return {"camera_model": model, **dict(zip(names, lens.coefficients, strict=False))}

    def __enter__(self) -> CaptureWriter:
        if self.folder.exists():
            raise InputError(f"{self.folder} already exists; name a new folder or remove it first")
        try:
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            self.partial = Path(
                tempfile.mkdtemp(dir=self.folder.parent, prefix=f".{self.folder.name}.partial-")
            )
            (self.partial / "images").mkdir()
        except OSError as error:
            raise self._cannot_write(error) from error
        return self

    def add(
        self,
        image: np.ndarray,
        c2w: np.ndarray,
        fxfycxcy: np.ndarray,
        depth: np.ndarray | None = None,
        *,
        name: str | None = None,
        stored: bytes | None = None,
        lens: Distortion | None = None,
        fields: Mapping[str, Any] | None = None,
    ) -> None:
        """Writes the next picture.

        Args:
          image: uint8 [Y, X, 3].
          c2w: [4, 4], OpenCV axes.
          fxfycxcy: [4], pixels of `image`.
          depth: along the viewing direction, in the unit of the poses; 0: not known. [Y, X], or of
            the whole picture in fewer pixels.
          name: of its file, which no other picture has; None counts them.
          stored: the file itself, which shows `image`; None writes a PNG.
          lens: that bent it, of the model of all others; None is that of the whole capture.
          fields: of the frame, to be written beside its camera.

        Raises:
          InputError: another kind of picture, a camera or a depth that cannot be, or no space.
        """
        index = len(self._frames)
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
            raise InputError(
                f"picture {index}, {image.dtype} {image.shape}: expected uint8 [Y, X, 3]"
            )
        if index == MAX_PICTURES:
            raise InputError(f"{self.folder}: a capture holds at most {MAX_PICTURES:,} pictures")
        c2w, fxfycxcy = np.asarray(c2w, np.float64), np.asarray(fxfycxcy, np.float64)
        check_cameras(c2w, fxfycxcy, f"camera of picture {index}")
        with_depth = {}
        path = f"images/{f'{index:05d}.png' if name is None else PurePosixPath(name).name}"
        try:
            with (self.partial / path).open("xb") as file:
                if stored is None:
                    Image.fromarray(image).save(file, "PNG")
                else:
                    file.write(stored)
            if depth is not None:
                stem = f"{index:05d}" if name is None else PurePosixPath(name).name
                with_depth = {FIELD: f"depth/{stem}.npy"}
                write_depth(self.partial / with_depth[FIELD], depth, image.shape[:2])
        except OSError as error:
            raise self._cannot_write(error) from error
        height, width = image.shape[:2]
        values = [*fxfycxcy.tolist(), width, height]
        camera = {
            **(self._lens if lens is None else self._fields_of(lens)),
            **dict(zip(INTRINSICS, values, strict=True)),
        }
        own = {
            "file_path": path,
            **with_depth,
            "transform_matrix": opencv_from_opengl(c2w).tolist(),  # the same flip both ways
            **(fields or {}),
        }
        self._frames.append((own, camera))

    def __exit__(self, kind, error, trace) -> None:
        try:
            if error is None:
                self._finish()
        except OSError as failed:
            raise self._cannot_write(failed) from failed
        finally:
            shutil.rmtree(self.partial, ignore_errors=True)

    def _finish(self) -> None:
        if not self._frames:
            raise InputError(f"{self.folder}: no picture to write")
        cameras = [camera for _, camera in self._frames]
        # The format has a field either once for all frames or in every frame.
        shared = {
            key: value
            for key, value in cameras[0].items()
            if all(camera.get(key) == value for camera in cameras)
        }
        if "camera_model" not in shared:
            raise InputError(f"{self.folder}: a capture holds lenses of one model alone")
        frames = [
            {**own, **{key: value for key, value in camera.items() if key not in shared}}
            for own, camera in self._frames
        ]
        write_json(self.partial / "transforms.json", {**shared, **self.fields, "frames": frames})
        self.partial.chmod(0o755)
        self.partial.rename(self.folder)

    def _cannot_write(self, error: OSError) -> InputError:
        return InputError(f"{self.folder}: cannot be written ({error.strerror or error})")
