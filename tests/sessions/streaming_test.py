"""A stream equals the clip, and with the published cache of cameras the published stream."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import SMALL, channels_last
from PIL import Image
from small_vggt import configured, module, recorded, small_vggt

import efficient_lvsm_jax as elvsm
from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.models import geometry_model
from efficient_lvsm_jax.models.model import Model


@pytest.fixture(scope="module")
def pictures():
    """uint8 [R, Y, X, 3]."""
    return channels_last(recorded("causal")["images_u8_56x70"][0])


@pytest.fixture(scope="module")
def streamed(pictures):
    """What a stream says of the frames one by one, it itself, and how much compiled on the way."""
    stream, found = elvsm.Stream(small_vggt(), capacity=7), []
    geometry_model._observe.clear_cache()
    for picture in pictures:
        found.append(stream.observe(picture))
        programs = geometry_model._observe._cache_size()
    together = jax.tree.map(lambda *x: np.stack(x), *found)
    return stream, together, programs


def test_a_stream_equals_the_clip(streamed, parity):
    _, geometry, programs = streamed
    data = recorded("causal")
    encodings = np.moveaxis(geometry.encodings, 1, 0)
    parity("StreamVGGT poses", encodings, data["pose_iterations_56x70"][:, 0], 1e-5)
    parity("StreamVGGT depth", geometry.depth, data["depth_56x70"][0], 1e-4)
    parity("StreamVGGT points", geometry.points, data["points_56x70"][0], 1e-4)
    parity("StreamVGGT depth", geometry.depth, recorded("streaming")["depth"], 1e-4)
    assert programs == 1


def test_finished_keys_and_values_are_kept(streamed, parity):
    stream, data = streamed[0], recorded("streaming")
    tokens = stream.memory.tokens
    parity("StreamVGGT cache", tokens.k[0, :, :, :5], data["finished_k_first_t5"], 1e-5)
    parity("StreamVGGT cache", tokens.v[0, :, :, :5], data["cache_v_first_t5"], 1e-5)
    parity("StreamVGGT cache", tokens.v[-1, :, :, :5], data["cache_v_last_t5"], 1e-5)
    assert not tokens.k[:, :, :, 5:].any()


def test_with_the_published_cache_frames_that_come_at_once_wait_for_each_other(parity):
    """The camera head alone, on the tokens that the rounds give."""

    @jax.jit
    def head(params, memory, tokens):
        network = module(params, camera_cache="published")
        sight = network.sight(memory, tokens.shape[1])
        return network.camera_head(tokens, sight, memory.cameras)

    tokens = recorded("causal")["round3_56x70"][:, :, 0]
    memory, data = small_vggt().start(6, (56, 70)), recorded("streaming")
    encodings, cache = head(small_vggt().params, memory, tokens)
    expected = np.moveaxis(data["pose_iterations"], 0, 1)
    parity("StreamVGGT poses, published", encodings[:, 0], expected, 1e-5)
    got = cache.k[0, :, :, : 4 * 5]
    parity("StreamVGGT camera cache", got, data["camera_cache_k_first_t5"], 1e-5)


def test_several_at_once_are_as_if_one_by_one(pictures, streamed):
    one_by_one, geometry, _ = streamed
    stream = elvsm.Stream(small_vggt(), capacity=7)
    stream.observe(pictures[0])
    both = stream.observe(pictures[1:3])
    np.testing.assert_allclose(both.depth, geometry.depth[1:3], atol=1e-5)
    expected = np.moveaxis(geometry.encodings[1:3], 1, 0)
    np.testing.assert_allclose(both.encodings, expected, atol=1e-5)
    for got, expected in zip(
        jax.tree.leaves(stream.memory), jax.tree.leaves(one_by_one.memory), strict=True
    ):
        if got.ndim > 1:
            kept = got.shape[3] // 7 * 3
            got, expected = got[:, :, :, :kept], expected[:, :, :, :kept]
            np.testing.assert_allclose(got, expected, atol=1e-5)


def test_a_copy_goes_on_by_itself_and_reset_begins_again(pictures, streamed):
    _, geometry, _ = streamed
    stream = elvsm.Stream(small_vggt(), capacity=7)
    stream.observe(pictures[0])
    other = stream.copy()
    np.testing.assert_array_equal(stream.observe(pictures[1]).depth, geometry.depth[1])
    np.testing.assert_array_equal(other.observe(pictures[1]).depth, geometry.depth[1])
    assert (len(stream), len(other), stream.size) == (2, 2, (56, 70))
    other.reset()
    assert (len(other), other.size) == (0, None)
    np.testing.assert_array_equal(other.observe(pictures[0]).depth, geometry.depth[0])


def test_a_window_forgets_the_oldest_but_the_first_and_compiles_nothing(pictures, streamed):
    window = elvsm.Stream(small_vggt(), capacity=3, when_full="window")
    roomy = elvsm.Stream(small_vggt(), capacity=7)
    # Slots that a window of three leaves before a frame: of frames 0 and 2, then of 0 and 3.
    left = {3: [0, 2], 4: [0, 1]}
    for frame, picture in enumerate(pictures):
        if frame in left:
            used = jnp.asarray(np.isin(np.arange(7), left[frame]))
            roomy._memory = dataclasses.replace(roomy.memory, used=used)
        got, expected = window.observe(picture), roomy.observe(picture)
        np.testing.assert_allclose(got.depth, expected.depth, atol=1e-5)
        np.testing.assert_allclose(got.encodings, expected.encodings, atol=1e-5)
        if frame == 0:
            programs = geometry_model._observe._cache_size()
    assert geometry_model._observe._cache_size() == programs
    assert window.memory.capacity == 3 and len(window) == 5
    everything = streamed[1]
    assert np.abs(got.depth - everything.depth[4]).max() > 1e-3  # what was forgotten is missed
    assert repr(window).startswith("Stream(5 frames of 56x70 seen, 3 of 3 remembered")


def test_a_window_takes_no_more_at_once_than_it_has_room_for(pictures):
    window = elvsm.Stream(small_vggt(), capacity=3, when_full="window")
    window.observe(pictures[0])
    with pytest.raises(InputError, match="3 frames for a stream with room for 3"):
        window.observe(pictures[1:4])
    assert len(window) == 1
    with pytest.raises(InputError, match="when_full='merge': expected one of refuse, window"):
        elvsm.Stream(small_vggt(), capacity=3, when_full="merge")


def test_photos_are_fitted():
    stream = elvsm.Stream(small_vggt(), capacity=1)
    with pytest.raises(InputError, match=r"1x1000"):
        stream.observe(Image.new("RGB", (1000, 1)))
    with pytest.raises(InputError, match="no such image file"):
        stream.observe("nowhere.png")


@pytest.mark.parametrize(
    ("frame", "words"),
    [
        (np.zeros((56, 70, 4)), r"expected \[Y, X, 3\]"),
        (np.zeros((56, 70, 3), np.int32), "expected uint8"),
        (np.full((56, 70, 3), np.nan), "expected finite values"),
        (np.full((56, 70, 3), 255.0), "divide 8-bit values by 255"),
        (np.zeros((56, 60, 3)), r"56x60.*multiples of the patch size 14"),
        (np.zeros((70, 56, 3)), r"70x56 in a stream of 56x70"),
        ([], "no frames"),
        ([np.zeros((56, 70, 3)), np.zeros((70, 56, 3))], r"70x56 in a stream of 56x70"),
        (np.zeros((7, 56, 70, 3)), "7 frames for a stream with room for 7, of which 5 are taken"),
    ],
)
def test_what_is_no_frame_of_the_stream_is_refused(frame, words, streamed):
    stream = elvsm.Stream(small_vggt(), capacity=7) if "patch" in words else streamed[0]
    seen = len(stream)
    with pytest.raises(InputError, match=words):
        stream.observe(frame)
    assert len(stream) == seen


def test_models_that_stream_nothing_are_refused():
    with pytest.raises(InputError, match=r"Model\(efficient_lvsm.*sees no geometry"):
        elvsm.Stream(Model("efficient_lvsm", SMALL, {}), capacity=3)
    with pytest.raises(InputError, match=r"GeometryModel\(vggt.*renders no views"):
        elvsm.Session(small_vggt())
    whole = dataclasses.replace(small_vggt(), config=configured(causal=False))
    with pytest.raises(InputError, match="sees its frames as a whole"):
        elvsm.Stream(whole, capacity=3)
    with pytest.raises(InputError, match="room for at least 1"):
        elvsm.Stream(small_vggt(), capacity=0)
