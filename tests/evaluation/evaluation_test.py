"""Scoring: every scene once, whatever the batches and the mesh; the cache at work."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh
from scenes_to_score import scene

from data_pipeline.evaluation.scenes import EvaluationScene, EvaluationScenes
from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.evaluation import scoring as evaluation
from efficient_lvsm_jax.evaluation.flight import HALT, fly_through
from efficient_lvsm_jax.evaluation.protocol import EvaluationConfig
from efficient_lvsm_jax.evaluation.renderers import ModelRenderer
from efficient_lvsm_jax.evaluation.results import SceneScores, baselines
from efficient_lvsm_jax.evaluation.scoring import Scorer, batches, model_renders, padded_size
from efficient_lvsm_jax.geometry.cameras import SceneFrame, nearest_camera
from efficient_lvsm_jax.media.levels import to_bytes
from efficient_lvsm_jax.metrics.pictures import psnr
from efficient_lvsm_jax.models.lvsm import DecoderOnlyConfig
from efficient_lvsm_jax.models.model import Model
from efficient_lvsm_jax.parallel.sharding import AXES, make_mesh
from efficient_lvsm_jax.sessions.session import Session

SCENES = [scene(index) for index in range(7)]


def as_sequence(scenes: list[EvaluationScene]) -> EvaluationScenes:
    return EvaluationScenes([scene.name for scene in scenes], scenes.__getitem__)


@functools.lru_cache
def mesh_of(devices: int) -> Mesh:
    here = np.array(jax.devices()[:devices]).reshape(devices, 1)
    return Mesh(here, AXES, axis_types=(AxisType.Auto,) * 2)


def score(model, scenes, batch_size, mesh=None, **options) -> list[SceneScores]:
    mesh = mesh or mesh_of(1)
    scorer = Scorer(model_renders(model, mesh), mesh, batch_size, **options)
    size = padded_size(batch_size, mesh)
    rows = []
    for batch in batches(as_sequence(scenes), range(len(scenes)), size):
        rows += scorer.score(batch)[0]
    return rows


@pytest.fixture(scope="module")
def alone(small_model):
    return score(small_model, SCENES, 1)


def assert_equal_scores(rows: list[SceneScores], expected: list[SceneScores]) -> None:
    assert [row.scene for row in rows] == [row.scene for row in expected]
    for row, other in zip(rows, expected, strict=True):
        assert set(row.scores) == set(other.scores)
        for metric in row.scores:
            np.testing.assert_allclose(row.scores[metric], other.scores[metric], atol=2e-4)


def test_every_scene_is_scored_once_and_alike_on_four_devices(small_model, alone):
    # 7 scenes in batches of 3, which four devices make 4: the last one is padded.
    assert_equal_scores(score(small_model, SCENES, 3, make_mesh("data:2,fsdp:2")), alone)


@pytest.mark.parametrize("mesh", [None, "data:2,context:2"])
@pytest.mark.parametrize("views", ["nearest:1", "nearest:2", "nearest:4", "nearest:9"])
def test_targets_are_rendered_from_their_nearest_inputs_as_by_a_session(small_model, mesh, views):
    scenes = [scene(index, inputs=4) for index in (1, 2)]
    mesh = make_mesh(mesh) if mesh else mesh_of(1)
    got = np.asarray(model_renders(small_model, mesh, views)(scenes))
    for pictures, one in zip(got, scenes, strict=True):
        session = Session(small_model, frame=SceneFrame.identity(), capacity=4, check_poses=False)
        for view in zip(*vars(one.inputs).values(), strict=True):
            session.add(*view)
        targets = one.targets
        expected = session.render(targets.c2w, targets.fxfycxcy, targets.image.shape[1:3], views)
        np.testing.assert_allclose(pictures, expected, atol=2e-6)
    film = [next(fly_through(small_model, scenes[0], 2, read)) for read in ("nearest:1", "all")]
    assert (film[0] != film[1]).any()


def settings(views):
    what = {"scenes": 1, "views": 3, "inputs": (0, 2), "targets": (1,)}
    return EvaluationConfig(render_views=views, **what)


def test_what_targets_read_is_said_where_it_is_not_all(small_model):
    """Records of results from before there was a choice stay the same."""
    said = []
    for views in ("all", "nearest:2"):
        renderer = ModelRenderer(small_model, settings(views), mesh_of(1), weights="w")
        said.append(renderer.describe(["scene"], eight_bit=False))
    assert said[1] == said[0] | {"views_read": "nearest:2"} and "views_read" not in said[0]


def test_no_choice_and_a_choice_without_a_cache_are_refused():
    with pytest.raises(
        InputError, match=r"evaluation\.render_views='near': expected all or nearest"
    ):
        settings("near")
    config = DecoderOnlyConfig(width=32, head_dim=16, patch=8, mlp_ratio=2, layers=1)
    model = Model("lvsm_decoder_only", config, {})
    with pytest.raises(InputError, match="render_views='nearest:2': a lvsm_decoder_only has no"):
        ModelRenderer(model, settings("nearest:2"), mesh_of(1), weights="w")


def test_the_scores_are_those_of_the_pictures(small_model, alone):
    scorer = Scorer(model_renders(small_model, mesh_of(1)), mesh_of(1), 1)
    rows, (pictures,) = scorer.score(SCENES[:1])
    truth = SCENES[0].targets.image
    rounded = np.asarray(psnr(pictures.astype(np.float32) / 255, truth))
    np.testing.assert_allclose(rows[0].scores["psnr"], rounded, atol=0.02)
    assert rows[0].scores["psnr"].dtype == np.float64 and pictures.dtype == np.uint8


def test_with_eight_bits_the_scores_are_exactly_those_of_the_rounded_pictures(small_model):
    scorer = Scorer(model_renders(small_model, mesh_of(1)), mesh_of(1), 1, eight_bit=True)
    rows, (pictures,) = scorer.score(SCENES[:1])
    rounded = psnr(np.divide(pictures, 255, dtype=np.float32), SCENES[0].targets.image)
    np.testing.assert_allclose(rows[0].scores["psnr"], rounded, atol=1e-5)


def test_batches_hold_scenes_of_one_shape():
    scenes = [SCENES[0], SCENES[1], scene(9, targets=2), scene(10, size=(16, 16)), SCENES[2]]
    found = list(batches(as_sequence(scenes), range(5), 4))
    assert [[s.name for s in batch] for batch in found] == [
        ["scene 0", "scene 1"],
        ["scene 9"],
        ["scene 10"],
        ["scene 2"],
    ]


def unreadable(index: int) -> EvaluationScene:
    if index == 1:
        raise InputError("frame 3 is damaged")
    return SCENES[index]


def test_a_scene_that_cannot_be_read_stops_the_evaluation_or_is_recorded():
    scenes = EvaluationScenes(["a", "b", "c"], unreadable)
    with pytest.raises(InputError, match="frame 3 is damaged"):
        list(batches(scenes, range(3), 2))
    found = list(batches(scenes, range(3), 2, skip_unreadable=True))
    assert [len(batch) for batch in found] == [1, 1, 1]
    assert found[1] == [SceneScores("b", (), (), {}, unusable="frame 3 is damaged")]


def test_the_foreground_is_scored_by_itself(small_model):
    left = np.zeros((3, 16, 24), bool)
    left[:, :, :12] = True
    half = dataclasses.replace(scene(0), foreground=left)
    (row,) = score(small_model, [half], 1, foreground=True)
    rendered = Scorer(model_renders(small_model, mesh_of(1)), mesh_of(1), 1).render([half])
    expected = psnr(rendered[0, :, :, :12], half.targets.image[:, :, :12])
    np.testing.assert_allclose(row.scores["foreground_psnr"], expected, atol=1e-4)
    assert (row.scores["foreground_psnr"] != row.scores["psnr"]).all()


def test_a_target_without_foreground_is_refused(small_model):
    mask = np.ones((3, 16, 24), bool)
    mask[1] = False
    with pytest.raises(InputError, match="scene 0, target 3: no foreground"):
        score(small_model, [dataclasses.replace(scene(0), foreground=mask)], 1, foreground=True)


def test_true_pictures_out_of_range_are_refused(small_model):
    wrong = scene(0)
    wrong.targets.image[:] = wrong.targets.image * 2 - 1
    with pytest.raises(InputError, match=r"scene 0 .*like \[-1, 1\]"):
        score(small_model, [wrong], 1)


def test_a_further_distance_is_scored_with_the_others(small_model):
    def lpips(images, truth):
        return np.abs(np.asarray(images) - truth).mean(axis=(2, 3, 4))

    (row,) = score(small_model, SCENES[:1], 1, lpips=lpips)
    assert row.scores["lpips"].shape == (3,) and (row.scores["lpips"] > 0).all()


def test_copying_the_nearest_input_is_perfect_when_it_is_the_target():
    noise = scene(0, inputs=3)
    same = dataclasses.replace(noise, targets=noise.inputs)
    scorer = Scorer(lambda scenes: np.stack([s.targets.image for s in scenes]), mesh_of(1), 1)
    scores = baselines(scorer.score([same])[0])
    assert np.isinf(scores["nearest"]["psnr"])
    # Noise, uniform in [0, 1], against its own mean: variance 1/12.
    np.testing.assert_allclose(scores["mean"]["psnr"], 10 * np.log10(12), atol=0.2)


def test_nearest_is_by_camera_centre():
    chosen = scene(3, inputs=5)
    for c2w in chosen.targets.c2w:
        distances = np.linalg.norm(chosen.inputs.c2w[:, :3, 3] - c2w[:3, 3], axis=1)
        assert nearest_camera(chosen.inputs.c2w, c2w) == distances.argmin()


def test_views_added_one_by_one_end_where_all_at_once_begins(small_model):
    scenes = [scene(index, inputs=4) for index in range(2)]
    rows = evaluation.added_one_by_one(small_model, scenes)
    assert [row["inputs"] for row in rows] == [1, 2, 4]
    together = np.mean([row.mean("psnr") for row in score(small_model, scenes, 1)])
    np.testing.assert_allclose(rows[-1]["psnr"], together, atol=1e-3)
    assert all(row["add_ms"] > 0 and row["render_ms"] > 0 for row in rows)


def test_the_film_visits_inputs_and_halts_at_targets_with_the_truth_beside(small_model):
    known = scene(0, inputs=3)
    frames = list(fly_through(small_model, known, steps=4))
    assert {(frame.shape, frame.dtype.name) for frame in frames} == {((530, 978, 3), "uint8")}
    large = to_bytes(known.targets.image).repeat(20, axis=1).repeat(20, axis=2)  # see media.sheet
    beside = [sum((frame[24:344, -486:-6] == truth).all() for frame in frames) for truth in large]
    assert sorted(beside) == [HALT, 2 * HALT, 2 * HALT]  # it ends at one of them
    assert len(frames) == 2 * 5 + 5 * (HALT - 1)  # 8 pictures shared by 5 pairs, rounded up
