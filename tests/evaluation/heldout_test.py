import dataclasses

import jax
import numpy as np
import pytest

from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.evaluation.heldout import open_heldout, render_heldout
from efficient_lvsm_jax.evaluation.protocol import EvaluationConfig
from efficient_lvsm_jax.metrics.pictures import psnr
from efficient_lvsm_jax.parallel.sharding import make_mesh

SETTINGS = EvaluationConfig(scenes=6, views=6, size=16, inputs=(1, 4), targets=(0, 2, 3, 5))


@pytest.fixture(scope="module")
def scenes():
    return open_heldout(SETTINGS, seed=3, count=3)


def test_the_scenes_are_the_first_that_an_evaluation_scores(scenes):
    assert [scene.name for scene in scenes] == [f"heldout-3-{i:06d}" for i in range(3)]
    assert all(scene.chosen.inputs == (1, 4) for scene in scenes)
    assert all(scene.chosen.targets == (0, 3, 5) for scene in scenes)  # three of the four
    assert scenes[0].targets.image.shape == (3, 16, 16, 3)


def test_pictures_and_score_are_those_of_the_model_on_a_mesh_larger_than_the_scenes(
    scenes, small_model
):
    picture, scores = render_heldout(small_model, scenes, make_mesh("data:-1,fsdp:1"), step=7)
    expected = []
    for scene in scenes:
        inputs, targets = jax.tree.map(lambda x: x[None], (scene.inputs, scene.targets))
        images = small_model.decode(small_model.encode(inputs), targets.cameras)
        expected.append(psnr(images, targets.image))
    assert scores == {"heldout/psnr": pytest.approx(float(np.mean(expected)), abs=1e-3)}
    assert picture.dtype == np.uint8 and picture.ndim == 3


def test_a_model_that_lost_itself_still_gives_a_picture(scenes, small_model):
    params = jax.tree.map(lambda x: x * np.nan, small_model.params)
    lost = dataclasses.replace(small_model, params=params)
    picture, scores = render_heldout(lost, scenes, make_mesh("data:-1,fsdp:1"), step=7)
    assert np.isnan(scores["heldout/psnr"]) and picture.any()


def test_scenes_of_several_shapes_are_refused(scenes, monkeypatch):
    targets = dataclasses.replace(scenes[1].targets, image=scenes[1].targets.image[:, :, :8])
    narrow = dataclasses.replace(scenes[1], targets=targets)
    opened = type("Opened", (), {"scenes": [scenes[0], narrow]})
    monkeypatch.setattr(
        "efficient_lvsm_jax.evaluation.heldout.open_evaluation", lambda *_, **__: opened
    )
    with pytest.raises(InputError, match=r"several shapes.*square_crop"):
        open_heldout(SETTINGS, seed=3, count=2)
