"""The LVSM baselines: parity, what their structure promises, conversion, training by config."""

import dataclasses
import functools
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import GOLDENS, channels_last, golden, golden_views, one_view, random_views
from torch_files import write_arrays

import efficient_lvsm_jax as elvsm
import train as trainer
from efficient_lvsm_jax.convert.__main__ import main as convert_main
from efficient_lvsm_jax.convert.conversion import convert
from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.files.torch_file import open_torch
from efficient_lvsm_jax.models.families import configure
from efficient_lvsm_jax.models.model import Model, abstract_params, bind, init_params
from efficient_lvsm_jax.parallel.sharding import make_mesh
from efficient_lvsm_jax.training.losses import psnr_of_batch
from efficient_lvsm_jax.training.objective import LossConfig, load_frozen
from efficient_lvsm_jax.training.optimizer import OptimizerConfig, make_optimizer
from efficient_lvsm_jax.weights.published import bring_out, count_tensors
from eval import Options, evaluate

DECODER_ONLY, ENCODER_DECODER = "lvsm_decoder_only", "lvsm_encoder_decoder"
LIMITS = {DECODER_ONLY: 2e-5, ENCODER_DECODER: 5e-4}
SMALL = {"width": 32, "head_dim": 16, "patch": 8, "mlp_ratio": 2, "init": "uniform"}
SIZES = {
    DECODER_ONLY: {"layers": 2},
    ENCODER_DECODER: {"encoder_layers": 2, "decoder_layers": 1, "latents": 10},
}


@pytest.fixture(scope="module", params=[DECODER_ONLY, ENCODER_DECODER])
def family(request):
    return request.param


@pytest.fixture(scope="module")
def model(family):
    config = configure(family, SMALL | SIZES[family])
    return Model(family, config, init_params(family, config, jax.random.key(0)))


def render(model, views, cameras):
    return np.asarray(model.decode(model.encode(views), cameras))


def test_render_equals_the_published_program(family, parity):
    published, data = elvsm.load(GOLDENS / f"{family}.pt"), golden(family)
    views, cameras, truth = golden_views(data)
    images = render(published, views, cameras)
    title = family.replace("lvsm_", "LVSM ").replace("_", "-")
    parity(f"{title}: render", images, channels_last(data["render"]), LIMITS[family])
    found = psnr_of_batch(jnp.mean((images - truth) ** 2))
    parity(f"{title}: PSNR, dB", found, data["psnr"], 1e-3)


@pytest.mark.parametrize(
    ("name", "tensors", "parameters"),
    [(DECODER_ONLY, 197, 170_795_520), (ENCODER_DECODER, 198, 173_154_816)],
)
def test_the_published_sizes_have_the_published_tensors(name, tensors, parameters):
    config = configure(name, {})
    assert count_tensors(name, config) == tensors
    shapes = jax.tree.leaves(abstract_params(name, config))
    assert sum(x.size for x in shapes) == parameters


def test_the_order_of_input_views_does_not_matter(model):
    views, cameras = random_views(3), random_views(2, seed=1).cameras
    turned = jax.tree.map(lambda x: x[:, ::-1], views)
    np.testing.assert_allclose(
        render(model, turned, cameras), render(model, views, cameras), atol=2e-5
    )


def test_targets_together_equal_targets_alone(model):
    views, targets = random_views(2), random_views(3, seed=1)
    together = render(model, views, targets.cameras)
    for index in range(3):
        alone = render(model, views, one_view(targets, index).cameras)
        np.testing.assert_allclose(together[:, index : index + 1], alone, atol=2e-6)


def test_a_cpu_walks_long_targets_one_by_one(model, monkeypatch):
    views, cameras = random_views(2, batch=2), random_views(3, seed=1, batch=2).cameras
    at_once = render(model, views, cameras)
    monkeypatch.setattr("efficient_lvsm_jax.nn.stacks.CPU_TOKENS_AT_ONCE", 1)

    @jax.jit
    def walk(params):
        module = bind(model.family, model.config, params)
        return module.decode(module.encode(views), cameras)

    walked = walk(model.params)
    np.testing.assert_allclose(walked, at_once, atol=2e-6)


