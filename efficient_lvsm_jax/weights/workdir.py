"""The names in a training workdir, and the model that was trained in one.

`training.checkpoints` writes `model.json` and, in `checkpoints/`, a folder for every saved step.
"""

from __future__ import annotations

import dataclasses
import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.files.manifest import find_damage, read_manifest
from efficient_lvsm_jax.files.writing import read_json, reporting_writes, write_json
from efficient_lvsm_jax.models.families import configure
from efficient_lvsm_jax.models.model import abstract_params, with_projections
from efficient_lvsm_jax.weights.folder import SIZES, read_sizes, restore_item

MODEL_FILE = "model.json"
STEPS_FOLDER = "checkpoints"

log = logging.getLogger(__name__)


def saved_steps(folder: Path) -> list[int]:
    """The finished steps in a folder of checkpoints, newest first, damaged ones among them."""
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return sorted((int(name) for name in names if re.fullmatch(r"0|[1-9]\d*", name)), reverse=True)


def read_model(workdir: Path) -> tuple[str, Any, tuple[tuple[int, int], ...]]:
    """Family, configuration and `Model.trained_sizes` of the model trained in `workdir`."""
    stored = read_json(workdir / MODEL_FILE)
    if not {"family", "config"} <= set(stored) <= {"family", "config", SIZES}:
        raise InputError(f"{workdir / MODEL_FILE}: expected family, config and {SIZES} alone")
    sizes = read_sizes(stored, workdir / MODEL_FILE)
    return stored["family"], configure(stored["family"], stored["config"]), sizes


def claim_workdir(
    workdir: Path, family: str, config: Any, sizes: Sequence[tuple[int, int]] = ()
) -> None:
    """Marks a new workdir as training this model, or checks that it always did.

    Args:
      workdir: made if it does not exist.
      family, config: of the model.
      sizes: (height, width) of the pictures it is going to be trained on; those before stay.

    Raises:
      InputError: the workdir belongs to another model (names the first setting that differs), or
        cannot be written.
    """
    stored = {"family": family, "config": dataclasses.asdict(config)}

    def write(sizes: Sequence[tuple[int, int]]) -> None:
        with reporting_writes(workdir):
            workdir.mkdir(parents=True, exist_ok=True)
            write_json(workdir / MODEL_FILE, stored | {SIZES: sorted(sizes)})

    if not (workdir / MODEL_FILE).exists():
        write(sizes)
        return
    found = read_json(workdir / MODEL_FILE)
    # What a setting's default is, a run did before there was that setting.
    defaults = dataclasses.asdict(type(config)())
    before = {**defaults, "family": found.get("family"), **found.get("config", {})}
    for key, value in {"family": family, **stored["config"]}.items():
        if _as_json_has(before.get(key)) != _as_json_has(value):
            raise InputError(
                f"{workdir}: holds a run of another model: {key} was {before.get(key)!r}, now is "
                f"{value!r}; name another --workdir, or use the configuration it was started with"
            )
    before = read_sizes(found, workdir / MODEL_FILE)
    if not {*sizes} <= {*before}:
        write({*before, *sizes})


def _as_json_has(value: Any) -> Any:
    """A setting as it is after it was written and read: JSON knows no tuples."""
    return list(value) if isinstance(value, tuple) else value


def load_workdir(workdir: Path) -> tuple[str, Any, dict, tuple[tuple[int, int], ...]]:
    """Of the model trained in `workdir`: family, configuration, the newest parameters that are as
    they were written, and the sizes of its pictures.

    Raises:
      InputError: no finished checkpoint, or none that is whole.
    """
    family, config, sizes = read_model(workdir)
    steps = saved_steps(workdir / STEPS_FOLDER)
    for step in steps:
        folder = workdir / STEPS_FOLDER / str(step)
        try:
            files = read_manifest(folder)["files"]
            item = "ema" if any(name.startswith("ema/") for name in files) else "params"
        except (OSError, ValueError):
            item = "params"  # has damage, which is said below
        damage = find_damage(folder, {"step": step}, under=item)
        if damage is None:
            params = restore_item(folder / item, abstract_params(family, config))
            return family, config, with_projections(params, family, config), sizes
        log.warning("%s: passed over, not as it was written: %s", folder, damage)
    if steps:
        raise InputError(
            f"{workdir / STEPS_FOLDER}: none of its steps ({', '.join(map(str, steps))}) is as it "
            "was written; name another workdir"
        )
    raise InputError(f"{workdir / STEPS_FOLDER}: no finished checkpoint; train.py writes them")
