"""What comes with the package is what it is said to be."""

import re

import jax
import numpy as np
import pytest

import efficient_lvsm_jax as elvsm
from configs import rooms, rooms_geometry
from data_pipeline.captures.inputs import open_scene
from data_pipeline.procedural.rooms import ProceduralScenes, SceneRecipe
from data_pipeline.scenes import scene_of_arrays
from efficient_lvsm_jax.configuration import build
from efficient_lvsm_jax.demo.first_views import INPUTS, SHOWN, first_views
from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.evaluation.geometry import clip_of, score, seen_by
from efficient_lvsm_jax.evaluation.protocol import EvaluationConfig, open_evaluation
from efficient_lvsm_jax.metrics.pictures import psnr
from efficient_lvsm_jax.models.efficient_lvsm import EfficientLVSMConfig
from efficient_lvsm_jax.models.vggt import VGGTConfig
from efficient_lvsm_jax.shipped import CAPTURES, FOLDER, models
from efficient_lvsm_jax.weights.published import unshown

SCORED = 8  # scenes, the first of those that the card tells of
WALKS = 4  # likewise of the geometry model


@pytest.fixture(scope="module")
def model():
    return elvsm.load("rooms")


def test_the_model_is_the_one_of_its_configuration_and_small(model):
    assert list(models()) == ["rooms", "rooms-geometry"]
    trained = build(EfficientLVSMConfig, rooms.get_config().model.to_dict(), "model")
    assert model.config.architecture == trained.architecture
    assert unshown(model.config) == unshown(trained) == {"positions": "prope"}
    assert model.trained_sizes == ((48, 48),)
    assert models()["rooms"].stat().st_size < 8e6


def test_its_scores_on_rooms_it_never_saw_are_those_of_its_card(model):
    settings = rooms.get_config().evaluation.to_dict() | {"scenes": SCORED, "added_one_by_one": ()}
    opened = open_evaluation(build(EvaluationConfig, settings, "evaluation"), seed=0)
    scenes = [opened.scenes[index] for index in range(SCORED)]
    inputs, targets = (
        jax.tree.map(lambda *x: np.stack(x), *(getattr(scene, side) for scene in scenes))
        for side in ("inputs", "targets")
    )
    images = model.decode(model.encode(inputs), targets.cameras)
    scores = np.asarray(psnr(images, targets.image)).mean(1)
    card = (FOLDER / "rooms.md").read_text()
    said = re.search(rf"first {SCORED} of them ([\d.]+) dB", card)
    assert scores.mean() == pytest.approx(float(said[1]), abs=0.03)


@pytest.fixture(scope="module")
def geometry():
    return elvsm.load("rooms-geometry")


def test_the_geometry_model_is_the_one_of_its_configuration_and_small(geometry):
    trained = build(VGGTConfig, rooms_geometry.get_config().model.to_dict(), "model")
    assert geometry.config.architecture == trained.architecture
    assert unshown(geometry.config) == unshown(trained) and geometry.config.causal
    assert geometry.trained_sizes == ((48, 48),)
    assert models()["rooms-geometry"].stat().st_size < 7e6


def test_its_tracker_that_was_not_trained_is_refused(geometry):
    said = r"model.track_iterations=0: .* tracker was not trained"
    with pytest.raises(InputError, match=said):
        geometry.observe(None, np.zeros((1, 2, 48, 48, 3), np.float32), np.ones((1, 1, 2)))
    with pytest.raises(InputError, match=said):
        elvsm.Stream(geometry, capacity=2, track_frames=2).observe(np.zeros((48, 48, 3), np.uint8))


def test_its_scores_on_walks_it_never_saw_are_those_of_its_card(geometry):
    recipe = SceneRecipe(views=6)
    walks = map(dict, ProceduralScenes(WALKS, seed=0, split="heldout", recipe=recipe, depth=True))
    clips = (clip_of(scene_of_arrays(walk.pop("scene"), **walk)) for walk in walks)
    found = score(seen_by(geometry), clips)
    card = (FOLDER / "rooms-geometry.md").read_text()
    said = re.search(rf"first {WALKS} of them: AbsRel ([\d.]+), AUC@30 ([\d.]+)", card)
    assert found["seen"]["depth_abs_rel"] == pytest.approx(float(said[1]), abs=2e-3)
    assert found["seen"]["pose_auc"] == pytest.approx(float(said[2]), abs=1e-2)


def test_both_together_show_an_example_of_which_no_camera_is_told(model, geometry):
    """By found cameras pictures are nearly those by true ones, and much nearer than any input."""
    frames = open_scene(elvsm.example("room")).frames
    scene = elvsm.UnposedScene(model, elvsm.Stream(geometry, capacity=len(frames)))
    found = []
    for frame in frames:
        scene.add(frame.image())
        found.append(scene.newest.posed)
        if len(found) > 1:
            scene.session.render(
                found[0]
            )  # so its frame is fixed by two cameras, beside each other
    inputs, targets = (0, 6, 12, 18, 23), (3, 9, 15, 21)
    truth = np.stack([frames[target].image() for target in targets]) / np.float32(255)
    scores = {"nearest": psnr(np.stack([frames[x - 3].image() for x in targets]) / 255, truth)}
    for name, posed in (("found", found), ("true", frames)):
        session = elvsm.Session(model, check_poses=False)
        for index in inputs:
            session.add(posed[index])
        pictures = np.stack([session.render(posed[target]) for target in targets])
        scores[name] = psnr(pictures, truth)
    pictures = np.stack([scene.session.render(found[target]) for target in targets])
    scores["as it came"] = psnr(pictures, truth)  # whose first cameras are all beside each other
    means = {name: float(np.mean(values)) for name, values in scores.items()}
    assert means["nearest"] + 3 < means["found"] and means["true"] - 1.5 < means["found"], means
    assert means["found"] < means["as it came"], means


def test_examples_are_captures_and_get_better_with_every_input(model):
    names = [folder.name for folder in sorted(CAPTURES.iterdir())]
    assert names == ["room", "room-2", "room-3"]
    found = [first_views(model, open_scene(elvsm.example(name))) for name in names]
    for inputs, rendered, truth, _ in found:
        assert len(inputs) == INPUTS and rendered.shape == (len(SHOWN), *truth.shape)
    means = np.mean([scores for *_, scores in found], axis=0)
    assert (np.diff(means) > 0).all()
    assert sum(path.stat().st_size for path in CAPTURES.rglob("*.*")) < 2e6


def test_an_example_that_is_not_there_is_named():
    with pytest.raises(elvsm.InputError, match="no example 'hall': there are room, room-2, room-3"):
        elvsm.example("hall")
