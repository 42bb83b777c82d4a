"""Streams whose frames attend to chosen blocks of those before: they equal the clip."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import channels_last
from small_vggt import recorded, small_vggt

import efficient_lvsm_jax as elvsm
from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.models import geometry_model
from efficient_lvsm_jax.models.model import with_projections

ROOM = 4  # of a frame's 25 tokens eight do not divide


def with_sparsity(text):
    """The small model with projections that are not zero."""
    model = small_vggt()
    config = dataclasses.replace(model.config, attention_sparsity=text)
    params = with_projections(model.params, model.family, config)
    draw = np.random.default_rng(0)

    def drawn(path, x):
        is_projection = "sparse" in jax.tree_util.keystr(path)
        return draw.normal(size=x.shape).astype(np.float32) if is_projection else x

    params = jax.tree_util.tree_map_with_path(drawn, params)
    return dataclasses.replace(model, config=config, params=params)


@functools.cache
def sparse():
    return with_sparsity("global=0.3:block8:from50")


@pytest.fixture(scope="module")
def pictures():
    """Floats [R, Y, X, 3]."""
    return np.float32(channels_last(recorded("causal")["images_u8_56x70"][0])) / 255


def close(got, expected):
    for name in ("depth", "points", "encodings"):
        np.testing.assert_allclose(getattr(got, name), getattr(expected, name), atol=1e-5)


def without(stream, slots):
    """The same stream with slots freed, in which nothing but NaN is left."""
    memory = stream.memory
    free = np.isin(np.arange(memory.capacity), slots)
    tokens = jax.tree.map(
        lambda x: jnp.where(free.reshape(-1, *(1,) * (x.ndim - 4)), jnp.nan, x), memory.tokens
    )
    stream._memory = dataclasses.replace(memory, tokens=tokens, used=memory.used & ~free)
    return stream


def test_a_sparse_stream_equals_the_clip_and_compiles_one_program(pictures):
    clip = sparse().observe(None, pictures[None, :ROOM])[1].depth[0]
    stream = elvsm.Stream(sparse(), capacity=ROOM)
    geometry_model._observe.clear_cache()
    for frame in range(ROOM):
        depth = stream.observe(pictures[frame]).depth
        np.testing.assert_allclose(depth, clip[frame], rtol=1e-5)
        assert geometry_model._observe._cache_size() == 1
    again = elvsm.Stream(sparse(), capacity=ROOM)
    again.observe(pictures[0])
    depth = again.observe(pictures[1:3]).depth  # at once
    np.testing.assert_allclose(depth, clip[1:3], rtol=1e-5)


@pytest.mark.parametrize("when_full", ["window", "confidence"])
def test_a_frame_that_left_a_sparse_stream_is_as_if_never_read(pictures, when_full):
    full = elvsm.Stream(sparse(), capacity=ROOM, when_full=when_full)
    for picture in pictures[:ROOM]:
        full.observe(picture)
    kept = list(full._without(1, full.copy().memory)[1])
    (leaves,) = {*range(ROOM)} - {*kept}
    expected = without(full.copy(), [leaves])
    expected._kept = kept
    close(full.observe(pictures[ROOM]), expected.observe(pictures[ROOM]))


def test_a_sparse_stream_that_was_saved_or_copied_goes_on_bit_by_bit(pictures, tmp_path):
    stream = elvsm.Stream(sparse(), capacity=ROOM, precision="bf16")
    for picture in pictures[:2]:
        stream.observe(picture)
    stream.save(tmp_path / "stream.safetensors")
    others = [elvsm.Stream.load(tmp_path / "stream.safetensors", sparse()), stream.copy()]
    geometry = stream.observe(pictures[2])
    for other in others:
        found = (other.observe(pictures[2]), other.memory), (geometry, stream.memory)
        for x, y in zip(*map(jax.tree.leaves, found), strict=True):
            np.testing.assert_array_equal(x, y)


def test_what_a_sparse_stream_cannot_do_is_refused(pictures):
    with pytest.raises(InputError, match=r"'similarity' with model.attention_sparsity.*leave out"):
        elvsm.Stream(sparse(), capacity=ROOM, when_full="similarity")
    stream = elvsm.Stream(with_sparsity("global=0.3:token:from0"), capacity=ROOM)
    with pytest.raises(InputError, match="unless blocks of its frames are chosen"):
        stream.observe(pictures[0])
