"""VGGT's tracker: points of the first frame, found in all frames of a clip (after CoTracker).

A track looks at all frames of its clip. In a stream (`Tracker.follow`) those are the first frame
and the last ones: a frame's tracks are those of the clip that ends with it, until that is longer
than what is kept.

Axes: B scene, R frame, Q point, C feature channel, D width, H head, K head dim, M token of a
sequence, W V step along x and y of a window, T channels of a token, Y X pixel of a feature map.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.models.scene_geometry import TrackMaps, Tracks
from efficient_lvsm_jax.nn.attention import attend
from efficient_lvsm_jax.nn.blocks import LayerNorm, Linear
from efficient_lvsm_jax.nn.dpt import DPT
from efficient_lvsm_jax.nn.layers import gelu
from efficient_lvsm_jax.nn.paged import Pages

STRIDE = 2  # pixels of a feature
TRAINED_SIZE = 518  # pixels, which a step is told in shares of
POSITION_BASE = 10000.0


class TrackBlock(nnx.Module):
    """Attention and an MLP; what is added to is normed first, as published."""

    def __init__(self, width: int, heads: int, *, cross: bool = False):
        split = (heads, width // heads)
        self.norm1 = LayerNorm(width, 1e-5)
        self.norm_context = LayerNorm(width, 1e-5) if cross else None
        self.qkv = Linear((width, 3, *split), (3, *split))
        self.out = Linear((*split, width), (width,))
        self.norm2 = LayerNorm(width, 1e-5)
        self.up = Linear((width, 4 * width), (4 * width,))
        self.down = Linear((4 * width, width), (width,))

    def __call__(
        self, x: jax.Array, context: jax.Array | None = None, *, used: jax.Array | None = None
    ) -> jax.Array:
        """Sequences x [B, M, D] that look at themselves, or at context [B, …, D].

        With `used`, [M] bool, only those tokens are looked at.
        """
        x = self.norm1(x)
        context = x if self.norm_context is None else self.norm_context(context)
        kernel, bias = self.qkv.kernel[...], self.qkv.bias[...]
        q = jnp.einsum("BMD,DHK->BHMK", x, kernel[:, 0]) + bias[0][:, None]
        kv = jnp.einsum("BMD,DCHK->CBHMK", context, kernel[:, 1:])
        k, v = kv + bias[1:, None, :, None]
        # A page of all tokens, or one of each.
        at = 2 if used is None else 3
        mixed = attend(q, Pages(jnp.expand_dims(k, at), jnp.expand_dims(v, at), used))
        x = x + self.out("BHMK,HKD->BMD", mixed)
        hidden = gelu(self.up("BMD,DF->BMF", self.norm2(x)))
        return x + self.down("BMF,FD->BMD", hidden)


class Updater(nnx.Module):
    """A transformer over the tokens of all tracks in all frames, with virtual tracks beside."""

    def __init__(self, token: int, width: int, heads: int, layers: int, virtual: int, outputs: int):
        def stack(**options: bool) -> TrackBlock:
            return jax.vmap(lambda _: TrackBlock(width, heads, **options))(jnp.arange(layers))

        self.virtual_tracks = nnx.Param(jnp.zeros((virtual, 1, width)))
        self.input_norm = LayerNorm(token, 1e-5)
        self.input = Linear((token, width), (width,))
        self.time = stack()
        self.virtual_from_points = stack(cross=True)
        self.virtual = stack()
        self.points_from_virtual = stack(cross=True)
        self.output_norm = LayerNorm(width, 1e-5)
        self.output = Linear((width, outputs), (outputs,))

    def __call__(self, tokens: jax.Array, used: jax.Array | None = None) -> jax.Array:
        """Tokens [B, Q, R, T] to what is to be changed, [B, Q, R, outputs].

        With `used`, [R] bool, the other frames are not looked at.
        """
        batch, points, frames, _ = tokens.shape
        start = self.input("BQRT,TD->BQRD", self.input_norm(tokens))
        beside = jnp.broadcast_to(
            self.virtual_tracks[...], (batch, self.virtual_tracks.shape[0], frames, start.shape[-1])
        )

        def over_time(block: TrackBlock, x: jax.Array) -> jax.Array:
            return block(x.reshape(-1, *x.shape[2:]), used=used).reshape(x.shape)

        def over_tracks(block: TrackBlock, *x: jax.Array) -> jax.Array:
            by_frame = [jnp.swapaxes(each, 1, 2) for each in x]
            merged = [each.reshape(-1, *each.shape[2:]) for each in by_frame]
            return jnp.swapaxes(block(*merged).reshape(by_frame[0].shape), 1, 2)

        def step(x: jax.Array, blocks: tuple) -> tuple[jax.Array, None]:
            time, virtual_from_points, virtual, points_from_virtual = blocks
            x = over_time(time, x)
            real, made_up = x[:, :points], x[:, points:]
            made_up = over_tracks(virtual_from_points, made_up, real)
            made_up = over_tracks(virtual, made_up)
            real = over_tracks(points_from_virtual, real, made_up)
            return jnp.concatenate([real, made_up], axis=1), None

        stacks = (self.time, self.virtual_from_points, self.virtual, self.points_from_virtual)
        x, _ = jax.lax.scan(step, jnp.concatenate([start, beside], axis=1), stacks)
        return self.output("BQRD,DT->BQRT", self.output_norm(x[:, :points] + start))


class Tracker(nnx.Module):
    """The tracker. Computed in float32.

    Args:
      width: E of the tokens that it reads.
      channels: of the levels of its features, see `DPT`.
      features: C.
      hidden: D of its transformer.
      heads, layers: of it.
      virtual: tracks beside those asked for.
      levels, radius: of the windows in which features are compared.
      iterations: how often tracks are refined.
    """

    def __init__(
        self,
        width: int,
        channels: tuple[int, ...],
        *,
        features: int,
        hidden: int,
        heads: int,
        layers: int,
        virtual: int,
        levels: int,
        radius: int,
        iterations: int,
    ):
        self.levels, self.radius, self.iterations = levels, radius, iterations
        self.features = DPT(width, channels, features, 0)
        token, windows = 3 * features + 4, levels * (2 * radius + 1) ** 2
        self.first_or_later = nnx.Param(jnp.zeros((2, token)))
        self.compare1 = Linear((windows, hidden), (hidden,))
        self.compare2 = Linear((hidden, features), (features,))
        self.map_norm = LayerNorm(features, 1e-5)
        self.updater = Updater(token, hidden, heads, layers, virtual, features + 2)
        self.feature_norm = LayerNorm(features, 1e-5)
        self.feature_update = Linear((features, features), (features,))
        self.visible = Linear((features, 1), (1,))
        self.confidence = Linear((features, 1), (1,))

    def follow(
        self, kept: TrackMaps, maps: jax.Array, queries: jax.Array | None
    ) -> tuple[TrackMaps, Tracks | None]:
        """Frames of a stream, one after the other.

        Args:
          kept: of the frames before.
          maps: what `features` makes of the new ones, [B, R, Y, X, C].
          queries: as below, in the stream's first frame; None: nothing is asked.

        Returns:
          `kept` with the new frames, of which the last stay; where the points are in them.
        """
        slots = kept.maps.shape[1]

        def one(kept: TrackMaps, new: jax.Array) -> tuple[TrackMaps, Tracks | None]:
            slot = jnp.where(kept.seen == 0, 0, 1 + (kept.seen - 1) % (slots - 1))
            pool = jax.lax.dynamic_update_slice_in_dim(kept.maps, new[:, None], slot, axis=1)
            used = jnp.arange(slots) <= kept.seen
            kept = TrackMaps(pool, kept.seen + 1)
            if queries is None:
                return kept, None
            _, tracks = self(pool, queries, used)
            take = functools.partial(jax.lax.dynamic_index_in_dim, index=slot, axis=1)
            return kept, jax.tree.map(lambda x: take(x, keepdims=False), tracks)

        kept, tracks = jax.lax.scan(one, kept, jnp.moveaxis(maps, 1, 0))
        return kept, jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1), tracks)

    def __call__(
        self, maps: jax.Array, queries: jax.Array, used: jax.Array | None = None
    ) -> tuple[jax.Array, Tracks]:
        """Tracks of points.

        Args:
          maps: what `features` makes of the frames, [B, R, Y, X, C].
          queries: pixels x y in the first frame, [B, Q, 2].
          used: [R] bool, which frames there are, the first among them; None: all.

        Returns:
          Points after every iteration, [iterations, B, R, Q, 2] in pixels; the tracks.

        Raises:
          InputError: the frames are too small for the coarsest level.
        """
        maps = self.map_norm(maps)
        pyramid = pooled(maps, self.levels)
        frames = maps.shape[1]
        start = queries / STRIDE
        at = jnp.broadcast_to(start[:, None], (queries.shape[0], frames, *start.shape[1:]))
        first = sample(maps[:, 0], start)
        features = jnp.broadcast_to(first[:, None], (*at.shape[:3], first.shape[-1]))
        token = position_table(maps.shape[2:4], start, self.first_or_later.shape[-1])
        slot = jnp.minimum(jnp.arange(frames), 1)
        token = token[:, :, None] + self.first_or_later[...][slot]  # [B, Q, R, T]

        def iteration(carry: tuple, _: None) -> tuple:
            at, features = carry
            at = jax.lax.stop_gradient(at)
            near = self.compare1("BRQW,WD->BRQD", correlation(pyramid, features, at, self.radius))
            near = self.compare2("BRQD,DC->BRQC", gelu(near))
            flow = at - at[:, :1]
            share = flow / TRAINED_SIZE
            flow = flow_embedding(flow, features.shape[-1])
            x = jnp.concatenate([flow, share, share, near, features], axis=-1)
            change = self.updater(jnp.swapaxes(x, 1, 2) + token, used)
            change = jnp.swapaxes(change, 1, 2)
            at = at + change[..., :2]
            more = self.feature_update("BRQC,CF->BRQF", self.feature_norm(change[..., 2:]))
            at = at.at[:, 0].set(start)
            return (at, features + gelu(more)), at * STRIDE

        (_, features), points = jax.lax.scan(
            iteration, (at, features), None, length=self.iterations
        )
        visible, confidence = (
            jax.nn.sigmoid(head("BRQC,CO->BRQO", features)[..., 0])
            for head in (self.visible, self.confidence)
        )
        return points, Tracks(points[-1], visible, confidence)


def pooled(maps: jax.Array, levels: int) -> list[jax.Array]:
    """Maps [B, R, Y, X, C] and halves of halves of them; odd last rows and columns are dropped.

    Raises:
      InputError: nothing would be left of a level.
    """
    least = STRIDE * 2 ** (levels - 1)
    if min(maps.shape[2:4]) * STRIDE < least:
        height, width = (side * STRIDE for side in maps.shape[2:4])
        raise InputError(
            f"tracks in frames of about {height}x{width} (height x width): the tracker compares at "
            f"{levels} scales, for which both sides must be at least {least} pixels; resize them"
        )
    pyramid = [maps]
    for _ in range(levels - 1):
        x = pyramid[-1]
        height, width = (side // 2 for side in x.shape[2:4])
        x = x[:, :, : 2 * height, : 2 * width]
        pyramid.append(x.reshape(*x.shape[:2], height, 2, width, 2, -1).mean(axis=(3, 5)))
    return pyramid


def correlation(
    pyramid: list[jax.Array], features: jax.Array, at: jax.Array, radius: int
) -> jax.Array:
    """How like a track's features the maps are around it, [B, R, Q, levels·(2·radius+1)²].

    Outside of a map that is 0. The first axis of a window moves along x, as published.

    Args:
      pyramid: of `pooled`.
      features: [B, R, Q, C].
      at: x y on the finest map, [B, R, Q, 2].
      radius: of the windows.
    """
    steps = jnp.arange(-radius, radius + 1.0)
    found = []
    for level, maps in enumerate(pyramid):
        scores = jnp.einsum("BRQC,BRYXC->BRQYX", features, maps) / maps.shape[-1] ** 0.5
        centre = at / 2**level
        columns = _hat(centre[..., :1] + steps, maps.shape[3])  # [B, R, Q, W, X]
        rows = _hat(centre[..., 1:] + steps, maps.shape[2])
        window = jnp.einsum("BRQYX,BRQWX->BRQWY", scores, columns)
        window = jnp.einsum("BRQWY,BRQVY->BRQWV", window, rows)
        found.append(window.reshape(*window.shape[:3], -1))
    return jnp.concatenate(found, axis=-1)


def _hat(position: jax.Array, size: int) -> jax.Array:
    """Weights [..., size] of linear interpolation; outside zeros; an axis of one is always read."""
    if size == 1:
        return jnp.ones((*position.shape, 1))
    return jnp.maximum(0, 1 - jnp.abs(position[..., None] - jnp.arange(size)))


def sample(maps: jax.Array, at: jax.Array) -> jax.Array:
    """Maps [B, Y, X, C] at x y [B, Q, 2], linearly between pixels: [B, Q, C]."""
    rows, columns = (
        _hat(jnp.clip(at[..., axis], 0, size - 1), size)
        for axis, size in ((1, maps.shape[1]), (0, maps.shape[2]))
    )
    return jnp.einsum("BQY,BYXC,BQX->BQC", rows, maps, columns)


def flow_embedding(flow: jax.Array, channels: int) -> jax.Array:
    """Sines and cosines, by turns, of x and then y of steps [..., 2]: [..., channels]."""
    half = channels // 2
    frequencies = np.arange(0, half, 2) * (1000 / half)
    angles = flow[..., None] * jnp.asarray(frequencies, jnp.float32)
    waves = jnp.stack([jnp.sin(angles), jnp.cos(angles)], axis=-1)
    return waves.reshape(*flow.shape[:-1], channels)


def position_table(size: tuple[int, int], at: jax.Array, channels: int) -> jax.Array:
    """Of x y [B, Q, 2] on a map of size (Y, X): [B, Q, channels], half of x and half of y.

    Sines and cosines belong to whole pixels; between them is linear interpolation.
    """
    count = channels // 4
    frequencies = POSITION_BASE ** -(np.arange(count) / count)
    parts = []
    for axis, length in ((0, size[1]), (1, size[0])):
        angles = np.arange(length)[:, None] * frequencies
        table = np.concatenate([np.sin(angles), np.cos(angles)], axis=-1)
        weights = _hat(jnp.clip(at[..., axis], 0, length - 1), length)
        parts.append(weights @ jnp.asarray(table, jnp.float32))
    return jnp.concatenate(parts, axis=-1)
