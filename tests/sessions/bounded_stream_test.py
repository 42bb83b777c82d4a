"""Streams that are saved, and that forget, of a model without a network."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from remembering import pictures, remembering

import efficient_lvsm_jax as elvsm
from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.sessions.forgetting import frames_left, without_similar

ROOM = 4


def seen(count, **options):
    """A stream that saw so many frames, and what it said of the last."""
    stream = elvsm.Stream(remembering(), **({"capacity": ROOM} | options))
    for picture in pictures(count):
        geometry = stream.observe(picture)
    return stream, geometry


@pytest.fixture(scope="module", params=["refuse", "window", "confidence", "similarity"])
def full(request):
    """The policy, and a stream with it that has no room left."""
    return request.param, seen(ROOM, when_full=request.param)[0]


def equal(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


def test_with_room_for_all_no_policy_matters(full):
    expected = seen(ROOM)[0]
    equal(full[1].memory, expected.memory)


def test_a_stream_that_was_saved_goes_on_bit_by_bit_and_compiles_nothing(full, tmp_path):
    when_full, stream = full
    if when_full == "refuse":
        stream = seen(ROOM - 1)[0]
    stream = stream.copy()
    stream.save(tmp_path / "stream.safetensors")
    loaded = elvsm.Stream.load(tmp_path / "stream.safetensors", remembering())
    assert repr(loaded) == repr(stream)
    programs = without_similar._cache_size()
    for picture in pictures(ROOM + 3)[ROOM : ROOM + (1 if when_full == "refuse" else 3)]:
        equal(loaded.observe(picture), stream.observe(picture))
    equal(loaded.memory, stream.memory)
    assert without_similar._cache_size() == programs
    assert [x.name for x in tmp_path.iterdir()] == ["stream.safetensors"]


def test_every_frame_takes_the_same_memory(full):
    when_full, stream = full
    if when_full == "refuse":
        with pytest.raises(InputError, match="or with when_full='window'"):
            stream.observe(pictures(1)[0])
        return
    stream = stream.copy()
    sizes = [(x.shape, x.dtype) for x in jax.tree.leaves(stream.memory)]
    for picture in pictures(12)[ROOM:]:
        geometry = stream.observe(picture)
    assert [(x.shape, x.dtype) for x in jax.tree.leaves(stream.memory)] == sizes
    assert np.isfinite(geometry.depth).all() and bool(stream.memory.used.all())
    first = seen(1)[0].memory  # of which nothing was forgotten
    equal(stream.memory.tokens.k[:, :, :, 0], first.tokens.k[:, :, :, 0])


def test_the_frame_of_the_least_confidence_leaves_first_and_the_last_one_last():
    confidence = {3: 1.0, 0: 9.0, 1: 2.0, 2: 1.5}
    assert frames_left("confidence", [3, 0, 1, 2], 1, confidence) == [3, 0, 2]
    assert frames_left("confidence", [3, 0, 1, 2], 2, confidence) == [3, 2]
    assert frames_left("confidence", [3, 0, 1, 2], 3, confidence) == [3]
    assert frames_left("window", [3, 0, 1, 2], 1, {}) == [3, 1, 2]


def test_confidence_decides_in_a_stream(full):
    stream = seen(ROOM, when_full="confidence")[0]
    means = {slot: float(x) for slot, x in stream._confidence.items()}
    leaves = min((1, 2), key=means.get)
    stream.observe(pictures(ROOM + 1)[ROOM])
    assert stream._kept == [slot for slot in (0, 1, 2, 3) if slot != leaves] + [leaves]


def test_the_keys_most_like_the_mean_leave():
    """As written down slot by slot, for every layer and head by itself."""
    stream = seen(ROOM, when_full="similarity")[0]
    before = jax.tree.map(np.asarray, stream.copy().memory)
    after = without_similar(stream.copy().memory, ROOM, 1)
    assert after.used.tolist() == [True, True, True, False]
    tokens = before.tokens.page_tokens
    for layer in range(4):
        for head in range(4):
            k, v = (x[layer, 0, head] for x in (before.tokens.k, before.tokens.v))
            unit = k[1:].reshape(-1, k.shape[-1])
            unit = unit / np.linalg.norm(unit, axis=-1, keepdims=True)
            stays = np.sort(np.argsort(-(unit @ unit.mean(axis=0)))[tokens:])
            got = [np.asarray(x[layer, 0, head]) for x in (after.tokens.k, after.tokens.v)]
            for x, left in zip((k, v), got, strict=True):
                np.testing.assert_array_equal(left[0], x[0])
                expected = x[1:].reshape(-1, x.shape[-1])[stays]
                found = left[1:3].reshape(expected.shape)
                np.testing.assert_array_equal(*(y[np.lexsort(y.T)] for y in (found, expected)))
    iterations = remembering().config.camera_iterations
    cameras = np.split(before.cameras.k, ROOM, axis=3)
    left = np.split(np.asarray(after.cameras.k), ROOM, axis=3)[:3]
    for found, frame in zip(left, (0, 2, 3), strict=True):
        np.testing.assert_array_equal(found, cameras[frame])
    assert cameras[0].shape[3] == iterations


def test_a_limit_in_bytes_is_as_many_frames():
    one = seen(1)[0].frame_bytes
    stream = elvsm.Stream(remembering(), max_bytes=ROOM * one + one // 2)
    assert stream.capacity is None
    stream.observe(pictures(1)[0])
    assert stream.capacity == ROOM and stream.frame_bytes == one
    with pytest.raises(InputError, match=f"max_bytes={one - 1} holds no frame of 4x6.*{one}"):
        elvsm.Stream(remembering(), max_bytes=one - 1).observe(pictures(1)[0])


def test_keys_of_lower_precision_take_less():
    exact, stream = seen(2)[0], seen(2, precision="int8")[0]
    assert stream.frame_bytes < exact.frame_bytes / 2
    assert stream.memory.tokens.precision == "int8"
    assert stream.memory.cameras.precision == "fp32"
    with pytest.raises(InputError, match="when_full='similarity' with keys stored as int8"):
        elvsm.Stream(remembering(), capacity=2, when_full="similarity", precision="int8")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "capacity=None, max_bytes=None: expected one of both"),
        ({"capacity": 2, "max_bytes": 2}, "expected one of both"),
        ({"capacity": 2.5}, "capacity=2.5: expected a positive integer"),
        ({"max_bytes": 0}, "max_bytes=0: expected a positive integer"),
        ({"capacity": 2, "precision": "int4"}, "model.cache='int4'"),
        ({"capacity": 2, "track_frames": 1}, "track_frames=1: expected 2 or more"),
    ],
)
def test_impossible_limits_are_refused(options, words):
    with pytest.raises(InputError, match=words):
        elvsm.Stream(remembering(), **options)


def test_files_of_another_stream_are_one_clear_error(tmp_path):
    stream, file = seen(1)[0], tmp_path / "stream.safetensors"
    with pytest.raises(InputError, match="nothing to save"):
        elvsm.Stream(remembering(), capacity=1).save(file)
    stream.save(file)
    with pytest.raises(InputError, match="already exists"):
        stream.save(file)
    model = remembering()
    other = dataclasses.replace(model, params={"nothing": jnp.ones(1)})
    with pytest.raises(InputError, match="stream of params_sha256="):
        elvsm.Stream.load(file, other)
    other = dataclasses.replace(model, config=dataclasses.replace(model.config, remat="full"))
    with pytest.raises(InputError, match=r"of model.remat='none', and this model has 'full'"):
        elvsm.Stream.load(file, other)
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(InputError, match=r"cut.safetensors: not a .safetensors file, or damaged"):
        elvsm.Stream.load(cut, model)
    cut.write_bytes(
        file.read_bytes().replace(b"efficient_lvsm_jax.stream", b"efficient_lvsm_jax.dream ")
    )
    with pytest.raises(InputError, match="holds no stream"):
        elvsm.Stream.load(cut, model)
    text = file.read_bytes()
    cut.write_bytes(text.replace(b'\\"seen\\"', b'\\"sean\\"'))
    with pytest.raises(InputError, match="cannot be read"):
        elvsm.Stream.load(cut, model)
    assert sorted(x.name for x in tmp_path.iterdir()) == ["cut.safetensors", "stream.safetensors"]


def test_queries_are_pixels_of_a_stream_that_tracks():
    stream = elvsm.Stream(remembering(), capacity=ROOM, track_frames=3)
    with pytest.raises(InputError, match=r"queries from .* within 6x4"):
        stream.observe(pictures(1)[0], [[6.5, 3]])
    with pytest.raises(InputError, match=r"queries of shape \(2,\): expected \[Q, 2\]"):
        stream.observe(pictures(1)[0], [6.5, 3])
    assert len(stream) == 0 and stream.memory is None
    with pytest.raises(InputError, match="a stream that tracks nothing"):
        seen(1)[0].observe(pictures(1)[0], [[1, 2]])
