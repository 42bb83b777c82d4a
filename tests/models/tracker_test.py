"""Tracks of a stream are those of the clip that ends with its frame."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from efficient_lvsm_jax.models.families import configure
from efficient_lvsm_jax.models.model import bind
from efficient_lvsm_jax.models.scene_geometry import TrackMaps
from efficient_lvsm_jax.models.vggt import VGGT
from efficient_lvsm_jax.models.vggt_tracker import Tracker

FRAMES, KEPT, SIZE, CHANNELS = 5, 3, (8, 10), 4


def test_a_stream_is_tracked_as_the_clip_of_its_first_and_its_last_frames():
    tracker = Tracker(
        *(8, (4, 4, 4, 4)),
        **{"features": CHANNELS, "hidden": 8, "heads": 2, "layers": 1},
        **{"virtual": 2, "levels": 2, "radius": 1, "iterations": 2},
    )
    graph, zeros = nnx.split(tracker)
    draw = np.random.default_rng(0)
    params = jax.tree.map(lambda x: jnp.float32(draw.normal(scale=0.3, size=x.shape)), zeros)
    maps = jnp.float32(draw.normal(size=(1, FRAMES, *SIZE, CHANNELS)))
    queries = jnp.float32([[[3, 4], [17, 9.5]]])

    @jax.jit
    def clip(params, maps):
        return nnx.merge(graph, params)(maps, queries)[1]

    @jax.jit
    def stream(params, kept, maps):
        return nnx.merge(graph, params).follow(kept, maps, queries)

    kept = TrackMaps(jnp.zeros((1, KEPT, *SIZE, CHANNELS)), jnp.zeros((), jnp.int32))
    kept, tracks = stream(params, kept, maps)
    assert kept.maps.shape[1] == KEPT and int(kept.seen) == FRAMES
    np.testing.assert_allclose(tracks.points[:, 0], queries, atol=1e-6)
    assert np.abs(tracks.points[:, 1:] - queries).max() > 0.1  # they move
    for seen in ([0, 1, 2], [0, 2, 3], [0, 3, 4]):
        expected = clip(params, maps[:, np.array(seen)])
        np.testing.assert_allclose(tracks.points[:, seen[-1]], expected.points[:, 2], atol=1e-3)
        for name in ("visible", "confidence"):
            got, right = getattr(tracks, name)[:, seen[-1]], getattr(expected, name)[:, 2]
            np.testing.assert_allclose(got, right, atol=1e-4)


def test_a_network_tracks_with_what_its_memory_keeps():
    config = configure("vggt", {"width": 64, "layers": 4, "taps": (1, 2, 3, 4)})
    params = jax.eval_shape(lambda: nnx.to_pure_dict(nnx.split(VGGT(config))[1]))
    memory = jax.eval_shape(lambda: VGGT.start(config, 4, (140, 154), track_frames=KEPT))
    images = jax.ShapeDtypeStruct((1, 2, 140, 154, 3), jnp.float32)
    queries = jax.ShapeDtypeStruct((1, 7, 2), jnp.float32)
    after, geometry = jax.eval_shape(
        lambda params, *given: bind("vggt", config, params).observe(*given),
        *(params, memory, images, queries),
    )
    assert jax.tree.structure(after) == jax.tree.structure(memory)
    assert jax.tree.leaves(after) == jax.tree.leaves(memory)
    assert memory.tracking.maps.shape == (1, KEPT, 70, 77, 128)
    assert geometry.tracks.points.shape == (1, 2, 7, 2)
