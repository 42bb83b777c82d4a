"""First parameters of models of geometry: drawn, and such that something can be learned."""

import jax
import numpy as np
import pytest

from efficient_lvsm_jax.models.families import configure
from efficient_lvsm_jax.models.geometry_model import GeometryModel
from efficient_lvsm_jax.models.model import bind_as_is, init_params

SMALL = {"width": 32, "head_dim": 8, "patch": 4, "channels": (8, 8, 8, 8), "features": 8}
SETTINGS = {
    "vggt": SMALL
    | {"encoder_layers": 1, "layers": 4, "taps": (1, 2, 3, 4), "camera_heads": 4}
    | {"camera_layers": 1, "track_features": 8, "track_width": 16, "track_heads": 2}
    | {"track_layers": 1, "virtual_tracks": 2, "correlation_levels": 2},
    "depth_anything3": SMALL
    | {"encoder_layers": 4, "layers": 12, "camera_heads": 4, "camera_layers": 1},
}


def flat(params):
    """Arrays by path."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {jax.tree_util.keystr(p, simple=True, separator="/"): x for p, x in leaves}


@pytest.fixture(scope="module", params=SETTINGS)
def drawn(request):
    """A model with first parameters."""
    config = configure(request.param, SETTINGS[request.param])
    make = jax.jit(lambda key: init_params(request.param, config, key))
    params = jax.tree.map(np.asarray, make(jax.random.key(0)))
    return GeometryModel(request.param, config, params)


def test_everything_is_drawn_that_learns_by_being_different(drawn):
    zeros = {name for name, x in flat(drawn.params).items() if not np.any(x)}
    kept = ("bias", "mask_token", "empty")
    assert {name for name in zeros if not name.endswith(kept)} == set()
    params = drawn.params
    assert np.all(params["encoder"]["blocks"]["scale1"] == 1)
    assert np.all(params["within"]["scale2"] == 1)
    # Of a stack, of a map with several axes in and out, and of a convolution without bias.
    for name, inputs in (
        ("within/qkv", 32),
        ("among/out", 32),
        ("encoder/patches", 4 * 4 * 3),
        ("depth_head/reduce1", 3 * 3 * 8),
        ("depth_head/resize1/map", 8),
    ):
        kernel = np.asarray(flat(params)[f"{name}/kernel"])
        np.testing.assert_allclose(kernel.std() * inputs**0.5, 1, atol=0.12, err_msg=name)
    layers = params["within"]["qkv"]["kernel"]
    assert np.abs(layers[0] - layers[1]).max() > 0.1


def test_many_blocks_begin_by_adding_little():
    config = configure("vggt", SETTINGS["vggt"] | {"layers": 12})
    params = jax.jit(lambda key: init_params("vggt", config, key))(jax.random.key(0))
    assert np.all(params["encoder"]["blocks"]["scale1"] == 1)
    for stack in (params["among"], params["camera_head"]["trunk"]):
        assert np.all(stack["scale2"] == np.float32(0.01))


def test_frames_begin_by_attending_to_what_looks_alike():
    config = configure("vggt", SETTINGS["vggt"])
    params = jax.jit(lambda key: init_params("vggt", config, key))(jax.random.key(0))
    queries, keys, _ = np.moveaxis(params["among"]["qkv"]["kernel"], 2, 0)
    np.testing.assert_array_equal(queries, keys)
    queries, keys, _ = np.moveaxis(params["within"]["qkv"]["kernel"], 2, 0)
    assert np.abs(queries - keys).max() > 0.1


def test_cameras_begin_where_a_gradient_moves_them(drawn):
    def encodings(params, tokens):
        network = bind_as_is(drawn.family, drawn.config, params)
        if drawn.family == "vggt":
            return network.camera_head(tokens, network.sight(None, 3), None)[0][-1]
        return network.camera_decoder(tokens)

    tokens = jax.random.normal(jax.random.key(1), (1, 3, 64))
    last = np.asarray(jax.jit(encodings)(drawn.params, tokens))
    assert last[..., 7:].min() > 0.3  # radians: at 0 it would stay
    np.testing.assert_allclose(last[..., :6], 0, atol=0.7)
    np.testing.assert_allclose(last[..., 6:], 1, atol=0.7)
    assert np.ptp(last, axis=1).min() > 1e-4  # frames count
