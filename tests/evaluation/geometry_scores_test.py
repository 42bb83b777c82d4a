"""`eval.py --geometry`: a model, or what others say, against captures whose depth is known."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from configs import tiny_geometry
from data_pipeline.captures.export import CaptureWriter
from data_pipeline.formats import open_scenes
from data_pipeline.procedural.rooms import ProceduralScenes, SceneRecipe
from data_pipeline.procedural.walk import write_walk
from data_pipeline.scenes import scene_of_arrays
from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.evaluation.geometry import SCORES, clip_of, main, score, seen_by, trivial
from efficient_lvsm_jax.models.families import configure
from efficient_lvsm_jax.models.model import abstract_params
from efficient_lvsm_jax.weights.folder import save_weights
from efficient_lvsm_jax.weights.load import load

BEST = {name: 1.0 for name in SCORES if name.endswith(("delta", "auc")) or name == "normals"}


@pytest.fixture(scope="module")
def capture(tmp_path_factory):
    folder = tmp_path_factory.mktemp("walks") / "walk"
    write_walk(folder, frames=4, size=(24, 32), depth=True)
    return folder


def said(folder, capture, *, scale=1.0, every=1, tilt=0.0):
    """A prediction: the capture in another world and unit, of every n-th pixel, each next camera
    turned by `tilt` degrees more."""
    turn = Rotation.from_rotvec([0.2, 0.4, -1]).as_matrix()
    with CaptureWriter(folder) as writer:
        for number, frame in enumerate(open_scenes(capture)[0].frames):
            c2w = frame.c2w.copy()
            c2w[:3, :3] = turn @ c2w[:3, :3]
            c2w[:3, :3] = c2w[:3, :3] @ Rotation.from_euler("z", number * tilt, True).as_matrix()
            c2w[:3, 3] = scale * turn @ c2w[:3, 3] + [1, 2, 3]
            part = slice(every // 2, None, every)
            image, depth = (x[part, part] for x in (frame.image(), frame.depth()))
            writer.add(np.ascontiguousarray(image), c2w, frame.fxfycxcy / every, scale * depth)
    return folder


def scored(tmp_path, *arguments):
    main(["--geometry", "--out", str(tmp_path / "scores.json"), *map(str, arguments)])
    return json.loads((tmp_path / "scores.json").read_text())


def test_the_truth_in_another_world_and_unit_is_perfect(tmp_path, capture, capsys):
    found = scored(tmp_path, "--predictions", said(tmp_path / "said", capture, scale=0.3), capture)
    for name, value in found["seen"].items():
        assert value == pytest.approx(BEST.get(name, 0.0), abs=1e-4), name
    assert found["clips"][0]["clip"] == "walk" and found["clips"][0]["frames"] == 4
    shown = capsys.readouterr().out
    assert all(text in shown for text in SCORES.values())
    assert "pose_auc" in found["guess"] and found["guess"]["pose_auc"] < 0.1


def test_a_smaller_prediction_and_a_tilted_one_are_less_right(tmp_path, capture):
    small = said(tmp_path / "small", capture, every=2)
    found = scored(tmp_path, "--predictions", small, capture)
    assert found["seen"]["rotation_auc"] == pytest.approx(1)
    assert 0 < found["seen"]["depth_abs_rel"] < 0.1 < found["guess"]["depth_abs_rel"]
    tilted = said(tmp_path / "tilted", capture, tilt=2.0)
    found = scored(tmp_path, "--predictions", tilted, capture)
    assert 1 < found["seen"]["rpe_rotation"] < 5
    assert 0.8 < found["seen"]["rotation_auc"] < 0.95
    assert found["seen"]["depth_abs_rel"] < 1e-6 and found["seen"]["ate"] < 1e-5


def test_the_guess_is_the_mean_depth_and_no_motion(capture):
    clip = clip_of(open_scenes(capture)[0], frames=3)
    guess = trivial(clip)
    np.testing.assert_allclose(guess.depth, clip.truth.depth.mean(), rtol=1e-6)
    assert (guess.c2w == np.eye(4)).all() and len(clip.frames) == 3
    assert clip.frames[0] == "images/00000.png" and clip.frames[-1] == "images/00003.png"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A folder with a tiny model that knows nothing."""
    small = {"width": 16, "head_dim": 8, "encoder_layers": 1, "camera_heads": 2, "features": 8}
    settings = tiny_geometry.get_config().model.to_dict() | small | {"channels": (4, 4, 4, 4)}
    rng = np.random.default_rng(0)
    params = jax.tree_util.tree_map_with_path(
        lambda path, x: np.float32(rng.normal(path[-1].key.startswith("scale"), 0.05, x.shape)),
        abstract_params("vggt", configure("vggt", settings)),
    )
    params["camera_head"]["down"]["bias"][-2:] = 1  # radians, where drawn numbers would say none
    folder = tmp_path_factory.mktemp("model") / "weights"
    save_weights(folder, params, {"family": "vggt", "config": settings})
    return folder


