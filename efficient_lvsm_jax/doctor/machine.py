"""What this machine has, and what fits on it."""

from __future__ import annotations

import importlib.metadata as metadata
import os
import platform
import re
from collections.abc import Mapping
from typing import Any

import jax
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from efficient_lvsm_jax.cost.memory import (
    GIB,
    MIB,
    USABLE,
    bytes_of_frame,
    bytes_of_page,
    estimate,
    memory_of,
)
from efficient_lvsm_jax.models.families import configure
from efficient_lvsm_jax.models.model import abstract_params
from efficient_lvsm_jax.nn.attention import choose
from efficient_lvsm_jax.parallel.sharding import mesh_sizes
from efficient_lvsm_jax.parallel.sharding import platform as computes_on
from efficient_lvsm_jax.training.optimizer import OptimizerConfig
from efficient_lvsm_jax.training.step import Recipe, abstract_state
from efficient_lvsm_jax.version import __version__

PACKAGE = "efficient-lvsm-jax"
FAMILY, SIZE, INPUTS, TARGETS = "efficient_lvsm", 256, 2, 6  # of the published recipe
REMAT = ("none", "products", "attention", "full")
STREAM, STREAM_SIZE = "vggt", (392, 518)  # (height, width) of published frames
RENDERING = GIB  # left for what a render has in use: 8 pictures from 64 views take a quarter
UNKNOWN = f"not compared: {PACKAGE} is not installed (pip install .)"


def examine() -> dict[str, Any]:
    """Everything that is printed, as plain values; bytes where a name ends in `_bytes`."""
    installed = _installed()
    stated = metadata.requires(PACKAGE) if PACKAGE in installed else None
    required, extras = requirements(stated or [], installed)
    devices = jax.local_devices()
    memory = memory_of(devices[0])
    return {
        "version": __version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        "packages": required,
        "extras": extras,
        "devices": {
            "count": len(devices),
            "kind": devices[0].device_kind,
            "platform": devices[0].platform,
            "memory_bytes": memory,
        },
        **_capacity(devices[0].platform, memory),
        "stream": _stream(devices[0].platform, memory),
    }


def requirements(
    stated: list[str], installed: Mapping[str, str]
) -> tuple[list[dict[str, Any]], dict[str, list[str]]]:
    """How what is installed meets what a package states.

    Args:
      stated: as `importlib.metadata.requires` gives them.
      installed: canonical name of a package to its version.

    Returns:
      For each required package its name, version (None: absent), the range, and whether it is met;
      and by extra what it lacks.
    """
    required, extras = [], {}
    for asked in map(Requirement, stated):
        if asked.marker is None or asked.marker.evaluate({"extra": ""}):
            version = installed.get(canonicalize_name(asked.name))
            row = {"name": asked.name, "version": version, "asked": str(asked.specifier)}
            required.append({**row, "ok": not _lacking(asked, installed)})
            continue
        for extra in re.findall(r"extra == [\"']([\w.-]+)", str(asked.marker)):
            extras.setdefault(extra, []).extend(_lacking(asked, installed))
    return required, extras


def _lacking(asked: Requirement, installed: Mapping[str, str]) -> list[str]:
    """The names of what a requirement lacks: itself, or what an extra of it asks for."""
    version = installed.get(canonicalize_name(asked.name))
    if version is None or not asked.specifier.contains(Version(version), prereleases=True):
        return [asked.name]
    inner = map(Requirement, metadata.requires(asked.name) or []) if asked.extras else ()
    return [
        name
        for each in inner
        if each.marker
        and not each.marker.evaluate({"extra": ""})
        and any(each.marker.evaluate({"extra": extra}) for extra in asked.extras)
        for name in _lacking(each, installed)
    ]


def _installed() -> dict[str, str]:
    """Canonical name to version."""
    found = ((each.metadata["Name"], each.version) for each in metadata.distributions())
    return {canonicalize_name(name): version for name, version in found if name}


