"""What an evaluation scores, and the record of it that decides the numbers."""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Any

from data_pipeline.evaluation.index import EvaluationIndex, read_index
from data_pipeline.evaluation.scenes import (
    Coverage,
    EvaluationScenes,
    Preparation,
    generated_scenes,
    held_out_views,
    indexed_scenes,
    same_views,
)
from data_pipeline.formats import open_scenes
from data_pipeline.formats.array_record import HoldOut, hold_out_of
from data_pipeline.procedural.rooms import ProceduralScenes, SceneRecipe
from data_pipeline.read_options import AXES, ReadOptions
from efficient_lvsm_jax.configuration import Settings, build, setting
from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.sessions.choice import nearest_of

# What a number of this name is.
METRICS = {
    "psnr": "dB, both pictures clamped to [0, 1], mean over pixels and channels",
    "ssim": "Gaussian window of 11, sigma 1.5, sample covariance, valid region",
    "lpips": "LPIPS 0.1 with VGG16",
    "foreground_psnr": "psnr over the foreground's pixels alone",
    "foreground_ssim": "ssim over the windows centred on foreground",
}
FOREGROUND = (
    "pixels at least half opaque in the source; where it has no alpha, pixels of the true picture "
    "that are not pure white"
)
# What a format leaves to the settings.
LEFT_OPEN = {"nerfstudio": "axes", "blender": "axes", "objects": "vertical_fov"}
HELD_OUT_INPUTS = 4  # of a scene, if not told
MEANS = "over the targets of a scene, then over scenes, in float64; pictures compared in float32"


@dataclasses.dataclass(frozen=True)
class MachineConfig(Settings):
    """The settings of an evaluation that belong to no group.

    Attributes:
      seed: of generated scenes.
      mesh: axes of the devices and their sizes; -1 takes all that are left.
    """

    seed: int = setting(0, at_least=0)
    mesh: str = "data:-1,fsdp:1"


@dataclasses.dataclass(frozen=True)
class EvaluationConfig(Settings):
    """Which views of which scenes are scored, and how.

    Attributes:
      data: path of a data set; "" is the held-out part of the data that is trained on, or draws
        held-out scenes where that is generated.
      scenes, views: how many are drawn, and views of each.
      split, vertical_fov, axes: how to read it, see `data_pipeline.read_options.ReadOptions`.
      index: an evaluation index file, or "re10k", the published one; "" takes the same views of
        every scene, `inputs` and `targets`, or those of a hold-out.
      num_inputs, num_targets: with an index or a hold-out, how many of each; of a hold-out, 0 is 4
        inputs, and all targets there are.
      inputs, targets: without index, positions of the views; no targets: all that are no inputs;
        no inputs: those of a hold-out, see `held_out_views`.
      missing: "error", or "report": score what can be scored, and list the scenes of the index
        that are not in the data and those that cannot be read. Without an index, positions then
        count the frames of a capture that are there.
      size: height of the prepared pictures in pixels.
      patch: the sides of prepared pictures are multiples of it.
      square_crop: cut pictures to squares.
      normalise_poses: poses in the frame of all chosen views, as published for scenes; objects
        keep theirs.
      foreground: also score the foreground alone, on white backgrounds.
      compute_dtype, ray_dtype, cache: of the model, instead of those in its configuration.
      render_views: which inputs each target reads: "all", or "nearest:k", its k most useful ones.
      lpips: folder of LPIPS weights; "" is the usual place.
      added_one_by_one: the order in which inputs join a Session for the cache table.
      batch_size: scenes scored in one call; changes the speed, not the result.
      film_frames: pictures rendered for the film per pair of inputs; 0 makes none.
    """

    group = "evaluation"
    data: str = ""
    split: str = ""
    vertical_fov: float = setting(ReadOptions.vertical_fov, above=0, below=180)
    axes: str = setting(ReadOptions.axes, choices=AXES)
    scenes: int = setting(0, at_least=0)
    views: int = setting(0, at_least=0)
    index: str = ""
    num_inputs: int = setting(0, at_least=0)
    num_targets: int = setting(0, at_least=0)
    inputs: tuple[int, ...] = setting((), at_least=0)
    targets: tuple[int, ...] = setting((), at_least=0)
    missing: str = setting("error", choices=("error", "report"))
    size: int = setting(256, at_least=1)
    patch: int = setting(8, at_least=1)
    square_crop: bool = True
    normalise_poses: bool = True
    foreground: bool = False
    compute_dtype: str = ""
    ray_dtype: str = ""
    cache: str = ""
    render_views: str = "all"
    lpips: str = ""
    added_one_by_one: tuple[int, ...] = setting((), at_least=0)
    batch_size: int = setting(8, at_least=1)
    film_frames: int = setting(45, at_least=0)

    def __post_init__(self):
        super().__post_init__()
        nearest_of(self.render_views, "evaluation.render_views")
        if not (self.data or self.index) and self.scenes < 1:
            raise InputError("evaluation.scenes=0: name evaluation.data, or a number of scenes")
        if self.data and self.size % self.patch:
            raise InputError(
                f"evaluation.size={self.size}: must be a multiple of evaluation.patch={self.patch}"
            )
        for name in ("inputs", "targets", "added_one_by_one"):
            last = max(getattr(self, name), default=-1)
            if not self.data and last >= self.views:
                raise InputError(f"evaluation.{name}: no view {last}, there are {self.views}")
        if self.index:
            self._check_indexed()
            return
        if not self.inputs and (not self.data or self.targets or self.added_one_by_one):
            raise InputError("evaluation.inputs=(): must name at least one view, or give an index")
        if self.inputs and (self.num_inputs or self.num_targets):
            raise InputError(
                "evaluation.num_inputs and num_targets choose from an index or a hold-out; without "
                "evaluation.index name the views in evaluation.inputs and evaluation.targets"
            )
        if not self.targets and (not self.data or self.added_one_by_one):
            raise InputError("evaluation.targets=(): must name at least one view")

    def _check_indexed(self) -> None:
        if not self.data:
            raise InputError("evaluation.index needs evaluation.data, the data set it belongs to")
        if self.inputs or self.targets or self.added_one_by_one:
            raise InputError(
                "evaluation.index chooses the views; leave evaluation.inputs, targets and "
                "added_one_by_one empty"
            )
        for name in ("num_inputs", "num_targets"):
            if not getattr(self, name):
                raise InputError(f"evaluation.{name}=0: must be at least 1 with an index")


