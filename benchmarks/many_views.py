"""What makes a model gain from more views: relative positions, varied inputs, many targets.

    python benchmarks/many_views.py --workdir runs/many_views [--steps 400] [--seeds 0 1 2]
        [--equal-time]

Trains configs/tiny.py with each variant and seed, scores all with 1, 2, 4, 8 and 16 inputs on the
same held-out rooms, every target reading all of them or its most useful 2 or 4, prints the table of
docs/reproduction.md, ± being the standard error over seeds, and draws it (many_views.png). What is
trained and scored already is not done again. A variant differs from the first one in what it names.
With `--equal-time` each takes as many steps as last as long as those of the first; the time of a
step of each is measured once, the variants taking turns.
"""

from __future__ import annotations

import itertools
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.toy_training import squeezed, step_seconds, study_parser
from configs import tiny
from data_pipeline.procedural.rooms import ProceduralScenes, SceneRecipe
from efficient_lvsm_jax.files.writing import read_json, write_json
from efficient_lvsm_jax.geometry.cameras import Cameras, Views, normalise_poses
from efficient_lvsm_jax.geometry.choice import most_useful
from efficient_lvsm_jax.media.curves import Panel, draw_curves
from efficient_lvsm_jax.media.plots import save_png
from efficient_lvsm_jax.metrics.pictures import psnr
from efficient_lvsm_jax.models.model import Model
from efficient_lvsm_jax.nn.cache import reading
from efficient_lvsm_jax.weights.load import load
from train import train

# Of 25 views on the arc of a held-out room: what is rendered, and inputs in the order they join.
# The first four are those of configs/tiny.py, at the same places of the arc.
SCENES, VIEWS, TARGETS = 48, 25, (0, 10, 16)
INPUTS = (4, 20, 12, 24, 8, 18, 2, 22, 6, 14, 1, 13, 19, 23, 11, 3)
COUNTS = (1, 2, 4, 8, 16)
READ: dict[str, int | None] = {"all": None, "nearest 2": 2, "nearest 4": 4}

TWO = {"num_inputs_cycle": (2,)}
VARIED = {"num_inputs_cycle": (2, 4, 2, 1)}
TO_EIGHT = {"num_inputs_cycle": (2, 4, 1, 8, 2, 6, 3, 4), "views": 12}
FEW_SCENES = {"num_inputs_cycle": (2, 4, 2, 1), "views": 12, "batch_size": 4, "num_targets": 8}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {  # positions, data
    "2 inputs": ("none", TWO),
    "2 inputs, rotary": ("rotary", TWO),
    "2 inputs, PRoPE": ("prope", TWO),
    "varied": ("none", VARIED),
    "varied, rotary": ("rotary", VARIED),
    "varied, PRoPE": ("prope", VARIED),
    "1 to 8 inputs, PRoPE": ("prope", TO_EIGHT),
    "4 scenes x 8 targets, PRoPE": ("prope", FEW_SCENES),
}
DRAWN = (
    "2 inputs",
    "2 inputs; nearest 2",
    "varied",
    "varied, PRoPE",
    "1 to 8 inputs, PRoPE",
    "1 to 8 inputs, PRoPE; nearest 2",
)


def configuration(variant: str, seed: int, steps: int) -> ConfigDict:
    """The training of a variant."""
    positions, data = VARIANTS[variant]
    config = squeezed(tiny.get_config(), seed=seed, steps=steps)
    config.model.positions = positions
    config.data.update(data)
    config.data.scenes = config.data.batch_size * steps  # every one once
    return config


class HeldOut:
    """The rooms that all are scored on, in the frame of all views that are used."""

    def __init__(self):
        rooms = ProceduralScenes(SCENES, seed=0, split="heldout", recipe=SceneRecipe(views=VIEWS))
        used = [*INPUTS, *TARGETS]
        scenes = []
        for room in rooms:
            image = room["image"][used].astype(np.float32) / 255
            scenes.append(Views(image, normalise_poses(room["c2w"][used]), room["fxfycxcy"][used]))
        views = jax.tree.map(lambda *arrays: np.stack(arrays), *scenes)
        self.inputs = jax.tree.map(lambda x: x[:, : len(INPUTS)], views)
        self.targets = jax.tree.map(lambda x: x[:, len(INPUTS) :], views)

    def score(self, model: Model, count: int, read: int | None = None) -> float:
        """Mean PSNR of the targets with so many inputs, dB; `read`: how many a target reads."""
        found = []
        for first in range(0, SCENES, 8):
            inputs = jax.tree.map(lambda x, f=first: x[f : f + 8, :count], self.inputs)
            targets = jax.tree.map(lambda x, f=first: x[f : f + 8], self.targets)
            memory = model.encode(inputs)
            if read is not None:
                scenes = zip(*map(_each, (targets.cameras, inputs.cameras)), strict=True)
                memory = reading(memory, np.stack([most_useful(*scene, read) for scene in scenes]))
            images = model.decode(memory, targets.cameras)
            found.append(np.asarray(psnr(images, targets.image)))
        return float(np.mean(found))

    def nearest(self, count: int) -> float:
        """That of copying the input nearest to each target."""
        found = []
        for scene in range(SCENES):
            centres = self.inputs.c2w[scene, :count, :3, 3]
            for target in range(len(TARGETS)):
                offsets = centres - self.targets.c2w[scene, target, :3, 3]
                copied = self.inputs.image[scene, np.linalg.norm(offsets, axis=-1).argmin()]
                found.append(float(psnr(copied, self.targets.image[scene, target])))
        return statistics.mean(found)


