"""Weights folders: orbax parameters and `weights.json` beside them, as a conversion makes them.

`load.load` makes a model of one, and of training workdirs and published files. Rendering reads only
parameters.
"""

from __future__ import annotations

import functools
import logging
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.files.writing import (
    first_line,
    folder_written_whole,
    read_json,
    reporting_writes,
    write_json,
)
from efficient_lvsm_jax.models.families import configure
from efficient_lvsm_jax.models.model import abstract_params, digest, with_projections

WEIGHTS_FILE = "weights.json"
SIZES = "trained_sizes"  # in JSON files, see `Model`

log = logging.getLogger(__name__)


def save_weights(folder: str | Path, params: dict, info: dict) -> None:
    """Writes a weights folder: orbax parameters and weights.json (`info` and a digest).

    Everything is written to a hidden folder beside and renamed at the end.

    Args:
      folder: must not exist.
      params: nested dict of arrays.
      info: at least `family` and `config`, and `trained_sizes` where they are known; JSON values.

    Raises:
      InputError: `folder` exists, or cannot be written (no space, no permission); then nothing is
        left behind.
    """
    folder = Path(folder).absolute()
    if folder.exists():
        raise InputError(f"{folder} already exists; name a new folder or remove it first")
    silence_failed_saves()
    with reporting_writes(folder), folder_written_whole(folder) as partial:
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(partial / "params", params)
        write_json(partial / WEIGHTS_FILE, {**info, "params_sha256": digest(params)})


@functools.cache
def silence_failed_saves() -> None:
    """Keeps the storage library from logging a failed save, with a traceback for every file.

    The failure is raised by the next `save` or by `close`, and said once.
    """
    logging.getLogger("absl").addFilter(
        lambda record: record.levelno < logging.ERROR or "orbax" not in record.pathname
    )
    logging.getLogger("asyncio").addFilter(
        lambda record: "exception was never retrieved" not in record.getMessage()
    )


def load_weights(folder: str | Path) -> tuple[dict, dict]:
    """Parameters and info of a weights folder.

    Raises:
      InputError: missing or unreadable files, tensors that do not belong to the configuration, or
        values that differ from what was written (digest).
    """
    info = read_weights_info(folder)
    config = configure(info["family"], info["config"])
    params = restore_weights(folder, info, abstract_params(info["family"], config))
    return with_projections(params, info["family"], config), info


def read_weights_info(folder: str | Path) -> dict:
    """The info of a weights folder: `family`, `config`, `params_sha256` and what was saved with it.

    Raises:
      InputError: missing or unreadable.
    """
    path = Path(folder).absolute() / WEIGHTS_FILE
    info = read_json(path)
    missing = [key for key in ("family", "config", "params_sha256") if key not in info]
    if missing:
        raise InputError(f"{path}: has no {', '.join(missing)}; convert again")
    return info


def read_sizes(stored: dict, path: Path) -> tuple[tuple[int, int], ...]:
    """`Model.trained_sizes` as a JSON file holds them, none if it does not.

    Raises:
      InputError: anything but pairs of positive integers.
    """
    sizes = stored.get(SIZES, [])
    pairs = isinstance(sizes, list) and all(
        isinstance(size, list) and len(size) == 2 and all(type(s) is int and s > 0 for s in size)
        for size in sizes
    )
    if not pairs:
        raise InputError(f"{path}: {SIZES} {sizes!r}: expected pairs [height, width] of pixels")
    return tuple((height, width) for height, width in sizes)


def restore_weights(folder: str | Path, info: dict, abstract: dict) -> dict:
    """The parameters of a weights folder, as `restore_item`.

    Args:
      folder, info: the folder and its info.
      abstract: shapes and dtypes of all parameters.

    Raises:
      InputError: other parameters, or values that differ from what was written (digest).
    """
    folder = Path(folder).absolute()
    params = restore_item(folder / "params", abstract)
    if digest(params) != info["params_sha256"]:
        raise InputError(
            f"{folder / 'params'}: the values differ from those written (SHA-256); the files are "
            "damaged: convert or copy them again"
        )
    return params


def restore_item(folder: Path, abstract: dict) -> dict:
    """One item as arrays like `abstract` on the default device, strictly.

    What was written before sparse attention had a share of chosen keys is read without it;
    `models.model.with_projections` adds it.

    Raises:
      InputError: damaged files, or other parameters than `abstract` says (names some).
    """
    # Asked to restore what is not there, the library would say so a hundred lines long.
    try:
        stored = ocp.StandardCheckpointHandler().metadata(folder.absolute()).tree
        abstract = _without_shares(abstract, stored)
        differences = _differences(stored, abstract)
    except Exception as error:
        raise _unreadable(folder, error) from error
    if differences:
        more = f"; and {len(differences) - 3} more" if len(differences) > 3 else ""
        raise InputError(
            f"{folder}: holds other parameters than its configuration says: "
            f"{'; '.join(differences[:3])}{more}. Files of different models were mixed: convert, "
            "or copy, the folder again as a whole"
        )
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    target = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), abstract
    )
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            return checkpointer.restore(folder.absolute(), target)
    except Exception as error:
        raise _unreadable(folder, error) from error


def _without_shares(abstract: dict, stored: dict) -> dict:
    return {
        name: _without_shares(x, stored.get(name, {})) if isinstance(x, dict) else x
        for name, x in abstract.items()
        if name != "share" or name in stored
    }


def _unreadable(folder: Path, error: Exception) -> InputError:
    return InputError(
        f"{folder}: cannot be read as the parameters of its configuration ({first_line(error)}); "
        "the files are damaged or belong to another model"
    )


def _differences(stored: Any, abstract: dict) -> list[str]:
    """What is stored otherwise than expected, a line for each parameter."""

    def described(tree: Any) -> dict[str, str]:
        return {
            jax.tree_util.keystr(path, simple=True, separator="/"): (
                f"{leaf.dtype}[{', '.join(map(str, leaf.shape))}]"
            )
            for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        }

    found, expected = described(stored), described(abstract)
    return [
        f"{name} is {found.get(name, 'absent')}, expected {expected.get(name, 'none')}"
        for name in sorted(found.keys() | expected.keys())
        if found.get(name) != expected.get(name)
    ]
