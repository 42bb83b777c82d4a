"""Pictures per second that training input delivers, beside a plain loader over PNG files.

    make bench-data            (python benchmarks/data_throughput.py [--threads 2] [--rounds 5])

Three loaders take turns in one process, on the same generated films of 640x360 frames:

- crops: 256-pixel JPEG crops in ArrayRecord, as `data_pipeline.prepare --size 256` writes them;
- originals: 640x360 JPEGs in ArrayRecord, resized and cropped when read;
- plain: the layout of the published program, a PNG file per frame, opened, resized and cropped
  with PIL on as many threads.

Each delivers scenes of 2 inputs and 6 targets drawn by the published rule, in batches of 8. Timed
is a number of batches after a warm-up, while the other loaders rest; the median of the rounds
counts.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from data_pipeline.batches.pipeline import training_batches
from data_pipeline.batches.settings import DataConfig
from data_pipeline.batches.views import draw_window
from data_pipeline.prepare.data_set import Preparation, prepare
from efficient_lvsm_jax.media.progress import counted

WIDTH, HEIGHT, SIZE = 640, 360, 256
SETTINGS = {
    "size": SIZE,
    "batch_size": 8,
    "num_inputs_cycle": (2,),
    "num_targets": 6,
    "target_has_input": False,
    "max_distance": 192,
    "mirror": False,
    "permute_colours": False,
}


def write_films(folder: Path, scenes: int, frames: int) -> Path:
    """Films that pan over pictures with the spectrum of photos, in the prepared layout."""
    split = folder / "train"
    (split / "metadata").mkdir(parents=True)
    for scene in counted(range(scenes), "writing films", scenes, "films"):
        name = f"film-{scene:04d}"
        pictures = split / "images" / name
        pictures.mkdir(parents=True)
        panorama = _panorama(np.random.default_rng(scene), WIDTH + 4 * frames, HEIGHT)
        entries = []
        for frame in range(frames):
            picture = panorama[:, 4 * frame : 4 * frame + WIDTH]
            Image.fromarray(picture).save(pictures / f"{frame:05d}.png", compress_level=1)
            w2c = np.eye(4)
            w2c[0, 3] = -0.01 * frame
            entries.append(
                {
                    "image_path": f"{name}/{frame:05d}.png",
                    "fxfycxcy": [320.0, 320.0, WIDTH / 2, HEIGHT / 2],
                    "w2c": w2c.tolist(),
                }
            )
        text = json.dumps({"scene_name": name, "frames": entries})
        (split / "metadata" / f"{name}.json").write_text(text)
    return split


def _panorama(rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    """Noise with amplitude proportional to wavelength, uint8 [height, width, 3]."""
    total = np.zeros((height, width, 3))
    for octave in range(9):
        cells = rng.random((max(height >> octave, 2), max(width >> octave, 2), 3), np.float32)
        layers = [
            np.asarray(Image.fromarray(c).resize((width, height), Image.Resampling.BICUBIC))
            for c in np.moveaxis(cells, -1, 0)
        ]
        total += np.stack(layers, -1) * 1.6**octave
    low, high = np.percentile(total, (1, 99))
    return np.round(np.clip((total - low) / (high - low), 0, 1) * 255).astype(np.uint8)


def plain_loader(split: Path, threads: int) -> Iterator[int]:
    """Batches of the plain loader; yields the number of pictures in each."""
    films = [json.loads(path.read_text()) for path in sorted((split / "metadata").glob("*.json"))]

    def load(seed: int) -> np.ndarray:
        rng = np.random.default_rng(seed)
        film = films[rng.integers(len(films))]
        chosen = draw_window(rng, len(film["frames"]), 2, 6, target_has_input=False)
        pictures = []
        for view in np.concatenate(chosen):
            path = split / "images" / film["frames"][view]["image_path"]
            width = round(int(SIZE / HEIGHT * WIDTH) / 8) * 8
            with Image.open(path) as image:
                resized = image.resize((width, SIZE), Image.Resampling.LANCZOS)
            left = (width - SIZE) // 2
            cropped = resized.crop((left, 0, left + SIZE, SIZE))
            pictures.append(np.asarray(cropped) / np.float32(255))
        return np.stack(pictures)

    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        batch = [pool.submit(load, seed) for seed in range(16)]
        seed = 16
        while True:
            done = np.stack([future.result() for future in batch[:8]])
            batch = batch[8:] + [pool.submit(load, seed + i) for i in range(8)]
            seed += 8
            yield done.shape[0] * done.shape[1]


def our_loader(path: Path, threads: int) -> Iterator[int]:
    """Batches of training input; yields the number of pictures in each."""
    batches = training_batches(DataConfig(path=str(path), threads=threads, **SETTINGS), seed=0)
    for batch in batches:
        yield sum(int(np.prod(side.c2w.shape[:2])) for side in vars(batch).values())


def wait_until_idle() -> None:
    """Waits for what the other loaders have begun to prepare ahead."""
    used = 1.0
    while used > 0.01:
        before = time.process_time()
        time.sleep(0.2)
        used = time.process_time() - before


def pictures_per_second(loader: Iterator[int], batches: int) -> float:
    """Over some batches. What was prepared ahead is used up first."""
    wait_until_idle()
    for _ in range(8):
        next(loader)
    start = time.perf_counter()
    pictures = sum(next(loader) for _ in range(batches))
    return pictures / (time.perf_counter() - start)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--films", type=int, default=24)
    parser.add_argument("--frames", type=int, default=60)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        split = write_films(folder / "films", arguments.films, arguments.frames)
        sizes = {}
        for kind, size, quality in (("crops", SIZE, 95), ("originals", 0, 85)):
            preparation = Preparation(str(split), size=size, quality=quality)
            counts = prepare(preparation, folder / kind, workers=os.cpu_count() or 1)["counts"]
            sizes[kind] = counts["bytes"] / counts["frames"]
        files = list(split.glob("images/*/*.png"))
        sizes["plain"] = sum(file.stat().st_size for file in files) / len(files)

        loaders: dict[str, tuple[Callable[[], Iterator[int]], int]] = {
            "crops": (lambda: our_loader(folder / "crops", arguments.threads), 60),
            "originals": (lambda: our_loader(folder / "originals", arguments.threads), 20),
            "plain": (lambda: plain_loader(split, arguments.threads), 4),
        }
        open_loaders = {kind: (make(), batches) for kind, (make, batches) in loaders.items()}
        rates: dict[str, list[float]] = {kind: [] for kind in loaders}
        for _ in range(arguments.rounds):
            for kind, (loader, batches) in open_loaders.items():
                rates[kind].append(pictures_per_second(loader, batches))
        print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, ", end="")
        print(f"{arguments.threads} threads, {arguments.rounds} rounds, {SIZE} px pictures out")
        print(f"{'loader':10s} {'bytes a picture':>15s} {'pictures/s':>11s} {'(range)':>15s}")
        for kind, values in rates.items():
            span = f"({min(values):,.0f}-{max(values):,.0f})"
            print(f"{kind:10s} {sizes[kind]:15,.0f} {statistics.median(values):11,.0f} {span:>15s}")


if __name__ == "__main__":
    main()