def _each(cameras: Cameras) -> list[Cameras]:
    """Cameras [B, V] as those of each scene, [V]."""
    return [jax.tree.map(lambda x, i=i: x[i], cameras) for i in range(len(cameras.c2w))]


def step_times(file: Path) -> dict[str, float]:
    """Seconds of a step of every variant, mean over its counts of inputs; kept in a file."""
    if not file.exists():
        programs = {}  # by what they depend on: variants share them
        for variant, (positions, data) in VARIANTS.items():
            for count in data["num_inputs_cycle"]:
                config = configuration(variant, 0, 8)
                config.data.num_inputs_cycle = (count,)
                programs[_program(positions, data, count)] = config
        seconds = step_seconds(programs)
        found = {
            variant: statistics.mean(
                seconds[_program(positions, data, count)] for count in data["num_inputs_cycle"]
            )
            for variant, (positions, data) in VARIANTS.items()
        }
        write_json(file, found)
    return read_json(file)


def _program(positions: str, data: dict[str, Any], count: int) -> tuple:
    return positions, data.get("batch_size"), count


def train_and_score(
    heldout: HeldOut, folder: Path, steps: dict[str, int], seeds: Sequence[int]
) -> dict:
    """Trains and scores what is not in the folder yet; all, as {variant: {seed: {read: scores}}}.

    Args:
      heldout: what to score on.
      folder: of the trainings, and of the file of their scores.
      steps: of each variant that is wanted.
      seeds: of training scenes and initial weights.
    """
    file = folder / "scores.json"
    results = read_json(file) if file.exists() else {}
    for seed, variant in itertools.product(seeds, steps):
        found = results.setdefault(variant, {})
        if str(seed) in found:
            continue
        config = configuration(variant, seed, steps[variant])
        workdir = folder / f"{variant.replace(' ', '-')}-{seed}"
        train(config, workdir)
        model = load(workdir)
        found[str(seed)] = {
            name: [heldout.score(model, count, read) for count in COUNTS]
            for name, read in READ.items()
        }
        write_json(file, results)
        shown = ", ".join(f"{score:.2f}" for score in found[str(seed)]["all"])
        print(f"{variant}, seed {seed}: {shown} dB with {COUNTS} inputs", flush=True)
    return results


def means(results: dict) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Mean over seeds and its standard error, [COUNTS] each, by variant and what is read."""
    found = {}
    for variant, seeds in results.items():
        for read in READ:
            scores = np.array([of_seed[read] for of_seed in seeds.values()])
            error = scores.std(axis=0, ddof=min(1, len(scores) - 1)) / len(scores) ** 0.5
            name = variant if read == "all" else f"{variant}; {read}"
            found[name] = scores.mean(axis=0), error
    return found


def table(
    results: dict, seconds: dict[str, float], steps: dict[str, int], nearest: list[float]
) -> None:
    """Prints what docs/reproduction.md holds."""
    print(f"| trained with | a step, s | steps | {' | '.join(f'with {c}' for c in COUNTS)} |")
    print("|---" * (3 + len(COUNTS)) + "|")
    print(f"| copying the nearest input | | | {' | '.join(f'{score:.2f}' for score in nearest)} |")
    for name, (mean, error) in means(results).items():
        step = f"{seconds[name]:.3f} | {steps[name]}" if name in steps else " | "
        row = [f"{value:.2f} ± {spread:.2f}" for value, spread in zip(mean, error, strict=True)]
        print(f"| {name} | {step} | {' | '.join(row)} |")


def picture(results: dict, path: Path) -> None:
    """Draws PSNR over the number of inputs, of DRAWN."""
    found = means(results)
    names = [name for name in DRAWN if name in found]
    curves = {name: (np.array(COUNTS), found[name][0]) for name in names}
    panel = Panel("held-out PSNR, dB", curves, points=curves, along="inputs in the cache")
    seeds = len(next(iter(results.values())))
    notes = [
        f"means over {seeds} seeds; 'nearest': every target reads its most useful inputs alone"
    ]
    save_png(draw_curves([panel], names, notes), path)


def main() -> None:
    """Trains, scores, prints."""
    parser = study_parser(__doc__)
    parser.set_defaults(steps=400)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--equal-time", action="store_true", help="steps that last equally long")
    arguments = parser.parse_args()
    folder = arguments.workdir / ("equal_time" if arguments.equal_time else "equal_steps")
    folder.mkdir(parents=True, exist_ok=True)
    seconds = step_times(arguments.workdir / "seconds.json")
    budget = seconds[next(iter(VARIANTS))]
    steps = {
        name: round(arguments.steps * (budget / seconds[name] if arguments.equal_time else 1))
        for name in arguments.variants
    }
    heldout = HeldOut()
    results = train_and_score(heldout, folder, steps, arguments.seeds)
    table(results, seconds, steps, [heldout.nearest(count) for count in COUNTS])
    picture(results, folder / "many_views.png")


if __name__ == "__main__":
    main()