def test_a_causal_model_is_scored_as_a_stream_on_generated_walks(tmp_path, model):
    flags = ["--generated", "1", "--frames", "2", "--size", "16"]
    found = scored(tmp_path, "--weights", model, *flags)
    assert found["clips"][0]["clip"].startswith("heldout-0-")
    assert set(found["seen"]) == set(SCORES) and np.isfinite(list(found["seen"].values())).all()


def test_what_a_masked_model_sees_of_a_walk_its_stream_sees(model):
    model = load(model)
    source = ProceduralScenes(1, seed=0, recipe=SceneRecipe(size=16, views=2), depth=True)
    example = dict(source[0])
    clip = clip_of(scene_of_arrays(example.pop("scene"), **example))
    seen = seen_by(model)(clip)
    _, whole = model.observe(None, clip.images[None].astype(np.float32) / 255)
    np.testing.assert_allclose(seen.c2w, whole.cameras.c2w[0], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(seen.depth, whole.depth[0], rtol=1e-4)
    np.testing.assert_allclose(seen.points, whole.points[0], rtol=1e-4, atol=1e-4)


def test_streams_are_scored_with_the_memory_they_are_given():
    """With room for two frames the third does not see the second."""
    model = load("rooms-geometry")
    source = ProceduralScenes(1, seed=0, recipe=SceneRecipe(views=3), depth=True)
    example = dict(source[0])
    clip = clip_of(scene_of_arrays(example.pop("scene"), **example))
    seen = {room: seen_by(model, room)(clip).depth for room in (None, 2, 3)}
    np.testing.assert_array_equal(seen[3], seen[None])
    np.testing.assert_allclose(seen[2][:2], seen[None][:2], rtol=1e-4)
    assert np.abs(seen[2][2] / seen[None][2] - 1).max() > 1e-3
    whole = dataclasses.replace(model, config=dataclasses.replace(model.config, causal=False))
    with pytest.raises(InputError, match="--capacity 2: vggt sees a clip as a whole"):
        seen_by(whole, 2)


def test_a_capacity_of_nothing_and_a_field_of_view_of_zero_are_refused(model):
    model = load(model)
    source = ProceduralScenes(1, seed=0, recipe=SceneRecipe(size=16, views=2), depth=True)
    example = dict(source[0])
    clip = clip_of(scene_of_arrays(example.pop("scene"), **example))
    with pytest.raises(InputError, match="capacity=0"):
        seen_by(model, 0)(clip)
    head = model.params["camera_head"]
    bias = np.array(head["down"]["bias"])
    bias[-2:] = -1e3  # so that no angle is left
    head = head | {"down": head["down"] | {"bias": bias}}
    broken = dataclasses.replace(model, params=model.params | {"camera_head": head})
    with pytest.raises(
        InputError, match=r"-0+, frame .*what vggt says of it: a field of view of 0"
    ):
        seen_by(broken)(clip)


def test_what_is_not_finite_is_refused(capture):
    clip = clip_of(open_scenes(capture)[0])
    broken = dataclasses.replace(clip.truth, depth=clip.truth.depth * np.nan)
    with pytest.raises(InputError, match="walk: depth of its frames as seen are not finite"):
        score(lambda _: broken, iter([clip]))


def test_what_cannot_be_scored_is_said(tmp_path, capture):
    truth = said(tmp_path / "said", capture)
    write_walk(tmp_path / "plain", frames=2, size=(24, 32))
    other = tmp_path / "other"
    write_walk(other, frames=6, size=(24, 32), depth=True)
    for arguments, message in (
        (["--predictions", truth, tmp_path / "plain"], "has no depth to compare with"),
        (["--predictions", truth, other], r"says nothing of frame images/0000\d.png of other"),
        (["--predictions", truth, capture, "--frames", "9"], "9 of 4 frames asked for"),
        (["--predictions", truth, capture, "--size", "24"], "depth of 24x32 for pictures of 24x24"),
        (["--weights", "rooms", capture], "sees no geometry"),
    ):
        with pytest.raises(InputError, match=message):
            scored(tmp_path, *arguments)
    for arguments in (
        ["--predictions", truth],
        ["--predictions", truth, capture, "--capacity", "2"],
        ["--weights", "x", "--generated", "1", "--size", "8x16"],
    ):
        with pytest.raises(SystemExit):
            scored(tmp_path, *arguments)
