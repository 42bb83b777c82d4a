"""Pictures with their cameras, written as a nerfstudio capture that `open_scenes` reads again.

capture/transforms.json
capture/images/00000.png, 00001.png, …
capture/depth/00000.npy, …        if depth is given, see `formats.depth_maps`
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

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

    Raises:
      InputError: `folder` exists, or cannot be written; then nothing is left behind.
    """

    def __init__(self, folder: str | Path, *, lens: Distortion | None = None):
        """`folder` must not exist; the one it is in is made. `lens` bent all pictures, if any did.

        Raises:
          InputError: a lens that the format does not hold.
        """
        self.folder = Path(folder).absolute()
        self._frames: list[dict] = []
        self._lens: dict = {"camera_model": "PINHOLE"}
        if lens is not None and not lens.is_none:
            model, names = "OPENCV", PERSPECTIVE_FIELDS
            if lens.model == FISHEYE:
                model, names = "OPENCV_FISHEYE", FISHEYE_FIELDS
            if any(lens.coefficients[len(names) :]):
                raise InputError(
                    f"{folder}: lens {list(lens.coefficients)}: a capture holds {', '.join(names)}"
                )
            values = dict(zip(names, lens.coefficients, strict=False))
            self._lens = {"camera_model": model, **values}

    def __enter__(self) -> CaptureWriter:
        if self.folder.exists():
            raise InputError(f"{self.folder} already exists; name a new folder or remove it first")
        try:
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            self._partial = Path(
                tempfile.mkdtemp(dir=self.folder.parent, prefix=f".{self.folder.name}.partial-")
            )
            (self._partial / "images").mkdir()
        except OSError as error:
            raise self._cannot_write(error) from error
        return self

    def add(
        self,
        image: np.ndarray,
        c2w: np.ndarray,
        fxfycxcy: np.ndarray,
        depth: np.ndarray | None = None,
    ) -> None:
        """Writes the next picture.

        Args:
          image: uint8 [Y, X, 3].
          c2w: [4, 4], OpenCV axes.
          fxfycxcy: [4], pixels of `image`.
          depth: [Y, X] along the viewing direction, in the unit of the poses; 0: not known.

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
        name, with_depth = f"images/{index:05d}.png", {}
        try:
            Image.fromarray(image).save(self._partial / name, "PNG")
            if depth is not None:
                with_depth = {FIELD: f"depth/{index:05d}.npy"}
                write_depth(self._partial / with_depth[FIELD], depth, image.shape[:2])
        except OSError as error:
            raise self._cannot_write(error) from error
        height, width = image.shape[:2]
        values = [*fxfycxcy.tolist(), width, height]
        self._frames.append(
            {
                "file_path": name,
                **with_depth,
                "transform_matrix": opencv_from_opengl(c2w).tolist(),  # the same flip both ways
                **dict(zip(INTRINSICS, values, strict=True)),
            }
        )

    def __exit__(self, kind, error, trace) -> None:
        try:
            if error is None:
                self._finish()
        except OSError as failed:
            raise self._cannot_write(failed) from failed
        finally:
            shutil.rmtree(self._partial, ignore_errors=True)

    def _finish(self) -> None:
        if not self._frames:
            raise InputError(f"{self.folder}: no picture to write")
        first = self._frames[0]
        # The format has a field either once for all frames or in every frame.
        shared = {
            key: first[key]
            for key in INTRINSICS
            if all(frame[key] == first[key] for frame in self._frames)
        }
        frames = [{k: v for k, v in frame.items() if k not in shared} for frame in self._frames]
        write_json(
            self._partial / "transforms.json",
            {**self._lens, **shared, "frames": frames},
        )
        self._partial.chmod(0o755)
        self._partial.rename(self.folder)

    def _cannot_write(self, error: OSError) -> InputError:
        return InputError(f"{self.folder}: cannot be written ({error.strerror or error})")
