"""One generated scene of five cameras, to be written in every format and read back."""

from __future__ import annotations

import dataclasses
import io

import numpy as np
from PIL import Image

WIDTH, HEIGHT = 96, 54  # 16:9, as RealEstate10K


@dataclasses.dataclass(frozen=True)
class FiveCameras:
    """The truth: images uint8 [5, 54, 96, 3]; c2w [5, 4, 4] float64, OpenCV; fxfycxcy [5, 4]."""

    name: str
    image: np.ndarray
    c2w: np.ndarray
    fxfycxcy: np.ndarray

    @property
    def w2c(self) -> np.ndarray:
        """World to camera, [5, 4, 4]."""
        return np.linalg.inv(self.c2w)


def five_cameras(
    *, seed: int = 0, same_intrinsics: bool = False, centred: bool = False
) -> FiveCameras:
    """The scene.

    Args:
      seed: another scene.
      same_intrinsics: one lens for all views, for formats that have no more.
      centred: principal point in the middle and fx = fy, for formats that do not store it.
    """
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    waves = rng.uniform(0.05, 0.25, (5, 3, 2))
    phase = np.einsum("VCk,kYX->VYXC", waves, np.stack([x, y]))
    image = np.round(127.5 + 120 * np.sin(phase + rng.uniform(0, 6, (5, 1, 1, 3)))).astype(np.uint8)

    c2w = np.tile(np.eye(4), (5, 1, 1))
    for view in range(5):
        turn = np.linalg.qr(rng.normal(scale=0.15, size=(3, 3)) + np.eye(3))[0]
        c2w[view, :3, :3] = turn * np.sign(np.linalg.det(turn))
    c2w[:, :3, 3] = rng.uniform(-2, 2, (5, 3))
    focal = 80 + rng.uniform(0, 8, (5, 2))
    centre = np.array([WIDTH / 2, HEIGHT / 2]) + rng.uniform(-3, 3, (5, 2))
    if same_intrinsics or centred:
        focal, centre = np.tile(focal[:1], (5, 1)), np.tile(centre[:1], (5, 1))
    if centred:
        focal[:, 1] = focal[:, 0]
        centre[:] = WIDTH / 2, HEIGHT / 2
    return FiveCameras(f"scene-{seed}", image, c2w, np.hstack([focal, centre]))


def png(image: np.ndarray) -> bytes:
    """A picture as the bytes of a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def jpeg(image: np.ndarray, quality: int = 95) -> bytes:
    """A picture as the bytes of a JPEG file."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def assert_reads_as(scene, truth: FiveCameras, *, atol: float = 1e-6) -> None:
    """The scene read has the cameras of the truth to `atol`, and its very pixels, in its order."""
    assert len(scene.frames) == 5
    np.testing.assert_allclose(scene.c2w, truth.c2w, rtol=0, atol=atol)
    np.testing.assert_allclose(scene.fxfycxcy, truth.fxfycxcy, rtol=0, atol=atol * WIDTH)
    for frame, image in zip(scene.frames, truth.image, strict=True):
        assert (frame.width, frame.height) == (WIDTH, HEIGHT)
        np.testing.assert_array_equal(frame.image(), image)
