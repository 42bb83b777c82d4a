"""The training step compiled for devices that are not there, from shapes alone."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from data_pipeline.batches.settings import DataConfig
from efficient_lvsm_jax.aot.hlo import Program, read_program
from efficient_lvsm_jax.commands import complete
from efficient_lvsm_jax.configuration import build
from efficient_lvsm_jax.cost.flops import TrainFlops, frozen_loss, observing_step
from efficient_lvsm_jax.cost.flops import train_step as train_flops
from efficient_lvsm_jax.cost.memory import Estimate, bytes_per_device, estimate, state_bytes
from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.geometry.cameras import Batch, Views
from efficient_lvsm_jax.metrics import lpips, perceptual
from efficient_lvsm_jax.models.families import configure, family_named
from efficient_lvsm_jax.models.scene_geometry import GeometryConfig, SceneGeometry
from efficient_lvsm_jax.parallel.sharding import (
    AXES,
    batch_shardings,
    make_mesh,
    mesh_sizes,
    state_shardings,
)
from efficient_lvsm_jax.training.geometry_objective import (
    GeometryLossConfig,
    abstract_geometry_teacher,
)
from efficient_lvsm_jax.training.objective import (
    Alignment,
    FrozenNetworks,
    LossConfig,
    frozen_shardings,
    load_frozen,
)
from efficient_lvsm_jax.training.optimizer import OptimizerConfig
from efficient_lvsm_jax.training.settings import TrainingConfig
from efficient_lvsm_jax.training.step import Recipe, abstract_state, train_step

_abstract_state = functools.lru_cache(maxsize=8)(abstract_state)  # takes longer than formulas


@dataclasses.dataclass(frozen=True)
class Question:
    """What is to be trained, on what.

    Attributes:
      recipe, data: from a configuration.
      frozen: networks that its losses look through, or their shapes.
      mesh: its mesh setting.
      devices: how many.
    """

    recipe: Recipe
    data: DataConfig
    frozen: FrozenNetworks
    mesh: str
    devices: int

    @property
    def views(self) -> tuple[int, int]:
        """V, the most there are, and T."""
        return max(self.data.num_inputs_cycle), self.data.num_targets

    def estimate(self, platform: str) -> Estimate:
        """What formulas say of its memory, on "tpu", "gpu" or "cpu"."""
        return estimate(
            self.recipe.model,
            _abstract_state(self.recipe),
            mesh_sizes(self.mesh, self.devices),
            batch_size=self.data.batch_size,
            inputs=self.views[0],
            targets=self.views[1],
            pixels=self.data.size**2,
            platform=platform,
            micro_batches=self.recipe.micro_batches,
            teacher=self.frozen.geometry,
            queries=self.data.queries if getattr(self.recipe.losses, "tracks", 0) else 0,
            points=bool(getattr(self.recipe.losses, "points", 0)),
            frozen=self.recipe.optimizer.frozen,
        )

    def flops(self, inputs: int | None = None) -> TrainFlops:
        """Of a step of the model on all devices, by fused attention; `inputs` is V, or the most."""
        views = inputs or self.views[0], self.views[1]
        scenes, pixels = self.data.batch_size, self.data.size**2
        if isinstance(self.recipe.model, GeometryConfig):
            size, frozen = (self.data.size,) * 2, self.recipe.optimizer.frozen
            return observing_step(
                self.recipe.model, scenes, views[0], size, fused_attention=True, frozen=frozen
            )
        return train_flops(self.recipe.model, scenes, *views, pixels, fused_attention=True)

    def loss_flops(self) -> int:
        """Of the networks that the step's losses go through; REPA's teacher is left out."""
        if self.frozen.geometry is not None:
            teacher, size = self.frozen.geometry.config, (self.data.size,) * 2
            parts = teacher.observe_flops(self.views[0], size).values()
            return self.data.batch_size * sum(part.total for part in parts)
        pictures = self.data.batch_size * self.views[1]
        networks = (self.frozen.vgg19, self.frozen.lpips)
        return sum(frozen_loss(each, pictures, self.data.size**2) for each in networks if each)


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What the compiler made of a program, on each chip.

    Attributes:
      bytes: kind to bytes; temporaries are what is in use at once.
      program: what stands in it.
    """

    bytes: dict[str, int]
    program: Program

    @property
    def total(self) -> int:
        """All bytes."""
        return sum(self.bytes.values())

    @property
    def gathered_outside_of_loops(self) -> int:
        """Bytes of all-gathers that happen once a step: parameters gathered at once show here."""
        return sum(
            c.bytes for c in self.program.collectives if c.kind == "all-gather" and c.times == 1
        )


