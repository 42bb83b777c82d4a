import dataclasses
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import GOLDENS, SMALL, channels_last, golden, golden_views, random_views

import configs
import efficient_lvsm_jax as elvsm
from efficient_lvsm_jax.aot import training_step
from efficient_lvsm_jax.commands import command_line
from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.geometry.cameras import Batch, Views
from efficient_lvsm_jax.models.model import Model, init_params
from efficient_lvsm_jax.training.optimizer import (
    TIMES,
    OptimizerConfig,
    learning_rate,
    make_optimizer,
)
from efficient_lvsm_jax.training.step import Recipe, init_state, start_from, train_step

FAMILY = "efficient_lvsm"
PUBLISHED = Recipe(FAMILY, SMALL, OptimizerConfig(warmup_steps=4, ema_decay=0.75))


def batch_of(seed=0):
    return Batch(random_views(2, seed=seed, batch=2), random_views(2, seed=seed + 1, batch=2))


def test_twelve_steps_equal_the_published_training(parity):
    data = golden("train")
    model = elvsm.load(GOLDENS / "train_init.pt")
    views, cameras, truth = golden_views(data)
    batch = Batch(views, Views(truth, cameras.c2w, cameras.fxfycxcy))
    recipe = dataclasses.replace(PUBLISHED, model=model.config)
    state = start_from(recipe, jax.tree.map(jnp.array, model.params), jax.random.key(0))
    for step in range(12):
        state, metrics = train_step(recipe, state, batch)
        np.testing.assert_allclose(metrics["learning_rate"], data["lr"][step], rtol=1e-6)
        parity("training loss, 12 steps", metrics["loss"], data["loss"][step], 1e-5)
        norm = metrics["grad_norm"]
        parity("gradient norm, 12 steps", norm, data["grad_norm"][step], 1e-3, relative=True)
    qkv = state.params["encoder"]["attention"]["qkv"]["kernel"][0].reshape(64, 192).T
    q_norm = state.params["decoder"]["cross_attention"]["q_norm"]["scale"][1]
    for value, name in ((qkv, "qkv0_after"), (q_norm, "qnorm_after")):
        parity("parameters after 12 steps", value, data[name], 1e-4)
    trained = Model(FAMILY, model.config, state.params)
    images = trained.decode(trained.encode(views), cameras)
    parity("render after 12 steps", images, channels_last(data["render_after"]), 1e-4)


# Updates at the presets' own numbers of steps: warm-up, begin and end of the decay.
PRESETS = {
    "tiny": (52, 390, 1300),
    "capture_tiny": (24, 180, 600),
    "rooms": (256, 1920, 6400),
    "tiny_lvsm_decoder_only": (52, 390, 1300),
    "tiny_lvsm_encoder_decoder": (52, 390, 1300),
    "re10k_256": (3000, 0, 0),
    "re10k_256_lvsm_decoder_only": (3000, 0, 100_000),
    "re10k_256_lvsm_encoder_decoder": (3000, 0, 100_000),
    "re10k_256_lvsm_schedule": (3000, 0, 100_000),
    "re10k_256_many_targets": (3000, 0, 0),
    "re10k_256_varied": (3000, 0, 0),
    "re10k_512": (3000, 0, 0),
    "re10k_512_finetune": (1000, 0, 0),
    "objaverse_512": (3000, 0, 0),
    "tiny_geometry": (80, 960, 1600),
    "rooms_geometry": (200, 2400, 4000),
    "stream_vggt_distill": (4875, 0, 97_500),
}


def preset(name, *overrides):
    """Optimizer of a preset with what the command line changes, and its steps."""
    file = f"{Path(configs.__file__).parent / name}.py"
    argv = ["train.py", f"--config={file}", *overrides]
    config, _ = command_line(argv, usage="", workdir=False, settings=training_step.settings)
    return training_step.question(config, 1).recipe.optimizer, config.steps


def times(optimizer):
    return tuple(getattr(optimizer, name) for name in TIMES)


def test_every_preset_is_known():
    files = {path.stem for path in Path(configs.__file__).parent.glob("*.py")}
    assert {name for name in files if "evaluation" not in name} - {"__init__"} == PRESETS.keys()


@pytest.mark.parametrize("name", PRESETS)
def test_schedules_of_the_presets(name):
    optimizer, steps = preset(name)
    assert times(optimizer) == PRESETS[name]
    assert all(type(value) is int for value in times(optimizer))
    assert optimizer.doubts(steps) == []


