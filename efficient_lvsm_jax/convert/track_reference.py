"""Compares tracks with those that were recorded, and parts of the tracker on random input."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from efficient_lvsm_jax.convert.recorded_alone import DENSE, TOKENS, sizes
from efficient_lvsm_jax.models.geometry_model import GeometryModel
from efficient_lvsm_jax.models.running import bound, floats, run, with_settings
from efficient_lvsm_jax.models.vggt_tracker import (
    correlation,
    flow_embedding,
    pooled,
    position_table,
    sample,
)

# Steps of a track are told by waves of up to 970 rad a pixel, so rounding grows from one refining
# to the next: errors of the last say less.
TRACKS = (1e-3, 1e-3, 1e-2, 1e-2)


def tracks(model: GeometryModel, reference: Any) -> Iterator[tuple]:
    """Lines of a file of tracks, see `geometry_reference`."""
    data = reference.arrays
    model = with_settings(model, causal=True)

    def clip(params: dict, images: jax.Array, queries: jax.Array) -> tuple:
        network = bound(model, params)
        size, sight = images.shape[2:4], network.sight(None, images.shape[1])
        taps = network.rounds(None, images, sight)[1]
        features = network.map(network.tracker.features, taps, size)
        return features, network.tracker(features, queries)

    for s in sizes(data, "query_points_"):
        images = floats(reference.frames[f"images_u8_{s}"])
        queries = jnp.asarray(data[f"query_points_{s}"])
        features, (points, tracks) = run(clip, model.ready, images, queries)
        if (name := f"features_{s}") in data:
            got = np.moveaxis(np.asarray(features), -1, 2)[:, : data[name].shape[1]]
            yield "track features", name, got, data[name], TOKENS
        name = f"track_iterations_{s}"
        recorded = data.get(name, [None] * len(points))
        for number, (got, expected) in enumerate(zip(points, recorded, strict=True), 1):
            limit = TRACKS[min(number, len(TRACKS)) - 1]
            yield f"tracks, refined {number} times", name, got, expected, limit
        yield "visibility", f"vis_{s}", tracks.visible, data.get(f"vis_{s}"), 1e-3
        name = f"track_conf_{s}"
        yield "track confidence", name, tracks.confidence, data.get(name), 1e-3
    if "corr_out" in data:
        yield from _parts(model, data)


def _parts(model: GeometryModel, data: Mapping[str, np.ndarray]) -> Iterator[tuple]:
    config = model.config
    maps = np.moveaxis(data["corr_fmaps"], 2, -1)

    def windows(maps: jax.Array, features: jax.Array, at: jax.Array) -> jax.Array:
        pyramid = pooled(maps, config.correlation_levels)
        return correlation(pyramid, features, at, config.correlation_radius)

    got = run(windows, maps, data["corr_feats"], data["corr_coords"])
    yield "tracker parts", "corr_out", got, data["corr_out"], DENSE
    expected = data["flow_embedding"]
    embed = functools.partial(flow_embedding, channels=expected.shape[-1])
    yield "flow embedding", "flow_embedding", run(embed, data["flow_in"]), expected, 1e-3
    at, expected = data["position_coords"], data["position_sampled"]
    table = functools.partial(position_table, maps.shape[2:4], channels=expected.shape[-1])
    yield "tracker parts", "position_sampled", run(table, at), expected, DENSE
    yield "tracker parts", "sample_out", run(sample, maps[:, 0], at), data["sample_out"], DENSE

    def update(params: dict, tokens: jax.Array) -> jax.Array:
        return bound(model, params).tracker.updater(tokens)

    got = run(update, model.ready, jnp.asarray(data["update_in"]))
    yield "tracker parts", "update_out", got, data["update_out"], DENSE
