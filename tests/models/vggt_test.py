"""VGGT and StreamVGGT equal what the published programs gave, as clips and frame by frame."""

import dataclasses
import re

import jax.numpy as jnp
import numpy as np
import pytest
from conftest import GOLDENS
from small_vggt import small_vggt

from efficient_lvsm_jax.convert.reference import compare, read_reference
from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.models.vggt import VGGTConfig
from efficient_lvsm_jax.models.vggt_tracker import correlation, pooled

# Of every file what one program gives: each size compiles another.
PARTS = {
    "causal": "56x70",
    "vggt": "70x56",
    "track": "56x70",
    "streaming": "",
    "encoder": "4x5|37x37|40x44|518x518",
    "geometry": "",
    "preprocess": "",
    "losses": "",
}


@pytest.mark.parametrize("name", PARTS)
def test_everything_recorded_is_equalled(name, parity):
    reference = read_reference(GOLDENS / f"stream_vggt_{name}.npz")
    arrays = {
        key: array
        for key, array in reference.arrays.items()
        if not re.search(r"\d+x\d+", key) or re.search(PARTS[name], key)
    }
    if name == "streaming":
        order = [4, 1, 0, 2, 3]  # a list says of which frames maps were recorded
        arrays |= {"dense_frames": np.array(order), "depth": arrays["depth"][order]}
    frames = arrays if reference.frames is reference.arrays else reference.frames
    reference = dataclasses.replace(reference, arrays=arrays, frames=frames)
    found = list(compare(small_vggt(), reference))
    assert found
    for each in found:
        parity(f"StreamVGGT {name}: {each.quantity}", each.error, 0, each.limit)


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
