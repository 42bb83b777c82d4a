"""Depth Anything 3 equals what the published program gave, with known cameras and without."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_depth_anything3 import module, recorded, small_da3
from small_vggt import cameras_of, small_vggt

from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.geometry.cameras import Cameras
from efficient_lvsm_jax.models.depth_anything3 import DepthAnything3Config
from efficient_lvsm_jax.models.geometry_model import GeometryModel
from efficient_lvsm_jax.models.model import with_projections
from efficient_lvsm_jax.models.reference_view import STRATEGIES, order_from, reference_view
from efficient_lvsm_jax.models.running import floats
from efficient_lvsm_jax.nn.rotary import patch_rotation, rotate

SIZES = {"42x56": (42, 56), "70x28": (70, 28)}
CASES = ("v1", "v2", "v4_cam")  # of 42x56


def images(name, views):
    return floats(recorded(name)["images_u8"][:views])[None]


def given(name, case):
    """The known cameras of a case, or None."""
    data = recorded(name)
    if not case.endswith("cam"):
        return None
    extrinsics = data[f"given_extrinsics_{case}"][:, :3]
    cameras = cameras_of(extrinsics, data[f"given_intrinsics_{case}"], SIZES[name])
    return Cameras(cameras.c2w[None], cameras.fxfycxcy[None], *SIZES[name])


@functools.partial(jax.jit, static_argnums=3)
def transformer(params, pictures, cameras, reference="saddle_balanced"):
    """What the transformer gives and what is on the way."""
    network = module(params, reference=reference)
    flat = pictures.reshape(-1, *pictures.shape[2:])
    flat = (flat - jnp.array([0.485, 0.456, 0.406])) / jnp.array([0.229, 0.224, 0.225])
    start, _ = network.encoder.embed(flat, (37, 37))
    camera, taps, chosen = network.rounds(pictures, cameras)
    return start, camera, taps, chosen, network.camera_decoder(camera)


@functools.partial(jax.jit, static_argnums=2)
def heads(params, taps, size):
    """The maps of all views at once, and what is inside the heads."""
    network = module(params)
    head, rays = network.depth_head, network.ray_head
    levels = head.levels(taps, size, 14)
    reduced = head.reduced(levels)
    depth, of_rays = head.fuse(reduced), rays.fuse(reduced)
    inside = {f"level{n}": x for n, x in enumerate(levels, 1)}
    inside |= {f"fused{n}": x for n, x in zip((4, 3, 2), depth, strict=False)}
    inside |= {f"ray_fused{n}": x for n, x in zip((4, 3, 2), of_rays, strict=False)}
    inside |= {"output_conv1": head.neck(depth[-1]), "ray_neck": rays.necked(of_rays[-1])}
    return head.finish(depth[-1], size), rays(reduced, size), inside


@functools.cache
def seen(name, case):
    pictures = images(name, int(case[1]))
    return transformer(small_da3().params, pictures, given(name, case))


def compare_tokens(parity, got, name, case):
    start, camera, taps, chosen, encodings = got
    data = recorded(name)
    parity("DA3 tokens", start, data[f"tokens_in_{case}"], 1e-5)
    for tap in (0, 3):
        parity("DA3 tokens", taps[tap, 0], data[f"tap{tap}_{case}"], 1e-5)
    parity("DA3 camera tokens", camera[0], data[f"camera_token_{case}"], 1e-5)
    parity("DA3 poses", encodings[0], data[f"pose_encoding_{case}"], 1e-5)
    if case.endswith("cam"):
        assert chosen is None
    else:
        np.testing.assert_array_equal(chosen, [0])


def compare_maps(parity, depth, confidence, rays, rays_confidence, name, case):
    """Maps of all views with those recorded, of rays of every third."""
    data = recorded(name)
    for got, theirs in (
        (depth, "depth"),
        (confidence, "depth_conf"),
        (rays[::3], "ray"),
        (rays_confidence[::3], "ray_conf"),
    ):
        expected = data[f"{theirs}_{case}"]
        scale = 1 + np.abs(expected) / 5  # 1e-4, and 2e-5 of the value
        parity(f"DA3 {theirs}", got / scale, expected / scale, 1e-4)


def compare_geometry(parity, geometry, name, case):
    data = recorded(name)
    parity("DA3 poses", geometry.encodings[0, 0], data[f"pose_encoding_{case}"], 1e-5)
    extrinsics, intrinsics = data[f"extrinsics_{case}"], data[f"intrinsics_{case}"]
    cameras = cameras_of(extrinsics, intrinsics, SIZES[name])
    parity("DA3 cameras", geometry.cameras.c2w[0], cameras.c2w, 1e-5)
    got = geometry.cameras.fxfycxcy[0]
    parity("DA3 intrinsics", got, cameras.fxfycxcy, 1e-5, relative=True)
    maps = (geometry.depth, geometry.depth_confidence, geometry.rays, geometry.rays_confidence)
    compare_maps(parity, *(x[0] for x in maps), name, case)


def test_four_views_through_the_model(parity):
    _, geometry = small_da3().observe(None, images("70x28", 4))
    compare_geometry(parity, geometry, "70x28", "v4")
    expected = recorded("70x28")["reference_view_v4"][:1]
    np.testing.assert_array_equal(geometry.reference, expected)
    assert geometry.points is None


@pytest.mark.parametrize("case", CASES)
def test_tokens(case, parity):
    compare_tokens(parity, seen("42x56", case), "42x56", case)


def test_maps(parity):
    name = "42x56"
    taps = jnp.concatenate([seen(name, case)[2][:, 0] for case in CASES], axis=1)
    depth, rays, inside = heads(small_da3().params, taps, SIZES[name])
    at = 0
    for case in CASES:
        views = slice(at, at := at + int(case[1]))
        d, r = depth[views], rays[views]
        maps = jnp.exp(d[..., 0]), 1 + jnp.exp(d[..., 1]), r[..., :6], 1 + jnp.exp(r[..., 6])
        compare_maps(parity, *maps, name, case)
    for inner, got in inside.items():
        got = np.moveaxis(np.asarray(got[0]), -1, 0)
        parity("DA3 inside heads", got, recorded(name)[f"dpt_{inner}_v1"], 1e-4)


def test_other_references(parity):
    """The first view; and the one in the middle, which is the first of others."""
    pictures, data = images("42x56", 4), recorded("42x56")
    for order, name in (([0, 1, 2, 3], "first"), ([2, 0, 1, 3], "middle")):
        got = transformer(small_da3().params, pictures[:, np.array(order)], None, "first")[-1]
        expected = data[f"pose_encoding_{name}_v4"][order]
        parity("DA3 poses", got[0], expected, 1e-5)


@pytest.mark.parametrize("views", [3, 4, 7])
def test_the_reference_is_chosen_as_published(views):
    @jax.jit
    def chosen(tokens):
        each = {strategy: reference_view(tokens, strategy) for strategy in STRATEGIES}
        return each, order_from(each["saddle_balanced"], views)

    data = recorded("reference_view")
    each, order = chosen(data[f"cls_{views}"])
    for strategy, got in each.items():
        np.testing.assert_array_equal(got, data[f"index_{strategy}_{views}"], strategy)
    np.testing.assert_array_equal(order, data[f"order_{views}"])


def test_of_two_views_alike_among_similar_ones_the_first_is_the_reference():
    tokens = np.random.default_rng(0).random((64, 5, 16), np.float32)
    units = tokens / np.linalg.norm(tokens, axis=-1, keepdims=True)
    nearest = np.argmax(np.einsum("BRD,BQD->BRQ", units, units) - 2 * np.eye(5), axis=-1)
    mutual = np.take_along_axis(nearest, nearest, axis=1) == np.arange(5)
    got = np.asarray(reference_view(jnp.asarray(tokens), "saddle_sim_range"))[:, None]
    assert np.take_along_axis(mutual, got, axis=1).all()
    assert (got < np.take_along_axis(nearest, got, axis=1)).all()


def test_parts_that_need_little(parity):
    data = recorded("geometry")
    network = module(small_da3().params)
    table = jax.jit(lambda size: network.encoder.position_table(size, (37, 37)), static_argnums=0)
    for size in ("3x4", "5x2", "37x37", "27x36", "37x28"):
        expected = data[f"pos_embed_{size}"]
        got = table(tuple(map(int, size.split("x"))))[0, :, : expected.shape[-1]]
        parity("DA3 position tables", got, expected, 0 if size == "37x37" else 1e-6)
    x = jnp.asarray(data["rope_in"])[None]
    turned = jax.jit(lambda x: rotate(x, patch_rotation(3, 4, 16, 1), 2))
    parity("DA3 rotation", turned(x)[0], data["rope_local_3x4"], 1e-6)
    encodings = jnp.asarray(data["pose_encoding"])[None]
    got = jax.jit(lambda params, x: module(params).camera_encoder(x))(small_da3().params, encodings)
    parity("DA3 camera tokens", got[0], data["camera_condition"], 1e-5)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"taps": (1, 2, 3)}, "four ascending rounds"),
        ({"taps": (1, 2, 3, 5)}, "four ascending rounds from 1 to 4"),
        ({"encoder_layers": 3}, "even number of layers"),
        ({"camera_heads": 7}, "divisor of half the width"),
        ({"channels": (16, 16, 16)}, "four multiples of 4"),
        ({"reference": "last"}, "saddle_balanced"),
    ],
)
def test_settings_that_do_not_belong_together_are_refused(settings, words):
    with pytest.raises(InputError, match=words):
        DepthAnything3Config(**settings)


def test_what_it_does_not_do_is_refused():
    model, pictures = small_da3(), images("42x56", 4)
    cameras = given("42x56", "v4_cam")
    with pytest.raises(InputError, match="remembers none"):
        model.start(4, (42, 56))
    with pytest.raises(InputError, match="tracks no points"):
        model.observe(None, pictures, np.zeros((1, 2, 2)))
    with pytest.raises(InputError, match=r"cameras of \(1, 4, 42, 56\) for images of \(1, 3, "):
        model.observe(None, pictures[:, :3], cameras=cameras)
    crooked = Cameras(2 * cameras.c2w, cameras.fxfycxcy, 42, 56)
    with pytest.raises(InputError, match="c2w"):
        model.observe(None, pictures, cameras=crooked)
    with pytest.raises(InputError, match="cameras for vggt, which takes none"):
        small_vggt().observe(None, pictures, cameras=cameras)


def test_sparse_attention_of_all_keys_is_dense_and_of_few_is_not_at_any_place():
    dense = small_da3()
    images = jax.random.uniform(jax.random.key(0), (1, 3, 42, 56, 3))
    _, expected = dense.observe(None, images)

    def seen(density, *places):
        text = ",".join(f"{place}={density}:block4:from0" for place in places)
        config = dataclasses.replace(dense.config, attention_sparsity=text)
        params = with_projections(dense.params, dense.family, config)
        return GeometryModel(dense.family, config, params).observe(None, images)[1]

    got = seen(1.0, *dense.config.places)
    np.testing.assert_allclose(got.depth, expected.depth, rtol=1e-4)
    np.testing.assert_allclose(got.encodings, expected.encodings, atol=1e-5)
    for place in dense.config.places:
        assert np.abs(seen(0.3, place).encodings - expected.encodings).max() > 1e-4, place
