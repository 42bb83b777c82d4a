import dataclasses
import math

import jax
import pytest
from conftest import SMALL, random_views
from jax.extend import core
from jax.interpreters import partial_eval

from efficient_lvsm_jax.cost import flops
from efficient_lvsm_jax.metrics import lpips
from efficient_lvsm_jax.models.efficient_lvsm import EfficientLVSMConfig
from efficient_lvsm_jax.models.families import configure
from efficient_lvsm_jax.models.lvsm import DecoderOnlyConfig, EncoderDecoderConfig
from efficient_lvsm_jax.models.model import abstract_params, bind

PUBLISHED = EfficientLVSMConfig()
PARTS = (
    "encoder attention",
    "decoder self-attention",
    "decoder cross-attention",
    "MLP",
    "tokenizers and head",
)
SPARSE = "encoder=0.2:block4,frame=0.3:block4,global=0.25:block8"
# TFLOP of one forward pass of the published model (two a multiply-add), as others counted them:
# size, targets, inputs: PARTS in order, total.
TABLE = {
    (256, 1, 2): (0.193, 0.097, 0.164, 0.348, 0.003, 0.805),
    (256, 1, 64): (6.185, 0.097, 4.358, 7.538, 0.059, 18.24),
    (256, 4, 2): (0.193, 0.387, 0.483, 0.696, 0.005, 1.764),
    (256, 4, 16): (1.546, 0.387, 3.054, 2.319, 0.018, 7.324),
    (256, 8, 8): (0.773, 0.773, 2.938, 1.855, 0.014, 6.354),
    (512, 1, 4): (3.402, 0.850, 3.054, 2.319, 0.018, 9.64),
    (512, 4, 2): (1.701, 3.402, 5.644, 2.783, 0.022, 13.55),
    (512, 8, 64): (54.43, 6.803, 325.0, 33.40, 0.261, 419.9),
}


@pytest.mark.parametrize(("size", "targets", "inputs"), TABLE)
def test_forward_equals_the_published_models_table(size, targets, inputs):
    parts = flops.forward(PUBLISHED, inputs, targets, size * size)
    *expected, total = TABLE[size, targets, inputs]
    for part, tera in zip(PARTS, expected, strict=True):
        assert parts[part].total / 1e12 == pytest.approx(tera, rel=1e-3, abs=6e-4)
    assert sum(part.total for part in parts.values()) / 1e12 == pytest.approx(total, rel=1e-3)


@pytest.mark.parametrize(
    ("inputs", "targets", "size", "tera"),
    [(2, 1, 256, 1.74), (16, 4, 256, 113.0), (8, 8, 512, 901.8)],
)
def test_the_decoder_only_lvsm_costs_what_is_published(inputs, targets, size, tera):
    parts = flops.forward(DecoderOnlyConfig(), inputs, targets, size * size)
    assert sum(part.total for part in parts.values()) / 1e12 == pytest.approx(tera, rel=4e-3)


@pytest.mark.parametrize(("inputs", "tera"), [(2, 12.4), (8, 17.1), (32, 64.0)])
def test_the_encoder_decoder_lvsm_costs_what_is_published(inputs, tera):
    parts = flops.forward(EncoderDecoderConfig(), inputs, 8, 256**2)
    assert sum(part.total for part in parts.values()) / 1e12 == pytest.approx(tera, rel=6e-3)


@pytest.mark.parametrize("remat", ["none", "products", "full"])
@pytest.mark.parametrize("family", ["lvsm_decoder_only", "lvsm_encoder_decoder"])
def test_a_training_step_of_an_lvsm_costs_what_its_program_does(family, remat):
    layers = {"layers": 3} if family == "lvsm_decoder_only" else {"latents": 10}
    config = configure(family, {"width": 32, "head_dim": 16, "remat": remat, **layers})
    inputs, targets = random_views(2, batch=2), random_views(3, batch=2, seed=1)

    def loss(params):
        model = bind(family, config, params)
        return model.decode(model.encode(inputs), targets.cameras).mean()

    gradients = jax.make_jaxpr(jax.grad(loss))(abstract_params(family, config)).jaxpr
    used, _ = partial_eval.dce_jaxpr(gradients, [True] * len(gradients.outvars))
    expected = flops.train_step(config, 2, 2, 3, 16 * 24, fused_attention=False)
    assert dots(used) == expected.executed.total


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("vggt", {"layers": 4, "taps": (1, 2, 3, 4)}),
        ("vggt", {"layers": 4, "taps": (1, 2, 3, 4), "causal": False}),
        ("vggt", {"layers": 4, "taps": (1, 2, 3, 4), "attention_sparsity": SPARSE}),
        (
            "vggt",
            {"layers": 4, "taps": (1, 2, 3, 4), "causal": False, "attention_sparsity": SPARSE},
        ),
        ("depth_anything3", {"rays": "kept"}),
        ("depth_anything3", {"attention_sparsity": SPARSE}),
    ],
)
def test_observing_frames_costs_what_its_program_does(family, settings):
    small = {"width": 32, "head_dim": 8, "channels": (8, 16, 24, 32), "features": 16}
    config = configure(family, small | settings)
    images = jax.ShapeDtypeStruct((1, 3, 84, 112, 3), "float32")
    jaxpr = jax.make_jaxpr(
        lambda params, images: bind(family, config, params).observe(None, images)[1]
    )(abstract_params(family, config), images)
    parts = config.observe_flops(3, (84, 112))
    expected = sum(part.total for part in parts.values())
    assert dots(jaxpr.jaxpr) == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize(
    ("family", "text"),
    [
        ("efficient_lvsm", "cross=0.3"),
        ("efficient_lvsm", "encoder=0.1,decoder=0.3:block128x64,cross=0.2:block32"),
        ("efficient_lvsm", "encoder=0.3:from4096,cross=0.3:from9999"),
        ("lvsm_decoder_only", "decoder=0.3"),
        ("lvsm_decoder_only", "decoder=0.3:token"),
        ("lvsm_decoder_only", "decoder=0.1:class16"),
    ],
)
def test_sparse_attention_costs_what_its_program_does(family, text):
    config = configure(family, {"attention_sparsity": text, "layers": 2})
    views = random_views(4, size=(256, 256))

    def rendered(params, inputs):
        model = bind(family, config, params)
        return model.decode(model.encode(inputs), inputs.cameras)

    jaxpr = jax.make_jaxpr(rendered)(abstract_params(family, config), views)
    parts = flops.forward(config, 4, 4, 256**2)
    dense = flops.forward(dataclasses.replace(config, attention_sparsity=""), 4, 4, 256**2)
    expected, whole = (sum(part.total for part in x.values()) for x in (parts, dense))
    assert dots(jaxpr.jaxpr) == pytest.approx(expected, rel=0.05)
    saves = not any(word in text for word in ("from9999", "token"))
    assert expected < 0.98 * whole if saves else expected >= whole


