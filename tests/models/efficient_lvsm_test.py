import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import GOLDENS, SMALL, channels_last, golden, golden_views, one_view, random_views

import efficient_lvsm_jax as elvsm
from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.geometry.cameras import Cameras, Views
from efficient_lvsm_jax.models import model as models
from efficient_lvsm_jax.models.efficient_lvsm import EfficientLVSMConfig
from efficient_lvsm_jax.models.families import configure
from efficient_lvsm_jax.models.model import Model, abstract_params, bind, init_params
from efficient_lvsm_jax.nn import cache as pages
from efficient_lvsm_jax.nn.attention import attend
from efficient_lvsm_jax.nn.paged import Pages
from efficient_lvsm_jax.nn.positions import KINDS

PUBLISHED = EfficientLVSMConfig()
FAMILY = "efficient_lvsm"


@pytest.fixture(scope="module", params=["square", "wide_compiled"])
def published(request):
    """A converted golden checkpoint and the recorded outputs of the published program."""
    return elvsm.load(GOLDENS / f"{request.param}.pt"), golden(request.param)


def test_a_cpu_renders_in_bfloat16_without_making_its_weights_float32():
    """Compilers like to, whole stacks at a time, for the sake of slicing them."""
    config = dataclasses.replace(SMALL, compute_dtype="bfloat16", layers=3)
    params = init_params(FAMILY, config, jax.random.key(0))
    model = Model(FAMILY, config, params)
    lowered = models._call.lower(FAMILY, config, "encode", model._ready, random_views(2))
    program = lowered.compile().as_text()
    stack = ",".join(map(str, params["encoder"]["mlp"]["up"]["kernel"].shape))
    assert f"u16[{stack}]" in program
    assert f"f32[{stack}]" not in program


def test_tokens_equal_the_published_program(published, parity):
    model, data = published
    views, cameras, _ = golden_views(data)
    for tokens, name in (
        (model.input_tokens(views), "input_tokens_after_tokenizer"),
        (model.target_tokens(cameras), "target_tokens_after_tokenizer"),
    ):
        parity("tokens", np.asarray(tokens).reshape(data[name].shape), data[name], 1e-5)


def test_cache_equals_the_published_program(published, parity):
    model, data = published
    cache = model.encode(golden_views(data)[0])
    for array, name in (
        (cache.k[0], "cache_first_layer_k"),
        (cache.v[0], "cache_first_layer_v"),
        (cache.k[-1], "cache_last_layer_k"),
    ):
        rows = jnp.einsum("BHSNK->BSNHK", array).reshape(data[name].shape)
        parity("cache, first and last layer", rows, data[name], 1e-4)


def test_render_equals_the_published_program(published, parity):
    model, data = published
    views, cameras, truth = golden_views(data)
    images = model.decode(model.encode(views), cameras)
    parity("render, all inputs at once", images, channels_last(data["render"]), 2e-5)
    error = float(jnp.mean((images - truth) ** 2))
    parity("mean squared error of the render", error, data["l2"], 1e-5)
    parity("PSNR of the render, dB", -10 * np.log10(error), data["psnr"], 1e-4)


def test_incremental_render_equals_the_published_program(published, parity):
    model, data = published
    views, cameras, _ = golden_views(data)
    cache = pages.empty(4, model.encode(one_view(views, 0)))
    for index, expected in enumerate(data["render_incremental"]):
        cache = pages.append(cache, model.encode(one_view(views, index)))
        images = model.decode(cache, cameras)
        parity("render, inputs added one by one", images, channels_last(expected), 2e-5)


def test_published_model_has_the_published_number_of_parameters():
    sizes = [x.size for x in jax.tree.leaves(abstract_params(FAMILY, PUBLISHED))]
    assert sum(sizes) == 199_070_208
    half = dataclasses.replace(PUBLISHED, layers=6)
    assert sum(x.size for x in jax.tree.leaves(abstract_params(FAMILY, half))) == 99_977_472


def test_initialisation_follows_the_published_rules():
    config = EfficientLVSMConfig(width=256, layers=4)
    params = init_params(FAMILY, config, jax.random.key(0))
    depth = 0.02 / np.sqrt(2 * np.arange(1, 5))
    for path in (("self_attention", "qkv"), ("cross_attention", "kv"), ("mlp", "down")):
        kernel = params["decoder"][path[0]][path[1]]["kernel"].reshape(4, -1)
        np.testing.assert_allclose(kernel.std(axis=1), depth, rtol=0.02)
    for kernel, fan_in in (
        (params["encoder"]["mlp"]["up"], 256),
        (params["encoder"]["mlp"]["down"], 1024),
    ):
        assert np.abs(kernel["kernel"]).max() <= fan_in**-0.5
        np.testing.assert_allclose(kernel["kernel"].std(), (3 * fan_in) ** -0.5, rtol=0.02)
    np.testing.assert_allclose(params["head"]["kernel"].std(), 0.02, rtol=0.02)
    assert (params["encoder"]["attention"]["q_norm"]["scale"] == 1).all()
    by_depth = dataclasses.replace(config, encoder_init="depth")
    kernel = init_params(FAMILY, by_depth, jax.random.key(0))["encoder"]["mlp"]["up"]["kernel"]
    np.testing.assert_allclose(kernel.reshape(4, -1).std(axis=1), depth, rtol=0.02)


