"""The closed-form fit: exact where such a one made the data, nearer than P = 0 in every layer."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from conftest import random_views
from small_vggt import configured, small_vggt

from efficient_lvsm_jax.compress.fit import (
    Products,
    Taught,
    changed,
    fitted,
    products,
    replaced,
    unfitted,
)
from efficient_lvsm_jax.compress.passes import SEEING
from efficient_lvsm_jax.models.model import bind

SPARSE = "encoder=0.3:block4,frame=0.3:block4,global=0.3:block4,camera=0.4:token"


def products_of(linear, sparse, dense):
    """Of arrays [L, H, N, K]."""
    both = np.concatenate([linear, sparse], axis=-1)
    of = np.swapaxes(both, -1, -2)
    return Products(of @ both, of @ dense, np.square(dense).sum((-1, -2), keepdims=True))


def both(kernel, share):
    return {"kernel": kernel, "share": share}


def added(one, other):
    return jax.tree.map(np.add, one, other)


def test_the_fit_that_made_the_data_is_found_again():
    rng = np.random.default_rng(0)
    linear, sparse = rng.normal(size=(2, 3, 2, 500, 8))
    kernel, share = rng.normal(size=(3, 8, 8)), np.array([0.2, 0.7, 1.0])
    dense = share[:, None, None, None] * sparse + linear @ kernel[:, None]
    made = products_of(linear, sparse, dense)
    found = made.fitted(1e-6)
    np.testing.assert_allclose(found["kernel"], kernel, atol=1e-4)
    np.testing.assert_allclose(found["share"], share, atol=1e-4)
    assert made.errors(found).max() < 1e-4
    assert made.errors(both(0 * kernel, 1 + 0 * share)).min() > 0.5

    kernel, share = rng.normal(size=(3, 2, 8, 8)), rng.uniform(size=(3, 2))
    made = products_of(linear, sparse, share[..., None, None] * sparse + linear @ kernel)
    found = made.fitted(1e-6, per_head=True)
    np.testing.assert_allclose(found["kernel"], kernel, atol=1e-4)
    np.testing.assert_allclose(found["share"], share, atol=1e-4)
    assert made.errors(found).max() < 1e-4 < 0.1 < made.errors(made.fitted(1e-6)).min()


def test_a_fit_is_the_least_of_what_it_says():
    rng = np.random.default_rng(1)
    linear, sparse, dense = rng.normal(size=(3, 1, 2, 60, 4))
    ridge, size = 0.2, 4
    found = products_of(linear, sparse, dense).fitted(ridge)
    # The same as rows of one least-squares problem, for P and α together.
    rows = [np.kron(linear.reshape(-1, size), np.eye(size)), sparse.reshape(-1, 1)]
    held = np.square(linear).sum() / size, np.square(sparse).sum()
    left = np.sqrt(1 - ridge) * np.concatenate(rows, axis=1)
    below = np.diag(np.sqrt(ridge * np.array([*[held[0]] * size**2, held[1]])))
    right = np.concatenate([np.sqrt(1 - ridge) * dense.ravel(), below[:, -1]])
    expected, *_ = np.linalg.lstsq(np.concatenate([left, below]), right)
    np.testing.assert_allclose(found["kernel"].ravel(), expected[:-1])
    np.testing.assert_allclose(found["share"], expected[-1:])


def test_errors_are_those_of_the_arrays_and_tokens_add_up():
    rng = np.random.default_rng(1)
    linear, sparse, dense = rng.normal(size=(3, 2, 2, 60, 4))
    whole = products_of(linear, sparse, dense)
    parts = [
        products_of(*(x[:, :, part] for x in (linear, sparse, dense)))
        for part in (slice(0, 20), slice(20, None))
    ]
    fit = both(rng.normal(size=(2, 4, 4)), rng.normal(size=2))
    left = fit["share"][:, None, None, None] * sparse + linear @ fit["kernel"][:, None] - dense
    expected = np.sqrt(np.square(left).sum((1, 2, 3)) / np.square(dense).sum((1, 2, 3)))
    np.testing.assert_allclose(whole.errors(fit), expected)
    jax.tree.map(np.testing.assert_allclose, added(*parts).fitted(0.1), whole.fitted(0.1))


def test_a_layer_whose_fit_helps_no_other_scene_stays_as_it_was():
    rng = np.random.default_rng(2)
    linear, sparse, noise = rng.normal(size=(3, 4, 2, 2, 30, 8))  # scenes, then layers
    dense = sparse + noise
    dense[:, 1] += linear[:, 1] @ rng.normal(size=(8, 8))  # the same in all, of one layer
    scenes = [products_of(*each) for each in zip(linear, sparse, dense, strict=True)]
    found, ridge = fitted(scenes)
    assert ridge[0] == 1 and ridge[1] < 0.2
    np.testing.assert_array_equal(found["kernel"][0], 0)
    assert found["share"][0] == 1 and found["kernel"][1].any()
    for index in range(2):
        layer = jax.tree.map(lambda x, i=index: x[i : i + 1], found)
        expected = functools.reduce(added, scenes).fitted(ridge)
        jax.tree.map(
            lambda x, y, i=index: np.testing.assert_allclose(x, y[i : i + 1]), layer, expected
        )


def test_where_a_part_gives_nothing_it_is_left_alone():
    linear, sparse, dense = np.random.default_rng(3).normal(size=(3, 1, 2, 60, 4))
    found = products_of(0 * linear, sparse, dense).fitted(1e-3)
    assert not found["kernel"].any() and found["share"] != 1
    found = products_of(linear, 0 * sparse, dense).fitted(1e-3)
    assert found["kernel"].any() and found["share"] == 1


@pytest.fixture(scope="module")
def sparse(small_model):
    """The small model where every place is sparse, and P = 0 there."""
    text = ",".join(f"{place}=0.3:block2:from0" for place in small_model.config.places)
    config = dataclasses.replace(small_model.config, attention_sparsity=text)
    params = replaced(small_model.params, unfitted(small_model.family, config))
    return dataclasses.replace(small_model, config=config, params=params)


def through(network, batch):
    views, cameras = batch
    return network.decode(network.encode(views), cameras)


def test_the_fit_lowers_the_error_of_every_layer_and_any_blocks_are_worse(sparse):
    batches = [(random_views(3, seed=n), random_views(2, seed=9 + n).cameras) for n in range(2)]
    found = products(sparse.family, sparse.config, sparse.params, through, batches)
    assert set(found) == {
        *("encoder/attention", "decoder/self_attention", "decoder/cross_attention")
    }
    for place, nothing in unfitted(sparse.family, sparse.config).items():
        chosen, at_random = found[place]
        fit = chosen.fitted(1e-3)
        assert (chosen.errors(fit) < chosen.errors(nothing)).all()
        assert chosen.errors(nothing).mean() < at_random.errors(nothing).mean()
        by_head = chosen.fitted(1e-3, per_head=True)
        assert (chosen.errors(by_head) < chosen.errors(fit) + 1e-3).all()


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
    nothing = unfitted("vggt", config)
    assert nothing["camera_head/trunk"]["kernel"].shape == (layers, size, size)
    params = replaced(small_vggt().params, nothing)
    views = random_views(4, size=(28, 28)), random_views(2, seed=1, size=(28, 28))
    found = products("vggt", config, params, SEEING.through, [views])
    chosen, _ = found["camera_head/trunk"]
    assert chosen.total.shape == (layers, config.camera_heads, 1, 1)
    nothing = nothing["camera_head/trunk"]
    assert (chosen.errors(chosen.fitted(1e-3)) < chosen.errors(nothing)).all()
