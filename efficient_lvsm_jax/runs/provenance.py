"""What a run was made with: settings, program, packages, devices. One entry per start, run.json.

Only what is named here is written: no environment variables, no names of machines or people.
"""

from __future__ import annotations

import collections
import importlib.metadata
import platform
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.files.writing import read_json, write_json
from efficient_lvsm_jax.runs.run_log import utc
from efficient_lvsm_jax.version import __version__

RUN_FILE = "run.json"
# Packages that decide what is computed or read; those that are installed are noted.
PACKAGES = (
    "jax", "jaxlib", "libtpu", "jax-cuda12-plugin", "jax-cuda13-plugin", "nvidia-cudnn-cu12",
    "nvidia-cudnn-cu13", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "ml-collections",
    "array-record", "tensorflow-datasets", "simplejpeg", "opencv-python-headless", "pillow",
    "dm-pix",
)  # fmt: skip
# Options of JAX that change numbers.
JAX_OPTIONS = (
    "jax_default_matmul_precision",
    "jax_default_prng_impl",
    "jax_enable_x64",
    "jax_threefry_partitionable",
)


def record_start(
    workdir: Path,
    config: Mapping[str, Any],
    *,
    step: int,
    arguments: Sequence[str] | None = None,
    process: int | None = None,
) -> None:
    """Adds this start to run.json of a workdir: {"starts": [...]}, the newest last.

    Args:
      workdir: exists.
      config: all settings, plain values.
      step: from which training goes on.
      arguments: of the command line, the program first; None takes this program's.
      process: index of this process, of which only 0 writes; None asks JAX.

    Raises:
      InputError: run.json is damaged or cannot be written.
    """
    if (jax.process_index() if process is None else process) != 0:
        return
    path = workdir / RUN_FILE
    starts = read_starts(workdir) if path.exists() else []
    program, *rest = sys.argv if arguments is None else arguments
    start = {
        "started": utc(time.time()),
        "step": step,
        "command": ["python", Path(program).name, *rest],
        "config": dict(config),
        "version": __version__,
        "git": git_state(Path(__file__).parent),
        "packages": package_versions(),
        "jax_options": {name: getattr(jax.config, name) for name in JAX_OPTIONS},
        **devices(),
    }
    try:
        write_json(path, {"starts": [*starts, start]})
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror or error})") from error


def read_starts(workdir: Path) -> list[dict[str, Any]]:
    """The starts of a run, oldest first.

    Raises:
      InputError: there is no run.json, or it is damaged.
    """
    starts = read_json(workdir / RUN_FILE).get("starts")
    if not isinstance(starts, list) or not all(isinstance(start, dict) for start in starts):
        raise InputError(
            f"{workdir / RUN_FILE}: damaged: expected a list of starts; move it away to go on "
            "without the record of earlier starts"
        )
    return starts


def trained_on(workdir: Path) -> str:
    """What a workdir's newest start trained on, `data.path`; "" if generated, or unknown."""
    starts = read_starts(workdir) if (workdir / RUN_FILE).exists() else []
    config = starts[-1].get("config") if starts else None
    data = config.get("data") if isinstance(config, dict) else None
    return str(data.get("path", "")) if isinstance(data, dict) else ""


def check_generated(workdir: Path) -> None:
    """Raises an InputError if a model was trained on other than generated scenes, to be scored."""
    if path := trained_on(workdir):
        raise InputError(
            f"{workdir}: was trained on {path}, but generated scenes would be scored; add "
            f"--config.data.path={path} to score what was held out of it, name other data in "
            f"--config.evaluation.data, or add --weights {workdir} to score those"
        )


def package_versions() -> dict[str, str]:
    """Python and the packages that decide what is computed."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def devices() -> dict[str, Any]:
    """What JAX computes on: {"devices": {kind: number}, "platform", "processes"}."""
    return {
        "devices": dict(collections.Counter(device.device_kind for device in jax.devices())),
        "platform": jax.default_backend(),
        "processes": jax.process_count(),
    }


def git_state(folder: Path) -> dict[str, Any]:
    """Which revision the program in `folder` is.

    Returns:
      {"revision", "dirty"}, dirty if tracked files differ from it; or {"revision": None, "reason"}
      where that cannot be known, for instance for an installed package.
    """
    try:
        _git(folder, "ls-files", "--error-unmatch", "__init__.py")
        changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
        return {"revision": _git(folder, "rev-parse", "HEAD").strip(), "dirty": bool(changed)}
    except FileNotFoundError:
        return {"revision": None, "reason": "git is not installed"}
    except subprocess.TimeoutExpired:
        return {"revision": None, "reason": "git did not answer"}
    except subprocess.CalledProcessError:
        return {"revision": None, "reason": "the program is in no git repository"}


def _git(folder: Path, *arguments: str) -> str:
    # --no-optional-locks: looking must not get in the way of other git commands.
    command = ["git", "--no-optional-locks", "-C", str(folder), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
    return done.stdout
