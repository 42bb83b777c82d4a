"""Which published tensor is which parameter of LPIPS with VGG16.

The usual downloads are torchvision's VGG16 and the linear layers of the lpips package; one file
with `lpips.LPIPS(net="vgg").state_dict()` has both under other names.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

import jax

from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.metrics.lpips import (
    CONFIG,
    FAMILY,
    HOW_TO_GET_WEIGHTS,
    SCALE,
    SHIFT,
    STAGES,
    WEIGHTS_FOLDER,
    Lpips,
    abstract_params,
)
from efficient_lvsm_jax.weights import folder as weights
from efficient_lvsm_jax.weights.source import HUB, fetch, open_state_dict, sha256
from efficient_lvsm_jax.weights.table import Layout, rules_of
from efficient_lvsm_jax.weights.tensors import params_of

# Published name | the one in a saved LPIPS module, parameter, published axes, ours; see `Rule`.
CONVOLUTION_LINES = """
features.{n}.weight|net.slice{stage}.{n}.weight  {layer}/kernel  {out},{into},Y,X  YX{into}{out}
features.{n}.bias|net.slice{stage}.{n}.bias      {layer}/bias    {out}             {out}
"""
LINEAR_LINE = (
    "lin{i}.model.1.weight|lins.{i}.model.1.weight  linear{stage}/kernel  1,{out},1,1  {out}\n"
)
SCALING_LINES = f"""
scaling_layer.shift  ={",".join(map(str, SHIFT))}  1,3,1,1  3
scaling_layer.scale  ={",".join(map(str, SCALE))}  1,3,1,1  3
"""
# Numbers of the convolutions among the layers of torchvision's VGG16, by stage.
NUMBERS = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))
# Of the usual downloads, how their SHA-256 begins (torchvision's is part of the file name).
PUBLISHED = {"vgg16-397923af.pth": "397923af", "lpips v0.1 vgg.pth": "a78928a0af1e5f0f"}


@dataclasses.dataclass(frozen=True)
class LpipsConversion:
    """What `convert_lpips` wrote.

    Attributes:
      parameters: number of values.
      sources: name and SHA-256 of each file.
      unknown: names of files that are not among the usual downloads.
      left_out: number of tensors that were not taken over, by reason.
    """

    parameters: int
    sources: list[tuple[str, str]]
    unknown: list[str]
    left_out: dict[str, int]


def convert_lpips(sources: Sequence[str | Path], destination: str | Path) -> LpipsConversion:
    """Converts published weights of LPIPS 0.1 with VGG16 to a weights folder.

    Args:
      sources: files that together have all tensors, in any order, .pt, .pth or .safetensors, or
        hf://OWNER/REPO/FILE.
      destination: a new folder, for `efficient_lvsm_jax.metrics.lpips.load_lpips`.

    Raises:
      InputError: as `params_of`; or a file that cannot be read, or `destination` not written.
    """
    destination = Path(destination)
    if os.path.lexists(destination):
        raise InputError(f"{destination} already exists; name another, or remove it first")
    paths = [fetch(source) for source in sources]
    with contextlib.ExitStack() as stack:
        states = [stack.enter_context(open_state_dict(path)) for path in paths]
        published = params_of(list(zip(paths, states, strict=True)), LAYOUT)
    names = [str(x) if str(x).startswith(HUB) else Path(x).name for x in sources]
    used = [(name, sha256(path)) for name, path in zip(names, paths, strict=True)]
    info = {
        "family": FAMILY,
        "config": CONFIG,
        "sources": [{"source": name, "sha256": digest} for name, digest in used],
    }
    weights.save_weights(destination, published.params, info)
    known = tuple(PUBLISHED.values())
    return LpipsConversion(
        parameters=sum(value.size for value in jax.tree.leaves(published.params)),
        sources=used,
        unknown=[name for name, digest in used if not digest.startswith(known)],
        left_out=published.left_out,
    )


def load_lpips(folder: str | Path) -> Lpips:
    """The distance from a folder that `elvsm convert --lpips` wrote.

    Raises:
      InputError: no such folder (says where weights come from), other weights, or damaged ones.
    """
    folder = Path(folder)
    if not (folder / weights.WEIGHTS_FILE).is_file():
        raise InputError(f"{folder} holds no LPIPS weights: {HOW_TO_GET_WEIGHTS}")
    info = weights.read_weights_info(folder)
    if (info["family"], info["config"]) != (FAMILY, CONFIG):
        raise InputError(
            f"{folder}: holds weights of {info['family']} {info['config']}, not LPIPS 0.1 with "
            f"VGG16: {HOW_TO_GET_WEIGHTS}"
        )
    return Lpips(weights.restore_weights(folder, info, abstract_params()))


def find_lpips(folder: str | Path) -> Lpips | None:
    """The distance from `folder`; if it is "", from weights/lpips, or None if that does not exist.

    Raises:
      InputError: as `load_lpips`, also for a damaged weights/lpips.
    """
    if not str(folder) and not WEIGHTS_FOLDER.exists():
        return None
    return load_lpips(folder or WEIGHTS_FOLDER)


def _table() -> str:
    """All lines. Channels that stage 1 puts out are A, as its own input a; B and b of stage 2."""
    table = SCALING_LINES
    for stage, numbers in enumerate(NUMBERS, 1):
        before, own, out = "3abcde"[stage - 1], "3abcde"[stage], "ABCDE"[stage - 1]
        for layer, number in enumerate(numbers, 1):
            into = before if layer == 1 else own
            name = f"conv{stage}_{layer}"
            table += CONVOLUTION_LINES.format(n=number, stage=stage, layer=name, out=out, into=into)
        table += LINEAR_LINE.format(i=stage - 1, stage=stage, out=out)
    return table


def _axis_sizes(_: dict) -> dict[str, int]:
    widths = [stage[-1] for stage in STAGES]
    return dict(zip("ABCDEabcdeYX", (*widths, *widths, 3, 3), strict=True))


LAYOUT = Layout(
    FAMILY,
    "LPIPS 0.1 with VGG16",
    rules_of(_table()),
    lambda votes, numbers: CONFIG,
    _axis_sizes,
    left_out={r"classifier\.[036]\.(weight|bias)": "VGG16's classifier, which LPIPS does not use"},
    where=HOW_TO_GET_WEIGHTS,
)
