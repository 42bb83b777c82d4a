"""What training of a model of geometry minimises: how far a clip's geometry is from the truth.

    total = cameras · L_cameras + depth · L_depth + points · L_points + tracks · L_tracks

The truth is known, of generated walks and of captures with depth, or a teacher says it, which is
how StreamVGGT was trained: VGGT, the same network, sees each clip as a whole.

Axes: B scene, R frame, Q point, Y X pixel.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from efficient_lvsm_jax.configuration import Settings, setting
from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.geometry.cameras import Batch, Cameras, Views
from efficient_lvsm_jax.geometry.points import unproject
from efficient_lvsm_jax.geometry.pose_encoding import encode
from efficient_lvsm_jax.models.geometry_model import GeometryModel
from efficient_lvsm_jax.models.model import abstract_params, bind_as_is, prepared
from efficient_lvsm_jax.models.scene_geometry import Geometry
from efficient_lvsm_jax.training.geometry_losses import WEIGHTS, losses_of, mean_norm
from efficient_lvsm_jax.weights.load import load


@dataclasses.dataclass(frozen=True)
class GeometryLossConfig(Settings):
    """Weights of the losses, and who says the truth.

    Attributes:
      cameras, depth, points, tracks: weights; the published ones are the defaults.
      teacher: weights of the network that says it, as `elvsm.load` takes them; "": true cameras
        and depth of the data, which know no tracks.
      dtype: of the teacher's products, "float32" or "bfloat16" (as published).
    """

    group = "losses"
    repa: ClassVar[float] = 0.0  # no layers are compared

    cameras: float = setting(WEIGHTS["cameras"], at_least=0)
    depth: float = setting(WEIGHTS["depth"], at_least=0)
    points: float = setting(WEIGHTS["points"], at_least=0)
    tracks: float = setting(WEIGHTS["tracks"], at_least=0)
    teacher: str = ""
    dtype: str = setting("float32", choices=("float32", "bfloat16"))

    def __post_init__(self):
        super().__post_init__()
        if not self.used:
            raise InputError("losses: all weights are 0, so there is nothing to learn")
        if self.tracks and not self.teacher:
            raise InputError(
                f"losses.tracks={self.tracks}: tracks are learnt from a teacher; name "
                "losses.teacher, or set losses.tracks=0"
            )

    @property
    def used(self) -> tuple[str, ...]:
        """The losses that count."""
        return tuple(name for name in WEIGHTS if getattr(self, name))


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=("params",), meta_fields=("family", "config")
)
@dataclasses.dataclass(frozen=True, eq=False)
class GeometryTeacher:
    """A frozen model of geometry: family and configuration, static, and ready parameters."""

    family: str
    config: Any
    params: dict

    def observe(self, images: jax.Array, queries: jax.Array | None) -> Geometry:
        """What it sees in clips [B, R, Y, X, 3], each as a whole; no gradient passes."""
        module = bind_as_is(self.family, self.config, self.params)
        return jax.lax.stop_gradient(module.observe(None, images, queries)[1])


def load_geometry_teacher(losses: GeometryLossConfig) -> GeometryTeacher | None:
    """The teacher that the losses name, if any.

    Raises:
      InputError: nothing usable there, or a model that renders views.
    """
    if not losses.teacher:
        return None
    model = load(losses.teacher)
    if not isinstance(model, GeometryModel):
        raise InputError(
            f"losses.teacher={losses.teacher}: {model!r} renders views; expected a model of "
            "geometry, as elvsm convert makes of VGGT's weights"
        )
    config = _whole_clips(model.config, losses.dtype)
    return GeometryTeacher(model.family, config, prepared(model.family, config, model.params))


def abstract_geometry_teacher(
    losses: GeometryLossConfig, family: str, student: Any
) -> GeometryTeacher | None:
    """Its shapes, without its file: those of a teacher that is as large as the student."""
    if not losses.teacher:
        return None
    config = _whole_clips(student, losses.dtype)
    ready = functools.partial(prepared, family, config)
    return GeometryTeacher(family, config, jax.eval_shape(ready, abstract_params(family, config)))


def _whole_clips(config: Any, dtype: str) -> Any:
    """The configuration of a network whose frames see all others."""
    whole = {"causal": False} if "causal" in vars(config) else {}
    return dataclasses.replace(config, compute_dtype=dtype, **whole)


def geometry_objective(
    config: GeometryLossConfig, module: Any, teacher: GeometryTeacher | None, batch: Batch
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """What the model sees in clips, compared with the truth.

    Args:
      config: which losses.
      module: the model, bound to its parameters.
      teacher: of `load_geometry_teacher`.
      batch: inputs are the clips, their pictures floats in [0, 1]; with depth where there is no
        teacher, with queries where tracks count.

    Returns:
      The sum, and each loss before its weight.
    """
    images = batch.inputs.image
    queries = batch.queries if config.tracks else None
    _, seen = module.observe(None, images, queries)
    if teacher is None:
        truth, valid = true_geometry(batch.inputs, batch.depth)
    else:
        truth = teacher.observe(images, queries)
        valid = jnp.ones(images.shape[:-1], bool) if batch.depth is None else batch.depth > 0
    absent = [name for name in config.used if getattr(seen, name) is None]
    if absent:
        raise InputError(
            f"losses.{absent[0]}={getattr(config, absent[0])}: the model says no {absent[0]}; set "
            f"losses.{absent[0]}=0"
        )
    parts = losses_of(seen, truth, valid, config.used, fitted=teacher is not None)
    return sum(getattr(config, name) * part for name, part in parts.items()), parts


def true_geometry(views: Views, depth: jax.Array) -> tuple[Geometry, jax.Array]:
    """The truth of clips as VGGT is taught it, and which pixels have one.

    The world is that of the first camera; its unit is the mean distance, over all frames, of what
    is seen from it, so that a model has to learn it.

    Args:
      views: [B, R, …].
      depth: [B, R, Y, X], 0 where it is not known.

    Returns:
      Geometry without tracks, and bool [B, R, Y, X].
    """
    valid = depth > 0
    cameras = views.cameras
    c2w = _in_the_first(jnp.asarray(cameras.c2w, jnp.float32))
    points = unproject(depth, dataclasses.replace(cameras, c2w=c2w))
    in_one = points.reshape(points.shape[0], -1, *points.shape[3:])  # all frames as one high map
    unit = mean_norm(in_one, valid.reshape(in_one.shape[:-1]))
    c2w = c2w.at[..., :3, 3].divide(unit[:, None, None])
    cameras = Cameras(c2w, cameras.fxfycxcy, cameras.height, cameras.width)
    sure = jnp.ones_like(depth)
    depth = depth / unit[:, None, None, None]
    points = points / unit[:, None, None, None, None]
    return Geometry(cameras, encode(cameras)[None], depth, sure, points, sure), valid


def _in_the_first(c2w: jax.Array) -> jax.Array:
    """Poses [B, R, 4, 4] in the axes of each scene's first camera."""
    rotation, centre = c2w[:, :1, :3, :3], c2w[:, :1, :3, 3]
    # Multiply and add, not a matmul: accelerators would lower a float32 matmul's precision.
    turned = (rotation[..., :, :, None] * c2w[..., :3, None, :3]).sum(axis=-3)
    moved = (rotation * (c2w[..., :3, 3] - centre)[..., :, None]).sum(axis=-2)
    pose = jnp.concatenate([turned, moved[..., None]], axis=-1)
    return c2w.at[..., :3, :].set(pose)
