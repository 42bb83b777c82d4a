"""The closed-form fit of P: exact where a P made the data, nearer than P = 0 in every layer."""

import dataclasses

import jax
import numpy as np
import pytest
from conftest import random_views
from small_vggt import configured, small_vggt

from efficient_lvsm_jax.compress.fit import Products, Taught, changed, places, products, replaced
from efficient_lvsm_jax.compress.passes import SEEING
from efficient_lvsm_jax.models.model import bind

SPARSE = "encoder=0.3:block4,frame=0.3:block4,global=0.3:block4,camera=0.4:token"


def products_of(linear, sparse, dense):
    """Of arrays [L, H, N, K]."""
    both = np.concatenate([linear, sparse], axis=-1)
    of = np.swapaxes(both, -1, -2)
    return Products(of @ both, of @ dense, np.square(dense).sum((-1, -2), keepdims=True))


def test_a_projection_that_made_the_data_is_found_again():
    rng = np.random.default_rng(0)
    linear, sparse = rng.normal(size=(2, 3, 2, 500, 8))
    made = rng.normal(size=(3, 8, 8))
    found = products_of(linear, sparse, sparse + linear @ made[:, None])
    np.testing.assert_allclose(found.fitted(), made, atol=5e-3)  # the ridge
    assert found.errors(made).max() < 1e-6 and found.errors(0 * made).min() > 0.5
    assert found.errors(found.fitted()).max() < 2e-3
    made = rng.normal(size=(3, 2, 8, 8))
    found = products_of(linear, sparse, sparse + linear @ made)
    np.testing.assert_allclose(found.fitted(per_head=True), made, atol=5e-3)
    assert (
        found.errors(found.fitted(per_head=True)).max() < 2e-3 < found.errors(found.fitted()).min()
    )


def test_errors_are_those_of_the_arrays_and_tokens_add_up():
    rng = np.random.default_rng(1)
    linear, sparse, dense = rng.normal(size=(3, 2, 2, 60, 4))
    whole = products_of(linear, sparse, dense)
    parts = [
        products_of(*(x[:, :, part] for x in (linear, sparse, dense)))
        for part in (slice(0, 20), slice(20, None))
    ]
    projection = rng.normal(size=(2, 4, 4))
    left = sparse + linear @ projection[:, None] - dense
    expected = np.sqrt(np.square(left).sum((1, 2, 3)) / np.square(dense).sum((1, 2, 3)))
    np.testing.assert_allclose(whole.errors(projection), expected)
    np.testing.assert_allclose(jax.tree.map(np.add, *parts).fitted(), whole.fitted())
    nothing = products_of(0 * linear, sparse, dense)
    assert not nothing.fitted().any()


@pytest.fixture(scope="module")
def sparse(small_model):
    """The small model where every place is sparse, and P = 0 there."""
    text = ",".join(f"{place}=0.3:block2:from0" for place in small_model.config.places)
    config = dataclasses.replace(small_model.config, attention_sparsity=text)
    shapes = places(small_model.family, config)
    kernels = {place: np.zeros(shape, np.float32) for place, shape in shapes.items()}
    return dataclasses.replace(
        small_model, config=config, params=replaced(small_model.params, kernels)
    )


def through(network, batch):
    views, cameras = batch
    return network.decode(network.encode(views), cameras)


def test_the_fit_lowers_the_error_of_every_layer_and_any_blocks_are_worse(sparse):
    batches = [(random_views(3, seed=n), random_views(2, seed=9 + n).cameras) for n in range(2)]
    found = products(sparse.family, sparse.config, sparse.params, through, batches)
    assert set(found) == {
        *("encoder/attention", "decoder/self_attention", "decoder/cross_attention")
    }
    for chosen, at_random in found.values():
        nothing = np.zeros_like(chosen.fitted())
        assert (chosen.errors(chosen.fitted()) < chosen.errors(nothing)).all()
        assert chosen.errors(nothing).mean() < at_random.errors(nothing).mean()
        by_head = chosen.errors(chosen.fitted(per_head=True))
        assert (by_head < chosen.errors(chosen.fitted()) + 1e-3).all()


def test_while_it_is_watched_the_dense_model_is_what_runs(sparse, small_model):
    batch = random_views(3), random_views(2, seed=1).cameras

    @jax.jit
    def taught(params):
        return through(changed(bind(sparse.family, sparse.config, params), Taught), batch)

    dense = small_model.decode(small_model.encode(batch[0]), batch[1])
    np.testing.assert_allclose(taught(sparse.params), dense, atol=1e-5)
    lossy = sparse.decode(sparse.encode(batch[0]), batch[1])
    assert np.abs(lossy - dense).max() > 1e-3


def test_all_iterations_of_a_camera_head_count_for_its_layers():
    config = configured(causal=False, attention_sparsity="camera=0.5:token:from0")
    layers, size = config.camera_layers, 2 * config.width // config.camera_heads
    shapes = places("vggt", config)
    assert shapes == {"camera_head/trunk": (layers, size, size)}
    zeros = {place: np.zeros(shape, np.float32) for place, shape in shapes.items()}
    params = replaced(small_vggt().params, zeros)
    views = random_views(4, size=(28, 28)), random_views(2, seed=1, size=(28, 28))
    found = products("vggt", config, params, SEEING.through, [views])
    chosen, _ = found["camera_head/trunk"]
    assert chosen.total.shape == (layers, config.camera_heads, 1, 1)
    nothing = np.zeros((layers, size, size))
    assert (chosen.errors(chosen.fitted()) < chosen.errors(nothing)).all()