@functools.partial(jax.jit, static_argnums=(0, 1))
def gradient(family, config, params):
    views, targets = random_views(2), random_views(2, seed=1)

    def loss(params):
        module = bind(family, config, params)
        return ((module.decode(module.encode(views), targets.cameras) - targets.image) ** 2).mean()

    return jax.grad(loss)(params)


def test_every_parameter_has_a_gradient(model):
    gradients = gradient(model.family, model.config, model.params)
    for path, found in jax.tree_util.tree_leaves_with_path(gradients):
        assert np.abs(found).max() > 0, path


@pytest.mark.parametrize("remat", ["products", "attention", "full"])
def test_what_is_kept_for_the_backward_pass_changes_no_gradient(model, remat):
    lean = dataclasses.replace(model.config, remat=remat)
    found = (gradient(model.family, config, model.params) for config in (lean, model.config))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-7, rtol=1e-4), *found)


def test_bfloat16_stays_near(model):
    views, cameras = random_views(2), random_views(1, seed=1).cameras
    half = dataclasses.replace(
        model, config=dataclasses.replace(model.config, compute_dtype="bfloat16")
    )
    np.testing.assert_allclose(
        render(half, views, cameras), render(model, views, cameras), atol=3e-2
    )


def test_published_weights_go_out_as_they_came_in(family, tmp_path):
    done = convert(GOLDENS / f"{family}.pt", tmp_path / "weights")
    assert (done.family, done.left_out) == (family, {})
    there = elvsm.load(tmp_path / "weights")
    convert(tmp_path / "weights", tmp_path / "back.safetensors")
    back = elvsm.load(tmp_path / "back.safetensors")
    assert back.config == there.config
    tensors, again = (bring_out(x.params, family, x.config) for x in (there, back))
    assert tensors.keys() == again.keys()
    for name, value in tensors.items():
        np.testing.assert_array_equal(again[name], value)


def test_damaged_published_files_say_what_is_missing(tmp_path):
    with open_torch(GOLDENS / f"{ENCODER_DECODER}.pt") as content:
        tensors = {name: value.numpy() for name, value in content["model"].items()}

    def problems(changed):
        with pytest.raises(InputError) as caught:
            elvsm.load(write_arrays(tmp_path / "x.pt", changed))
        return str(caught.value)

    without = {name: x for name, x in tensors.items() if name != "n_light_field_latent"}
    assert "missing: n_light_field_latent" in problems(without)
    no_decoder = {
        name: x for name, x in tensors.items() if not name.startswith("transformer_decoder.")
    }
    assert "missing: transformer_decoder.0.attn.fc.weight" in problems(no_decoder)
    mixed = tensors | {"self_cross_blocks.0.self_attn.fc.weight": np.zeros((2, 2), np.float32)}
    assert "read as" in problems(mixed) and "unexpected: " in problems(mixed)
    bias = tensors | {"transformer_encoder.0.norm1.bias": np.zeros(64, np.float32)}
    assert "unexpected: transformer_encoder.0.norm1.bias" in problems(bias)


def test_fresh_parameters_are_drawn_as_published():
    sizes = {"encoder_layers": 6, "decoder_layers": 5, "latents": 300}
    config = configure(ENCODER_DECODER, {"width": 128} | sizes)
    params = init_params(ENCODER_DECODER, config, jax.random.key(0))
    for name, layers in (("encoder", 6), ("decoder", 5)):  # both count from 0
        kernel = params[name]["mlp"]["up"]["kernel"]
        expected = 0.02 / np.sqrt(2 * np.arange(1, layers + 1))
        np.testing.assert_allclose(kernel.std(axis=(1, 2)), expected, rtol=0.03)
        assert (params[name]["attention"]["norm"]["scale"] == 1).all()
    for drawn in (params["latents"], *(params[x]["kernel"] for x in ("head", "input_tokenizer"))):
        assert drawn.std() == pytest.approx(0.02, rel=0.03)


