"""A family is its own files: one that nothing else names trains, renders, is saved and costed."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import random_views

import efficient_lvsm_jax as elvsm
from efficient_lvsm_jax.cost import flops
from efficient_lvsm_jax.cost.memory import activations
from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.geometry.cameras import Batch
from efficient_lvsm_jax.models import families as known
from efficient_lvsm_jax.models.families import Family, configure, families, register
from efficient_lvsm_jax.models.model import Model, init_params
from efficient_lvsm_jax.models.view_synthesis import ModelConfig, ViewModel
from efficient_lvsm_jax.nn.flops import Flops, projections
from efficient_lvsm_jax.nn.layers import MLP, uniform
from efficient_lvsm_jax.training.objective import LossConfig, load_frozen
from efficient_lvsm_jax.training.optimizer import OptimizerConfig
from efficient_lvsm_jax.training.step import Recipe, init_state, train_step
from efficient_lvsm_jax.weights.folder import save_weights

NAME = "mean_of_views"


@dataclasses.dataclass(frozen=True)
class MeanConfig(ModelConfig):
    """Settings of the toy.

    Attributes:
      gain: of the memory.
    """

    gain: float = 1.0

    def encode_flops(self, inputs, pixels):
        return {"tokenizers and head": self.pixels_flops(pixels, 9) * inputs}

    def decode_flops(self, inputs, targets, pixels):
        tokens = targets * pixels // self.patch**2
        mlp = projections(self.width, tokens, 2 * self.mlp_ratio)
        return {"MLP": mlp, "tokenizers and head": self.pixels_flops(pixels, 9) * targets}

    def recomputed_projections(self, inputs, targets, tokens):
        return Flops()

    def activation_units(self, layer, inputs, targets, tokens):
        return targets * layer.self_attention, 2.0 * targets


class MeanOfViews(ViewModel):
    """Its memory is the mean token of all inputs, which is added to every target token."""

    def __init__(self, config, *, rngs):
        super().__init__(config, rngs=rngs)
        self.mlp = MLP(config.width, config.mlp_ratio * config.width, uniform(), rngs=rngs)

    def encode(self, views):
        return self.input_tokens(views).mean(axis=(1, 2))

    def decode(self, memory, cameras):
        tokens = self.target_tokens(cameras) + self.config.gain * memory[:, None, None]
        return self.pictures(self.mlp(tokens), cameras)


@pytest.fixture(scope="module")
def model():
    register(Family(NAME, MeanConfig, MeanOfViews))
    config = configure(NAME, {"width": 16, "head_dim": 8, "mlp_ratio": 2, "gain": 2.0})
    yield Model(NAME, config, init_params(NAME, config, jax.random.key(0)))
    del known._REGISTERED[NAME]  # no other test knows it


def test_the_families_of_the_package_are_found():
    assert {"efficient_lvsm", "lvsm_decoder_only", "lvsm_encoder_decoder"} <= families().keys()


def test_a_name_stands_for_one_family(model):
    with pytest.raises(ValueError, match=f"another model family '{NAME}'"):
        register(Family(NAME, ModelConfig, MeanOfViews))
    with pytest.raises(InputError, match=r"unknown model family 'nerf'.*efficient_lvsm"):
        configure("nerf", {})


def test_a_new_family_renders_in_a_session_and_from_its_weights_folder(model, tmp_path):
    info = {"family": NAME, "config": dataclasses.asdict(model.config)}
    save_weights(tmp_path / "weights", model.params, info)
    views, pictures = random_views(2), []
    for each in (model, elvsm.load(tmp_path / "weights")):
        session = elvsm.Session(each)
        for i in range(2):
            session.add(views.image[0, i], views.c2w[0, i], views.fxfycxcy[0, i])
        size = views.image.shape[2:4]
        pictures.append(session.render(views.c2w[0, 0], views.fxfycxcy[0, 0], size))
    np.testing.assert_array_equal(*pictures)
    assert np.ptp(pictures[0]) > 0


def test_a_new_family_trains(model):
    recipe = Recipe(NAME, model.config, OptimizerConfig(name="adamw", warmup_steps=1))
    state = init_state(recipe, jax.random.key(0))
    batch = Batch(*(random_views(count, seed=count) for count in (2, 3)))
    losses = []
    for _ in range(20):
        state, metrics = train_step(recipe, state, batch)
        losses.append(float(metrics["loss"]))
    assert losses[-1] < losses[0]


def test_the_cost_of_a_new_family_is_what_it_says(model):
    work = flops.train_step(model.config, 1, 2, 3, 64, fused_attention=True)
    ends, mlp = 2 * 64 * 9 * 16, 2 * 16 * 4 * 16
    assert work.forward == Flops(linear=5 * ends + 3 * mlp)
    kept, working = activations(model.config, 2, 3, 64, platform="cpu")
    assert kept > working > 0


def test_what_a_family_cannot_do_is_refused_by_name(model, tmp_path):
    with pytest.raises(InputError, match=r"cannot be tapped; set losses\.repa=0"):
        load_frozen(LossConfig(repa=1.0, teacher="any"), model.config)
    with pytest.raises(InputError, match=NAME):
        elvsm.Session(model, precision="int8")
    assert jnp.ndim(model.encode(random_views(2))) == 2
