"""REPA: the model's features are trained to agree with a frozen teacher's (published program, §3).

A layer of the model, tapped, goes through a small projector and is compared, token by token, with
what a layer of the teacher makes of the same picture. Used in training only; projectors are no part
of the model.

    layer_map = parse_layer_map("8-2", student_layers=12, teacher_layers=12)
    teacher = load_teacher(path).frozen(layers=layer_map.last_teacher, dtype="bfloat16")
    projectors = init_projectors(key, layer_map, width=768, teacher_width=768)

    # in the jitted step, with the teacher as an argument
    labels = {
        stream: teacher_labels(teacher, images[stream], layer_map.teachers(stream), grid)
        for stream in layer_map.streams
    }
    loss = repa_loss(projectors, features, labels, layer_map, "sl1")

Axes: B scene, V view (of inputs or targets), Y X pixel, N patch token of the model, D its width,
E width of the teacher, F hidden channels of a projector; n tapped layer.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from efficient_lvsm_jax.backbones.backbone import Teacher
from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.nn.layers import uniform
from efficient_lvsm_jax.nn.resize import bicubic
from efficient_lvsm_jax.nn.stacks import CPU_TOKENS_AT_ONCE
from efficient_lvsm_jax.training.losses import projection_loss

STREAMS = ("input", "target")  # the encoder's tokens, the decoder's tokens
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_DEVIATION = (0.229, 0.224, 0.225)
PROJECTOR_HIDDEN = 2048

MAX_LAYER_IN_NAME = 12  # of the published teachers and models; says where digits are parted
SUFFIXES = {"i": ("input",), "t": ("target",), "": STREAMS}
# One published name does not mean what its digits say.
IRREGULAR_STUDENTS = {"4812-123": (2, 4, 3)}


@dataclasses.dataclass(frozen=True)
class LayerMap:
    """Which layers of the teacher and the model are compared.

    Attributes:
      pairs: (stream, teacher layer, student layer), layers counted from 1.
    """

    pairs: tuple[tuple[str, int, int], ...]

    @property
    def streams(self) -> tuple[str, ...]:
        """Those that have a pair, "input" first."""
        return tuple(x for x in STREAMS if any(x == stream for stream, _, _ in self.pairs))

    @property
    def last_teacher(self) -> int:
        """The highest layer of the teacher in use."""
        return max(teacher for _, teacher, _ in self.pairs)

    def teachers(self, stream: str) -> tuple[int, ...]:
        """Layers of the teacher that `stream` needs, ascending."""
        return tuple(sorted({teacher for at, teacher, _ in self.pairs if at == stream}))

    def students(self, stream: str) -> tuple[int, ...]:
        """Layers of the model that `stream` taps, ascending."""
        return tuple(sorted({student for at, _, student in self.pairs if at == stream}))


def parse_layer_map(name: str, *, student_layers: int, teacher_layers: int) -> LayerMap:
    """The layers that a published name stands for.

    A name is TEACHER-STUDENT, or several of them joined by "-". Each side is one layer or several
    written without a separator, ascending: "48" is 4 and 8, "12" is 12. One layer of the teacher
    goes with every layer of the student, several go with as many one by one: "12-34" compares 12
    with 3 and with 4; "48-23" compares 4 with 2 and 8 with 3. A suffix "i" is for input views (the
    encoder) alone, "t" for target views (the decoder) alone; without one it is both.

    Args:
      name: for instance "8-2", "8-2i", "8-3t-8-2i", "48-23". "4812-123" compares 4 with 2, 8 with 4
        and 12 with 3, as in the published program.
      student_layers: of the model's encoder, and decoder.
      teacher_layers: of the teacher.

    Raises:
      InputError: not such a name, or layers that do not exist.
    """
    what = f"repa.layers={name!r}"
    example = 'expected a name like "8-2" (teacher layer 8, model layer 2), "8-2i" or "8-3t-8-2i"'
    if not isinstance(name, str) or "-" not in name:
        raise InputError(
            f"{what} names no pair of layers (the published default 1 is none, too); {example}"
        )
    if "e" in name:
        raise InputError(
            f"{what}: layers with an e were extra encoder layers, which are no part of the model "
            f"any more; {example}"
        )
    parts = re.findall(r"(?:^|-)([0-9]+)-([0-9]+)([it]?)(?=-|$)", name)
    if "-".join(f"{teacher}-{student}{suffix}" for teacher, student, suffix in parts) != name:
        raise InputError(f"{what} cannot be read; {example}")

    pairs = []
    for teacher_digits, student_digits, suffix in parts:
        teachers, students = (
            _layers(what, side, MAX_LAYER_IN_NAME) for side in (teacher_digits, student_digits)
        )
        students = IRREGULAR_STUDENTS.get(f"{teacher_digits}-{student_digits}", students)
        if len(teachers) == 1:
            teachers *= len(students)
        if len(teachers) != len(students):
            raise InputError(
                f"{what}: {len(teachers)} layers of the teacher {teachers} and {len(students)} of "
                f"the model {students} cannot be paired"
            )
        pairs += [
            (stream, *pair)
            for stream in SUFFIXES[suffix]
            for pair in zip(teachers, students, strict=True)
        ]
    if len(set(pairs)) != len(pairs):
        raise InputError(f"{what} names a pair of layers twice")
    for _, teacher, student in pairs:
        if teacher > teacher_layers:
            raise InputError(f"{what}: the teacher has {teacher_layers} layers, no {teacher}")
        if student > student_layers:
            raise InputError(f"{what}: the model has {student_layers} layers, no {student}")
    return LayerMap(tuple(pairs))


def _layers(what: str, digits: str, largest: int) -> tuple[int, ...]:
    """Ascending numbers from 1 to `largest` that are written as `digits`, as few as possible."""

    def readings(rest: str, after: int) -> list[tuple[int, ...]]:
        if not rest:
            return [()]
        heads = [int(rest[:n]) for n in (1, 2) if n <= len(rest) and rest[0] != "0"]
        return [
            (head, *tail)
            for head in heads
            if after < head <= largest
            for tail in readings(rest[len(str(head)) :], head)
        ]

    found = readings(digits, 0)
    if not found:
        raise InputError(f"{what}: {digits} is no ascending row of layers from 1 to {largest}")
    return min(found, key=len)


def teacher_labels(
    teacher: Teacher, images: jax.Array, layers: tuple[int, ...], grid: tuple[int, int]
) -> jax.Array:
    """What layers of the teacher make of pictures, a vector for each token of the model.

    The picture is resized so that the teacher sees as many patches as the model has tokens
    (DINOv3) or three for four (DINOv2): 512 and 336 pixels for the published grid of 32x32, at
    whose size the published program stops; twice that for 64x64. Shapes other than squares keep
    theirs.

    Args:
      teacher: a traced argument of the jitted caller, so that it is no constant of the program.
      images: [B, V, Y, X, 3], floats in [0, 1].
      layers: of the teacher, from 1, ascending: `LayerMap.teachers`.
      grid: rows and columns of the model's tokens: image height and width over the patch.

    Returns:
      [n, B, V, N, E], float32, without gradient. The same for the same arguments: nothing in a
      teacher is random.

    Raises:
      InputError: images of another form, or layers that the teacher does not have.
    """
    if images.ndim != 5 or images.shape[-1] != 3:
        raise InputError(f"images of a teacher {images.shape}: expected [B, V, Y, X, 3]")
    module = teacher.module()
    patch_grid = module.patch_grid(grid)
    size = tuple(patches * teacher.config.patch for patches in patch_grid)

    def label(images: jax.Array) -> jax.Array:
        """[I, Y, X, 3] to [n, I, N, E]."""
        normal = (images.astype(jnp.float32) - jnp.array(IMAGENET_MEAN)) / jnp.array(
            IMAGENET_DEVIATION
        )
        features = module.features(bicubic(normal, size), layers, grid)
        features = features.reshape(*features.shape[:2], *patch_grid, -1)
        features = bicubic(features, grid)
        return features.reshape(*features.shape[:2], grid[0] * grid[1], -1)

    scenes, views = images.shape[:2]
    many = patch_grid[0] * patch_grid[1] >= CPU_TOKENS_AT_ONCE
    if jax.default_backend() == "cpu" and many:
        labels = jnp.moveaxis(jax.lax.map(label, jnp.moveaxis(images, 1, 0)), 0, 2)
    else:
        labels = label(images.reshape(scenes * views, *images.shape[2:]))
        labels = labels.reshape(len(layers), scenes, views, *labels.shape[2:])
    return jax.lax.stop_gradient(labels)


def init_projectors(
    key: jax.Array,
    layer_map: LayerMap,
    *,
    width: int,
    teacher_width: int,
    hidden: int = PROJECTOR_HIDDEN,
) -> dict:
    """A projector D → F → F → E for every pair, as PyTorch initialises linear layers.

    Returns:
      {stream: {"TEACHER-STUDENT": {"layer1", "layer2", "layer3": {"kernel", "bias"}}}}, float32.
    """
    sizes = (width, hidden, hidden, teacher_width)
    draw = uniform()
    projectors: dict = {}
    for number, (stream, teacher, student) in enumerate(layer_map.pairs):
        projector = projectors.setdefault(stream, {})[f"{teacher}-{student}"] = {}
        for layer, (inputs, outputs) in enumerate(itertools.pairwise(sizes), 1):
            for_kernel, for_bias = jax.random.split(
                jax.random.fold_in(jax.random.fold_in(key, number), layer)
            )
            projector[f"layer{layer}"] = {
                "kernel": draw(for_kernel, (inputs, outputs), inputs),
                "bias": draw(for_bias, (outputs,), inputs),
            }
    return projectors


def project(projector: dict, features: jax.Array) -> jax.Array:
    """Features [..., D] through one projector to [..., E], in the dtype of `features`."""

    def linear(layer: dict, x: jax.Array) -> jax.Array:
        return x @ layer["kernel"].astype(x.dtype) + layer["bias"].astype(x.dtype)

    x = jax.nn.silu(linear(projector["layer1"], features))
    x = jax.nn.silu(linear(projector["layer2"], x))
    return linear(projector["layer3"], x)


def repa_loss(
    projectors: dict,
    features: Mapping[str, jax.Array],
    labels: Mapping[str, jax.Array],
    layer_map: LayerMap,
    kind: str,
) -> jax.Array:
    """How far the model's features are from the teacher's: a mean over all (pair, view) items.

    With more target than input views, targets weigh more, as published.

    Args:
      projectors: of `init_projectors`.
      features: by stream, [n, B, V, N, D]: outputs of the layers `layer_map.students(stream)`.
      labels: by stream, [n, B, V, N, E]: `teacher_labels` of `layer_map.teachers(stream)`. No
        gradient goes there.
      kind: "cos", "l2" or "sl1", see `losses.projection_loss`. The published program takes any
        other word for "cos"; here it is an error, because a misspelt "sl1" would train something
        else in silence.

    Returns:
      A scalar, float32.

    Raises:
      InputError: another kind, or features and labels that do not fit the map or each other.
    """
    for stream in layer_map.streams:
        for name, arrays, layers in (
            ("features", features, layer_map.students(stream)),
            ("labels", labels, layer_map.teachers(stream)),
        ):
            if len(arrays[stream]) != len(layers):
                raise InputError(
                    f"{name} of {stream} views are of {len(arrays[stream])} layers; the map needs "
                    f"{len(layers)}: {layers}"
                )
    total, items = jnp.zeros(()), 0
    for stream, teacher, student in layer_map.pairs:
        feature = features[stream][layer_map.students(stream).index(student)]
        label = labels[stream][layer_map.teachers(stream).index(teacher)]
        projected = project(projectors[stream][f"{teacher}-{student}"], feature)
        losses = projection_loss(projected, jax.lax.stop_gradient(label), kind)  # [B, V]
        total, items = total + losses.sum(), items + losses.size
    return total / items
