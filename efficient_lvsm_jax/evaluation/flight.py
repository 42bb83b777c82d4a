"""A film of one scene: a flight through inputs and targets, with what is known beside it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from data_pipeline.evaluation.scenes import EvaluationScene
from efficient_lvsm_jax.geometry.cameras import SceneFrame
from efficient_lvsm_jax.geometry.paths import camera_path
from efficient_lvsm_jax.media.levels import to_bytes
from efficient_lvsm_jax.media.sheet import beside
from efficient_lvsm_jax.models.model import Model
from efficient_lvsm_jax.sessions.session import Session

MOST_TARGETS = 6  # that the flight takes in
HALT = 12  # frames for which it stands still there on coming, and again on going on
SAME = 1e-4  # numbers of two poses that are one


def fly_through(
    model: Model, scene: EvaluationScene, steps: int, views: str = "all"
) -> Iterator[np.ndarray]:
    """Frames of a flight, inputs and true pictures beside what is rendered (`sheet.beside`).

    From the first input it goes always on to the nearest camera left, and halts at targets. Of many
    targets it takes MOST_TARGETS, evenly; one that is an input is an input.

    Args:
      model: renders.
      scene: with two inputs or more.
      steps: pictures rendered per pair of inputs, however many targets they are shared with.
      views: what each picture reads, as in `Session.render`.

    Yields:
      uint8 [Y, X, 3].
    """
    inputs, targets, frames = scene.inputs, scene.targets, scene.chosen
    count = len(inputs.image)
    session = Session(model, frame=SceneFrame.identity(), capacity=count, check_poses=False)
    for image, c2w, fxfycxcy in zip(*vars(inputs).values(), strict=True):
        session.add(image, c2w, fxfycxcy)
    unseen = [i for i, frame in enumerate(frames.targets) if frame not in frames.inputs]
    most = min(MOST_TARGETS, len(unseen))
    unseen = [unseen[i] for i in np.linspace(0, len(unseen) - 1, most).round().astype(int)]
    c2w = np.concatenate([inputs.c2w, targets.c2w[unseen]])
    fxfycxcy = np.concatenate([inputs.fxfycxcy, targets.fxfycxcy[unseen]])
    known = to_bytes(np.concatenate([inputs.image, targets.image[unseen]]))
    words = [f"true, frame {frame}, an input" for frame in frames.inputs]
    words += [f"true, frame {frames.targets[i]}" for i in unseen]

    steps = -(-steps * (count - 1) // (len(c2w) - 1))
    path = camera_path(c2w, fxfycxcy, steps, nearest_first=True)
    rendered = to_bytes(session.render(*path, inputs.image.shape[1:3], views))
    for pose, picture in zip(path[0], rendered, strict=True):
        here = np.abs(c2w - pose).max(axis=(1, 2)) < SAME
        if not here.any():
            yield beside(picture, None, "no true picture is known here", known[:count])
            continue
        at = int(here.argmax())
        frame = beside(picture, known[at], words[at], known[:count])
        yield from [frame] * (HALT if at >= count else 1)
