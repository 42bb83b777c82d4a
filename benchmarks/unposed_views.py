"""Views from frames without cameras: what is lost when a network says where each was taken.

    python benchmarks/unposed_views.py [--scenes 48] [--frames 12] [--inputs 4] [--out FOLDER]

Held-out generated rooms, seen frame by frame by the model of geometry, which is told nothing but
the pictures. Some frames, evenly chosen, are inputs; the others are rendered from them, once with
the true cameras of all frames and once with those that were found, focal lengths included. Beside
both: copying the input whose true camera is nearest. FOLDER gets unposed_views.json; ± is the
standard error over rooms.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from data_pipeline.procedural.rooms import ProceduralScenes, SceneRecipe
from efficient_lvsm_jax.files.writing import write_json
from efficient_lvsm_jax.geometry.cameras import SceneFrame
from efficient_lvsm_jax.metrics.pictures import psnr
from efficient_lvsm_jax.metrics.poses import path_errors
from efficient_lvsm_jax.models.geometry_model import GeometryModel
from efficient_lvsm_jax.models.model import Model
from efficient_lvsm_jax.sessions.session import Session
from efficient_lvsm_jax.sessions.streaming import Stream
from efficient_lvsm_jax.weights.load import load

UNITS = {"true": "dB", "found": "dB", "lost": "dB", "nearest": "dB", "ate": "m", "focal": ""}
SEED = 2026  # of scenes; "heldout" ones are never of a training, whatever the seed


def seen(geometry: GeometryModel, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """c2w [R, 4, 4] and fxfycxcy [R, 4] that a stream finds of images uint8 [R, Y, X, 3]."""
    stream = Stream(geometry, capacity=len(images))
    cameras = [stream.observe(image).cameras for image in images]
    return np.stack([each.c2w for each in cameras]), np.stack([each.fxfycxcy for each in cameras])


def rendered(
    model: Model, images: np.ndarray, inputs: np.ndarray, c2w: np.ndarray, fxfycxcy: np.ndarray
) -> np.ndarray:
    """The frames that are no inputs, float32 [T, Y, X, 3], by cameras of all R frames."""
    frame = SceneFrame.from_cameras(c2w[inputs])
    session = Session(model, frame=frame, capacity=len(inputs), check_poses=False)
    for index in inputs:
        session.add(images[index], c2w[index], fxfycxcy[index])
    targets = np.setdiff1d(np.arange(len(images)), inputs)
    return session.render(c2w[targets], fxfycxcy[targets])


def measured(model: Model, geometry: GeometryModel, scene: dict, count: int) -> dict[str, float]:
    """Mean PSNR of a scene's targets, dB, by who says the cameras; how far those found are off."""
    images = scene["image"]
    inputs = np.linspace(0, len(images) - 1, count).round().astype(int)
    targets = np.setdiff1d(np.arange(len(images)), inputs)
    truth = images[targets] / np.float32(255)
    places = scene["c2w"][:, :3, 3]
    away = np.linalg.norm(places[targets, None] - places[inputs], axis=-1)
    found = seen(geometry, images)
    pictures = {
        "true": rendered(model, images, inputs, scene["c2w"], scene["fxfycxcy"]),
        "found": rendered(model, images, inputs, *found),
        "nearest": images[inputs[away.argmin(1)]] / np.float32(255),
    }
    scores = {name: float(np.mean(psnr(each, truth))) for name, each in pictures.items()}
    focal = float(np.abs(found[1][:, 0] / scene["fxfycxcy"][:, 0] - 1).mean())
    return scores | {"ate": path_errors(found[0], scene["c2w"])["ate"], "focal": focal}


def main() -> None:
    """Measures, prints, writes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--weights", default="rooms", metavar="W", help="renders views")
    parser.add_argument("--geometry", default="rooms-geometry", metavar="G", help="finds cameras")
    parser.add_argument("--scenes", type=int, default=48)
    parser.add_argument("--frames", type=int, default=12, help="of a scene, on its arc")
    parser.add_argument("--inputs", type=int, default=4, help="of them, evenly chosen")
    parser.add_argument("--seed", type=int, default=SEED, help="of the rooms")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    if not 1 < asked.inputs < asked.frames:
        parser.error("--inputs: expected at least two, and fewer than --frames")
    model, geometry = load(asked.weights), load(asked.geometry)
    recipe = SceneRecipe(views=asked.frames)
    scenes = ProceduralScenes(asked.scenes, seed=asked.seed, split="heldout", recipe=recipe)
    rows = [measured(model, geometry, scene, asked.inputs) for scene in scenes]
    columns = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    columns["lost"] = columns["true"] - columns["found"]
    for name, unit in UNITS.items():
        error = columns[name].std(ddof=1) / np.sqrt(len(rows)) if len(rows) > 1 else 0.0
        print(f"{name:<8} {columns[name].mean():7.3f} ± {error:.3f} {unit}")
    if asked.out:
        asked.out.mkdir(parents=True, exist_ok=True)
        settings = {name: str(value) for name, value in vars(asked).items()}
        write_json(asked.out / "unposed_views.json", {"rooms": rows, **settings})


if __name__ == "__main__":
    main()