def test_a_frame_of_a_stream_costs_more_with_every_frame_that_is_remembered():
    config = configure("vggt", {})
    few, more = (config.observe_flops(1, (392, 518), frames) for frames in (0, 40))
    assert few["within frames"] == more["within frames"] and few["maps"] == more["maps"]
    read = 2 * 2 * 1041**2 * 1024 * 24 * 40  # queries by keys
    assert more["among frames"].attention - few["among frames"].attention == read


def test_adding_a_view_to_a_session_costs_its_encoding_and_one_more_page_to_read():
    def tera(parts):
        return sum(part.total for part in parts.values()) / 1e12

    assert tera(PUBLISHED.encode_flops(1, 256**2)) == pytest.approx(0.242, abs=1e-3)
    pages = [tera(PUBLISHED.decode_flops(n, 8, 256**2)) for n in (0, 1, 32)]
    assert pages[0] == pytest.approx(1.94, abs=5e-3)
    assert pages[1] - pages[0] == pytest.approx(0.309, abs=1e-3)
    assert pages[2] - pages[0] == pytest.approx(32 * 0.309, rel=2e-3)


def dots(jaxpr) -> int:
    """FLOPs of all matrix products of a jaxpr, loops multiplied out; rays (3 channels) left out."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            contracted = equation.params["dimension_numbers"][0][0]
            depth = math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
            if depth > 3:
                total += 2 * depth * math.prod(equation.outvars[0].aval.shape)
        if equation.primitive.name == "conv_general_dilated":
            kernel = equation.invars[1].aval.shape  # [Y, X, C, outputs]
            total += 2 * math.prod(kernel[:3]) * math.prod(equation.outvars[0].aval.shape)
        times = equation.params["length"] if equation.primitive.name == "scan" else 1
        total += times * sum(dots(inner) for inner in core.jaxprs_in_params(equation.params))
    return total


@pytest.mark.parametrize("remat", ["none", "products", "attention", "full"])
def test_a_training_step_computes_exactly_these_products(remat):
    config = dataclasses.replace(SMALL, remat=remat)
    inputs, targets = random_views(2, batch=3), random_views(3, batch=3)

    def loss(params):
        model = bind("efficient_lvsm", config, params)
        return model.decode(model.encode(inputs), targets.cameras).mean()

    params = abstract_params("efficient_lvsm", config)
    expected = flops.train_step(config, 3, 2, 3, 16 * 24, fused_attention=False)
    assert dots(jax.make_jaxpr(loss)(params).jaxpr) == expected.forward.total
    gradients = jax.make_jaxpr(jax.grad(loss))(params).jaxpr
    # The gradients for pictures and rays are written down, and dropped by a compiler.
    used, _ = partial_eval.dce_jaxpr(gradients, [True] * len(gradients.outvars))
    assert dots(used) == expected.executed.total
    assert (expected.recompute.total == 0) == (remat == "none")


@pytest.mark.parametrize("remat", ["none", "products", "attention", "full"])
def test_attention_in_loops_computes_scores_again_and_nothing_more(remat):
    config = dataclasses.replace(SMALL, remat=remat)
    inputs, targets = (random_views(2, size=(136, 136)) for _ in "it")  # 17 x 17 tokens

    def loss(params):
        model = bind("efficient_lvsm", config, params)
        return model.decode(model.encode(inputs), targets.cameras).mean()

    gradients = jax.make_jaxpr(jax.grad(loss))(abstract_params("efficient_lvsm", config)).jaxpr
    used, _ = partial_eval.dce_jaxpr(gradients, [True] * len(gradients.outvars))
    expected = flops.train_step(config, 1, 2, 2, 136**2, fused_attention=True)
    assert dots(used) == expected.executed.total


def test_fused_attention_recomputes_scores_even_when_everything_else_is_kept():
    plain, fused = (
        flops.train_step(PUBLISHED, 1, 2, 6, 256**2, fused_attention=on) for on in (False, True)
    )
    assert fused.model == plain.model
    assert fused.recompute.attention == fused.forward.attention / 2
    assert plain.recompute.total == 0


def test_a_loss_through_vgg16_costs_three_times_its_convolutions():
    # 15.3 G multiply-adds a 224x224 picture in the literature, of which 0.12 are fully connected.
    pictures = flops.frozen_loss(lpips.abstract_params(), 2, 224 * 224)
    assert pictures / 1e9 == pytest.approx(3 * 2 * 2 * 15.35, rel=0.01)
