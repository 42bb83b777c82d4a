"""The captures that ship, rendered with one input more after the other."""

from __future__ import annotations

import math
import time
from pathlib import Path

import numpy as np
from PIL import Image

from data_pipeline.captures.inputs import choose_inputs, open_scene
from data_pipeline.scenes import Scene
from efficient_lvsm_jax.files.writing import reporting_writes, written_whole
from efficient_lvsm_jax.geometry.cameras import SceneFrame
from efficient_lvsm_jax.media.levels import from_bytes, to_bytes
from efficient_lvsm_jax.media.sheet import sheet
from efficient_lvsm_jax.metrics.pictures import psnr
from efficient_lvsm_jax.models.model import Model
from efficient_lvsm_jax.sessions.session import Session
from efficient_lvsm_jax.shipped import CAPTURES
from efficient_lvsm_jax.weights.load import load

INPUTS = 6
SHOWN = (1, 2, 4, 6)  # of them


def draw_first_views(path: Path) -> None:
    """Writes a sheet, a row for each capture, and prints what the rows say.

    Raises:
      InputError: it cannot be written.
    """
    start = time.perf_counter()
    model = load("rooms")
    rows, captions = [], []
    for folder in sorted(CAPTURES.iterdir()):
        inputs, rendered, truth, scores = first_views(model, open_scene(folder))
        if not rows:
            print(f"first pictures after {time.perf_counter() - start:.1f} s")
        rows.append([inputs, rendered, truth[None]])
        counts = [f"{count} input{'s' * (count > 1)}" for count in SHOWN]
        captions.append([(), [f"{c}, {s:.1f} dB" for c, s in zip(counts, scores, strict=True)], ()])
        print(f"{folder.name}: " + ", ".join(captions[-1][1]))
    names = ("inputs, in their order", "rendered from the first of them", "true picture")
    image = sheet(
        "cameras that no input has, rendered from more and more inputs", names, rows, captions
    )
    with reporting_writes(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(path) as partial:
            Image.fromarray(image).save(partial)


def first_views(
    model: Model, scene: Scene
) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[float]]:
    """The picture half-way between two inputs in the middle, after SHOWN numbers of inputs.

    Inputs are spread over the scene; the outermost join first, those beside the camera last.

    Returns:
      The inputs uint8 [INPUTS, Y, X, 3]; what was rendered uint8 [len(SHOWN), Y, X, 3]; the true
      picture uint8 [Y, X, 3]; PSNR of what was rendered, dB.
    """
    chosen, middle = choose_inputs(scene, INPUTS), (INPUTS - 1) / 2
    target = scene.frames[(chosen[math.floor(middle)] + chosen[math.ceil(middle)]) // 2]
    order = sorted(range(INPUTS), key=lambda place: -abs(place - middle))
    frames = [scene.frames[chosen[place]] for place in order]
    session = Session(
        model,
        frame=SceneFrame.from_cameras(np.stack([frame.c2w for frame in frames])),
        capacity=INPUTS,
    )
    rendered, truth = [], target.image()
    for count, frame in enumerate(frames, start=1):
        session.add(frame)
        if count in SHOWN:
            rendered.append(to_bytes(session.render(target)))
    pictures = np.stack(rendered)
    scores = [float(psnr(from_bytes(each), from_bytes(truth))) for each in pictures]
    return np.stack([frame.image() for frame in frames]), pictures, truth, scores