@pytest.mark.parametrize("name", ["tiny", "re10k_256_lvsm_schedule"])
@pytest.mark.parametrize("steps", [0, 1, 2, 7, 5000, 1_000_000])
def test_schedules_follow_the_steps(name, steps):
    optimizer, _ = preset(name, f"--config.steps={steps}", "--config.optimizer.warmup_steps=0.04")
    assert optimizer.decay_end == max(steps, 1) and optimizer.warmup_steps == round(0.04 * steps)
    last = float(learning_rate(optimizer, jnp.int32(max(steps, 1))))
    expected = optimizer.learning_rate * optimizer.final_fraction
    np.testing.assert_allclose(last, expected, atol=1e-9)
    assert optimizer.doubts(steps) == []


def test_times_are_updates_or_fractions_whichever_the_preset_has():
    where = "--config.optimizer."
    given = (f"{where}warmup_steps=1", f"{where}decay_start=200", f"{where}decay_end=0.5")
    assert times(preset("tiny", *given)[0]) == (1, 200, 650)
    given = (f"{where}warmup_steps=0.5", f"{where}decay_end=90000")
    assert times(preset("re10k_256_lvsm_schedule", *given)[0]) == (50_000, 0, 90_000)
    assert times(OptimizerConfig(warmup_steps=8.0)) == (8, 0, 0)  # as a ConfigDict makes of 8
    with pytest.raises(InputError, match=r"warmup_steps=2\.5: expected a whole number of updates"):
        preset("tiny", f"{where}warmup_steps=2.5")
    with pytest.raises(InputError, match="warmup_steps=half: expected an integer, or a fraction"):
        preset("tiny", f"{where}warmup_steps=half")
    with pytest.raises(InputError, match="decay_end=390: expected an update after 390"):
        preset("tiny", f"{where}decay_end=390")


@pytest.mark.parametrize(
    ("given", "doubt"),
    [
        (("steps=2000", "optimizer.decay_end=1300"), "the last 700 updates have 0.02 of the peak"),
        (("steps=1000", "optimizer.decay_end=1300"), "the decay never ends in config.steps=1000"),
        (
            ("optimizer.warmup_steps=1300", "optimizer.decay_start=0", "optimizer.decay_end=1400"),
            "never reaches its peak in config.steps=1300",
        ),
    ],
)
def test_schedules_that_are_no_plan_are_said(given, doubt):
    optimizer, steps = preset("tiny", *(f"--config.{each}" for each in given))
    assert doubt in " ".join(optimizer.doubts(steps))


def test_learning_rate_warms_up_holds_and_decays():
    config = OptimizerConfig(
        learning_rate=2.0,
        warmup_steps=10,
        schedule="linear",
        decay_start=20,
        decay_end=30,
        final_fraction=0.5,
    )
    rates = [float(learning_rate(config, jnp.int32(k))) for k in (0, 5, 10, 20, 25, 30, 99)]
    np.testing.assert_allclose(rates, [0, 1, 2, 2, 1.5, 1, 1], rtol=1e-6)
    cosine = OptimizerConfig(learning_rate=2.0, warmup_steps=10, schedule="cosine", decay_end=110)
    rates = [float(learning_rate(cosine, jnp.int32(k))) for k in (5, 10, 35, 60, 110, 200)]
    np.testing.assert_allclose(rates, [1, 2, 1 + 0.5**0.5, 1, 0, 0], atol=1e-6)
    constant = OptimizerConfig(learning_rate=2.0, warmup_steps=0)
    assert float(learning_rate(constant, jnp.int32(0))) == 0  # as published: min(1, k / …)
    assert float(learning_rate(constant, jnp.int32(999))) == 2


@functools.partial(jax.jit, static_argnums=0)
def first_updates(config, grads, params):
    optimizer = make_optimizer(config)
    return optimizer.update(grads, optimizer.init(params), params)[0]


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_weight_decay_spares_norm_scales(name):
    config = OptimizerConfig(name=name, warmup_steps=1)
    params = init_params(FAMILY, SMALL, jax.random.key(0))
    updates = first_updates(config, jax.tree.map(jnp.zeros_like, params), params)
    for path, update in jax.tree_util.tree_leaves_with_path(updates):
        is_norm = path[-1].key == "scale"
        matrix = path[0].key in ("encoder", "decoder") and not is_norm
        if is_norm:
            np.testing.assert_array_equal(update, 0)
        elif name == "adamw" or matrix:
            assert np.abs(update).max() > 0


