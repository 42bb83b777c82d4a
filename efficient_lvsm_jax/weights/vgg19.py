"""Reads the convolutions of VGG19 from MatConvNet's imagenet-vgg-verydeep-19.mat.

Its variable `layers` is a cell array of 43 structs: five stages of convolutions, ReLUs and a pool,
then dense layers, which nobody here needs. Fields stand in another order, and some are absent, in
files of MatConvNet's beta16 and before; they go by their names. Kernels are stored as
[y, x, in, out], colours as red, green, blue: as they are computed with.
"""

from __future__ import annotations

import logging
import math
from pathlib import Path

import numpy as np

from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.files.mat_file import Matrix, open_variable
from efficient_lvsm_jax.files.stored import printable
from efficient_lvsm_jax.metrics.perceptual import DEPTHS, PUBLISHED_WIDTHS

FILE = "imagenet-vgg-verydeep-19.mat"
WEIGHTS_FILE = Path("weights") / FILE
HOW_TO_GET_WEIGHTS = (
    f"needs MatConvNet's {FILE} (535 MB) from https://www.vlfeat.org/matconvnet/models/{FILE}"
)
STAGES = (2, 2, 4, 4, 4)
LAYERS = 43  # of which the last six are dense, with ReLUs between, and a softmax
MAX_WIDTH = 512
GEOMETRY = ("pad", "stride", "dilate")  # all 1; older files have no dilate


def load_vgg19(path: str | Path) -> dict:
    """The convolutions that the loss uses; conv{stage}_{layer}, {"kernel", "bias"}, float32.

    Args:
      path: MatConvNet's imagenet-vgg-verydeep-19.mat; if "", weights/ is where it is looked for.
        Widths are read off the file; other than published ones are said to be so.

    Raises:
      InputError: no such file (says where people get it), another one, or a damaged one.
    """
    path = Path(path) if str(path) else WEIGHTS_FILE
    if not path.is_file():
        raise InputError(f"{path}: no such file; the perceptual loss {HOW_TO_GET_WEIGHTS}")
    params = read_vgg19(path)
    widths = tuple(len(params[f"conv{stage}_1"]["bias"]) for stage in range(1, len(DEPTHS) + 1))
    if widths != PUBLISHED_WIDTHS:
        logging.getLogger(__name__).warning(
            "%s: VGG19 with %s channels instead of %s; its perceptual loss compares with no other",
            path, widths, PUBLISHED_WIDTHS,
        )  # fmt: skip
    used = [f"conv{s}_{n}" for s, depth in enumerate(DEPTHS, 1) for n in range(1, depth + 1)]
    return {name: params[name] for name in used}


def read_vgg19(path: str | Path) -> dict:
    """All 16 convolutions: conv{stage}_{layer}, both from 1, float32.

    Widths are read off the file. Memory is that of the convolutions, at most 80 MB; the file is
    read to its end, so that damage anywhere in them is noticed.

    Returns:
      {"conv1_1": {"kernel" [3, 3, in, out], "bias" [out]}, ...}

    Raises:
      InputError: not this network, of another version of .mat files, damaged, hostile, or not to
        be read; names the file and where to get the right one.
    """
    try:
        with open_variable(Path(path), "layers") as layers:
            return _convolutions(layers)
    except InputError as error:
        raise InputError(f"{error}; the perceptual loss {HOW_TO_GET_WEIGHTS}") from error


def _convolutions(layers: Matrix) -> dict:
    layers.expect("cell", (1, LAYERS), "layers")
    params: dict = {}
    channels = 3
    cells = layers.cells()
    for number, (kind, name) in enumerate(_trunk(), 1):
        layer = next(cells)
        what = f"layer {number} ({name or kind})"
        found = _read(layer, kind, what, channels)
        if found["type"] != kind:
            raise InputError(f"{what} is of type {printable(found['type'])}, expected {kind}")
        if kind == "conv":
            params[name] = found["weights"]
            channels = len(found["weights"]["bias"])
    return params


def _trunk() -> list[tuple[str, str]]:
    """Type and, of convolutions, name of every layer up to the last pool."""
    trunk = []
    for stage, depth in enumerate(STAGES, 1):
        for layer in range(1, depth + 1):
            trunk += [("conv", f"conv{stage}_{layer}"), ("relu", "")]
        trunk.append(("pool", ""))
    return trunk


def _read(layer: Matrix, kind: str, what: str, channels: int) -> dict:
    """The fields of a layer by name that matter, if it is of this kind."""
    found: dict = {}
    for name, value in layer.fields():
        if name in found:
            raise InputError(f"{what} has the field {printable(name)!r} twice")
        if name == "type":
            found[name] = value.text()
        elif name == "weights" and kind == "conv":
            found[name] = _weights(value, what, channels)
        elif name in GEOMETRY and kind == "conv":
            found[name] = _ones(value, f"{name} of {what}")
    needed = ("type", "weights") if kind == "conv" else ("type",)
    for name in needed:
        if name not in found:
            raise InputError(f"{what} has no field {name!r}")
    return found


def _weights(value: Matrix, what: str, channels: int) -> dict:
    value.expect("cell", (1, 2), f"weights of {what}")
    arrays = value.cells()
    kernel = next(arrays)
    width = kernel.shape[-1] if len(kernel.shape) == 4 else 0
    if kernel.shape[:3] != (3, 3, channels) or not 1 <= width <= MAX_WIDTH:
        raise InputError(
            f"the kernel of {what} is {kernel}, expected single [3, 3, {channels}, up to "
            f"{MAX_WIDTH}]"
        )
    weights = {"kernel": _single(kernel, f"the kernel of {what}")}
    bias = next(arrays)
    if sorted(bias.shape) != sorted((width, 1)):
        raise InputError(f"the bias of {what} is {bias}, expected single [{width}, 1]")
    weights["bias"] = _single(bias, f"the bias of {what}").ravel()
    return weights


def _single(value: Matrix, what: str) -> np.ndarray:
    if value.kind != "single":
        raise InputError(f"{what} is {value}, expected class single")
    with np.errstate(over="ignore"):  # becomes infinite, which is refused
        numbers = value.numbers().astype(np.float32)
    if not np.isfinite(numbers).all():
        raise InputError(f"{what} has NaN or infinite values")
    return numbers


def _ones(value: Matrix, what: str) -> np.ndarray:
    if math.prod(value.shape) > 4:
        raise InputError(f"{what} is {value}, expected one to four numbers")
    numbers = value.numbers()
    if (numbers != 1).any():
        raise InputError(f"{what} is {numbers.ravel().tolist()}, expected 1")
    return numbers
