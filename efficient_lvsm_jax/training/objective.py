"""What training minimises: a weighted sum of named losses (published program, §3 and §4).

    total = mean_squared · MSE + perceptual · VGG19 + lpips · LPIPS + repa · REPA

Of a model of geometry it is another one, see `geometry_objective`.

A loss of weight 0 is not computed, and the frozen networks of the others are loaded before the
first step. They are arguments of the compiled step, never part of a checkpoint.

Axes: B scene, V input view, T target view, Y X pixel.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from efficient_lvsm_jax.backbones.backbone import Teacher
from efficient_lvsm_jax.configuration import Settings, setting
from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.geometry.cameras import Batch
from efficient_lvsm_jax.metrics.lpips import WEIGHTS_FOLDER, lpips_loss
from efficient_lvsm_jax.metrics.perceptual import perceptual_loss
from efficient_lvsm_jax.parallel.sharding import state_shardings
from efficient_lvsm_jax.training.geometry_objective import (
    GeometryLossConfig,
    GeometryTeacher,
    geometry_objective,
    load_geometry_teacher,
)
from efficient_lvsm_jax.training.losses import PROJECTION_KINDS, mean_squared_error, psnr_of_batch
from efficient_lvsm_jax.training.repa import (
    LayerMap,
    init_projectors,
    parse_layer_map,
    repa_loss,
    teacher_labels,
)
from efficient_lvsm_jax.weights.backbones import HOW_TO_GET_WEIGHTS, load_teacher
from efficient_lvsm_jax.weights.lpips import load_lpips
from efficient_lvsm_jax.weights.vgg19 import load_vgg19

WEIGHTS = ("mean_squared", "perceptual", "lpips", "repa")


@dataclasses.dataclass(frozen=True)
class LossConfig(Settings):
    """Weights of the losses, and where their networks come from.

    Attributes:
      mean_squared, perceptual, lpips, repa: weights; published are 1, 0.5, 0 and 0.5 (if REPA is
        used at all).
      vgg19: MatConvNet's file, for perceptual; "" looks for it in weights/.
      lpips_weights: folder of converted LPIPS weights; "" is weights/lpips.
      teacher: published DINOv3 or DINOv2 file, for repa.
      repa_layers: which layers are compared, see `repa.parse_layer_map`.
      repa_kind: "cos", "l2" or "sl1".
      dtype: of the frozen networks' products, "float32" or "bfloat16" (as published).
    """

    group = "losses"
    mean_squared: float = setting(1.0, at_least=0)
    perceptual: float = setting(0.0, at_least=0)
    lpips: float = setting(0.0, at_least=0)
    repa: float = setting(0.0, at_least=0)
    vgg19: str = ""
    lpips_weights: str = ""
    teacher: str = ""
    repa_layers: str = "8-2"
    repa_kind: str = setting("sl1", choices=PROJECTION_KINDS)
    dtype: str = setting("float32", choices=("float32", "bfloat16"))

    def __post_init__(self):
        super().__post_init__()
        if not any(getattr(self, name) for name in WEIGHTS):
            raise InputError("losses: all weights are 0, so there is nothing to learn")


@dataclasses.dataclass(frozen=True)
class Alignment:
    """Which layers of model and teacher are compared, and how wide the teacher is."""

    layer_map: LayerMap
    teacher_width: int

    def init_projectors(self, key: jax.Array, width: int) -> dict:
        """Fresh projectors for a model of this width, see `repa.init_projectors`."""
        return init_projectors(key, self.layer_map, width=width, teacher_width=self.teacher_width)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class FrozenNetworks:
    """Networks that losses look through; None where the loss is not used."""

    vgg19: dict | None = None
    lpips: dict | None = None
    teacher: Teacher | None = None
    geometry: GeometryTeacher | None = None


def load_frozen(
    config: LossConfig | GeometryLossConfig, model: Any
) -> tuple[FrozenNetworks, Alignment | None]:
    """The networks that these losses need, on the host's default device.

    Args:
      config: which losses.
      model: configuration of the model, for its number of layers.

    Raises:
      InputError: a file is absent or not what it should be (says where people get it),
        `repa_layers` names layers that do not exist, or REPA is asked of a model whose layers
        cannot be tapped; or as `load_geometry_teacher`.
    """
    if isinstance(config, GeometryLossConfig):
        return FrozenNetworks(geometry=load_geometry_teacher(config)), None
    vgg19 = load_vgg19(config.vgg19) if config.perceptual else None
    lpips = load_lpips(config.lpips_weights or WEIGHTS_FOLDER).params if config.lpips else None
    if not config.repa:
        return FrozenNetworks(vgg19, lpips), None
    if not config.teacher:
        raise InputError(
            f"losses.repa={config.repa} needs losses.teacher, the file of a published DINOv3 "
            f"ViT-B/16 or DINOv2 ViT-B/14. {HOW_TO_GET_WEIGHTS}"
        )
    if not model.tapped:
        raise InputError(
            f"losses.repa={config.repa}: REPA compares layers of an encoder and a decoder, as "
            "Efficient-LVSM has them, and this model's cannot be tapped; set losses.repa=0"
        )
    teacher = load_teacher(config.teacher)
    layer_map = parse_layer_map(
        config.repa_layers, student_layers=model.layers, teacher_layers=teacher.config.layers
    )
    teacher = teacher.frozen(layers=layer_map.last_teacher, dtype=config.dtype)
    return FrozenNetworks(vgg19, lpips, teacher), Alignment(layer_map, teacher.config.width)


def frozen_shardings(mesh: Mesh, frozen: FrozenNetworks) -> FrozenNetworks:
    """Where they live: whole on every device, but a teacher of geometry as what it teaches."""
    places = jax.tree.map(lambda _: NamedSharding(mesh, PartitionSpec()), frozen)
    if frozen.geometry is None:
        return places
    return dataclasses.replace(places, geometry=state_shardings(mesh, frozen.geometry))


def objective(
    config: LossConfig | GeometryLossConfig,
    alignment: Alignment | None,
    module: Any,
    projectors: dict,
    frozen: FrozenNetworks,
    batch: Batch,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Renders the targets from the inputs and compares; or see `geometry_objective`.

    Args:
      config, alignment: which losses; alignment if REPA is one of them.
      module: the model, bound to its parameters.
      projectors: of REPA, {} without it.
      frozen: of `load_frozen`.
      batch: pictures are floats in [0, 1].

    Returns:
      The sum, and each loss before its weight: mean_squared always, others if they are used.
    """
    if isinstance(config, GeometryLossConfig):
        return geometry_objective(config, module, frozen.geometry, batch)
    inputs, targets = batch.inputs, batch.targets
    if config.repa:
        taps = {stream: alignment.layer_map.students(stream) for stream in ("input", "target")}
        memory, seen = module.encode_with_taps(inputs, taps["input"])
        images, asked = module.decode_with_taps(memory, targets.cameras, taps["target"])
    else:
        images = module.decode(module.encode(inputs), targets.cameras)

    dtype = jnp.dtype(config.dtype)
    parts = {"mean_squared": mean_squared_error(images, targets.image)}
    if config.perceptual:
        parts["perceptual"] = perceptual_loss(frozen.vgg19, images, targets.image, dtype=dtype)
    if config.lpips:
        parts["lpips"] = lpips_loss(frozen.lpips, images, targets.image, dtype=dtype)
    if config.repa:
        layer_map, patch = alignment.layer_map, module.config.patch
        grid = tuple(side // patch for side in targets.image.shape[2:4])
        labels = {
            stream: teacher_labels(frozen.teacher, views.image, layer_map.teachers(stream), grid)
            for stream, views in (("input", inputs), ("target", targets))
            if stream in layer_map.streams
        }
        features = {"input": seen, "target": asked}
        parts["repa"] = repa_loss(projectors, features, labels, layer_map, config.repa_kind)
    total = sum(getattr(config, name) * value for name, value in parts.items())
    return total, parts


def metrics_of(parts: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """What is logged of the losses of a batch: each by name, and the PSNR of rendered pictures."""
    logged = {f"loss/{name}": value for name, value in parts.items()}
    if "mean_squared" in parts:
        logged["psnr"] = psnr_of_batch(parts["mean_squared"])
    return logged
