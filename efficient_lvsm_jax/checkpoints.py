"""Weights on disk, training checkpoints on disk, and nothing half-written that looks good.

Two things are stored. A *weights folder* (`save_weights`, `load_weights`) is what a conversion
makes: orbax parameters and `weights.json` beside them. A *training workdir* (`Checkpoints`) has
`model.json` and one folder per saved step with the items `params`, `ema` if training keeps an
average, `optimizer` and `data` (the position in the data). Rendering reads only parameters.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.models import Model, abstract_params, configure

WEIGHTS_FILE = "weights.json"
MODEL_FILE = "model.json"
STEPS_FOLDER = "checkpoints"


def digest(params: dict) -> str:
    """SHA-256 over the paths, shapes, dtypes and values of a nested dict of arrays."""
    total = hashlib.sha256()
    for path, value in sorted(
        (jax.tree_util.keystr(path), np.asarray(value))
        for path, value in jax.tree_util.tree_leaves_with_path(params)
    ):
        total.update(f"{path} {value.dtype} {value.shape}\n".encode())
        total.update(np.ascontiguousarray(value).tobytes())
    return total.hexdigest()


def write_json(path: Path, value: Any) -> None:
    """Writes JSON beside `path` and renames it there."""
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("w", encoding="utf-8") as file:
        json.dump(value, file, indent=2)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def read_json(path: Path) -> dict:
    """The JSON object in `path`; an InputError says why there is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not a readable JSON file ({error})") from error
    if not isinstance(value, dict):
        raise InputError(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value


def save_weights(folder: str | Path, params: dict, info: dict) -> None:
    """Writes a weights folder: orbax parameters and weights.json (`info` and a digest).

    Everything is written to a hidden folder beside and renamed at the end.

    Args:
      folder: must not exist.
      params: nested dict of arrays.
      info: at least `family` and `config`; JSON values.

    Raises:
      InputError: `folder` exists, or cannot be written (no space, no permission); then nothing is
        left behind.
    """
    folder = Path(folder).absolute()
    if folder.exists():
        raise InputError(f"{folder} already exists; name a new folder or remove it first")
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.partial-"))
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(partial / "params", params)
        write_json(partial / WEIGHTS_FILE, {**info, "params_sha256": digest(params)})
        partial.chmod(0o755)
        partial.rename(folder)
    except Exception as error:
        if _is_write_failure(error):
            raise InputError(_cannot_write(folder, error)) from error
        raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def load_weights(folder: str | Path) -> tuple[dict, dict]:
    """Parameters and info of a weights folder.

    Raises:
      InputError: missing or unreadable files, tensors that do not belong to the configuration, or
        values that differ from what was written (digest).
    """
    info = read_weights_info(folder)
    config = configure(info["family"], info["config"])
    return restore_weights(folder, info, abstract_params(info["family"], config)), info


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


def restore_weights(folder: str | Path, info: dict, abstract: dict) -> dict:
    """The parameters of a weights folder.

    Args:
      folder, info: the folder and its info.
      abstract: shapes and dtypes of all parameters.

    Raises:
      InputError: other parameters, or values that differ from what was written (digest).
    """
    folder = Path(folder).absolute()
    params = _restore(folder / "params", abstract)
    if digest(params) != info["params_sha256"]:
        raise InputError(
            f"{folder / 'params'}: the values differ from those written (SHA-256); the files are "
            "damaged: convert or copy them again"
        )
    return params


def load(path: str | Path) -> Model:
    """A model from a weights folder, a training workdir or a PyTorch checkpoint file.

    Args:
      path: folder written by `python -m efficient_lvsm_jax.convert`, `--workdir` of train.py (its
        newest step; the averaged parameters if it keeps them), or a `.pt`, `.pth` or
        `.safetensors` file in the published layout (converted in memory on every load).

    Raises:
      InputError: nothing usable there; the message names the file and what was expected.
    """
    path = Path(path)
    if path.is_file():
        from efficient_lvsm_jax.convert import read_published

        params, config = read_published(path)
        return Model("efficient_lvsm", config, jax.device_put(params))
    if (path / WEIGHTS_FILE).is_file():
        params, info = load_weights(path)
        return Model(info["family"], configure(info["family"], info["config"]), params)
    if (path / MODEL_FILE).is_file():
        return _load_workdir(path)
    what = "is empty" if path.is_dir() and not any(path.iterdir()) else "holds no weights"
    if not path.exists():
        what = "does not exist"
    raise InputError(
        f"{path} {what}: expected a folder with {WEIGHTS_FILE} (made by python -m "
        f"efficient_lvsm_jax.convert), a workdir with {MODEL_FILE} (made by train.py), or a .pt, "
        ".pth or .safetensors file"
    )


def _load_workdir(workdir: Path) -> Model:
    family, config = read_model(workdir)
    with ocp.CheckpointManager((workdir / STEPS_FOLDER).absolute()) as manager:
        step = manager.latest_step()
    if step is None:
        raise InputError(f"{workdir / STEPS_FOLDER}: no finished checkpoint; train.py writes them")
    items = (workdir / STEPS_FOLDER / str(step)).absolute()
    item = "ema" if (items / "ema").is_dir() else "params"
    return Model(family, config, _restore(items / item, abstract_params(family, config)))


def read_model(workdir: Path) -> tuple[str, Any]:
    """Family and configuration of the model trained in `workdir`."""
    stored = read_json(workdir / MODEL_FILE)
    if set(stored) != {"family", "config"}:
        raise InputError(f"{workdir / MODEL_FILE}: expected exactly family and config")
    return stored["family"], configure(stored["family"], stored["config"])


def claim_workdir(workdir: Path, family: str, config: Any) -> None:
    """Marks a new workdir as training this model, or checks that it always did.

    Raises:
      InputError: the workdir belongs to another model; names the first setting that differs.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    stored = {"family": family, "config": dataclasses.asdict(config)}
    if not (workdir / MODEL_FILE).exists():
        write_json(workdir / MODEL_FILE, stored)
        return
    found = read_json(workdir / MODEL_FILE)
    before = {"family": found.get("family"), **found.get("config", {})}
    for key, value in {"family": family, **stored["config"]}.items():
        if before.get(key) != value:
            raise InputError(
                f"{workdir}: holds a run of another model: {key} was {before.get(key)!r}, now is "
                f"{value!r}; name another --workdir, or use the configuration it was started with"
            )


class Checkpoints:
    """The saved steps of a training workdir, written in the background.

    A step counts only once everything of it is on disk (orbax commits by renaming).
    """

    def __init__(self, workdir: Path, *, keep: int):
        """Opens `workdir`/checkpoints and removes what an interrupted save left there."""
        self._folder = (workdir / STEPS_FOLDER).absolute()
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, cleanup_tmp_directories=True)
        self._manager = ocp.CheckpointManager(self._folder, options=options)

    def latest(self) -> int | None:
        """The newest finished step, None if there is none."""
        return self._manager.latest_step()

    def save(self, step: int, items: dict[str, Any]) -> None:
        """Starts writing `items`: pytrees of arrays, or orbax save arguments, by name.

        Raises:
          InputError: this or the previous save could not be written.
        """
        arguments = {
            name: item if isinstance(item, ocp.args.CheckpointArgs) else ocp.args.StandardSave(item)
            for name, item in items.items()
        }
        with _reporting_writes(self._folder):
            self._manager.save(step, args=ocp.args.Composite(**arguments))

    def restore(self, step: int, items: dict[str, Any]) -> dict[str, Any]:
        """Reads items of `step`; given are abstract pytrees (with shardings) or restore arguments.

        Raises:
          InputError: an item is missing, unreadable or of other shapes.
        """
        arguments = {
            name: item
            if isinstance(item, ocp.args.CheckpointArgs)
            else ocp.args.StandardRestore(item)
            for name, item in items.items()
        }
        try:
            restored = self._manager.restore(step, args=ocp.args.Composite(**arguments))
        except Exception as error:
            raise InputError(
                f"{self._folder / str(step)}: cannot be restored ({_first_line(error)}); remove "
                "this step to go on from the one before, or name another --workdir"
            ) from error
        return {name: restored[name] for name in items}

    def close(self) -> None:
        """Waits for the last save. Raises InputError if it could not be written."""
        with _reporting_writes(self._folder):
            self._manager.wait_until_finished()
        self._manager.close()


class _reporting_writes:  # noqa: N801 - reads as a statement
    """Turns a failed write into an InputError that names the folder."""

    def __init__(self, folder: Path):
        self._folder = folder

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        if error is not None and _is_write_failure(error):
            raise InputError(_cannot_write(self._folder, error)) from error


def _is_write_failure(error: BaseException) -> bool:
    """Whether saving failed for a reason outside the program: full disk, no permission, quota."""
    words = ("no space", "file too large", "permission denied", "read-only", "disk quota")
    return isinstance(error, OSError) or any(word in str(error).lower() for word in words)


def _cannot_write(folder: Path, error: BaseException) -> str:
    return (
        f"{folder}: cannot be written ({_first_line(error)}); free space or name another folder. "
        "Nothing unfinished was kept"
    )


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:300]


def _restore(folder: Path, abstract: dict) -> dict:
    """One item as arrays like `abstract` on the default device, strictly."""
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    target = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), abstract
    )
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            return checkpointer.restore(folder.absolute(), target)
    except Exception as error:
        raise InputError(
            f"{folder}: cannot be read as the parameters of its configuration "
            f"({_first_line(error)}); the files are damaged or belong to another model"
        ) from error
