"""The contract of families that see geometry: pictures to their cameras, depth and points.

    memory = module.start(config, capacity, size)
    memory, geometry = module.observe(memory, images)

`observe` takes one frame of a stream, or several at once; a memory of None stands for pictures that
are seen by themselves, as a whole clip, and then nothing is remembered.

Everything is told in one frame of the world, that of the very first camera, or of the one that is
`Geometry.reference`: its axes (x right, y down, z forward), its place as origin, and a unit of the
model's own (about the mean distance of what is seen). That camera is predicted like all others, so
it is near the identity, not equal.

Axes: B scene, R frame of this call, S slot of the memory, Y X pixel, P token of a frame, H head,
K head dim, L layer.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Container, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from efficient_lvsm_jax.backbones.dinov2 import DINOv2
from efficient_lvsm_jax.backbones.vit import TeacherConfig
from efficient_lvsm_jax.configuration import Settings, setting
from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.geometry.cameras import Cameras
from efficient_lvsm_jax.nn.attention import IMPLEMENTATIONS
from efficient_lvsm_jax.nn.blocks import Block
from efficient_lvsm_jax.nn.cache import store
from efficient_lvsm_jax.nn.dpt import PIXELS_AT_ONCE, dpt_kept
from efficient_lvsm_jax.nn.flops import Flops, layer, linear
from efficient_lvsm_jax.nn.paged import Pages
from efficient_lvsm_jax.nn.sparse_linear import Digest, SparseLinear, attend_by
from efficient_lvsm_jax.nn.sparsity import Sparsity, attention_flops, placed
from efficient_lvsm_jax.nn.stacks import REMAT_POLICIES

# What losses keep of a pixel of a map, by outputs of its head: of depth, of points.
LOSS_BYTES = {2: 100, 4: 550}


@dataclasses.dataclass(frozen=True)
class GeometryConfig(Settings):
    """What every model of geometry is made of, and how it is computed.

    Attributes:
      width: D, channels of a token; a multiple of head_dim.
      head_dim: K, channels of an attention head.
      patch: edge of a patch in pixels; image sides must be multiples of it.
      encoder_layers: of DINOv2, which makes tokens of every frame.
      position_side: its position table is for so many patches squared.
      taps: the four rounds of attention within and among frames that heads read, counted from 1.
      channels: of the four levels of a DPT head, finest first.
      features: of all levels while they are fused.
      attention: as `view_synthesis.ModelConfig` says.
      compute_dtype: "float32" or "bfloat16" for matmuls outside of heads. The residual stream,
        norms, softmax and heads stay float32.
      remat: as `view_synthesis.ModelConfig` says, "products" being "attention" here; with any but
        "none", heads keep nothing of large pictures.
      scan_layers: as `view_synthesis.ModelConfig` says, of rounds and Depth Anything 3's encoder.
      attention_sparsity: where attention is sparse, and how, see `nn.sparsity.placed`, of
        `places`, as in "frame=0.3,global=0.3"; each then has a projection P of its own. Of the
        frames in a memory blocks alone can be chosen, and no block has tokens of two frames.
    """

    group = "model"
    # Where attention may be sparse: in DINOv2, within frames, among all of them.
    places: ClassVar[tuple[str, ...]] = ("encoder", "frame", "global")
    # Settings that weights fix and no shape shows.
    unshown_settings: ClassVar[tuple[str, ...]] = ("attention_sparsity",)
    causal = False  # whether a frame sees only those before it, so that there are streams

    width: int = setting(1024, at_least=1)
    head_dim: int = setting(64, at_least=1)
    patch: int = setting(14, at_least=1)
    encoder_layers: int = setting(24, at_least=1)
    position_side: int = setting(37, at_least=1)
    taps: tuple[int, ...] = setting((5, 12, 18, 24), at_least=1)
    channels: tuple[int, ...] = setting((256, 512, 1024, 1024), at_least=1)
    features: int = setting(256, at_least=1)

    attention: str = setting("auto", choices=("auto", *IMPLEMENTATIONS))
    compute_dtype: str = setting("float32", choices=("float32", "bfloat16"))
    remat: str = setting("none", choices=REMAT_POLICIES)
    scan_layers: bool = True
    attention_sparsity: str = ""

    def __post_init__(self):
        super().__post_init__()
        placed(self.attention_sparsity, self.places)
        if self.width % self.head_dim:
            raise InputError(
                f"model.width={self.width} is not a multiple of head_dim={self.head_dim}"
            )
        if self.head_dim % 4:
            raise InputError(f"model.head_dim={self.head_dim}: expected a multiple of 4")
        if any(n % 4 for n in self.channels) or len(self.channels) != 4 or self.features % 8:
            raise InputError(
                f"model.channels={self.channels}, features={self.features}: expected four "
                "multiples of 4, and a multiple of 8"
            )
        taps = self.taps
        if len(taps) != 4 or list(taps) != sorted(set(taps)) or taps[-1] > self.rounds:
            raise InputError(
                f"model.taps={taps}: expected four ascending rounds from 1 to {self.rounds}"
            )

    @property
    def rounds(self) -> int:
        """How many rounds of attention within and among frames there are."""
        raise NotImplementedError  # each family has its own

    def encoder(self, *, registers: int = 0, final_norm: bool = False) -> DINOv2:
        """What makes tokens of every frame."""
        return DINOv2(
            TeacherConfig(
                "dinov2",
                width=self.width,
                head_dim=self.head_dim,
                layers=self.encoder_layers,
                hidden=4 * self.width,
                patch=self.patch,
                storage_tokens=registers,
                position_side=self.position_side,
                final_norm=final_norm,
                attention=self.attention,
                sparsity=self.sparsity("encoder"),
            )
        )

    def stack(self, place: str, epsilon: float) -> Block:
        """One layer of every round, within frames or among them, as the place says."""
        sizes = self.width, self.head_dim, 4 * self.width
        how = {"attention": self.attention, "sparsity": self.sparsity(place)}

        def block(_: jax.Array) -> Block:
            return Block(*sizes, epsilon, qk_norm=True, **how)

        return jax.vmap(block)(jnp.arange(self.rounds))

    def observe_flops(
        self, frames: int, size: tuple[int, int], remembered: int = 0
    ) -> dict[str, Flops]:
        """Frames of one scene that are observed at once; tracks are left out.

        Args:
          frames: R.
          size: (Y, X) in pixels.
          remembered: frames in memory.

        Returns:
          FLOPs by part: encoder, within frames, among frames, cameras, maps.
        """
        raise NotImplementedError  # each family has its own

    def sparsity(self, place: str) -> Sparsity | None:
        """How attention is sparse at one of `places`; None: it is dense."""
        return placed(self.attention_sparsity, self.places).get(place)

    def rounds_flops(
        self,
        size: tuple[int, int],
        special: int,
        encoder_special: int,
        reads: Sequence[tuple[int, int]],
    ) -> dict[str, Flops]:
        """Of the first three parts of `observe_flops`.

        Args:
          size: as there.
          special, encoder_special: tokens of a frame beside patches, of the rounds and before.
          reads: of frames that attend together how many they are, and how many they see.
        """

        def attention(place: str, queries: int, keys: int, frames: int = 1) -> Flops:
            shape = self.width, self.head_dim, queries, keys
            made = {"pages": frames, "summed": keys if frames == 1 else queries}
            return attention_flops(self.sparsity(place), *shape, **made)

        patches, width = size[0] // self.patch * (size[1] // self.patch), self.width
        tokens = patches + special
        frames, before = sum(reading for reading, _ in reads), patches + encoder_special
        seen = (attention("global", asking * tokens, tokens, of) for asking, of in reads)
        among = sum(seen, layer(width, frames * tokens, 0))
        encoder = (layer(width, before, 0) + attention("encoder", before, before)) * (
            self.encoder_layers
        )
        within = layer(width, tokens, 0) + attention("frame", tokens, tokens)
        return {
            "encoder": (encoder + linear(3 * self.patch**2, width, patches)) * frames,
            "within frames": within * (frames * self.rounds),
            "among frames": among * self.rounds,
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
        """Of a training step on a clip, as `view_synthesis.ModelConfig.activation_units` says.

        Args:
          frames, size: as in `observe_flops`.
          queries: points that are tracked.
          points: whether a loss looks at maps of points.
          lanes: by which factor a device pads arrays of heads.
          frozen: names of parts without gradients.

        Returns:
          Bytes kept for the backward pass, and in use at once at its peak.
        """
        raise NotImplementedError  # each family has its own

    def rounds_bytes(
        self,
        frames: int,
        size: tuple[int, int],
        maps: Sequence[int],
        *,
        lanes: float,
        encoder_is_kept: bool,
        encoder_is_frozen: bool,
    ) -> tuple[int, int]:
        """`activation_bytes` of all but tracks; bytes were read off traces of a layer and a head.

        Args:
          frames, size, lanes: as there.
          maps: outputs of each DPT head.
          encoder_is_kept: whether its layers keep all, whatever `remat` says.
          encoder_is_frozen: whether there is no way back through it.
        """
        patches, dtype = math.prod(side // self.patch for side in size), self.dtype.itemsize
        stream = frames * patches * self.width  # the numbers of a frame's tokens, of all frames
        # Of a layer what is D wide, and what is of heads; norms and residuals are float32.
        wide, attention = 32 + 10 * dtype, lanes * 4 * dtype
        within_a_round = 2 * (wide + attention + lanes * 28)
        carried = 8  # what leaves both layers of a round, float32
        kept = {"none": carried + within_a_round, "full": carried}
        of_encoder = {"none": wide + attention, "full": 4}
        of_mixed = 2 * lanes * dtype
        each = kept.get(self.remat, carried + of_mixed) * self.rounds
        if not encoder_is_frozen:
            name = "none" if encoder_is_kept else self.remat
            each += of_encoder.get(name, 4 + of_mixed / 2) * self.encoder_layers
        taps = carried * (len(self.taps) + 1) * stream
        heads = [
            dpt_kept(2 * self.width, self.channels, self.features, outputs, size, self.patch)
            for outputs in maps
        ]
        pixels = frames * math.prod(size)
        compared = sum(LOSS_BYTES[outputs] for outputs in maps) * pixels
        total = each * stream + taps + compared
        at_once = within_a_round * stream + taps
        if self.remat == "none" or pixels <= PIXELS_AT_ONCE:
            return int(total + frames * sum(heads)), int(at_once + max(heads))
        return int(total), int(max(at_once, taps + max(heads)))

    @property
    def architecture(self) -> dict[str, Any]:
        """The settings that are fixed by the weights."""
        fields = dataclasses.fields(self)
        return {field.name: getattr(self, field.name) for field in fields if field.type != "str"}

    @property
    def dtype(self) -> jnp.dtype:
        """compute_dtype as a dtype."""
        return jnp.dtype(self.compute_dtype)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Tracks:
    """Where points of the first frame are in the frames of this call.

    Attributes:
      points: [B, R, Q, 2] float32, pixels x y, as the queries are.
      visible, confidence: [B, R, Q] float32, probabilities.
    """

    points: jax.Array
    visible: jax.Array
    confidence: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Geometry:
    """What is known of R frames, in the frame of the world above.

    Attributes:
      cameras: [B, R]; a focal length may be infinite, where the model says a field of view of 0.
      encodings: of the cameras after every iteration of refining them, [I, B, R, 9] float32, see
        `geometry.pose_encoding`; the cameras are the last.
      depth: [B, R, Y, X] float32 above 0, along the viewing direction.
      depth_confidence: of it, at least 1.
      points: [B, R, Y, X, 3] float32, of the world, predicted apart from depth and cameras. None:
        not by this family; `geometry.points.unproject` makes them of depth and cameras.
      points_confidence: [B, R, Y, X] float32, at least 1, or None.
      tracks: of the points asked for; None: none were.
      rays: [B, R, y, x, 6] float32, of a map of 8 pixels to a patch's side: where it looks in the
        world, 1 along the viewing direction, and from where. None: see the model's `rays`.
      rays_confidence: [B, R, y, x] float32, at least 1, or None.
      reference: [B] int32, the frame whose camera is the world. None: the first; or, where cameras
        were given, the world is theirs.
    """

    cameras: Cameras
    encodings: jax.Array
    depth: jax.Array
    depth_confidence: jax.Array
    points: jax.Array | None = None
    points_confidence: jax.Array | None = None
    tracks: Tracks | None = None
    rays: jax.Array | None = None
    rays_confidence: jax.Array | None = None
    reference: jax.Array | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class TrackMaps:
    """What tracks are found in: features of the first frame of a stream and of the last ones.

    Attributes:
      maps: [B, W, Y/2, X/2, C] float32, the first frame's in front, the others' in any order.
      seen: int32, how many frames were.
    """

    maps: jax.Array
    seen: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class SceneMemory:
    """Finished keys and values of the frames that were seen. A value: shapes never change.

    Attributes:
      tokens: of the layers in which frames see each other, [L, B, H, S, P, K].
      cameras: likewise of the camera head, a page of one token for every frame and iteration.
      used: [S] bool, which slots hold a frame.
      tracking: None: nothing is tracked.
    """

    tokens: Pages
    cameras: Pages
    used: jax.Array
    tracking: TrackMaps | None = None

    @property
    def capacity(self) -> int:
        """S, how many frames there is room for."""
        return self.used.shape[0]

    @property
    def frame_bytes(self) -> int:
        """Bytes that keys and values of a frame take, of all scenes; of abstract arrays as well."""
        of_cameras = self.cameras.page_bytes * (self.cameras.capacity // self.capacity)
        return self.tokens.page_bytes + of_cameras


class SceneGeometry(nnx.Module):
    """What a family of this contract has."""

    float32: tuple[str, ...] = ()  # the parts that compute in it whatever the rest does
    takes_cameras = False  # whether `observe` also takes `cameras` [B, R] that are known

    @staticmethod
    def start(
        config: GeometryConfig,
        capacity: int,
        size: tuple[int, int],
        batch: int = 1,
        track_frames: int = 0,
    ) -> SceneMemory:
        """An empty memory for so many frames of (height, width) pixels of each of B scenes.

        Points are tracked through `track_frames` of them, the first and the last; 0: none are.
        """
        raise NotImplementedError  # each family has its own

    def observe(
        self, memory: SceneMemory | None, images: jax.Array, queries: jax.Array | None = None
    ) -> tuple[SceneMemory | None, Geometry]:
        """Frames seen after those in memory, and what is now known of them.

        Args:
          memory: with free slots for the frames, which is not checked here; None: there is none.
          images: [B, R, Y, X, 3] floats in [0, 1].
          queries: pixels x y of the very first frame to track, [B, Q, 2]; with a memory only one
            that keeps what tracks are found in.

        Returns:
          The memory with the frames added, in the place of the old one; their geometry.
        """
        raise NotImplementedError  # each family has its own


def pages_of(k: jax.Array, v: jax.Array, sparsity: Sparsity | None) -> Pages:
    """Keys and values of frames, [..., R, P, K], with a digest if blocks of them are chosen.

    Frames of one token, as the camera head's, have no blocks.
    """
    in_blocks = sparsity is not None and sparsity.by == "block" and k.shape[-2] > 1
    return Pages(k, v, digest=Digest.of(k, v, sparsity) if in_blocks else None)


@dataclasses.dataclass(frozen=True)
class Sight:
    """Which frames see which, and where new ones go in a memory.

    Attributes:
      causal: whether a frame sees none that comes later in the same call.
      implementation: of attention, see `attend`.
      slots: [R] int32, of the frames of this call. None: there is no memory.
      reads: [R, S] bool, the slots that each of them reads.
    """

    causal: bool
    implementation: str
    slots: jax.Array | None = None
    reads: jax.Array | None = None

    @classmethod
    def of(
        cls, memory: SceneMemory | None, frames: int, causal: bool, implementation: str
    ) -> Sight:
        """Of so many frames, which go into the first free slots."""
        if memory is None:
            return cls(causal, implementation)
        slots = jnp.argsort(memory.used, stable=True)[:frames]
        new = jnp.arange(memory.capacity) == slots[:, None]
        own = jnp.cumsum(new, axis=0, dtype=bool) if causal else new.any(axis=0, keepdims=True)
        return cls(causal, implementation, slots, own | memory.used)

    def attend(
        self,
        q: jax.Array,
        k: jax.Array,
        v: jax.Array,
        pages: Pages | None,
        layer: jax.Array,
        sparse: SparseLinear | None = None,
    ) -> tuple[jax.Array, Pages | None]:
        """What frames gather of those that they see.

        Args:
          q: [B, H, R·P, K].
          k, v: finished, [B, H, R, P, K].
          pages: of all layers in memory, [L, B, H, S, P, K], of any precision, or None without
            memory; gradients flow only then.
          layer: which of them.
          sparse: computes attention, if it is not dense.

        Returns:
          As q; and the pages with k and v in them.

        Raises:
          InputError: sparse attention to a memory, but not by blocks.
        """
        frames = pages_of(k, v, sparse and sparse.sparsity)
        if self.slots is None:
            return self._attend_among(q, frames, sparse), None

        def put(pool: jax.Array, new: jax.Array) -> jax.Array:
            for index in range(new.shape[3]):
                one = new[:, :, :, index : index + 1]
                start = (layer, 0, 0, self.slots[index], *(0,) * (pool.ndim - 4))
                pool = jax.lax.dynamic_update_slice(pool, one, start)
            return pool

        frames = jax.tree.map(lambda x: x[None], frames)
        pages = jax.tree.map(put, pages, store(frames, pages.precision))
        used = self.reads[0]
        if len(self.reads) > 1:
            used = jnp.broadcast_to(self.reads, (q.shape[0], *self.reads.shape))
        read = dataclasses.replace(pages, used=used, layer=layer)
        return self._attend(q, read, sparse), pages

    def _attend_among(self, q: jax.Array, frames: Pages, sparse: SparseLinear | None) -> jax.Array:
        """Of frames by themselves; every frame reads so many whole pages, without a mask."""
        if not self.causal:
            return self._attend(q, frames, sparse)

        def first(count: int) -> Pages:
            return jax.tree.map(lambda x: x[:, :, :count], frames)

        mixed = [
            self._attend(one, first(seen), sparse)
            for seen, one in enumerate(jnp.split(q, frames.capacity, axis=2), 1)
        ]
        return jnp.concatenate(mixed, axis=2)

    def _attend(self, q: jax.Array, pages: Pages, sparse: SparseLinear | None) -> jax.Array:
        return attend_by(sparse, q, pages, implementation=self.implementation)
