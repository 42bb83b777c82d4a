"""Layers that are written out instead of a loop: the same numbers in every family."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import SMALL, random_views
from small_depth_anything3 import small_da3
from small_vggt import small_vggt

from efficient_lvsm_jax.models.families import configure
from efficient_lvsm_jax.models.model import Model, bind, init_params
from efficient_lvsm_jax.nn import cache as pages

VIEWS, CAMERAS = random_views(3, seed=1, size=(16, 16)), random_views(1, size=(16, 16)).cameras


def both(model):
    """The model with a loop over layers, and with these written out."""
    for scan in (True, False):
        yield dataclasses.replace(model, config=dataclasses.replace(model.config, scan_layers=scan))


@pytest.mark.parametrize("remat", ["none", "products"])
def test_gradients_and_taps_of_training_are_the_same(small_model, remat):
    @functools.partial(jax.jit, static_argnums=0)
    def gradients(config, params):
        def loss(params):
            module = bind("efficient_lvsm", config, params)
            memory, taps = module.encode_with_taps(VIEWS, (2, 1))
            return jnp.mean(module.decode(memory, CAMERAS) ** 2), taps

        return jax.grad(loss, has_aux=True)(params)

    settings = {"remat": remat}
    model = dataclasses.replace(small_model, config=dataclasses.replace(SMALL, **settings))
    looped, written = (gradients(each.config, each.params) for each in both(model))
    for got, expected in zip(*map(jax.tree.leaves, (written, looped)), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-6)


def test_pictures_from_a_cache_are_the_same(small_model):
    pictures = []
    for model in both(small_model):
        cache = pages.grow(model.encode(VIEWS), 5)
        pictures.append(model.decode(pages.remove(cache, 1), CAMERAS))
    np.testing.assert_allclose(*pictures, atol=1e-6)


def test_other_families_see_and_render_the_same():
    config = configure("lvsm_decoder_only", {"width": 32, "head_dim": 16, "layers": 2})
    lvsm = Model(
        "lvsm_decoder_only", config, init_params("lvsm_decoder_only", config, jax.random.key(0))
    )
    pictures = [model.decode(model.encode(VIEWS), CAMERAS) for model in both(lvsm)]
    np.testing.assert_allclose(*pictures, atol=1e-6)
    for model in (small_vggt(), small_da3()):
        clip = np.random.default_rng(0).random((1, 2, 28, 42, 3), np.float32)
        looped, written = (each.observe(None, clip) for each in both(model))
        for got, expected in zip(*map(jax.tree.leaves, (written, looped)), strict=True):
            np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)