def settings(config: ConfigDict) -> dict[str, type]:
    """What the groups of a configuration become, of those that `question` asks for."""
    return {
        "": TrainingConfig,
        "model": family_named(config.get("family", TrainingConfig.family)).config,
        "losses": _losses_of(config.get("family", TrainingConfig.family)),
        "optimizer": OptimizerConfig,
        "data": DataConfig,
    }


def _losses_of(family: str) -> type[LossConfig | GeometryLossConfig]:
    """The losses that its models learn by."""
    sees = issubclass(family_named(family).module, SceneGeometry)
    return GeometryLossConfig if sees else LossConfig


def question(config: ConfigDict, devices: int, *, abstract: bool = True) -> Question:
    """Settings of a training run, for so many devices; not `abstract`: with its losses' networks.

    Raises:
      InputError: settings that cannot be, or as `load_frozen`.
    """
    config = complete(config, settings)
    model = configure(config.family, config.model.to_dict())
    losses = build(_losses_of(config.family), config.losses.to_dict(), "losses")
    optimizer = build(OptimizerConfig, config.optimizer.to_dict(), "optimizer").over(config.steps)
    data = build(DataConfig, config.data.to_dict(), "data")
    _check_fits(config.family, losses, data)
    if data.size % model.patch:
        raise InputError(
            f"data.size={data.size}: expected a multiple of the patch size {model.patch}"
        )
    if abstract:
        frozen, alignment = abstract_frozen(losses, model, config.family)
    else:
        frozen, alignment = load_frozen(losses, model)
    recipe = Recipe(config.family, model, optimizer, losses, alignment, config.micro_batches)
    return Question(recipe, data, frozen, config.mesh, devices)


def _check_fits(family: str, losses: LossConfig | GeometryLossConfig, data: DataConfig) -> None:
    """Raises InputError unless the data has what a model of the family and its losses need."""
    if not isinstance(losses, GeometryLossConfig):
        if not data.num_targets:
            raise InputError(
                f"data.num_targets=0: {family} is trained on targets that it renders; set at least "
                "1"
            )
        return
    if data.num_targets:
        raise InputError(
            f"data.num_targets={data.num_targets}: {family} sees clips and renders nothing; set "
            "data.num_targets=0"
        )
    if not losses.teacher and not data.depth:
        raise InputError(
            "losses.teacher='': without a teacher the truth is the data's; set data.depth=True and "
            "data.normalise_poses=False, or name losses.teacher"
        )
    if losses.tracks and not data.queries:
        raise InputError(
            f"losses.tracks={losses.tracks}: no points are asked for; set data.queries=64, or "
            "losses.tracks=0"
        )


def abstract_frozen(
    losses: LossConfig | GeometryLossConfig, model: Any, family: str
) -> tuple[FrozenNetworks, Alignment | None]:
    """Shapes of the networks that losses look through; only REPA's teacher needs its file.

    Raises:
      InputError: as `load_frozen`, with REPA.
    """
    if isinstance(losses, GeometryLossConfig):
        teacher = abstract_geometry_teacher(losses, family, model)
        return FrozenNetworks(geometry=teacher), None
    if losses.repa:
        teacher_only = dataclasses.replace(losses, perceptual=0.0, lpips=0.0)
        loaded, alignment = load_frozen(teacher_only, model)
        teacher = jax.eval_shape(lambda: loaded.teacher)
    else:
        teacher, alignment = None, None
    vgg19 = _abstract_vgg19() if losses.perceptual else None
    lpips_params = lpips.abstract_params() if losses.lpips else None
    return FrozenNetworks(vgg19, lpips_params, teacher), alignment


