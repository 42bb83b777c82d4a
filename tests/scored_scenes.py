"""Scenes with made-up scores, and a results file of them."""

import numpy as np

from efficient_lvsm_jax.evaluation.results import ResultsFile, SceneScores

PROTOCOL = {"index": {"sha256": "ab"}, "renderer": {"weights_sha256": "cd"}}


def row(scene: str, psnr, inputs=(0, 9), targets=None, **more) -> SceneScores:
    targets = tuple(range(1, len(psnr) + 1)) if targets is None else targets
    scores = {"psnr": psnr, "nearest_input_psnr": [15.0] * len(psnr)}
    scores |= {"mean_colour_psnr": [12.0] * len(psnr)} | more
    return SceneScores(scene, inputs, targets, {k: np.float64(v) for k, v in scores.items()})


def write(folder, *rows, protocol=PROTOCOL, **options):
    with ResultsFile(folder, protocol, **options) as results:
        before = list(results.rows)
        results.append(rows)
    return before