def settings_of_run(values: dict[str, Any]) -> EvaluationConfig:
    """The settings of the group `evaluation`, of all groups.

    Where they name no data and training has some, they are those of its hold-out: what counts views
    of generated scenes does not apply then.

    Raises:
      InputError: settings that cannot be, or data of which nothing was held out.
    """
    evaluation, path = values["evaluation"], values["data"]["path"]
    if path and not (evaluation["data"] or evaluation["index"]):
        hold_out = hold_out_of(path, values["data"]["split"])
        if hold_out is None:
            raise InputError(
                f"data.path={path}: nothing of it was held out to be scored; train on what python "
                f"-m data_pipeline.prepare {path} --hold-out 0.1 writes, or name other data in "
                "evaluation.data"
            )
        generated = ("scenes", "views", "inputs", "targets", "added_one_by_one")
        evaluation = {key: value for key, value in evaluation.items() if key not in generated}
        evaluation |= {"data": path, "split": hold_out.split}
    return build(EvaluationConfig, evaluation, "evaluation")


@dataclasses.dataclass(frozen=True)
class OpenedScenes:
    """The scenes of an evaluation, and where they come from.

    Attributes:
      scenes: what is scored.
      more: the same scenes with the inputs that join one by one, if any.
      index: None where none chose the views.
      hold_out: what was held out, if that chose the views.
      source: "generated scenes", or format and path of the data set.
      read_as: what the settings said that the format leaves open.
    """

    scenes: EvaluationScenes
    more: EvaluationScenes | None
    index: EvaluationIndex | None
    source: str
    hold_out: HoldOut | None = None
    read_as: dict[str, Any] = dataclasses.field(default_factory=dict)


def open_evaluation(settings: EvaluationConfig, *, seed: int) -> OpenedScenes:
    """Opens the scenes that the settings name; generated ones are drawn here.

    Raises:
      InputError: no data there, none of its scenes is in the index, or scenes of the index are
        missing and `settings.missing` is "error".
    """
    more = None
    if not settings.data:
        recipe = SceneRecipe(size=settings.size, views=settings.views)
        source = ProceduralScenes(
            settings.scenes, split="heldout", seed=seed, recipe=recipe, progress=True
        )
        how = {"targets": settings.targets, "normalise": settings.normalise_poses}
        scenes = generated_scenes(source, inputs=settings.inputs, **how)
        if settings.added_one_by_one:
            more = generated_scenes(source, inputs=settings.added_one_by_one, **how)
        return OpenedScenes(scenes, more, None, "generated scenes")

    hold_out = None if settings.index or settings.inputs else _hold_out(settings)
    split = hold_out.split if hold_out else settings.split
    options = ReadOptions(split=split, vertical_fov=settings.vertical_fov, axes=settings.axes)
    data = open_scenes(settings.data, options)
    prepare = Preparation(
        settings.size,
        settings.patch,
        settings.square_crop,
        settings.normalise_poses,
        portraits_to_squares=not settings.index,
        foreground=settings.foreground,
    )
    origin = f"{data.format}, {settings.data}"
    left_open = LEFT_OPEN.get(data.format)
    read_as = {left_open: getattr(settings, left_open)} if left_open else {}
    if hold_out:
        counts = {"num_inputs": settings.num_inputs or HELD_OUT_INPUTS}
        counts["num_targets"] = settings.num_targets
        scenes = held_out_views(data, **counts, prepare=prepare)
        return OpenedScenes(scenes, None, None, f"{origin}, split {split}", hold_out, read_as)
    if not settings.index:
        how = {
            "targets": settings.targets,
            "prepare": prepare,
            "without_absent": settings.missing == "report",
        }
        scenes = same_views(data, inputs=settings.inputs, **how)
        if settings.added_one_by_one:
            more = same_views(data, inputs=settings.added_one_by_one, **how)
        return OpenedScenes(scenes, more, None, origin, read_as=read_as)

    index = read_index(settings.index)
    counts = {"num_inputs": settings.num_inputs, "num_targets": settings.num_targets}
    scenes = indexed_scenes(data, index, **counts, prepare=prepare)
    _check_coverage(scenes.coverage, settings, index)
    return OpenedScenes(scenes, None, index, origin, read_as=read_as)