def test_muon_makes_every_matrix_of_a_layer_near_orthogonal():
    config = OptimizerConfig(name="muon", weight_decay=0.0)
    params = init_params(FAMILY, SMALL, jax.random.key(0))
    grads = jax.tree.map(lambda x: jax.random.normal(jax.random.key(x.size), x.shape), params)
    updates = first_updates(config, grads, params)
    kv = updates["decoder"]["cross_attention"]["kv"]["kernel"]  # [L, D, 2, H, K]
    out = updates["encoder"]["attention"]["out"]["kernel"]  # [L, H, K, D]
    for matrix in (
        kv[1, :, 0].reshape(32, 32),
        kv[0, :, 1].reshape(32, 32),
        out[1].reshape(32, 32),
    ):
        singular = np.linalg.svd(np.asarray(matrix), compute_uv=False)
        # Five Newton-Schulz steps leave the very smallest ones behind; random ones span decades.
        assert np.quantile(singular, 0.1) > 0.5 * singular.max()


def params_of(state):
    return jax.tree.map(np.asarray, (state.params, state.optimizer))


def test_a_non_finite_loss_changes_nothing_and_is_counted():
    state = init_state(PUBLISHED, jax.random.key(0))
    before = params_of(state)
    bad = batch_of()
    bad.targets.image[0, 0, 0, 0, 0] = np.nan
    state, metrics = train_step(PUBLISHED, state, bad)
    jax.tree.map(np.testing.assert_array_equal, params_of(state), before)
    assert (int(state.step), int(state.schedule_step), int(metrics["skipped"])) == (1, 0, 1)
    state, metrics = train_step(PUBLISHED, state, batch_of())
    assert np.isfinite(metrics["loss"]) and int(metrics["skipped"]) == 1


def test_too_large_a_gradient_is_skipped_but_the_schedule_goes_on():
    state = init_state(PUBLISHED, jax.random.key(0))
    before = params_of(state)
    far = batch_of()
    far.targets.image[:] = 1e6
    state, metrics = train_step(PUBLISHED, state, far)
    limit = PUBLISHED.optimizer.clip_norm * PUBLISHED.optimizer.skip_factor
    assert limit < metrics["grad_norm"] < np.inf
    jax.tree.map(np.testing.assert_array_equal, params_of(state), before)
    assert (int(state.schedule_step), int(metrics["skipped"])) == (1, 1)


def test_the_average_follows_the_parameters():
    state = init_state(PUBLISHED, jax.random.key(0))
    expected = jax.tree.map(np.asarray, state.params)
    for step in range(3):
        state, _ = train_step(PUBLISHED, state, batch_of(step))
        expected = jax.tree.map(lambda e, p: 0.75 * e + 0.25 * p, expected, state.params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), state.ema, expected)
    norm = optax.tree.norm(jax.tree.map(jnp.subtract, state.ema, state.params))
    assert float(norm) > 0


def test_skips_in_a_row_are_counted_until_the_next_update():
    state = init_state(PUBLISHED, jax.random.key(0))
    bad = batch_of()
    bad.targets.image[:] = np.inf
    counts = []
    for batch in (bad, bad, batch_of(), bad):
        state, metrics = train_step(PUBLISHED, state, batch)
        counts.append((int(metrics["skipped"]), int(metrics["skipped_in_a_row"])))
    assert counts == [(1, 1), (2, 2), (2, 0), (3, 1)]


def test_micro_batches_are_one_batch():
    whole, parts = PUBLISHED, dataclasses.replace(PUBLISHED, micro_batches=2)
    results = []
    for recipe in (whole, parts):
        state = init_state(recipe, jax.random.key(0))
        for step in range(2):
            state, metrics = train_step(recipe, state, batch_of(step))
        results.append((state.params, metrics["loss"], metrics["grad_norm"]))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), *results)
    with pytest.raises(InputError, match="does not divide into micro_batches=3"):
        odd = dataclasses.replace(PUBLISHED, micro_batches=3)
        train_step(odd, init_state(odd, jax.random.key(0)), batch_of())


def test_a_step_compiles_once_per_shape():
    state = init_state(PUBLISHED, jax.random.key(0))
    state, _ = train_step(PUBLISHED, state, batch_of())
    compiled = train_step._cache_size()
    for step in range(3):
        state, _ = train_step(PUBLISHED, state, batch_of(step))
    assert train_step._cache_size() <= compiled + 1  # committed outputs may add one


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": "sgd"}, "adamw or muon"),
        ({"schedule": "step"}, "constant or linear or cosine"),
        ({"schedule": "linear", "decay_start": 5, "decay_end": 5}, "an update after 5"),
        ({"schedule": "cosine", "decay_end": 3000}, "an update after 3000"),
        ({"decay_end": 5}, "'constant' has no decay_start and decay_end"),
        ({"ema_decay": 1.0}, "below 1"),
    ],
)
def test_impossible_settings_are_refused(values, message):
    with pytest.raises(InputError, match=message):
        OptimizerConfig(**values)
