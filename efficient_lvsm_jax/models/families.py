"""The families of models by name: each module of this folder registers its own.

A family keeps one of two contracts. That of `view_synthesis`: encode(views) gives a memory,
decode(memory, cameras) images. That of `scene_geometry`: observe(memory, images) gives the memory
with these frames, and their geometry.
"""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
import types
from collections.abc import Mapping
from typing import Any

from flax import nnx

from efficient_lvsm_jax import models
from efficient_lvsm_jax.configuration import Settings, build
from efficient_lvsm_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Family:
    """A kind of model.

    Attributes:
      name: in configurations, in files of weights and on command lines.
      config: the class of its settings, which also knows what the model costs.
      module: the class of the network, made of a configuration and `rngs`; a subclass of
        `ViewModel` or `SceneGeometry`, which says what its contract is.
    """

    name: str
    config: type[Settings]
    module: type[nnx.Module]


_REGISTERED: dict[str, Family] = {}


def register(family: Family) -> Family:
    """Makes a family known by its name and returns it. Raises ValueError if the name is taken."""
    if _REGISTERED.setdefault(family.name, family) != family:
        raise ValueError(f"there is another model family {family.name!r}")
    return family


def families(contract: type[nnx.Module] = nnx.Module) -> Mapping[str, Family]:
    """Families by name: of the modules in this folder, and what else registers itself.

    Args:
      contract: only those whose module is such a one.
    """
    for module in pkgutil.iter_modules(models.__path__):
        importlib.import_module(f"{models.__name__}.{module.name}")
    kept = {name: x for name, x in _REGISTERED.items() if issubclass(x.module, contract)}
    return types.MappingProxyType(kept)


def family_named(name: str) -> Family:
    """The family of that name. Raises InputError if there is none, with all there are."""
    known = families()
    if name not in known:
        raise InputError(f"unknown model family {name!r}: known are {', '.join(known)}")
    return known[name]


def configure(name: str, values: dict[str, Any]) -> Any:
    """The configuration of a family from plain values.

    Raises:
      InputError: unknown family, unknown key (names the nearest one) or impossible value.
    """
    return build(family_named(name).config, values, "model")