def _hold_out(settings: EvaluationConfig) -> HoldOut:
    """What was held out of the data; InputError if nothing was, or the split is trained on."""
    hold_out = hold_out_of(settings.data, settings.split)
    if hold_out is None:
        raise InputError(
            "evaluation.inputs=(): must name at least one view, or give an index, since nothing "
            f"was held out of {settings.data} (elvsm prepare --hold-out)"
        )
    if settings.split == hold_out.of:
        raise InputError(
            f"evaluation.split={settings.split!r}: is trained on; what was held out is "
            f"{hold_out.split!r}. To score the former nonetheless, name evaluation.inputs"
        )
    return hold_out


def _check_coverage(coverage: Coverage, settings: EvaluationConfig, index: EvaluationIndex) -> None:
    missing = coverage.missing
    shown = ", ".join(missing[:5]) + (", …" if len(missing) > 5 else "")
    if len(missing) == coverage.listed:
        raise InputError(
            f"{settings.data}: none of the {coverage.listed} scenes of {index.path} is there "
            f"({shown}); does the index belong to this data set and split?"
        )
    if missing and settings.missing == "error":
        raise InputError(
            f"{settings.data}: {len(missing)} of the {coverage.listed} scenes of {index.path} are "
            f"not there: {shown}. A mean over fewer scenes is another number; complete the data, "
            "or set evaluation.missing=report to score the others and list these"
        )


def protocol_of(
    settings: EvaluationConfig, opened: OpenedScenes, renderer: dict[str, Any], metrics: list[str]
) -> dict[str, Any]:
    """Everything that decides the numbers, as JSON values.

    Two results may be compared where nothing but `renderer` differs. Paths of the data, devices and
    batch sizes are left out: they change nothing.

    Args:
      settings, opened: what is scored.
      renderer: what made the pictures, hashes included.
      metrics: names of the scores.
    """
    index = opened.index
    if index is not None:
        views = {"num_inputs": settings.num_inputs, "num_targets": settings.num_targets}
    elif opened.hold_out is not None:
        views = {
            "held_out": list(opened.hold_out.frames) or "whole scenes",
            "num_inputs": settings.num_inputs or HELD_OUT_INPUTS,
            "inputs_spread_by": "places and viewing directions",  # `cameras.spread`
            "num_targets": settings.num_targets or "all",
        }
    else:
        targets = list(settings.targets) or "all that are no inputs"
        views = {"inputs": list(settings.inputs), "targets": targets}
        if settings.data:
            there = settings.missing == "report"
            views["positions_count"] = "frames that are there" if there else "all listed frames"
    protocol = {
        "index": index and {"file": index.path.name, "sha256": index.sha256},
        "scenes": {
            "count": len(opened.scenes),
            "names_sha256": hashlib.sha256("\n".join(opened.scenes.names).encode()).hexdigest(),
        },
        "views": views,
        "pictures": {
            "size": settings.size,
            "patch": settings.patch,
            "square_crop": settings.square_crop,
            "portraits_to_squares": bool(settings.data and not settings.index),
        },
        "poses": "in the frame of inputs and targets together"
        if settings.normalise_poses
        else "as the data set gives them",
        "renderer": renderer,
        "metrics": {name: METRICS[name] for name in metrics},
        "means": MEANS,
    }
    if not settings.data:
        protocol["scenes"]["views"] = settings.views
    protocol["scenes"] |= opened.read_as
    if settings.foreground:
        protocol["foreground"] = FOREGROUND
    return protocol
