"""The scenes of an evaluation: which frames of each, prepared for the model when asked for.

Axis legend: V view (inputs or targets)  Y X pixels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import jax
import numpy as np

from data_pipeline.evaluation.index import ChosenFrames, EvaluationIndex
from data_pipeline.pictures.transforms import portrait_to_square, preprocess_frame
from data_pipeline.procedural.rooms import ProceduralScenes
from data_pipeline.scenes import Frame, Scene, Scenes
from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.geometry.cameras import Views, normalise_poses, spread


@dataclasses.dataclass(frozen=True)
class EvaluationScene:
    """One scene to score.

    Attributes:
      name: of the scene.
      chosen: which of its frames are inputs and targets.
      target_names: what the data set calls the targets.
      inputs, targets: [V, …], NumPy arrays, in the order of `chosen`.
      foreground: bool [T, Y, X], pixels of the targets that are at least half opaque, or, where
        the source has no alpha, not pure white; None unless `Preparation.foreground`.
    """

    name: str
    chosen: ChosenFrames
    target_names: tuple[str, ...]
    inputs: Views
    targets: Views
    foreground: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Coverage:
    """How an index and a data set fit together.

    Attributes:
      listed: scenes the index wants scored. null: scenes it lists as not scored.
      missing: names of listed scenes that the data set does not have.
      unlisted: names of scenes of the data set that are not in the index.
    """

    listed: int
    null: int
    missing: tuple[str, ...]
    unlisted: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Preparation:
    """How frames become the model's: `transforms.preprocess_frame` at `size`, and their poses.

    normalise: poses in the scene frame of all chosen frames, targets included, as published for
    scenes; otherwise world poses as they are, as published for objects. portraits_to_squares: crop
    frames narrower than high first (`transforms.portrait_to_square`), which is not published.
    foreground: also say which pixels of the targets are the object's.
    """

    size: int
    patch: int = 8
    square_crop: bool = True
    normalise: bool = True
    portraits_to_squares: bool = False
    foreground: bool = False


class EvaluationScenes(Sequence):
    """A sequence of `EvaluationScene`, each read and prepared when asked for.

    Attributes:
      names: of the scenes, in order.
      coverage: None where no index chose them.
    """

    def __init__(
        self,
        names: Sequence[str],
        read: Callable[[int], EvaluationScene],
        coverage: Coverage | None = None,
    ):
        self.names, self.coverage, self._read = tuple(names), coverage, read

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> EvaluationScene:
        if not -len(self) <= index < len(self):
            raise IndexError(f"scene {index} of {len(self)}")
        return self._read(int(index) % len(self))


def generated_scenes(
    source: ProceduralScenes,
    *,
    inputs: Sequence[int],
    targets: Sequence[int],
    normalise: bool = True,
) -> EvaluationScenes:
    """All generated scenes in their order, with the same views of each.

    Poses are normalised or not as in `Preparation`.

    Raises:
      InputError: no input or no target, or a view that the scenes do not have.
    """
    chosen = ChosenFrames(tuple(inputs), tuple(targets))
    _check_chosen(chosen)
    wanted, count = [*chosen.inputs, *chosen.targets], source.recipe.views
    for side, views in vars(chosen).items():
        wrong = [view for view in views if not 0 <= view < count]
        if wrong:
            raise InputError(f"{side}: no view {wrong[0]}, the scenes have views 0 to {count - 1}")

    def read(index: int) -> EvaluationScene:
        room = source[index]
        image, c2w, fxfycxcy = (room[name][wanted] for name in ("image", "c2w", "fxfycxcy"))
        c2w = normalise_poses(c2w) if normalise else c2w
        views = Views(np.divide(image, 255, dtype=np.float32), c2w, fxfycxcy)
        return _split(room["scene"], chosen, tuple(map(str, chosen.targets)), views)

    return EvaluationScenes([source[i]["scene"] for i in range(len(source))], read)


def indexed_scenes(
    scenes: Scenes,
    index: EvaluationIndex,
    *,
    num_inputs: int,
    num_targets: int,
    prepare: Preparation,
) -> EvaluationScenes:
    """The scenes that both the index and the data set have, in the order of the data set.

    `coverage` says which scenes only one of them has. Reading a scene fails (InputError) if it has
    fewer frames than are counted, or if frames are absent: those behind would move up, and others
    than are meant would be scored.
    """
    shared = [(at, name) for at, name in enumerate(scenes.names) if name in index.context]
    chosen = [index.choose(name, num_inputs, num_targets) for _, name in shared]
    known = set(index.context) | set(index.null)
    have = set(scenes.names)
    coverage = Coverage(
        listed=len(index.context),
        null=len(index.null),
        missing=tuple(name for name in index.context if name not in have),
        unlisted=tuple(name for name in scenes.names if name not in known),
    )

    def read(i: int) -> EvaluationScene:
        scene = scenes[shared[i][0]]
        _check_none_absent(scene, "download or convert the scene again")
        return _prepared(scene, chosen[i], prepare)

    return EvaluationScenes([name for _, name in shared], read, coverage)


def same_views(
    scenes: Scenes,
    *,
    inputs: Sequence[int],
    targets: Sequence[int],
    prepare: Preparation,
    without_absent: bool = False,
) -> EvaluationScenes:
    """All scenes of a data set with the same views of each; no targets means all but the inputs.

    without_absent: views count the frames that are there; otherwise a scene of which frames were
    left out is refused.
    """
    inputs, targets = tuple(inputs), tuple(targets)
    _check_chosen(ChosenFrames(inputs, targets or (-1,)))

    def read(i: int) -> EvaluationScene:
        scene = scenes[i]
        if not without_absent:
            _check_none_absent(
                scene,
                "complete the scene, or set evaluation.missing=report: positions then count the "
                "frames that are there",
            )
        may = scene.held_out or range(len(scene.frames))
        others = targets or tuple(view for view in may if view not in inputs)
        if not others:
            raise InputError(f"{scene.name}: all {len(scene.frames)} views are inputs: no target")
        return _prepared(scene, ChosenFrames(inputs, others), prepare)

    return EvaluationScenes(scenes.names, read)


def held_out_views(
    scenes: Scenes, *, num_inputs: int, num_targets: int, prepare: Preparation
) -> EvaluationScenes:
    """The scenes of a held-out split, with views chosen by one rule.

    Inputs: `num_inputs` frames that were not held out, spread over the scene (`cameras.spread`).
    Targets: held-out frames; of a scene held out whole, all that are no inputs. `num_targets` of
    them, evenly chosen, or all if that is 0.

    Reading a scene fails (InputError) if it has too few readable frames for that.
    """

    def read(i: int) -> EvaluationScene:
        scene = scenes[i]
        free = [at for at in scene.usable if at not in scene.held_out]
        if num_inputs > len(free):
            raise InputError(
                f"scene {scene.name}: {num_inputs} inputs asked for, it has {len(free)} readable "
                "frames that may be; take fewer (evaluation.num_inputs, --inputs)"
            )
        cameras = np.stack([scene.frames[at].c2w for at in free])
        inputs = tuple(free[at] for at in spread(cameras, num_inputs))
        unseen = scene.held_out or free
        targets = [at for at in scene.usable if at in unseen and at not in inputs]
        if num_targets > len(targets) or not targets:
            raise InputError(
                f"scene {scene.name}: {num_targets or 'some'} targets asked for, beside "
                f"{num_inputs} inputs it has {len(targets)} readable frames that may be; take "
                "fewer (evaluation.num_targets or num_inputs; --targets or --inputs)"
            )
        evenly = np.linspace(0, len(targets) - 1, num_targets or len(targets)).round().astype(int)
        return _prepared(scene, ChosenFrames(inputs, tuple(targets[at] for at in evenly)), prepare)

    return EvaluationScenes(scenes.names, read)


def _check_chosen(chosen: ChosenFrames) -> None:
    for side in ("inputs", "targets"):
        views = getattr(chosen, side)
        if not views:
            raise InputError(f"evaluation.{side}=(): must name at least one view")
        if len(set(views)) != len(views):
            raise InputError(f"evaluation.{side}={views}: names a view twice")


def _check_none_absent(scene: Scene, advice: str) -> None:
    left_out = len(scene.absent) - len(scene.holes)  # holes keep their place
    if left_out:
        shown = ", ".join(scene.absent[:3]) + (", …" if left_out > 3 else "")
        raise InputError(
            f"scene {scene.name}: {left_out} frames are absent ({shown}), so positions would count "
            f"others than they mean; {advice}"
        )


def _prepared(scene: Scene, chosen: ChosenFrames, prepare: Preparation) -> EvaluationScene:
    wanted = [*chosen.inputs, *chosen.targets]
    count = len(scene.frames)
    if max(wanted) >= count:
        raise InputError(
            f"scene {scene.name}: frame {max(wanted)} is to be scored or shown, it has frames 0 to "
            f"{count - 1}; is it complete, and does the index belong to this data set?"
        )
    seen = [at for at in chosen.targets if scene.held_out and at not in scene.held_out]
    if seen:
        raise InputError(
            f"scene {scene.name}: target {seen[0]} is trained on; held out are "
            f"{', '.join(map(str, scene.held_out))}: name such evaluation.targets, or leave "
            "evaluation.inputs and targets empty"
        )
    prepared = [_prepare_frame(scene, i, prepare) for i in wanted]
    images, intrinsics = zip(*prepared, strict=True)
    shapes = {image.shape[:2] for image in images}
    if len(shapes) > 1:
        raise InputError(
            f"scene {scene.name}: prepared frames of several sizes (height x width): "
            f"{', '.join(f'{y}x{x}' for y, x in sorted(shapes))}; views of a scene must share one"
        )
    c2w = np.stack([scene.frames[i].c2w for i in wanted])
    c2w = normalise_poses(c2w) if prepare.normalise else c2w.astype(np.float32)
    names = tuple(scene.frames[i].name for i in chosen.targets)
    views = Views(np.stack(images), c2w, np.stack(intrinsics))
    item = _split(scene.name, chosen, names, views)
    if not prepare.foreground:
        return item
    masks = [
        _foreground(scene.frames[at], image, prepare)
        for at, image in zip(chosen.targets, item.targets.image, strict=True)
    ]
    return dataclasses.replace(item, foreground=np.stack(masks))


def _foreground(frame: Frame, image: np.ndarray, prepare: Preparation) -> np.ndarray:
    """Bool [Y, X] of a frame prepared as `image`, see `EvaluationScene.foreground`."""
    alpha = frame.alpha() if frame.alpha else None
    if alpha is None:
        return (image < 254.5 / 255).any(axis=-1)
    opaque = _cut(np.repeat(alpha[..., None], 3, axis=-1), frame.fxfycxcy, prepare)[0]
    return opaque[..., 0] >= 0.5


def _cut(
    image: np.ndarray, fxfycxcy: np.ndarray, prepare: Preparation
) -> tuple[np.ndarray, np.ndarray]:
    """A picture resized and cropped, and its intrinsics."""
    if prepare.portraits_to_squares:
        image, fxfycxcy = portrait_to_square(image, fxfycxcy)
    return preprocess_frame(
        image, fxfycxcy, prepare.size, patch=prepare.patch, square_crop=prepare.square_crop
    )


def _prepare_frame(scene: Scene, at: int, prepare: Preparation) -> tuple[np.ndarray, np.ndarray]:
    frame = scene.frames[at]
    try:
        return _cut(frame.image(), frame.fxfycxcy, prepare)
    except InputError as error:
        raise InputError(f"scene {scene.name}, frame {at}: {error}") from None


def _split(
    name: str, chosen: ChosenFrames, target_names: tuple[str, ...], views: Views
) -> EvaluationScene:
    """An EvaluationScene from the views of its inputs, then its targets."""
    count = len(chosen.inputs)
    inputs = jax.tree.map(lambda x: x[:count], views)
    targets = jax.tree.map(lambda x: x[count:], views)
    return EvaluationScene(name, chosen, target_names, inputs, targets)