def test_weight_decay_moves_latents_and_kernels_but_no_scale(model):
    optimizer = make_optimizer(OptimizerConfig(weight_decay=0.1))
    zeros = jax.tree.map(jnp.zeros_like, model.params)
    updates, _ = jax.jit(optimizer.update)(zeros, optimizer.init(model.params), model.params)
    for path, update in jax.tree_util.tree_leaves_with_path(updates):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        assert np.any(np.asarray(update)) == (not name.endswith("scale")), name


def test_the_converter_compares_with_recorded_outputs(family, tmp_path, capsys):
    source, reference = (str(GOLDENS / f"{family}{end}") for end in (".pt", ".npz"))
    assert convert_main([source, "--out", str(tmp_path / "weights"), "--reference", reference]) == 0
    output = capsys.readouterr().out
    assert f"{family} (" in output
    assert f"limit={LIMITS[family]:.0e}" in output


def test_recorded_caches_are_not_compared_with_a_model_without_one(tmp_path):
    source, reference = str(GOLDENS / f"{DECODER_ONLY}.pt"), str(GOLDENS / "square.npz")
    with pytest.raises(InputError, match=r"cache_first_layer_k.* has no cache"):
        convert_main([source, "--out", str(tmp_path / "weights"), "--reference", reference])


def test_session_renders_all_views_it_has(model):
    views = random_views(3)
    frame = elvsm.SceneFrame.identity()
    session = elvsm.Session(model, frame=frame)
    pictures = [jax.tree.map(lambda x, i=i: x[0, i], views) for i in range(3)]
    ids = [session.add(view.image, view.c2w, view.fxfycxcy) for view in pictures]
    camera = random_views(1, seed=1).cameras

    def expected(kept):
        return render(model, jax.tree.map(lambda x: x[:, kept], views), camera)[0, 0]

    def got():
        return session.render(camera.c2w[0, 0], camera.fxfycxcy[0, 0], (16, 24))

    np.testing.assert_allclose(got(), expected([0, 1, 2]), atol=2e-6)
    session.remove(ids[1])
    np.testing.assert_allclose(got(), expected([0, 2]), atol=2e-6)
    session.replace(ids[2], *(getattr(pictures[1], name) for name in ("image", "c2w", "fxfycxcy")))
    np.testing.assert_allclose(got(), expected([0, 1]), atol=2e-6)


def test_train_and_eval_run_it_by_config_alone(family, tmp_path):
    config = importlib.import_module(f"configs.tiny_{family}").get_config()
    config.steps, config.checkpoint_every, config.log.every = 4, 2, 2
    config.log.pictures_every = 2
    config.mesh = "data:2,fsdp:2"
    sizes = {"layers": 1, "encoder_layers": 1, "decoder_layers": 1, "latents": 8}
    sizes = {name: size for name, size in sizes.items() if name in config.model}
    config.model.update(width=32, head_dim=16, **sizes)
    config.data.update(scenes=12, views=5, size=16, batch_size=4, num_targets=2)
    config.data.num_inputs_cycle = (2,)
    config.optimizer.update(name="adamw", warmup_steps=2, decay_start=3, decay_end=8)
    config.evaluation.update(scenes=2, size=16, film_frames=2)
    trainer.train(config, tmp_path / "run")
    trained = elvsm.load(tmp_path / "run")
    assert trained.family == family
    metrics = evaluate(config, trained, tmp_path / "evaluation", Options())
    assert np.isfinite(metrics["summary"]["psnr"])
    assert (tmp_path / "evaluation" / "report.html").is_file()


def test_spreading_the_views_of_a_scene_is_refused(model):
    with jax.set_mesh(make_mesh("context:2", jax.devices()[:2])):
        with pytest.raises(InputError, match="attends across them; use context:1"):
            model.encode(random_views(2))


def test_repa_is_refused(model):
    with pytest.raises(InputError, match=r"this model.s cannot be tapped; set losses\.repa=0"):
        load_frozen(LossConfig(repa=0.5, teacher=str(GOLDENS / "dinov3.pt")), model.config)
