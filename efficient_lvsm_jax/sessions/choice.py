"""Which views of a session a picture is made of, and making it from these alone.

Axes: T target, S page slot.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.geometry.cameras import Cameras
from efficient_lvsm_jax.geometry.choice import most_useful
from efficient_lvsm_jax.models.model import Model
from efficient_lvsm_jax.nn.cache import reading

# Targets are rendered in groups of these sizes, so any number of them compiles few programs and
# none is padded.
TARGET_GROUPS = (8, 4, 2, 1)


def nearest_of(views: str, name: str) -> int | None:
    """k of "nearest:k", or None for "all"; InputError if `name`, the setting, is neither."""
    if views == "all":
        return None
    kind, _, count = views.partition(":")
    if kind != "nearest" or not (count.isascii() and count.isdecimal()) or int(count) < 1:
        raise InputError(f"{name}={views!r}: expected all or nearest:k, for instance nearest:4")
    return int(count)


def check_paged(model: Model, views: object, name: str) -> None:
    """Refuses to read some views of a model that has no cache; `name` is the setting."""
    if not model.paged and not (isinstance(views, str) and views == "all"):
        raise InputError(
            f"{name}={views!r}: a {model.family} has no cache to read some views of; expected all"
        )


def slots_read(
    views: str | Sequence[int],
    targets: Cameras,
    cameras: Mapping[int, Cameras],
    slots_of: Callable[[int], list[int]],
    memory: Any,
) -> np.ndarray | None:
    """The slots that each target reads, [T, S] bool, or None for all in use.

    Args:
      views: as `check_views` lets pass.
      targets: [T], in the world of `cameras`.
      cameras: of every view in the cache, by its id.
      slots_of: the slots of a view.
      memory: what is read; of a model without a cache all of it.
    """
    if isinstance(views, str) and views == "all":
        return None
    ids = list(cameras)
    if isinstance(views, str):
        inputs = jax.tree.map(lambda *arrays: np.stack(arrays), *cameras.values())
        chosen = most_useful(targets, inputs, int(views.partition(":")[2]))
    else:
        chosen = np.tile(np.isin(ids, views), (len(targets.c2w), 1))
    slots = np.zeros((len(chosen), memory.capacity), bool)
    for at, view in enumerate(ids):
        slots[:, slots_of(view)] = chosen[:, at, None]
    return slots


def check_views(views: str | Sequence[int], known: Sequence[int], model: Model) -> None:
    """Refuses what is no choice of views.

    Raises:
      InputError: neither "all", "nearest:k" nor ids of views there are, each once; or the model has
        no cache to choose from.
    """
    if isinstance(views, str):
        nearest_of(views, "views")
    elif not isinstance(views, Sequence | np.ndarray) or not len(views):
        raise InputError(f"views={views!r}: expected all, nearest:k or the ids of some views")
    check_paged(model, views, "views")
    if isinstance(views, str):
        return
    for view in views:
        if view not in known:
            raise InputError(f"views={views!r}: no view {view!r} in this session; it has {known}")
    if len(set(views)) < len(views):
        raise InputError(f"views={views!r}: names a view twice")


def pictures(model: Model, memory: Any, cameras: Cameras, slots: np.ndarray | None) -> np.ndarray:
    """Pictures [T, Y, X, 3], float32, of cameras [T] in the scene frame.

    Where all targets of a group read the same, the program is the one that reads all.
    """
    found, start, count = [], 0, len(cameras.c2w)
    while start < count:
        group = next(size for size in TARGET_GROUPS if size <= count - start)
        part, read = slice(start, start + group), memory
        if slots is not None:
            alike = (slots[part] == slots[start]).all()
            read = reading(memory, slots[start] if alike else slots[None, part])
        some = Cameras(
            cameras.c2w[None, part], cameras.fxfycxcy[None, part], cameras.height, cameras.width
        )
        found.append(np.asarray(model.decode(read, some))[0])
        start += group
    return np.concatenate(found)


def all_but_one(targets: int, capacity: int) -> np.ndarray:
    """Slots [T, S] of which the first target reads one less than the others: not all alike."""
    slots = np.ones((targets, capacity), bool)
    slots[0, -1] = False
    return slots
