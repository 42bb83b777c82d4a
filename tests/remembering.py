"""A model of geometry without a network: what it says of frames shows what it remembers."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from efficient_lvsm_jax.geometry.cameras import Cameras
from efficient_lvsm_jax.models.geometry_model import GeometryModel
from efficient_lvsm_jax.models.scene_geometry import Geometry
from efficient_lvsm_jax.models.vggt import VGGT, VGGTConfig
from efficient_lvsm_jax.nn.cache import store
from efficient_lvsm_jax.nn.paged import Pages

SIZE = (4, 6)  # of its pictures
CONFIG = VGGTConfig(
    **{"width": 16, "head_dim": 4, "patch": 2, "layers": 4, "taps": (1, 2, 3, 4)},
    **{"camera_heads": 2, "camera_layers": 1, "track_features": 4},
)


class Remembering(GeometryModel):
    """Keys are drawn, by the first pixel of a frame; depth is the sum of all that is in use."""

    def start(self, capacity, size, batch=1, track_frames=0):
        return VGGT.start(self.config, capacity, size, batch, track_frames)

    def observe(self, memory, images, queries=None, cameras=None):
        assert memory is not None and cameras is None
        used = np.array(memory.used)
        pools = jax.tree.map(np.array, (memory.tokens, memory.cameras))
        depth, confidence = [], []
        for image in images[0]:
            draw = np.random.default_rng(round(float(image[0, 0, 0]) * 255))
            slot = np.flatnonzero(~used)[0]
            used[slot] = True
            for pool, count in zip(pools, (1, self.config.camera_iterations), strict=True):
                shape = (*pool.k.shape[:3], count, *pool.k.shape[4:])
                new = Pages(*(jnp.float32(draw.normal(size=shape)) for _ in "kv"))
                new = store(new, pool.precision)
                for name in ("k", "v", "k_scale", "v_scale"):
                    if (to := getattr(pool, name)) is not None:
                        to[:, :, :, slot * count : (slot + 1) * count] = getattr(new, name)
            read = [np.flatnonzero(used), np.flatnonzero(np.repeat(used, count))]
            total = sum(
                np.float32(x[:, :, :, slots]).sum()
                for pool, slots in zip(pools, read, strict=True)
                for x in jax.tree.leaves(pool)
            )
            depth.append(total)
            confidence.append(1 + draw.uniform())
        tokens, of_cameras = jax.tree.map(jnp.asarray, pools)
        memory = dataclasses.replace(
            memory, tokens=tokens, cameras=of_cameras, used=jnp.asarray(used)
        )
        frames = (1, len(images[0]))

        def maps(values):
            values = np.float32(values).reshape(*frames, 1, 1)
            return jnp.asarray(np.broadcast_to(values, (*frames, *SIZE)))

        cameras = Cameras(np.tile(np.eye(4), (*frames, 1, 1)), np.ones((*frames, 4)), *SIZE)
        encodings = np.zeros((1, *frames, 9))
        return memory, Geometry(cameras, encodings, maps(depth), maps(confidence))


def remembering():
    """The model."""
    return Remembering("vggt", CONFIG, {"nothing": np.zeros(1, np.float32)})


def pictures(count):
    """uint8 [count, Y, X, 3]."""
    return np.arange(count, dtype=np.uint8)[:, None, None, None] + np.zeros((1, *SIZE, 3), np.uint8)
