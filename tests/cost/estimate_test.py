import dataclasses

import jax
import jax.numpy as jnp
import pytest

from data_pipeline.batches.settings import DataConfig
from efficient_lvsm_jax.cost.memory import Estimate, activations, estimate
from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.geometry.cameras import Batch, Views
from efficient_lvsm_jax.models.efficient_lvsm import EfficientLVSMConfig
from efficient_lvsm_jax.models.families import configure
from efficient_lvsm_jax.training.optimizer import OptimizerConfig
from efficient_lvsm_jax.training.step import Recipe, abstract_state, train_step

FAMILY = "efficient_lvsm"
ONE = {"data": 1, "fsdp": 1}
PUBLISHED = Recipe(
    FAMILY, EfficientLVSMConfig(compute_dtype="bfloat16", remat="attention"), OptimizerConfig()
)
POD_BATCH = DataConfig(path="re10k", size=256, batch_size=64, num_inputs_cycle=(2,), num_targets=6)


def of(recipe=PUBLISHED, data=POD_BATCH, mesh=None, platform="tpu"):
    return estimate(
        recipe.model,
        abstract_state(recipe),
        mesh or {"data": 16, "fsdp": 1},
        batch_size=data.batch_size,
        inputs=max(data.num_inputs_cycle),
        targets=data.num_targets,
        pixels=data.size**2,
        platform=platform,
        micro_batches=recipe.micro_batches,
    )


def with_model(**changes):
    return dataclasses.replace(PUBLISHED, model=dataclasses.replace(PUBLISHED.model, **changes))


def test_state_is_counted_exactly():
    optimizer = OptimizerConfig(name="adamw", ema_decay=0.9)
    recipe = dataclasses.replace(PUBLISHED, optimizer=optimizer)
    parameters = 199_070_208 * 4
    sizes = of(recipe).bytes
    assert sizes["parameters"] == sizes["average"] == parameters
    assert 2 * parameters <= sizes["optimizer state"] < 2 * parameters + 100  # and counters
    split = of(recipe, mesh={"data": 4, "fsdp": 4}).bytes
    assert split["parameters"] == pytest.approx(parameters / 4, rel=1e-4)  # norm scales are not
    muon = dataclasses.replace(recipe, optimizer=OptimizerConfig(name="muon"))
    assert of(muon).bytes["optimizer state"] == pytest.approx(parameters, rel=0.01)


# Peaks in MiB that libtpu 0.0.42 gave for the published model with splash attention: data, fsdp,
# scenes of a device, size, remat, inputs, targets.
COMPILED_FOR_TPU = {
    (4, 1, 4, 256, "attention", 2, 6): 7888,
    (4, 1, 8, 256, "attention", 2, 6): 13057,
    (4, 1, 2, 256, "attention", 6, 2): 5434,
    (4, 1, 1, 512, "attention", 2, 6): 7496,
    (4, 1, 1, 256, "none", 2, 6): 12502,
    (4, 1, 4, 256, "full", 2, 6): 5410,
    (4, 1, 4, 256, "full", 6, 2): 6931,
}


@pytest.mark.parametrize("case", COMPILED_FOR_TPU)
def test_the_published_model_on_a_tpu_is_within_a_quarter_of_what_was_compiled(case):
    data, fsdp, scenes, size, remat, inputs, targets = case
    batch = dataclasses.replace(
        POD_BATCH,
        size=size,
        batch_size=scenes * data * fsdp,
        num_inputs_cycle=(inputs,),
        num_targets=targets,
    )
    guess = of(with_model(remat=remat), batch, {"data": data, "fsdp": fsdp})
    assert 0.95 < guess.total / 2**20 / COMPILED_FOR_TPU[case] < 1.25


@pytest.mark.parametrize(("scenes", "mib"), [(8, 28347), (16, 56305)])
def test_layers_written_out_for_a_gpu_keep_half(scenes, mib):
    batch = dataclasses.replace(POD_BATCH, batch_size=scenes)
    model = with_model(remat="none", scan_layers=False)
    guess = of(model, batch, {"data": 1, "fsdp": 1}, "gpu").bytes
    within = sum(guess[kind] for kind in ("gradients", "kept for the backward pass"))
    assert 0.95 < (within + guess["in use at once"]) / 2**20 / mib < 1.25


@pytest.mark.parametrize(
    ("family", "sizes"),
    [
        (FAMILY, {"layers": 2, "remat": "attention"}),
        ("lvsm_decoder_only", {"layers": 4, "remat": "attention"}),
        ("lvsm_decoder_only", {"layers": 4, "remat": "none"}),
        (
            "lvsm_encoder_decoder",
            {"encoder_layers": 2, "decoder_layers": 2, "latents": 108, "remat": "full"},
        ),
    ],
)
def test_a_small_model_on_this_cpu_is_within_a_quarter_of_what_is_compiled(family, sizes):
    model = configure(family, {"width": 128, "mlp_ratio": 3, **sizes})
    recipe = Recipe(family, model, OptimizerConfig())
    state = abstract_state(recipe)

    def side(views):
        def array(*shape, dtype=jnp.float32):
            return jax.ShapeDtypeStruct((8, views, *shape), dtype)

        image = array(48, 48, 3, dtype=jnp.uint8)
        return Views(image, array(4, 4), array(4))

    compiled = train_step.lower(recipe, state, Batch(side(2), side(4))).compile()
    memory = compiled.memory_analysis()
    needed = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    batch = DataConfig(batch_size=8, num_inputs_cycle=(2,), num_targets=4)
    assert of(recipe, batch, ONE, platform="cpu").total == pytest.approx(needed, rel=0.25)


def test_more_scenes_views_and_pixels_take_more():
    for changes in ({"batch_size": 128}, {"num_inputs_cycle": (2, 7)}, {"num_targets": 7}):
        assert of(data=dataclasses.replace(POD_BATCH, **changes)).total > of().total
    larger = dataclasses.replace(POD_BATCH, size=512)
    assert 2 * of().total < of(data=larger).total < 4 * of().total


def test_keeping_less_takes_less():
    none, products, attention, full = (
        of(with_model(remat=remat)).total for remat in ("none", "products", "attention", "full")
    )
    assert none > 2 * attention > 2 * full
    assert none > 1.4 * products > 1.4 * attention
    parts = dataclasses.replace(PUBLISHED, micro_batches=4)
    assert of(parts).total < of().total
    assert of(parts).scenes == of().scenes // 4 == 1


def test_heads_narrower_than_a_tpus_lanes_are_padded_there_only():
    kept = {
        platform: activations(PUBLISHED.model, 2, 6, 256**2, platform=platform)[0]
        for platform in ("tpu", "gpu")
    }
    unit = 1024 * 768 * 2
    assert kept["tpu"] - kept["gpu"] == 12 * (2 * 1 + 6 * 2) * unit


def test_it_says_what_it_takes_in_one_line():
    guess = of()
    assert str(guess).startswith("about 8.0 GiB a device (kept for the backward pass 3.1, ")
    assert str(guess).endswith(", 4 scenes at once")


def test_a_batch_that_does_not_divide_is_an_error():
    with pytest.raises(InputError, match=r"batch_size=60 does not divide.* multiple of 16"):
        of(data=dataclasses.replace(POD_BATCH, batch_size=60))


def test_less_than_a_gibibyte_is_given_in_mebibytes():
    small = Estimate({"parameters": 3 * 2**20, "batch": 2**19}, scenes=2)
    expected = "about 3.5 MiB a device (parameters 3.0, batch 0.5, …), 2 scenes at once"
    assert str(small) == expected
