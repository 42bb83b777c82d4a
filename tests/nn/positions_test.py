import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import SMALL, random_views

from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.geometry.cameras import Cameras, projections
from efficient_lvsm_jax.models.efficient_lvsm import EfficientLVSMConfig
from efficient_lvsm_jax.models.families import configure
from efficient_lvsm_jax.models.model import Model, init_params
from efficient_lvsm_jax.nn.positions import KINDS, Positions

HEAD_DIM = 16
SIZE = (16, 24)
QUERIES, KEYS = random_views(2, seed=1, size=SIZE), random_views(3, seed=2, size=SIZE)


@functools.partial(jax.jit, static_argnums=0)
def positions(kind, views=KEYS):
    return Positions.of(kind, views.cameras, 8, HEAD_DIM)


def channels(views=3, seed=0):
    """[B, H, V, N, K], of six patches."""
    return np.random.default_rng(seed).normal(size=(1, 2, views, 6, HEAD_DIM)).astype(np.float32)


def scores(kind, q_views, k_views):
    q = positions(kind, q_views).queries(channels(2), 2)
    k = positions(kind, k_views).keys(channels(3, seed=1), 2)
    return np.einsum("bhvnk,bhwmk->bhvnwm", q, k)


def moved(views, seed=3):
    """The same pictures, the world turned and shifted."""
    rng = np.random.default_rng(seed)
    turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    motion = np.eye(4, dtype=np.float32)
    motion[:3, :3] = turn * np.sign(np.linalg.det(turn))
    motion[:3, 3] = rng.normal(size=3)
    return dataclasses.replace(views, c2w=motion @ views.c2w)


def model_with(kind, rays="scene", family="efficient_lvsm", **settings):
    init = "init" if family == "lvsm_decoder_only" else "decoder_init"
    values = {"width": 32, "head_dim": 16, "layers": 2, "mlp_ratio": 2, init: "uniform"}
    config = configure(family, values | {"positions": kind, "rays": rays} | settings)
    params = init_params(family, config, jax.random.key(0))
    for tokenizer in ("input_tokenizer", "target_tokenizer", "head"):
        params[tokenizer]["kernel"] *= 10
    return Model(family, config, params)


def test_a_projection_takes_a_point_in_view_to_its_place_in_the_picture():
    cameras = Cameras(KEYS.c2w, KEYS.fxfycxcy, *SIZE)
    forward, back = (np.asarray(matrix)[0, 1] for matrix in projections(cameras))
    pixel, depth = np.array([18.5, 3.5]), 2.5
    fx, fy, cx, cy = KEYS.fxfycxcy[0, 1]
    seen = np.array([(pixel[0] - cx) / fx, (pixel[1] - cy) / fy, 1.0]) * depth
    world = KEYS.c2w[0, 1] @ np.append(seen, 1.0)
    x, y, z, one = forward @ world
    np.testing.assert_allclose([x / z, y / z], pixel / SIZE[::-1] - 0.5, atol=1e-6)
    np.testing.assert_allclose([z, one], [depth, 1.0], atol=1e-6)
    np.testing.assert_allclose(back @ forward, np.eye(4), atol=1e-6)


def test_scores_by_prope_hold_the_cameras_relative_to_each_other_alone():
    """Against matrices written out: q of a group times P_query P_key⁻¹ times k."""
    q, k = channels(2), channels(3, seed=1)
    forward, back = (np.asarray(projections(views.cameras)) for views in (QUERIES, KEYS))
    expected = np.einsum(
        "bhvngi,bvij,bwjl,bhwmgl->bhvnwm",
        q[..., :8].reshape(*q.shape[:-1], 2, 4),
        forward[0],
        back[1],
        k[..., :8].reshape(*k.shape[:-1], 2, 4),
    )
    turned = [
        np.array(x)
        for x in (positions("prope", QUERIES).queries(q, 2), positions("prope").keys(k, 2))
    ]
    got = np.einsum("bhvnk,bhwmk->bhvnwm", *(x[..., :8] for x in turned))
    np.testing.assert_allclose(got, expected, atol=1e-4)


@pytest.mark.parametrize("kind", ["rotary", "prope"])
def test_turns_are_by_the_distance_of_patches(kind):
    """The score of a query and a key depends on how many columns and rows are between them."""
    q, k = channels(1)[..., :1, :], channels(1, seed=1)[..., :1, :]
    same = jax.tree.map(lambda x: x[:, :1], KEYS)
    q, k = (np.repeat(x, 6, axis=3) for x in (q, k))
    q, k = positions(kind, same).queries(q, 2), positions(kind, same).keys(k, 2)
    score = np.einsum("bhvnk,bhvmk->bhnm", q, k)[0, 0]
    places = [divmod(patch, 3) for patch in range(6)]
    by_distance = {}
    for a, b in np.ndindex(6, 6):
        distance = (places[a][0] - places[b][0], places[a][1] - places[b][1])
        by_distance.setdefault(distance, []).append(score[a, b])
    assert len({round(float(found[0]), 4) for found in by_distance.values()}) == len(by_distance)
    for found in by_distance.values():
        np.testing.assert_allclose(found, found[0], atol=1e-5)