def _capacity(backend: str, memory: int) -> dict[str, Any]:
    """What the published model can do in so many bytes: views in a cache, scenes in a step."""
    dtype = "float32" if backend == "cpu" else "bfloat16"
    config = configure(FAMILY, {"compute_dtype": dtype})
    page = bytes_of_page(config, SIZE**2)
    train = {}
    for remat in REMAT:
        recipe = Recipe(
            FAMILY, configure(FAMILY, {"compute_dtype": dtype, "remat": remat}), OptimizerConfig()
        )
        one, two = (_step_bytes(recipe, scenes, backend) for scenes in (1, 2))
        train[remat] = max(0, int((USABLE * memory - one) // (two - one)) + 1)
    weights = sum(x.size * 4 for x in jax.tree.leaves(abstract_state(recipe).params))
    return {
        "attention": choose("auto", config.dtype, config.head_dim, computes_on()),
        "dtype": dtype,
        "weights_bytes": weights,
        "page_bytes": page,
        "views": max(0, int((USABLE * memory - weights - RENDERING) // page)),
        "scenes_by_remat": train,
    }


def _stream(backend: str, memory: int) -> dict[str, int]:
    """What StreamVGGT can remember in so many bytes."""
    dtype = "float32" if backend == "cpu" else "bfloat16"
    config = configure(STREAM, {"compute_dtype": dtype})
    frame = bytes_of_frame(STREAM, config, STREAM_SIZE)
    weights = sum(x.size * 4 for x in jax.tree.leaves(abstract_params(STREAM, config)))
    room = max(0, int((USABLE * memory - weights - RENDERING) // frame))
    return {"weights_bytes": weights, "frame_bytes": frame, "frames": room}


def _step_bytes(recipe: Recipe, scenes: int, backend: str) -> int:
    return estimate(
        recipe.model,
        abstract_state(recipe),
        mesh_sizes("data:1", 1),
        batch_size=scenes,
        inputs=INPUTS,
        targets=TARGETS,
        pixels=SIZE**2,
        platform=backend,
    ).total


def lines(found: Mapping[str, Any]) -> list[str]:
    """The answer for a person."""
    right = [f"{row['name']} {row['version']}" for row in found["packages"] if row["ok"]]
    wrong = [row for row in found["packages"] if not row["ok"]]
    device, scenes, stream = found["devices"], found["scenes_by_remat"], found["stream"]
    out = [
        f"efficient_lvsm_jax {found['version']}, Python {found['python']}, {found['system']}, "
        f"{found['cores']} cores",
        f"packages   {', '.join(right) if found['packages'] else UNKNOWN}",
    ]
    for row in wrong:
        have = f"{row['version']} is" if row["version"] else "not"
        out.append(f"  PROBLEM  {row['name']}: {have} installed, {row['asked'] or 'any'} is needed")
    for extra, lacking in sorted(found["extras"].items()):
        how = f"no: pip install '{PACKAGE}[{extra}]' (lacks {', '.join(lacking)})"
        out.append(f"extra      {extra:<8} {how if lacking else 'yes'}")
    memory = (
        f"{device['memory_bytes'] / GIB:.1f} GiB" if device["memory_bytes"] else "memory unknown"
    )
    out.append(
        f"devices    {device['count']} x {device['kind']}, {memory}, {found['dtype']}, attention: "
        f"{found['attention']}"
    )
    if not device["memory_bytes"]:
        return out
    return [
        *out,
        f"rendering  the published model at {SIZE} px: {found['weights_bytes'] / GIB:.2f} GiB of "
        f"weights, {found['page_bytes'] / MIB:.0f} MiB a view, room for {found['views']:,} views",
        f"streaming  StreamVGGT at {STREAM_SIZE[0]}x{STREAM_SIZE[1]} px: "
        f"{stream['weights_bytes'] / GIB:.2f} GiB of weights, "
        f"{stream['frame_bytes'] / MIB:.0f} MiB a frame, room for {stream['frames']:,} frames",
        f"training   scenes a device of {INPUTS} inputs and {TARGETS} targets, by model.remat, "
        f"estimated: {', '.join(f'{name} {count}' for name, count in scenes.items())}",
    ]