def test_layers_differ_and_a_seed_repeats():
    params = init_params(FAMILY, SMALL, jax.random.key(3))
    again = init_params(FAMILY, SMALL, jax.random.key(3))
    jax.tree.map(np.testing.assert_array_equal, params, again)
    kernel = params["encoder"]["mlp"]["up"]["kernel"]
    assert np.abs(kernel[0] - kernel[1]).max() > 0.01


@pytest.mark.parametrize("size", [(16, 24), (8, 8), (40, 16)])
def test_any_size_divisible_by_the_patch_renders(small_model, size):
    views = random_views(2, size=size)
    target = Cameras(views.c2w, views.fxfycxcy, 24, 8)  # targets may differ from inputs
    images = small_model.decode(small_model.encode(views), target)
    assert images.shape == (1, 2, 24, 8, 3)
    assert images.dtype == jnp.float32
    assert ((images > 0) & (images < 1)).all()


@pytest.mark.parametrize("positions", KINDS)
def test_views_one_at_a_time_equal_views_together(small_model, monkeypatch, positions):
    views, targets = random_views(3), random_views(2, seed=5).cameras
    config = dataclasses.replace(SMALL, positions=positions)

    def render(params):
        module = bind(FAMILY, config, params)
        return module.decode(module.encode(views), targets)

    together = jax.jit(render)(small_model.params)
    monkeypatch.setattr("efficient_lvsm_jax.nn.stacks.CPU_TOKENS_AT_ONCE", 1)
    apart = jax.jit(lambda params: render(params))(small_model.params)
    np.testing.assert_allclose(apart, together, atol=1e-6)


def test_a_batch_of_scenes_equals_each_scene_alone(small_model):
    views, targets = random_views(2, batch=3), random_views(2, batch=3, seed=9).cameras
    together = small_model.decode(small_model.encode(views), targets)
    for scene in range(3):
        pick = jax.tree.map(lambda x, i=scene: x[i : i + 1], (views, targets))
        alone = small_model.decode(small_model.encode(pick[0]), pick[1])
        np.testing.assert_allclose(alone[0], together[scene], atol=1e-6)


@functools.partial(jax.jit, static_argnums=0)
def gradient(config, params, views, targets):
    def loss(params):
        module = bind(FAMILY, config, params)
        return jnp.mean((module.decode(module.encode(views), targets.cameras) - targets.image) ** 2)

    return jax.value_and_grad(loss)(params)


@pytest.mark.parametrize("remat", ["products", "attention", "full"])
def test_rematerialisation_changes_no_gradient(small_model, remat):
    views, targets = random_views(2), random_views(2, seed=4)
    plain = gradient(SMALL, small_model.params, views, targets)
    lean = gradient(dataclasses.replace(SMALL, remat=remat), small_model.params, views, targets)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-7), lean, plain)
    assert all(np.abs(g).max() > 0 for g in jax.tree.leaves(plain[1]))


def test_full_rematerialisation_needs_less_memory():
    config = EfficientLVSMConfig(width=128, layers=6)
    shapes = jax.eval_shape(lambda: (random_views(4, size=(128, 128)),) * 2)

    def temporaries(remat):
        config_ = dataclasses.replace(config, remat=remat)

        def loss(params, views, targets):
            module = bind(FAMILY, config_, params)
            return jnp.mean(module.decode(module.encode(views), targets.cameras))

        lowered = jax.jit(jax.grad(loss)).lower(abstract_params(FAMILY, config), *shapes)
        return lowered.compile().memory_analysis().temp_size_in_bytes

    full, attention, none = (temporaries(name) for name in ("full", "attention", "none"))
    assert full < attention < none


@functools.partial(jax.jit, static_argnums=(0, 4, 5))
def tapped(config, params, views, cameras, encoder_layers, decoder_layers):
    module = bind(FAMILY, config, params)
    cache, encoder_taps = module.encode_with_taps(views, encoder_layers)
    images, decoder_taps = module.decode_with_taps(cache, cameras, decoder_layers)
    return images, encoder_taps, decoder_taps


def test_taps_are_the_tokens_that_leave_their_layers_in_the_order_asked(small_model):
    views, targets = random_views(2), random_views(3, seed=4).cameras
    images, encoder_taps, decoder_taps = tapped(
        SMALL, small_model.params, views, targets, (2, 1), (1,)
    )
    assert encoder_taps.shape == (2, 1, 2, 6, 32)
    assert decoder_taps.shape == (1, 1, 3, 6, 32)
    cache = small_model.encode(views)
    np.testing.assert_allclose(images, small_model.decode(cache, targets), atol=1e-6)

    def layer(stack, index):
        return jax.tree.map(lambda x: x[index], stack)

    @jax.jit
    def one_by_one(params, cache):
        module = bind(FAMILY, SMALL, params)
        first = layer(module.encoder, 0)(module.input_tokens(views))
        second = layer(module.encoder, 1)(first)
        after = layer(module.decoder, 0)(
            module.target_tokens(targets), lambda q: attend(q, Pages(cache.k[0], cache.v[0]))
        )
        return jnp.stack([second, first]), after

    encoded, decoded = one_by_one(small_model.params, cache)
    np.testing.assert_allclose(encoder_taps, encoded, atol=2e-5)
    np.testing.assert_allclose(decoder_taps[0], decoded, atol=2e-5)


