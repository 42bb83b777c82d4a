"""VGGT and StreamVGGT equal what the published programs gave, as clips and frame by frame."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_vggt import cameras_of, configured, floats, module, recorded, small_vggt

from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.models.geometry_model import GeometryModel
from efficient_lvsm_jax.models.vggt import VGGTConfig
from efficient_lvsm_jax.models.vggt_tracker import (
    correlation,
    flow_embedding,
    pooled,
    position_table,
    sample,
)

SIZE = (56, 70)


@functools.cache
def frames(size="56x70"):
    return floats(recorded("causal")[f"images_u8_{size}"])


def compare(parity, geometry, data, size):
    """Cameras and maps of a clip."""
    parity("VGGT poses", geometry.encodings, data[f"pose_iterations_{size}"], 1e-5)
    cameras = cameras_of(
        data[f"extrinsics_{size}"], data[f"intrinsics_{size}"], tuple(map(int, size.split("x")))
    )
    parity("VGGT cameras", geometry.cameras.c2w, cameras.c2w, 1e-4)
    got = geometry.cameras.fxfycxcy
    parity("VGGT intrinsics", got, cameras.fxfycxcy, 1e-5, relative=True)
    chosen = data[f"frames_{size}"]
    for ours, theirs in (
        ("depth", "depth"),
        ("depth_confidence", "depth_conf"),
        ("points", "points"),
        ("points_confidence", "points_conf"),
    ):
        maps = getattr(geometry, ours)[:, chosen]
        parity(f"VGGT {ours.replace('_', ' ')}", maps, data[f"{theirs}_{size}"], 1e-4)


@jax.jit
def clip(params, images, queries):
    """All that a causal clip gives, and what is on the way."""
    network = module(params)
    taps = network.rounds(None, images, network.sight(None, images.shape[1]))[1]
    features = network.map(network.tracker.features, taps, images.shape[2:4])
    tracks = network.tracker(features, queries)
    return taps, features, tracks, network.observe(None, images)[1]


@pytest.fixture(scope="module")
def causal():
    queries = jnp.asarray(recorded("track")["query_points_56x70"])
    return clip(small_vggt().params, frames(), queries)


def test_a_causal_clip(causal, parity):
    taps, _, _, geometry = causal
    for index, tokens in enumerate(taps):
        parity("VGGT tokens", tokens, recorded("causal")[f"round{index}_56x70"], 1e-5)
    compare(parity, geometry, recorded("causal"), "56x70")


def test_tracks_of_a_clip(causal, parity):
    _, features, (points, tracks), _ = causal
    data = recorded("track")
    features = np.moveaxis(np.asarray(features), -1, 2)[:, :2]
    parity("VGGT track features", features, data["features_56x70"], 1e-5)
    parity("VGGT tracks", points, data["track_iterations_56x70"], 1e-3)
    parity("VGGT visibility", tracks.visible, data["vis_56x70"], 1e-4)
    parity("VGGT track confidence", tracks.confidence, data["track_conf_56x70"], 1e-4)
    np.testing.assert_array_equal(tracks.points, points[-1])
    np.testing.assert_array_equal(points[:, :, 0], np.broadcast_to(points[0, :, 0], (4, 1, 6, 2)))


def test_a_clip_whose_frames_see_each_other(parity):
    model = GeometryModel("vggt", configured(causal=False), small_vggt().params)
    _, geometry = model.observe(None, frames("70x56"))
    compare(parity, geometry, recorded("vggt"), "70x56")


def test_levels_of_a_depth_head(causal, parity):
    @jax.jit
    def levels(params, tokens):
        head = module(params).depth_head
        maps = head.levels(tokens, SIZE, 14)
        fused = head.fused(maps)
        return maps, fused, head.neck(fused[-1])

    taps, data = causal[0], recorded("causal")
    maps, fused, neck = levels(small_vggt().params, taps[:, 0, :1, 5:])
    named = {f"level{n}": x for n, x in enumerate(maps, 1)}
    named |= {f"fused{n}": x for n, x in zip((4, 3, 2, 1), fused, strict=True)}
    for name, got in (named | {"output_conv1": neck}).items():
        got = np.moveaxis(np.asarray(got)[0], -1, 0)
        parity("VGGT depth head inside", got, data[f"dpt_{name}_56x70"], 1e-4)


def test_parts_of_the_tracker(parity):
    data = recorded("track")
    maps = jnp.asarray(np.moveaxis(data["corr_fmaps"], 2, -1))
    got = correlation(pooled(maps, 5), data["corr_feats"], data["corr_coords"], 3)
    parity("VGGT tracker parts", got, data["corr_out"], 1e-5)
    got = flow_embedding(jnp.asarray(data["flow_in"]), 16)
    parity("VGGT flow embedding", got, data["flow_embedding"], 2e-4)
    at = jnp.asarray(data["position_coords"])
    parity("VGGT tracker parts", position_table((16, 22), at, 52), data["position_sampled"], 1e-5)
    parity("VGGT tracker parts", sample(maps[:, 0], at), data["sample_out"], 1e-5)
    update = jax.jit(lambda params, x: module(params).tracker.updater(x))
    got = update(small_vggt().params, data["update_in"])
    parity("VGGT tracker parts", got, data["update_out"], 1e-5)


def test_a_map_of_one_column_is_read_wherever_one_looks():
    maps = jnp.ones((1, 1, 4, 1, 2))
    at = jnp.asarray([[[[100.0, 1.0]]]])
    got = correlation([maps], jnp.ones((1, 1, 1, 2)), at, 0)
    np.testing.assert_allclose(got, 2 / 2**0.5, rtol=1e-6)


def test_frames_too_small_to_track_are_refused():
    with pytest.raises(InputError, match=r"28x70.*at least 32 pixels"):
        pooled(jnp.zeros((1, 1, 14, 35, 2)), 5)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"taps": (1, 2, 3)}, "four ascending rounds"),
        ({"taps": (1, 2, 3, 25)}, "four ascending rounds from 1 to 24"),
        ({"camera_heads": 3}, "divisor of twice the width"),
        ({"track_heads": 7}, "track_heads=7"),
        ({"channels": (16, 16, 16)}, "four multiples of 4"),
        ({"camera_cache": "other"}, "separate or published"),
    ],
)
def test_settings_that_do_not_belong_together_are_refused(settings, words):
    with pytest.raises(InputError, match=words):
        VGGTConfig(**settings)


@pytest.mark.parametrize(
    ("shape", "queries", "words"),
    [
        ((1, 1, 56, 60, 3), None, r"56x60.*multiples of the patch size 14"),
        ((1, 56, 70, 3), None, "expected \\[B, R, Y, X, 3\\]"),
        ((1, 1, 56, 70, 3), (2, 6, 2), "queries of shape"),
    ],
)
def test_what_is_no_clip_is_refused(shape, queries, words):
    model = small_vggt()
    with pytest.raises(InputError, match=words):
        model.observe(None, np.zeros(shape, np.float32), queries and np.zeros(queries))
