import dataclasses

import numpy as np
import pytest
from conftest import random_views

from efficient_lvsm_jax import evaluation
from efficient_lvsm_jax.cameras import nearest_camera
from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.evaluation import EvaluationConfig


def scene(index: int, inputs: int = 2, targets: int = 3) -> dict:
    sides = (random_views(inputs, seed=2 * index), random_views(targets, seed=2 * index + 1))
    views = ({key: value[0] for key, value in vars(side).items()} for side in sides)
    return {"scene": f"scene {index}", **dict(zip(("inputs", "targets"), views, strict=True))}


SCENES = [scene(index) for index in range(7)]


@pytest.mark.parametrize("batch_size", [1, 3, 7, 8])
def test_every_scene_is_scored_once_whatever_the_batch_size(small_model, batch_size):
    results = list(evaluation.score(small_model, SCENES, batch_size))
    assert [result.scene for result in results] == [scene["scene"] for scene in SCENES]
    alone = list(evaluation.score(small_model, SCENES, 1))
    for result, expected in zip(results, alone, strict=True):
        np.testing.assert_allclose(result.psnr, expected.psnr, atol=1e-3)
        np.testing.assert_allclose(result.ssim, expected.ssim, atol=1e-4)
        assert result.predictions.shape == (3, 16, 24, 3)


def test_the_mean_is_over_targets_then_over_scenes(small_model):
    results = list(evaluation.score(small_model, SCENES[:2], 2))
    results = [
        dataclasses.replace(results[0], psnr=np.array([10.0, 20.0]), ssim=np.array([0.2])),
        dataclasses.replace(results[1], psnr=np.array([30.0]), ssim=np.array([0.4])),
    ]
    summary = evaluation.summarise(results)
    assert summary == {"psnr": 22.5, "ssim": pytest.approx(0.3), "scenes": 2}


def test_copying_the_nearest_input_is_perfect_when_it_is_the_target():
    same = scene(0)
    same["targets"] = {key: value[:1] for key, value in same["inputs"].items()}
    scores = evaluation.baselines([same])
    assert np.isinf(scores["nearest"]["psnr"])
    # Noise, uniform in [0, 1], against its own mean: variance 1/12.
    np.testing.assert_allclose(scores["mean"]["psnr"], 10 * np.log10(12), atol=0.2)


def test_nearest_is_by_camera_centre():
    chosen = scene(3, inputs=5)
    inputs, targets = chosen["inputs"], chosen["targets"]
    for c2w in targets["c2w"]:
        distances = np.linalg.norm(inputs["c2w"][:, :3, 3] - c2w[:3, 3], axis=1)
        assert nearest_camera(inputs["c2w"], c2w) == distances.argmin()


def test_views_added_one_by_one_end_where_all_at_once_begins(small_model):
    scenes = [scene(index, inputs=4) for index in range(2)]
    rows = evaluation.added_one_by_one(small_model, scenes)
    assert [row["inputs"] for row in rows] == [1, 2, 4]
    together = evaluation.summarise(list(evaluation.score(small_model, scenes, 2)))
    np.testing.assert_allclose(rows[-1]["psnr"], together["psnr"], atol=1e-3)
    assert all(row["add_ms"] > 0 and row["render_ms"] > 0 for row in rows)


def test_the_film_visits_every_pair_of_neighbours(small_model):
    frames = evaluation.fly_through(small_model, scene(0, inputs=3), steps=4)
    assert frames.shape == (8, 16, 24, 3) and frames.dtype == np.uint8


def test_a_view_that_does_not_exist_is_refused():
    with pytest.raises(InputError, match=r"evaluation\.targets: no view 5 among 5"):
        EvaluationConfig(scenes=1, views=5, size=16, inputs=(0,), targets=(5,))