def test_gradients_flow_through_taps_to_the_layers_before_them_only(small_model):
    views, targets = random_views(2), random_views(1, seed=4).cameras

    def loss(params, config):
        _, encoder_taps, decoder_taps = tapped(config, params, views, targets, (1,), (1,))
        return jnp.sum(jnp.sin(encoder_taps)) + jnp.sum(jnp.sin(decoder_taps))

    gradients = jax.jit(jax.grad(loss), static_argnums=1)
    plain = gradients(small_model.params, SMALL)
    for name in ("encoder", "decoder"):
        kernel = np.abs(plain[name]["mlp"]["down"]["kernel"]).max(axis=(1, 2))
        assert kernel[0] > 0
        assert kernel[1] == 0
    assert np.abs(plain["head"]["kernel"]).max() == 0
    lean = gradients(small_model.params, dataclasses.replace(SMALL, remat="full"))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), lean, plain)


def test_taps_keep_no_other_layers():
    """Training memory with a tap in each stack grows by the taps, not by a tap per layer."""
    config = EfficientLVSMConfig(width=128, layers=12, remat="full")
    shapes = jax.eval_shape(lambda: (random_views(2, size=(128, 128)),) * 2)
    tap = 2 * 256 * 128 * 4  # [V, N, D] float32

    def temporaries(layers):
        def loss(params, views, targets):
            images, *taps = tapped(config, params, views, targets.cameras, layers, layers)
            return jnp.mean(images) + sum(jnp.sum(x**2) for x in taps if x is not None)

        lowered = jax.jit(jax.grad(loss)).lower(abstract_params(FAMILY, config), *shapes)
        return lowered.compile().memory_analysis().temp_size_in_bytes

    # In each of two stacks the tap and the slot of the other layers; all layers would be 24 taps.
    assert temporaries((6,)) - temporaries(()) <= 6 * tap


@pytest.mark.parametrize("layers", [(0,), (3,), (1, 1), (-1, 2)])
def test_taps_at_impossible_layers_are_refused(small_model, layers):
    with pytest.raises(InputError, match="distinct numbers from 1 to 2"):
        tapped(SMALL, small_model.params, random_views(1), random_views(1).cameras, layers, ())


def test_bfloat16_computes_near_float32(small_model):
    config = dataclasses.replace(SMALL, compute_dtype="bfloat16")
    half = Model(FAMILY, config, small_model.params)
    views, targets = random_views(2), random_views(2, seed=4).cameras
    cache = half.encode(views)
    assert cache.k.dtype == cache.v.dtype == jnp.bfloat16
    images = half.decode(cache, targets)
    assert images.dtype == jnp.float32
    exact = small_model.decode(small_model.encode(views), targets)
    assert 0 < np.abs(images - exact).max() < 0.05


def test_full_size_forward_fits_in_300_megabytes_of_temporaries():
    """256 px, 2 inputs, 8 targets, 199M parameters, compiled only: no score matrix exists."""
    shape = jax.ShapeDtypeStruct

    def cameras(count):
        return shape((1, count, 4, 4), jnp.float32), shape((1, count, 4), jnp.float32)

    views = Views(shape((1, 2, 256, 256, 3), jnp.float32), *cameras(2))
    targets = Cameras(*cameras(8), 256, 256)

    def render(params, views, targets):
        module = bind(FAMILY, PUBLISHED, params)
        return module.decode(module.encode(views), targets)

    lowered = jax.jit(render).lower(abstract_params(FAMILY, PUBLISHED), views, targets)
    assert lowered.compile().memory_analysis().temp_size_in_bytes <= 300e6


def test_image_not_divisible_by_the_patch_says_how_to_resize(small_model):
    views = random_views(1, size=(20, 24))
    with pytest.raises(InputError, match=r"20x24.*patch size 8.*16x24"):
        small_model.encode(views)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"widht": 64}, "did you mean model.width"),
        ({"width": 100}, "not a multiple of head_dim"),
        ({"layers": 0}, r"model\.layers=0: expected an integer, at least 1"),
        ({"remat": "some"}, "none or products or attention or full"),
        ({"compute_dtype": "float16"}, "float32 or bfloat16"),
    ],
)
def test_impossible_configurations_are_refused(values, message):
    with pytest.raises(InputError, match=message):
        configure(FAMILY, values)


def test_unknown_family_names_the_known_ones():
    with pytest.raises(InputError, match="efficient_lvsm"):
        configure("lvsm", {})
