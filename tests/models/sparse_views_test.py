"""Efficient-LVSM and LVSM with sparse attention: pictures, caches, sessions."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import SMALL, one_view, random_views

from efficient_lvsm_jax import InputError, SceneFrame, Session
from efficient_lvsm_jax.geometry.cameras import Cameras
from efficient_lvsm_jax.models.families import configure
from efficient_lvsm_jax.models.model import Model, _call, bind, init_params, with_projections
from efficient_lvsm_jax.nn import cache as pages
from efficient_lvsm_jax.weights.folder import save_weights
from efficient_lvsm_jax.weights.load import load
from efficient_lvsm_jax.weights.published import unshown

FAMILY = "efficient_lvsm"
# 6 x 5 patches: of blocks of four the last ones lie in two strips, or have two tokens.
VIEWS, CAMERAS = random_views(4, size=(48, 40)), random_views(2, seed=1, size=(48, 40)).cameras
PLACES = ("encoder", "attention"), ("decoder", "self_attention"), ("decoder", "cross_attention")
EVERYWHERE = "encoder={0}:block4:from0,decoder={0}:block4:from0,cross={0}:block4:from0"


def made(params, text, family=FAMILY, config=SMALL, scale=0.0):
    """The model with attention as `text` says, and P drawn at random."""
    config = dataclasses.replace(config, attention_sparsity=text)
    params = with_projections(params, family, config)
    draw = np.random.default_rng(0)

    def drawn(path, x):
        is_projection = jax.tree_util.keystr(path, simple=True).endswith("sparsekernel")
        return scale * draw.normal(size=x.shape).astype(np.float32) if is_projection else x

    return Model(family, config, jax.tree_util.tree_map_with_path(drawn, params))


@pytest.fixture(scope="module")
def sparse(small_model):
    return made(small_model.params, EVERYWHERE.format(0.3), scale=0.3)


def cache_of(model, *indices, capacity=5):
    cache = pages.empty(capacity, jax.eval_shape(model.encode, one_view(VIEWS, 0)))
    for index in indices:
        cache = pages.append(cache, model.encode(one_view(VIEWS, index)))
    return cache


def test_all_blocks_and_no_projection_render_as_dense_attention(small_model):
    whole = made(small_model.params, EVERYWHERE.format(1))
    expected = small_model.decode(small_model.encode(VIEWS), CAMERAS)
    np.testing.assert_allclose(whole.decode(whole.encode(VIEWS), CAMERAS), expected, atol=1e-5)


def test_every_place_is_sparse_and_has_a_projection_for_each_layer(small_model, sparse):
    for part, place in PLACES:
        assert sparse.params[part][place]["sparse"]["kernel"].shape == (2, 16, 16)
    dense = small_model.decode(small_model.encode(VIEWS), CAMERAS)
    for place in ("encoder", "decoder", "cross"):
        model = made(small_model.params, f"{place}=0.3:block4:from0")
        assert np.abs(model.decode(model.encode(VIEWS), CAMERAS) - dense).max() > 1e-3


def test_a_share_is_that_of_the_chosen_keys_alone(small_model):
    model = made(small_model.params, "cross=0.3:block4:from0")
    params = jax.tree.map(lambda x: x, model.params)
    params["decoder"]["cross_attention"]["sparse"]["share"] = np.zeros(2, np.float32)
    none = dataclasses.replace(model, params=params)
    params = jax.tree.map(lambda x: x, small_model.params)
    out = params["decoder"]["cross_attention"]["out"]
    out["kernel"] = np.zeros_like(out["kernel"])
    deaf = dataclasses.replace(small_model, params=params)
    found, expected = (x.decode(x.encode(VIEWS), CAMERAS) for x in (none, deaf))
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.abs(found - model.decode(model.encode(VIEWS), CAMERAS)).max() > 1e-2


def test_weights_from_before_there_was_a_share_have_one_of_1(sparse, tmp_path, caplog):
    params = jax.tree.map(lambda x: x, sparse.params)
    for part, place in PLACES:
        del params[part][place]["sparse"]["share"]
    config = {**sparse.config.architecture, **unshown(sparse.config)}
    save_weights(tmp_path / "old", params, {"family": FAMILY, "config": config})
    found = load(tmp_path / "old").params
    jax.tree.map(np.testing.assert_array_equal, found, sparse.params)
    assert "projection" not in caplog.text
    del params["decoder"]["cross_attention"]["sparse"]["kernel"]
    save_weights(tmp_path / "damaged", params, {"family": FAMILY, "config": config})
    with pytest.raises(InputError, match="cross_attention/sparse/kernel is absent"):
        load(tmp_path / "damaged")


def test_views_one_by_one_in_any_order_are_all_of_them_at_once(sparse):
    expected = sparse.decode(sparse.encode(VIEWS), CAMERAS)
    for order in ((0, 1, 2, 3), (2, 0, 3, 1)):
        found = sparse.decode(cache_of(sparse, *order), CAMERAS)
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_view_that_left_leaves_no_trace_and_nothing_is_compiled(sparse):
    expected = np.asarray(sparse.decode(cache_of(sparse, 0, 1, 3), CAMERAS))
    compiled = _call._cache_size()
    found = sparse.decode(pages.remove(cache_of(sparse, 0, 1, 3, 2), 3), CAMERAS)
    np.testing.assert_array_equal(found, expected)
    replaced = pages.replace(cache_of(sparse, 0, 2, 3), 1, sparse.encode(one_view(VIEWS, 1)))
    np.testing.assert_array_equal(sparse.decode(replaced, CAMERAS), expected)
    assert _call._cache_size() == compiled


def test_targets_of_one_call_read_views_of_their_own(sparse):
    cache, chosen = cache_of(sparse, 0, 1, 2, 3), np.zeros((1, 2, 5), bool)
    chosen[0, 0, [0, 2]] = chosen[0, 1, [1, 2, 3]] = True
    found = sparse.decode(pages.reading(cache, chosen), CAMERAS)
    for target in range(2):
        both = sparse.decode(pages.reading(cache, chosen[0, target]), CAMERAS)
        np.testing.assert_allclose(found[:, target], both[:, target], atol=1e-5)


def test_a_session_renders_as_the_model_does(sparse):
    frame, size = SceneFrame.from_cameras(VIEWS.c2w[0]), (48, 40)
    session = Session(sparse, frame=frame, capacity=5)
    view = [x[0] for x in (VIEWS.image, VIEWS.c2w, VIEWS.fxfycxcy)]
    ids = [session.add(*(x[index] for x in view)) for index in (0, 2, 1)]
    session.remove(ids[1])
    found = session.render(CAMERAS.c2w[0], CAMERAS.fxfycxcy[0], size)
    here = dataclasses.replace(VIEWS, c2w=frame.apply(VIEWS.c2w))
    inputs = jax.tree.map(lambda x: x[:, :2], here)
    cameras = Cameras(frame.apply(CAMERAS.c2w), CAMERAS.fxfycxcy, *size)
    expected = sparse.decode(sparse.encode(inputs), cameras)[0]
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_projections_learn_through_the_cache_and_tokens_are_tapped_row_by_row(small_model, sparse):
    @jax.jit
    def gradients(params):
        def total(params):
            model = bind(FAMILY, sparse.config, params)
            memory, taps = model.encode_with_taps(VIEWS, (1,))
            return model.decode(memory, CAMERAS).sum(), taps

        return jax.grad(total, has_aux=True)(params)

    found, taps = gradients(sparse.params)
    for part, place in (("encoder", "attention"), ("decoder", "cross_attention")):
        learnt = found[part][place]["sparse"]
        assert np.all(np.abs(learnt["kernel"]).max(axis=(1, 2)) > 0) and np.all(learnt["share"])
    # Dense but for what is beyond the first layer's attention: the order alone could differ.
    whole = made(small_model.params, "encoder=1:block4:from0")
    pairs = [bind(FAMILY, model.config, model.params) for model in (whole, small_model)]
    found, expected = (model.encode_with_taps(VIEWS, (1,))[1] for model in pairs)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert taps.shape == expected.shape


@pytest.mark.parametrize(
    ("family", "settings", "text"),
    [
        ("lvsm_decoder_only", {"layers": 2, "positions": "prope"}, "decoder={}:block4:from0"),
        (
            "lvsm_encoder_decoder",
            {"encoder_layers": 1, "decoder_layers": 1, "latents": 10},
            "encoder={0}:block4:from0,decoder={0}:block4:from0",
        ),
    ],
)
def test_an_lvsm_with_all_blocks_is_dense_and_with_fewer_is_not(family, settings, text):
    config = configure(family, {"width": 32, "head_dim": 16, **settings})
    params = init_params(family, config, jax.random.key(0))
    pictures = []
    for density in (None, 1, 0.2):
        words = "" if density is None else text.format(density)
        model = made(params, words, family, config)
        pictures.append(model.decode(model.encode(VIEWS), CAMERAS))
    dense, whole, fewer = pictures
    np.testing.assert_allclose(whole, dense, atol=1e-5)
    assert np.abs(fewer - dense).max() > 1e-6


def test_half_precision_renders_nearly_the_same(sparse):
    expected = sparse.decode(sparse.encode(VIEWS), CAMERAS)
    config = dataclasses.replace(sparse.config, compute_dtype="bfloat16", cache="bf16")
    half = dataclasses.replace(sparse, config=config)
    found = half.decode(cache_of(half, 0, 1, 2, 3), CAMERAS)
    np.testing.assert_allclose(found, expected, atol=0.2)
    assert np.abs(found - expected).mean() < 0.02


def test_where_a_cache_cannot_be_sparse_is_said(small_model, sparse):
    with pytest.raises(InputError, match="a cache is read in blocks"):
        made(small_model.params, "cross=0.3:token")
    with pytest.raises(InputError, match="each place once, of encoder, decoder, cross"):
        made(small_model.params, "global=0.3")
    with pytest.raises(InputError, match="differ in digest"):
        pages.append(cache_of(sparse, 0), small_model.encode(one_view(VIEWS, 0)))
    with pytest.raises(InputError, match="condensed views have no blocks"):
        Session(sparse, max_bytes=10**6, when_full="merge")


def test_bytes_of_a_page_count_its_digest(small_model, sparse):
    page = sparse.encode(one_view(VIEWS, 0))
    sums = 2 * 2 * (16 * 16 + 2 * 16 + 1 + 8 * 16) * 4  # layers, heads, what there is, bytes
    assert page.page_bytes == small_model.encode(one_view(VIEWS, 0)).page_bytes + sums
    assert jnp.result_type(page.digest.means) == jnp.float32
