"""VGGT and StreamVGGT: cameras, depth, points and tracks of pictures.

One network (arXiv:2503.11651, arXiv:2507.11539). DINOv2 makes tokens of every frame; then attention
within frames and attention among frames take turns, and heads read what comes of some rounds.
StreamVGGT is causal: a frame sees those before it, so their keys and values are kept and frames are
seen one by one.

Axes: B scene, R frame of this call, S slot of the memory, Y X pixel, N patch token, P token of a
frame (camera, registers, patches), D width, H head, K head dim, L round.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Container
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from efficient_lvsm_jax.configuration import setting
from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.geometry.pose_encoding import decode
from efficient_lvsm_jax.models.families import Family, register
from efficient_lvsm_jax.models.scene_geometry import (
    Geometry,
    GeometryConfig,
    SceneGeometry,
    SceneMemory,
    Sight,
    TrackMaps,
    Tracks,
    pages_of,
)
from efficient_lvsm_jax.models.vggt_camera_head import CACHES, ENCODING, CameraHead
from efficient_lvsm_jax.models.vggt_tracker import STRIDE, Tracker
from efficient_lvsm_jax.nn.cache import empty, store
from efficient_lvsm_jax.nn.dpt import DPT, dpt_flops, dpt_kept, read_in_parts
from efficient_lvsm_jax.nn.flops import Flops, layer, linear, scores
from efficient_lvsm_jax.nn.initial import begin_alike, draw
from efficient_lvsm_jax.nn.paged import PRECISIONS, Pages
from efficient_lvsm_jax.nn.rotary import patch_rotation
from efficient_lvsm_jax.nn.stacks import walk_layers

IMAGE_MEAN = (0.485, 0.456, 0.406)
IMAGE_DEVIATION = (0.229, 0.224, 0.225)
MAPS = (2, 4)  # numbers of a pixel: depth, a point, and of both the confidence
TRACK_BYTES = 270  # kept of a channel of a track's token in every layer of every iteration


@dataclasses.dataclass(frozen=True)
class VGGTConfig(GeometryConfig):
    """Settings of VGGT and StreamVGGT besides those of every model of geometry.

    Attributes:
      layers: L, rounds of attention within and among frames.
      registers: tokens of a frame beside camera and patches.
      encoder_registers: DINOv2's.
      camera_heads, camera_layers, camera_iterations: of the camera head.
      track_features, track_width, track_heads, track_layers: of the tracker.
      virtual_tracks: beside those asked for.
      correlation_levels, correlation_radius: of the windows in which the tracker compares.
      track_iterations: how often tracks are refined; 0: never, as the tracker was not trained, and
        points to track are refused.
      causal: whether a frame sees only those before it: StreamVGGT. Otherwise the frames of a call
        see each other, and those in memory: VGGT.
      camera_cache: which iterations of the camera head a frame of a stream sees of the frames
        before: "separate", the same one, as in training; "published", all of them, as the published
        program does.
      cache: how keys and values of a stream are stored, one of `nn.paged.PRECISIONS`, or
        "computed": in the compute dtype. The camera head's are float32.
    """

    places: ClassVar[tuple[str, ...]] = (*GeometryConfig.places, "camera")
    unshown_settings: ClassVar[tuple[str, ...]] = (
        *GeometryConfig.unshown_settings,
        *("taps", "camera_heads", "camera_iterations", "track_heads", "track_iterations"),
        *("correlation_levels", "correlation_radius", "causal", "camera_cache"),
    )

    layers: int = setting(24, at_least=1)
    registers: int = setting(4, at_least=1)
    encoder_registers: int = setting(4, at_least=1)
    camera_heads: int = setting(16, at_least=1)
    camera_layers: int = setting(4, at_least=1)
    camera_iterations: int = setting(4, at_least=1)
    track_features: int = setting(128, at_least=1)
    track_width: int = setting(384, at_least=1)
    track_heads: int = setting(8, at_least=1)
    track_layers: int = setting(6, at_least=1)
    virtual_tracks: int = setting(64, at_least=1)
    correlation_levels: int = setting(7, at_least=1)
    correlation_radius: int = setting(4, at_least=0)
    track_iterations: int = setting(4, at_least=0)
    causal: bool = True

    camera_cache: str = setting("separate", choices=CACHES)
    cache: str = setting("computed", choices=("computed", *PRECISIONS))

    def __post_init__(self):
        super().__post_init__()
        if 2 * self.width % self.camera_heads:
            raise InputError(
                f"model.camera_heads={self.camera_heads}: expected a divisor of twice the width "
                f"{self.width}"
            )
        if self.track_width % self.track_heads or self.track_features % 4:
            raise InputError(
                f"model.track_width={self.track_width}, track_features={self.track_features}: "
                f"expected multiples of track_heads={self.track_heads}, and of 4"
            )

    @property
    def rounds(self) -> int:
        """As `layers`."""
        return self.layers

    def observe_flops(
        self, frames: int, size: tuple[int, int], remembered: int = 0
    ) -> dict[str, Flops]:
        """As `GeometryConfig` says."""
        width, reads = 2 * self.width, [(frames, remembered + frames)]
        if self.causal:
            reads = [(1, remembered + frame) for frame in range(1, frames + 1)]
        seen = sum(asking * of for asking, of in reads)
        special = 1 + self.registers, 1 + self.encoder_registers
        trunk = layer(width, frames, 0) + scores(width, 1, seen)
        once = linear(ENCODING, width) + linear(width, 3 * width)
        once += linear(width, width // 2) + linear(width // 2, ENCODING)
        maps = (
            dpt_flops(width, self.channels, self.features, outputs, size, self.patch)
            for outputs in MAPS
        )
        return {
            **self.rounds_flops(size, *special, reads),
            "cameras": (trunk * self.camera_layers + once * frames) * self.camera_iterations,
            "maps": sum(maps, Flops()) * frames,
        }

    def activation_bytes(
        self,
        frames: int,
        size: tuple[int, int],
        queries: int = 0,
        *,
        points: bool = True,
        lanes: float = 1.0,
        frozen: Container[str] = (),
    ) -> tuple[int, int]:
        """As `GeometryConfig` says; the tracker keeps all, whatever `remat` says, its map apart."""
        kept, working = self.rounds_bytes(
            frames,
            size,
            MAPS if points else MAPS[:1],
            lanes=lanes,
            encoder_is_kept=True,
            encoder_is_frozen="encoder" in frozen,
        )
        if not queries:
            return kept, working
        tokens = (queries + self.virtual_tracks) * frames * self.track_width
        kept += TRACK_BYTES * self.track_iterations * self.track_layers * tokens
        maps = frames * math.prod(side // STRIDE for side in size) * self.track_features
        kept += 4 * 4 * maps
        if self.remat == "none":
            sizes = 2 * self.width, self.channels, self.track_features, 0, size, self.patch
            kept += frames * dpt_kept(*sizes)
        return kept, working


class VGGT(SceneGeometry):
    """The model. Its heads are computed in float32, whatever the rest is."""

    float32 = ("camera_head", "depth_head", "point_head", "tracker")

    def __init__(self, config: VGGTConfig, *, rngs: nnx.Rngs | None = None):
        self.config = config
        width = config.width
        self.encoder = config.encoder(registers=config.encoder_registers, final_norm=True)
        # Unused, but published: kept so that files come out as they came in.
        self.mask_token = nnx.Param(jnp.zeros((width,)))
        # Of the first frame, and of all others.
        self.camera_token = nnx.Param(jnp.zeros((2, 1, width)))
        self.register_tokens = nnx.Param(jnp.zeros((2, config.registers, width)))

        self.within, self.among = (config.stack(place, 1e-5) for place in ("frame", "global"))
        self.camera_head = CameraHead(
            2 * width,
            config.camera_heads,
            config.camera_layers,
            config.camera_iterations,
            config.camera_cache,
            config.sparsity("camera"),
        )
        self.depth_head, self.point_head = (
            DPT(2 * width, config.channels, config.features, outputs) for outputs in MAPS
        )
        self.tracker = Tracker(
            2 * width,
            config.channels,
            features=config.track_features,
            hidden=config.track_width,
            heads=config.track_heads,
            layers=config.track_layers,
            virtual=config.virtual_tracks,
            levels=config.correlation_levels,
            radius=config.correlation_radius,
            iterations=config.track_iterations,
        )
        if rngs is not None:
            draw(self, rngs, config.rounds)
            begin_alike(self.among)
            self.camera_head.begin()

    @staticmethod
    def start(
        config: VGGTConfig,
        capacity: int,
        size: tuple[int, int],
        batch: int = 1,
        track_frames: int = 0,
    ) -> SceneMemory:
        """As `SceneGeometry` says."""
        tokens = size[0] // config.patch * (size[1] // config.patch) + 1 + config.registers
        heads = config.width // config.head_dim

        def room(layers: int, heads: int, slots: int, *page: int, precision: str) -> Pages:
            def one(x: jax.Array) -> Pages:
                frame = pages_of(x, x, config.sparsity("global"))
                return frame if precision == "computed" else store(frame, precision)

            shape = jax.ShapeDtypeStruct((layers, batch, heads, 1, *page), config.dtype)
            pages = empty(slots, jax.eval_shape(one, shape))
            return dataclasses.replace(pages, used=None)

        page = tokens, config.head_dim
        of_rounds = room(config.layers, heads, capacity, *page, precision=config.cache)
        heads, kept = config.camera_heads, capacity * config.camera_iterations
        page = 1, 2 * config.width // heads
        of_cameras = room(config.camera_layers, heads, kept, *page, precision="fp32")
        tracking = None
        if track_frames:
            _check_tracks(config)
            maps = (batch, track_frames, *(n // STRIDE for n in size), config.track_features)
            tracking = TrackMaps(jnp.zeros(maps), jnp.zeros((), jnp.int32))
        return SceneMemory(of_rounds, of_cameras, jnp.zeros(capacity, bool), tracking)

    def observe(
        self, memory: SceneMemory | None, images: jax.Array, queries: jax.Array | None = None
    ) -> tuple[SceneMemory | None, Geometry]:
        """As `SceneGeometry` says."""
        if queries is not None:
            _check_tracks(self.config)
        memory, geometry, taps = self.observe_with_taps(memory, images)
        size = images.shape[2:4]
        if memory is not None and memory.tracking is not None:
            maps = self.map(self.tracker.features, taps, size)
            tracking, tracks = self.tracker.follow(memory.tracking, maps, queries)
            memory = dataclasses.replace(memory, tracking=tracking)
        else:
            tracks = None if queries is None else self.track(taps, size, queries)[1]
        return memory, dataclasses.replace(geometry, tracks=tracks)

    def observe_with_taps(
        self, memory: SceneMemory | None, images: jax.Array
    ) -> tuple[SceneMemory | None, Geometry, jax.Array]:
        """`observe` without tracks, and what leaves the rounds `taps`, [4, B, R, P, 2·D]."""
        sight = self.sight(memory, images.shape[1])
        x, taps, tokens = self.rounds(memory, images, sight)
        cameras = None if memory is None else memory.cameras
        encodings, cameras = self.camera_head(x[:, :, 0], sight, cameras)
        if memory is not None:
            used = memory.used.at[sight.slots].set(True)
            memory = dataclasses.replace(memory, tokens=tokens, cameras=cameras, used=used)
        size = images.shape[2:4]
        geometry = Geometry(decode(encodings[-1], size), encodings, *self.dense(taps, size))
        return memory, geometry, taps

    def dense(self, taps: jax.Array, size: tuple[int, int]) -> tuple[jax.Array, ...]:
        """Depth and points of `taps`, the confidence of each after it, as `Geometry` has them."""
        depth = self.map(self.depth_head, taps, size)
        points = self.map(self.point_head, taps, size)
        return (
            jnp.exp(depth[..., 0]),
            1 + jnp.exp(depth[..., 1]),
            jnp.sign(points[..., :3]) * jnp.expm1(jnp.abs(points[..., :3])),
            1 + jnp.exp(points[..., 3]),
        )

    def track(
        self, taps: jax.Array, size: tuple[int, int], queries: jax.Array
    ) -> tuple[jax.Array, Tracks]:
        """Points of a clip's first frame in all frames, see `Tracker`; `taps` as they came."""
        return self.tracker(self.map(self.tracker.features, taps, size), queries)

    def encode(self, images: jax.Array) -> jax.Array:
        """Patch tokens [B·R, N, D] of every frame by itself, float32."""
        images = self.normalised(images)
        return self.encoder.patch_tokens(images.reshape(-1, *images.shape[2:]))

    @staticmethod
    def normalised(images: jax.Array) -> jax.Array:
        """Images [..., 3] as the encoder takes them."""
        return (images - jnp.array(IMAGE_MEAN)) / jnp.array(IMAGE_DEVIATION)

    def sight(self, memory: SceneMemory | None, frames: int) -> Sight:
        """Which frames see which."""
        return Sight.of(memory, frames, self.config.causal, self.config.attention)

    def tokens(self, memory: SceneMemory | None, images: jax.Array) -> jax.Array:
        """Tokens [B, R, P, D] of frames before the first round, float32."""
        batch, frames = images.shape[:2]
        seen = 0 if memory is None else jnp.count_nonzero(memory.used)
        slot = jnp.minimum(jnp.arange(frames) + seen, 1)
        patches = self.encode(images)
        patches = patches.reshape(batch, frames, *patches.shape[1:])
        special = jnp.concatenate([self.camera_token[...], self.register_tokens[...]], axis=1)
        special = jnp.broadcast_to(special[slot], (batch, frames, *special.shape[1:]))
        return jnp.concatenate([special, patches], axis=2)

    def rounds(
        self, memory: SceneMemory | None, images: jax.Array, sight: Sight
    ) -> tuple[jax.Array, jax.Array, Pages | None]:
        """Attention within and among frames by turns.

        Returns:
          What leaves the last round, that within frames first, [B, R, P, 2·D] float32; the same
          after each of `taps`, [4, B, R, P, 2·D]; the memory's pages with these frames added.
        """
        config = self.config
        size = (side // config.patch for side in images.shape[2:4])
        rotation = patch_rotation(*size, config.head_dim, 1 + config.registers)
        x = self.tokens(memory, images)
        batch, frames, tokens, width = x.shape

        def step(carry: tuple, xs: tuple) -> tuple:
            (x, pages), (within, among, layer) = carry, xs
            x = x[..., width:].reshape(-1, tokens, width)
            x = inner = within(x, rotation, groups=2)
            q, k, v = (
                jnp.moveaxis(y.reshape(batch, frames, *y.shape[1:]), 1, 2)
                for y in among.heads(x, rotation, groups=2)
            )  # [B, H, R, P, K]
            q = q.reshape(*q.shape[:2], -1, q.shape[-1])
            mixed, pages = sight.attend(q, k, v, pages, layer, among.sparse)
            outer = among.add(x.reshape(batch, -1, width), mixed)
            both = (y.reshape(batch, frames, tokens, width) for y in (inner, outer))
            return (jnp.concatenate(list(both), axis=-1), pages), None

        pages = None if memory is None else memory.tokens
        start = jnp.concatenate([x, x], axis=-1), pages
        stacks = (self.within, self.among, jnp.arange(config.layers))
        (x, pages), taps, _ = walk_layers(
            config,
            step,
            start,
            stacks,
            layers=config.layers,
            taps=config.taps,
            tap=lambda carry: carry[0],
        )
        return x, taps, pages

    def map(self, head: DPT, taps: jax.Array, size: tuple[int, int]) -> jax.Array:
        """A head's map [B, R, …, …, C] of `taps` [4, B, R, P, 2·D]."""
        taps = taps[:, :, :, 1 + self.config.registers :]
        config = self.config
        return read_in_parts(
            lambda taps: head(taps, size, config.patch), taps, size, remat=config.remat != "none"
        )


def _check_tracks(config: VGGTConfig) -> None:
    if not config.track_iterations:
        raise InputError(
            "model.track_iterations=0: this model's tracker was not trained; ask for no tracks "
            "(queries, track_frames, losses.tracks), or take weights that were trained on them"
        )


register(Family("vggt", VGGTConfig, VGGT))