def test_prope_scores_do_not_change_with_the_world_and_results_come_back():
    before = scores("prope", QUERIES, KEYS)
    np.testing.assert_allclose(scores("prope", moved(QUERIES), moved(KEYS)), before, atol=1e-4)
    assert np.abs(scores("prope", moved(QUERIES), KEYS) - before).max() > 0.1


@pytest.mark.parametrize("kind", ["rotary", "prope"])
def test_a_token_that_gathers_its_own_value_gets_it_as_it_was(kind):
    v = channels()
    at = positions(kind)
    np.testing.assert_allclose(at.results(at.keys(v, 2), 2), v, atol=1e-5)


def test_within_a_view_cameras_cancel():
    q, k = channels(), channels(seed=1)
    full, within = positions("prope"), positions("prope").within_views()
    expected = np.einsum("bhvnk,bhvmk->bhvnm", full.queries(q, 2), full.keys(k, 2))
    got = np.einsum("bhvnk,bhvmk->bhvnm", within.queries(q, 2), within.keys(k, 2))
    np.testing.assert_allclose(got, expected, atol=1e-4)


def test_both_layouts_and_cameras_by_token_are_the_same():
    q, at = channels(), positions("prope")
    expected = np.asarray(at.queries(q, 2))
    np.testing.assert_allclose(at.queries(np.swapaxes(q, 1, 2), 1), np.swapaxes(expected, 1, 2))
    sequence = np.moveaxis(q, 1, 2).reshape(1, 3, 2, 6, HEAD_DIM)  # [B, V, H, N, K]
    sequence = np.moveaxis(sequence, 2, 1).reshape(1, 2, 1, 18, HEAD_DIM)
    got = at.in_one_sequence().queries(sequence, 2)
    np.testing.assert_allclose(got, expected.reshape(got.shape), atol=1e-6)


def test_gradients_are_those_of_the_matrices_written_out_cameras_among_them():
    x, weights = channels(), channels(seed=9)

    def written_out(cameras, x):
        forward = projections(cameras)[0]
        groups = x[..., :8].reshape(*x.shape[:-1], 2, 4)
        return jnp.einsum("bvij,bhvngj->bhvngi", forward, groups).reshape(*x.shape[:-1], 8)

    def by_positions(cameras, x):
        return Positions.of("prope", cameras, 8, HEAD_DIM).results(x, 2)[..., :8]

    expected, got = (
        jax.jit(jax.grad(lambda c, x, f=f: (f(c, x) * weights[..., :8]).sum(), (0, 1)))(
            KEYS.cameras, x
        )
        for f in (written_out, by_positions)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(b, a, atol=1e-3, rtol=1e-4), expected, got)
    assert np.abs(got[0].c2w).max() > 1


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_stays_and_is_turned_in_float32(kind):
    if kind == "none":
        assert positions(kind) is None
        return
    k = jnp.asarray(channels(), jnp.bfloat16)
    got = positions(kind).keys(k, 2)
    assert got.dtype == jnp.bfloat16
    exact = positions(kind).keys(k.astype(jnp.float32), 2)
    np.testing.assert_array_equal(np.asarray(got), np.asarray(exact.astype(jnp.bfloat16)))


@pytest.mark.parametrize("rays", ["camera", "none"])
@pytest.mark.parametrize("family", ["efficient_lvsm", "lvsm_decoder_only"])
def test_without_rays_of_the_scene_a_moved_world_gives_the_same_picture(family, rays):
    model = model_with("prope", rays, family)
    before = np.asarray(model.decode(model.encode(KEYS), QUERIES.cameras))
    after = np.asarray(model.decode(model.encode(moved(KEYS)), moved(QUERIES).cameras))
    np.testing.assert_allclose(after, before, atol=2e-5)
    elsewhere = np.asarray(model.decode(model.encode(moved(KEYS)), QUERIES.cameras))
    assert np.abs(elsewhere - before).max() > 1e-3


def test_positions_change_pictures_and_none_is_as_published():
    pictures = {}
    for kind in KINDS:
        model = model_with(kind)
        pictures[kind] = np.asarray(model.decode(model.encode(KEYS), QUERIES.cameras))
    plain = Model("efficient_lvsm", SMALL, model.params)
    expected = np.asarray(plain.decode(plain.encode(KEYS), QUERIES.cameras))
    np.testing.assert_array_equal(pictures["none"], expected)
    assert np.abs(pictures["rotary"] - expected).max() > 1e-3
    assert np.abs(pictures["prope"] - pictures["rotary"]).max() > 1e-3


@pytest.mark.parametrize(
    ("family", "values", "message"),
    [
        ("efficient_lvsm", {"positions": "prope", "head_dim": 12, "width": 24}, "multiple of 8"),
        ("efficient_lvsm", {"positions": "rotary", "head_dim": 6, "width": 12}, "multiple of 4"),
        ("efficient_lvsm", {"positions": "rotary", "rays": "camera"}, "needs model.positions"),
        ("efficient_lvsm", {"positions": "learned"}, "none or rotary or prope"),
        ("lvsm_encoder_decoder", {"positions": "prope"}, "latents"),
    ],
)
def test_impossible_positions_are_refused(family, values, message):
    with pytest.raises(InputError, match=message):
        configure(family, values)


def test_published_configurations_have_none():
    assert EfficientLVSMConfig().positions == "none"
    assert EfficientLVSMConfig().rays == "scene"
