"""Whoever watches a pass sees what its parts show, of every layer, and changes nothing."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from conftest import random_views

from efficient_lvsm_jax.models.model import bind
from efficient_lvsm_jax.nn.watching import is_watched, scan, show, watched


def test_what_nested_scans_show_is_stacked_in_the_order_of_calls():
    def inner(x, y):
        show("sum", x + y)
        show("sum", -y)
        return x + y, None

    def outer(x, y):
        return scan(inner, x, y)[0], None

    def through(xs):
        with watched() as shown:
            show("start", xs[0, 0])
            end, _ = scan(outer, jnp.zeros(()), xs)
        return end, shown

    xs = jnp.arange(6.0).reshape(2, 3)
    end, shown = jax.jit(through)(xs)
    assert end == 15 and not is_watched()
    np.testing.assert_array_equal(shown["sum"][0], [[0, 1, 3], [6, 10, 15]])
    np.testing.assert_array_equal(shown["sum"][1], -xs)
    np.testing.assert_array_equal(shown["start"], [0])


def test_a_watched_network_gives_what_it_gives_unwatched_rematerialised_or_not(small_model):
    model, views = small_model, random_views(3)
    config = dataclasses.replace(model.config, remat="full")

    @jax.jit
    def through(params):
        network = bind(model.family, config, params)
        plain = network.decode(network.encode(views), views.cameras)
        with watched() as shown:
            seen = network.decode(network.encode(views), views.cameras)
        return plain, seen, shown["attention"]

    plain, seen, attention = through(model.params)
    np.testing.assert_allclose(seen, plain, atol=1e-6)
    encoder, within, across = attention
    assert (
        encoder.shape == within.shape == across.shape == (config.layers, 1, 3, *encoder.shape[3:])
    )
    assert not np.allclose(within, across)
