"""How far cameras are from true ones, after the best similarity of their places."""

from __future__ import annotations

import dataclasses

import numpy as np

from data_pipeline.scenes import Scene
from data_pipeline.unposed.sources import same_name
from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.geometry.alignment import similarity


@dataclasses.dataclass(frozen=True)
class CameraErrors:
    """Of V cameras that both have, of `of` true ones.

    degrees: [V], by which each is turned. percent: [V], by which each is away, of the extent of the
    true cameras, the largest distance between two of them.
    """

    degrees: np.ndarray
    percent: np.ndarray
    of: int

    def __str__(self) -> str:
        turned, away = self.degrees, self.percent
        return (
            f"{len(turned)} of {self.of} true cameras: rotation median {np.median(turned):.3g}, "
            f"worst {turned.max():.3g} degrees; translation median {np.median(away):.3g}, worst "
            f"{away.max():.3g} % of the largest distance between two true cameras"
        )


def compare_cameras(found: Scene, true: Scene) -> CameraErrors:
    """The errors of cameras whose pictures have the same names, whatever folder and suffix.

    Raises:
      InputError: fewer than three such cameras, or all on a line, so that no frame is common.
    """
    known = {same_name(frame.name): frame.c2w for frame in true.frames}
    pairs = [
        (frame.c2w, known[same_name(frame.name)])
        for frame in found.frames
        if same_name(frame.name) in known
    ]
    if len(pairs) < 3:
        raise InputError(
            f"{true.name}: {len(pairs)} of its pictures have the name of one of the "
            f"{len(found.frames)} reconstructed ones; expected three or more to compare cameras by"
        )
    source, target = (np.stack(poses) for poses in zip(*pairs, strict=True))
    places = target[:, :3, 3]
    aligned = similarity(source[:, :3, 3], places).apply(source)
    # The chord between two rotations, which is exact for small angles, unlike the trace.
    chord = np.linalg.norm(aligned[:, :3, :3] - target[:, :3, :3], axis=(1, 2))
    degrees = np.rad2deg(2 * np.arcsin(np.minimum(chord / np.sqrt(8), 1)))
    away = np.linalg.norm(aligned[:, :3, 3] - places, axis=-1)
    extent = np.linalg.norm(places[:, None] - places, axis=-1).max()
    return CameraErrors(degrees, 100 * away / extent, len(true.frames))
