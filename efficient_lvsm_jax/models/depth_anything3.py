"""Depth Anything 3: cameras, depth and rays of pictures, whose cameras may be known.

One transformer (arXiv:2511.10647). Its first layers are a DINOv2's; then layers within views and
layers among views take turns, and heads read what comes of some of these rounds.

Axes: B scene, R view, Y X pixel, N patch token, P token of a view (camera, patches), D width,
H head, K head dim.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Container

import jax
import jax.numpy as jnp
from flax import nnx

from efficient_lvsm_jax.configuration import setting
from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.geometry.cameras import Cameras
from efficient_lvsm_jax.geometry.pose_encoding import decode, encode
from efficient_lvsm_jax.models.depth_anything3_heads import (
    ENCODING,
    CameraDecoder,
    CameraEncoder,
    RayHead,
    ray_flops,
)
from efficient_lvsm_jax.models.families import Family, register
from efficient_lvsm_jax.models.reference_view import (
    STRATEGIES,
    order_from,
    reference_view,
    reordered,
)
from efficient_lvsm_jax.models.scene_geometry import (
    Geometry,
    GeometryConfig,
    SceneGeometry,
    SceneMemory,
    pages_of,
)
from efficient_lvsm_jax.models.vggt import IMAGE_DEVIATION, IMAGE_MEAN
from efficient_lvsm_jax.nn.blocks import Block, LayerNorm
from efficient_lvsm_jax.nn.dpt import DPT, dpt_flops, level_sizes, read_in_parts
from efficient_lvsm_jax.nn.flops import Flops, linear
from efficient_lvsm_jax.nn.initial import draw
from efficient_lvsm_jax.nn.rotary import Rotation, patch_rotation
from efficient_lvsm_jax.nn.sparse_linear import attend_by
from efficient_lvsm_jax.nn.stacks import walk_layers

CHOSEN_FROM = 3  # so many views; of fewer the first is the reference


@dataclasses.dataclass(frozen=True)
class DepthAnything3Config(GeometryConfig):
    """Settings of Depth Anything 3 besides those of every model of geometry; Small by default.

    Attributes:
      layers: of the transformer.
      encoder_layers: the first of them, DINOv2's; an even number of others is left, which see
        within a view and among views by turns.
      camera_heads, camera_layers: of what reads known cameras.
      reference: how the view is chosen whose camera is the world, among three views or more; one of
        `reference_view.STRATEGIES`.
      rays: whether rays are "kept" or "dropped"; they take a third of the head's time.
    """

    width: int = setting(384, at_least=1)
    layers: int = setting(12, at_least=1)
    encoder_layers: int = setting(4, at_least=2)
    position_side: int = setting(37, at_least=1)
    taps: tuple[int, ...] = setting((1, 2, 3, 4), at_least=1)
    camera_heads: int = setting(16, at_least=1)
    camera_layers: int = setting(4, at_least=1)
    channels: tuple[int, ...] = setting((48, 96, 192, 384), at_least=1)
    features: int = setting(64, at_least=1)

    reference: str = setting("saddle_balanced", choices=STRATEGIES)
    rays: str = setting("dropped", choices=("dropped", "kept"))

    def __post_init__(self):
        super().__post_init__()
        if self.width % (2 * self.camera_heads):
            raise InputError(
                f"model.camera_heads={self.camera_heads}: expected a divisor of half the width "
                f"{self.width}"
            )

    @property
    def rounds(self) -> int:
        """How many rounds of two layers there are after the encoder."""
        others = self.layers - self.encoder_layers
        if others < 2 or others % 2:
            raise InputError(
                f"model.layers={self.layers}, encoder_layers={self.encoder_layers}: expected an "
                "even number of layers after the encoder's"
            )
        return others // 2

    def observe_flops(
        self, frames: int, size: tuple[int, int], remembered: int = 0
    ) -> dict[str, Flops]:
        """As `GeometryConfig` says, of cameras that are not known; nothing is remembered."""
        width = 2 * self.width
        cameras = linear(width, width) * 2 + linear(width, ENCODING)
        maps = dpt_flops(width, self.channels, self.features, 2, size, self.patch)
        if self.rays == "kept":
            grid = size[0] // self.patch, size[1] // self.patch
            maps += ray_flops(self.features, level_sizes(grid))
        return {
            **self.rounds_flops(size, 1, 1, [(frames, frames)]),
            "cameras": cameras * frames,
            "maps": maps * frames,
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
        """As `GeometryConfig` says; no loss looks at rays, so nothing is kept for them."""
        is_frozen = "encoder" in frozen
        return self.rounds_bytes(
            frames, size, (2,), lanes=lanes, encoder_is_kept=False, encoder_is_frozen=is_frozen
        )


class DepthAnything3(SceneGeometry):
    """The model. What is not the transformer is computed in float32, whatever the rest is."""

    float32 = ("camera_encoder", "camera_decoder", "depth_head", "ray_head")
    takes_cameras = True

    def __init__(self, config: DepthAnything3Config, *, rngs: nnx.Rngs | None = None):
        self.config = config
        width = config.width
        self.encoder = config.encoder()
        # Of the reference, and of all others.
        self.camera_token = nnx.Param(jnp.zeros((2, width)))
        epsilon = self.encoder.epsilon
        self.within, self.among = (config.stack(place, epsilon) for place in ("frame", "global"))
        self.norm = LayerNorm(width, 1e-5)
        self.camera_encoder = CameraEncoder(width, config.camera_heads, config.camera_layers)
        self.camera_decoder = CameraDecoder(2 * width)
        self.depth_head = DPT(2 * width, config.channels, config.features, 2, to_relu=False)
        self.ray_head = RayHead(config.features)
        if rngs is not None:
            draw(self, rngs, config.rounds)
            self.camera_decoder.begin()

    @staticmethod
    def start(
        config: DepthAnything3Config,
        capacity: int,
        size: tuple[int, int],
        batch: int = 1,
        track_frames: int = 0,
    ) -> SceneMemory:
        """Raises InputError: nothing can be remembered."""
        raise InputError(
            "depth_anything3 sees its views as a whole and remembers none: give them all to "
            "model.observe(None, images), or take StreamVGGT for a stream"
        )

    def observe(
        self,
        memory: SceneMemory | None,
        images: jax.Array,
        queries: jax.Array | None = None,
        cameras: Cameras | None = None,
    ) -> tuple[None, Geometry]:
        """As `SceneGeometry` says.

        Args:
          memory, queries: None.
          images: [B, R, Y, X, 3] floats in [0, 1].
          cameras: [B, R], where they are known, in the frame of the first and in a unit of about
            the median distance from it, see `geometry.alignment`. The world is then theirs.
        """
        if memory is not None or queries is not None:
            raise InputError(
                "depth_anything3 sees its views as a whole and tracks no points: give it neither "
                "a memory nor queries"
            )
        size = images.shape[2:4]
        tokens, taps, reference = self.rounds(images, cameras)
        encodings = self.camera_decoder(tokens)
        depth, rays = self.maps(taps, size)
        geometry = Geometry(
            decode(encodings, size, c2w=True),
            encodings[None],
            jnp.exp(depth[..., 0]),
            1 + jnp.exp(depth[..., 1]),
            reference=reference,
        )
        if rays is not None:
            confidence = 1 + jnp.exp(rays[..., 6])
            geometry = dataclasses.replace(geometry, rays=rays[..., :6], rays_confidence=confidence)
        return None, geometry

    def tokens(
        self, images: jax.Array, cameras: Cameras | None
    ) -> tuple[jax.Array, jax.Array | None]:
        """Tokens [B, R, P, D] before the first round, the reference's first, and which it is, [B].

        With known cameras the views keep their order, and there is no reference.
        """
        batch, views = images.shape[:2]
        config = self.config
        images = (images - jnp.array(IMAGE_MEAN)) / jnp.array(IMAGE_DEVIATION)
        grid = (config.position_side,) * 2
        x, _ = self.encoder.embed(images.reshape(-1, *images.shape[2:]), grid)
        # The last layer of the encoder sees single views, so they may as well change places after.
        x, before_last, _ = walk_layers(
            config,
            lambda x, block: (block(x, None), None),
            x,
            self.encoder.blocks,
            layers=config.encoder_layers,
            taps=(config.encoder_layers - 1,),
            tap=lambda x: x[:, 0],
        )
        x = x.reshape(batch, views, *x.shape[1:])
        if cameras is not None:
            return x.at[:, :, 0].set(self.camera_encoder(encode(cameras, c2w=True))), None
        reference = jnp.zeros(batch, jnp.int32)
        if views >= CHOSEN_FROM:
            chooses = before_last[0].reshape(batch, views, -1)
            reference = reference_view(chooses, config.reference)
            x = reordered(x, order_from(reference, views))
        special = self.camera_token[...][jnp.minimum(jnp.arange(views), 1)]
        return x.at[:, :, 0].set(special), reference

    def rounds(
        self, images: jax.Array, cameras: Cameras | None
    ) -> tuple[jax.Array, jax.Array, jax.Array | None]:
        """Attention within and among views by turns.

        Returns:
          Of cameras what leaves the last round, that within views first, [B, R, 2·D] float32; of
          patches that after each of `taps`, the second half normed, [4, B, R, N, 2·D]; and which
          view is the reference, [B], or None with known cameras.
        """
        config, width = self.config, self.config.width
        x, reference = self.tokens(images, cameras)
        views = x.shape[1]
        x, taps, _ = walk_layers(
            config,
            self.step(images.shape[2:4]),
            jnp.concatenate([x, x], axis=-1),
            (self.within, self.among),
            layers=config.rounds,
            taps=config.taps,
        )
        last, taps = taps[-1, :, :, 0], taps[:, :, :, 1:]
        taps = jnp.concatenate([taps[..., :width], self.norm(taps[..., width:])], axis=-1)
        if reference is not None and views >= CHOSEN_FROM:
            back = jnp.argsort(order_from(reference, views), axis=-1)
            last = reordered(last, back)
            taps = jax.vmap(reordered, (0, None))(taps, back)
        return last, taps, reference

    def step(self, size: tuple[int, int]) -> Callable[[jax.Array, tuple], tuple[jax.Array, None]]:
        """A round for pictures of `size` (Y, X): a function of tokens and its two layers.

        Tokens are [B, R, P, 2·D], what left the layer within views and then that among them.
        """
        config, width = self.config, self.config.width
        rotation = patch_rotation(*(side // config.patch for side in size), config.head_dim, 1)
        flat = one_place(len(rotation[0]), config.head_dim)

        def step(x: jax.Array, blocks: tuple[Block, Block]) -> tuple[jax.Array, None]:
            within, among = blocks
            batch, views, tokens = x.shape[:3]
            inner = within(x[..., width:].reshape(-1, tokens, width), rotation, groups=2)
            q, k, v = (
                jnp.moveaxis(y.reshape(batch, views, *y.shape[1:]), 1, 2)
                for y in among.heads(inner, flat, groups=2)
            )  # [B, H, R, P, K]
            q = q.reshape(*q.shape[:2], -1, q.shape[-1])
            frames = pages_of(k, v, config.sparsity("global"))
            mixed = attend_by(among.sparse, q, frames, implementation=config.attention)
            outer = among.add(inner.reshape(batch, -1, width), mixed)
            both = (y.reshape(batch, views, tokens, width) for y in (inner, outer))
            return jnp.concatenate(list(both), axis=-1), None

        return step

    def maps(self, taps: jax.Array, size: tuple[int, int]) -> tuple[jax.Array, jax.Array | None]:
        """Of `taps`, what becomes depth [B, R, Y, X, 2] and rays [B, R, …, …, 7]."""

        def read(taps: jax.Array) -> tuple[jax.Array, jax.Array | None]:
            head = self.depth_head
            levels = head.reduced(head.levels(taps, size, self.config.patch))
            depth = head.finish(head.fuse(levels)[-1], size)
            return depth, self.ray_head(levels, size) if self.config.rays == "kept" else None

        return read_in_parts(read, taps, size, remat=self.config.remat != "none")


def one_place(tokens: int, head_dim: int) -> Rotation:
    """Of so many tokens of a view: the camera's is not turned, all patches as if in one place."""
    place = jnp.minimum(jnp.arange(tokens), 1)
    return tuple(part[place] for part in patch_rotation(1, 1, head_dim, 1))


register(Family("depth_anything3", DepthAnything3Config, DepthAnything3))