def _abstract_vgg19() -> dict:
    """Shapes of what `perceptual.load_vgg19` reads."""
    params, channels = {}, 3
    for stage, (depth, width) in enumerate(
        zip(perceptual.DEPTHS, perceptual.PUBLISHED_WIDTHS, strict=True), 1
    ):
        for layer in range(1, depth + 1):
            shapes = {"kernel": (3, 3, channels, width), "bias": (width,)}
            params[f"conv{stage}_{layer}"] = {
                name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()
            }
            channels = width
    return params


def compile_step(asked: Question, devices: Sequence[jax.Device]) -> Compiled:
    """Compiles `training.step.train_step` for devices, from shapes alone.

    Raises:
      InputError: settings that cannot be; or the compiler found that memory does not suffice.
    """
    mesh = make_mesh(asked.mesh, devices)
    state = abstract_state(asked.recipe)
    shardings = state_shardings(mesh, state)
    batch = _abstract_batch(mesh, asked)
    places = frozen_shardings(mesh, asked.frozen)
    frozen = placed(asked.frozen, places)
    with jax.set_mesh(mesh):
        lowered = train_step.lower(asked.recipe, placed(state, shardings), batch, frozen)
        compiled = lowered.compile()
    kinds = {
        **state_bytes(state, shardings),
        "networks of losses": bytes_per_device(frozen, places),
        "batch": bytes_per_device(batch, jax.tree.map(lambda x: x.sharding, batch)),
    }
    return what_became_of(compiled, kinds)


def what_became_of(
    compiled: jax.stages.Compiled,
    arguments: dict[str, int],
    *,
    rest: str = "padding of arguments",
) -> Compiled:
    """A compiled program with its bytes by kind; `rest` is what is not in known `arguments`."""
    memory = compiled.memory_analysis()
    kinds = {
        **arguments,
        "temporaries": memory.peak_memory_in_bytes - memory.argument_size_in_bytes,
        "program": memory.generated_code_size_in_bytes,
        rest: memory.argument_size_in_bytes - sum(arguments.values()),
    }
    return Compiled(kinds, read_program(compiled.as_text()))


def placed(shapes: Any, shardings: Any) -> Any:
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        shapes,
        shardings,
    )


def placed_alike(mesh: Mesh, spec: PartitionSpec, shapes: Any) -> Any:
    """Abstract arrays, all of them spread over a mesh in one way."""
    return placed(shapes, jax.tree.map(lambda _: NamedSharding(mesh, spec), shapes))


def bytes_of_one(tree: Any) -> int:
    """Of placed arrays, on one device."""
    return bytes_per_device(tree, jax.tree.map(lambda x: x.sharding, tree))


def _abstract_batch(mesh: Mesh, asked: Question) -> Batch:
    """A batch as `parallel.sharding.put_batch` places it, by shapes."""
    data = asked.data
    if data.batch_size % math.prod(mesh.shape[axis] for axis in AXES):
        raise InputError(
            f"data.batch_size={data.batch_size} does not divide among the mesh {asked.mesh!r} on "
            f"{mesh.size} devices; for instance --config.data.batch_size={4 * mesh.size}"
        )

    def side(views: int, sharding: NamedSharding) -> Views:
        def array(*shape: int, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
            shape = (data.batch_size, views, *shape)
            return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

        picture = array(data.size, data.size, 3, dtype=jnp.uint8)
        return Views(picture, array(4, 4), array(4))

    of_inputs, of_targets = batch_shardings(mesh)
    inputs, targets = asked.views
    shape = data.batch_size, inputs, data.size, data.size
    return Batch(
        side(inputs, of_inputs),
        side(targets, of_targets) if targets else None,
        jax.ShapeDtypeStruct(shape, jnp.float32, sharding=of_inputs) if data.depth else None,
        jax.ShapeDtypeStruct((data.batch_size, data.queries, 2), jnp.float32, sharding=of_targets)
        if data.queries
        else None,
    )
