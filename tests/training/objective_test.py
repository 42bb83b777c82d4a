import dataclasses
import functools

import jax
import numpy as np
import pytest
from conftest import SMALL, random_views
from small_teachers import small_teacher

from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.geometry.cameras import Batch
from efficient_lvsm_jax.metrics.perceptual import DEPTHS
from efficient_lvsm_jax.training.objective import Alignment, FrozenNetworks, LossConfig, load_frozen
from efficient_lvsm_jax.training.optimizer import OptimizerConfig
from efficient_lvsm_jax.training.repa import parse_layer_map
from efficient_lvsm_jax.training.step import Recipe, init_state, train_step

OPTIMIZER = OptimizerConfig(warmup_steps=1, learning_rate=1e-3)
PLAIN = Recipe("efficient_lvsm", SMALL, OPTIMIZER)


def narrow_vgg19():
    """VGG19 of four channels with drawn weights."""
    rng = np.random.default_rng(0)
    params, channels = {}, 3
    for stage, depth in enumerate(DEPTHS, 1):
        for layer in range(1, depth + 1):
            params[f"conv{stage}_{layer}"] = {
                "kernel": rng.normal(0, 0.3, (3, 3, channels, 4)).astype(np.float32),
                "bias": np.zeros(4, np.float32),
            }
            channels = 4
    return params


@functools.cache
def aligned():
    """A recipe with REPA on layer 2 of both streams, and its frozen networks."""
    teacher = small_teacher("dinov2").frozen(layers=2, dtype="float32")
    layer_map = parse_layer_map("2-1", student_layers=2, teacher_layers=2)
    recipe = dataclasses.replace(
        PLAIN,
        losses=LossConfig(perceptual=0.5, repa=0.25),
        alignment=Alignment(layer_map, teacher.config.width),
    )
    return recipe, FrozenNetworks(vgg19=narrow_vgg19(), teacher=teacher)


def large_views(count, seed):
    # DINOv2 sees three patches for four tokens, so sides are multiples of four patches.
    return random_views(count, seed=seed, size=(32, 32), batch=2)


def aligned_batch(seed=0):
    return Batch(large_views(2, seed), large_views(3, seed + 1))


@functools.cache
def trained(micro_batches, steps):
    """The state before and after a few steps with all losses, and their metrics."""
    recipe, frozen = aligned()
    recipe = dataclasses.replace(recipe, micro_batches=micro_batches)
    state = init_state(recipe, jax.random.key(0))
    before = jax.tree.map(np.asarray, state.projectors)
    rows = []
    for _ in range(steps):
        state, metrics = train_step(recipe, state, aligned_batch(), frozen)
        rows.append({name: float(value) for name, value in metrics.items()})
    return before, state.projectors, rows


def test_the_total_is_the_weighted_sum_of_named_parts():
    row = trained(1, 4)[2][0]
    parts = [row[f"loss/{name}"] for name in ("mean_squared", "perceptual", "repa")]
    assert min(parts) > 0
    np.testing.assert_allclose(row["loss"], np.dot(parts, [1, 0.5, 0.25]), rtol=1e-6)
    np.testing.assert_allclose(row["psnr"], -10 * np.log10(parts[0]), rtol=1e-5)


def test_alignment_trains_projectors_and_brings_features_closer():
    before, after, rows = trained(1, 4)
    for stream in ("input", "target"):
        kernels = [tree[stream]["2-1"]["layer1"]["kernel"] for tree in (before, after)]
        assert np.abs(kernels[0] - kernels[1]).max() > 0
    assert rows[3]["loss/repa"] < rows[1]["loss/repa"]  # the first update has learning rate 0


def test_micro_batches_of_all_losses_are_one_batch():
    whole, parts = trained(1, 4)[2][0], trained(2, 1)[2][0]
    for name, value in whole.items():
        np.testing.assert_allclose(parts[name], value, rtol=2e-4, err_msg=name)


def test_a_plain_recipe_has_no_projectors_and_the_same_parameters():
    recipe, _ = aligned()
    plain, with_repa = (init_state(r, jax.random.key(0)) for r in (PLAIN, recipe))
    assert plain.projectors == {}
    jax.tree.map(np.testing.assert_array_equal, plain.params, with_repa.params)


@pytest.mark.parametrize(
    ("losses", "message"),
    [
        ({"perceptual": 0.5, "vgg19": "nowhere.mat"}, "nowhere.mat: no such file.*vlfeat"),
        ({"perceptual": 0.5}, r"weights/imagenet-vgg-verydeep-19.mat: no such file.*vlfeat"),
        ({"lpips": 0.5, "lpips_weights": "nowhere"}, "nowhere holds no LPIPS weights"),
        ({"repa": 0.5}, "needs losses.teacher.*DINOv3"),
        ({"repa": 0.5, "teacher": "nowhere.pth"}, "nowhere.pth: no such file.*DINOv3"),
    ],
)
def test_absent_weights_are_named_with_where_people_get_them(
    losses, message, monkeypatch, tmp_path
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message):
        load_frozen(LossConfig(**losses), SMALL)


@pytest.mark.parametrize(
    ("losses", "message"),
    [
        ({"mean_squared": 0.0}, "nothing to learn"),
        ({"perceptual": -1.0}, r"losses.perceptual=-1\.0: expected a number, at least 0"),
        ({"repa_kind": "cosine"}, "cos or l2 or sl1"),
        ({"dtype": "float16"}, "float32 or bfloat16"),
    ],
)
def test_impossible_settings_are_refused(losses, message):
    with pytest.raises(InputError, match=message):
        LossConfig(**losses)
