"""The cache of a session: which slots a view has, how the cache grows, who yields in a full one.

Which view yields, to be condensed ("merge") or taken out ("spread"), is decided by cameras: the one
nearest to another (`geometry.cameras.camera_distances`), for its share of tokens left. Of two that
are near each other the later yields: in a stream the latest view lies beside the new one, and if
the earlier always yielded, a single view would be pushed along and leave its way uncovered. For the
same reason the new view is not looked at.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Mapping

import jax
import numpy as np

from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.geometry.cameras import Views, camera_distances
from efficient_lvsm_jax.models.model import Model
from efficient_lvsm_jax.nn import cache as pages
from efficient_lvsm_jax.nn import condense
from efficient_lvsm_jax.nn.attention import choose
from efficient_lvsm_jax.nn.paged import Pages
from efficient_lvsm_jax.parallel.sharding import platform

WHEN_FULL = ("refuse", "oldest", "farthest", "spread", "merge")


class Store:
    """Pages of the encoded views of a session in one cache, never of more than max_bytes.

    Attributes:
      cache: all pages; None before the first.
      parts: pages of a view as it comes: 1, or more that "merge" condenses; 1 before the first.
    """

    def __init__(self, model: Model, *, capacity: int, max_bytes: int | None, when_full: str):
        """An empty store for what `model` encodes; arguments and errors as of `Session`."""
        if capacity < 1:
            raise InputError(f"capacity={capacity}: expected at least 1 view")
        if when_full not in WHEN_FULL:
            raise InputError(f"when_full={when_full!r}: expected {', '.join(WHEN_FULL)}")
        if max_bytes is not None and (type(max_bytes) is not int or max_bytes < 1):
            raise InputError(f"max_bytes={max_bytes!r}: expected a positive integer")
        if max_bytes is None and when_full != "refuse":
            raise InputError(f"when_full={when_full!r} needs max_bytes: without, it is never full")
        if when_full == "merge":  # attention that cannot read condensed views is refused here
            config = model.config
            choose(config.attention, config.dtype, config.head_dim, platform(), sized=True)
            if config.sparsity("cross"):
                raise InputError(
                    "when_full='merge': condensed views have no blocks to choose, which "
                    f"model.attention_sparsity={config.attention_sparsity!r} needs; choose another"
                )
        self.cache: Pages | None = None
        self.parts = 1
        self._model = model
        self._capacity = capacity
        self._max_bytes, self._when_full = max_bytes, when_full
        # By the size of views: pages of one, and how many pages max_bytes holds.
        self._limits: dict[tuple[int, int], tuple[int, int]] = {}
        self._slots: dict[int, list[int]] = {}  # of every view

    @property
    def views(self) -> list[int]:
        """Ids of the views that are encoded."""
        return list(self._slots)

    def __contains__(self, view: int) -> bool:
        return view in self._slots

    def slots_of(self, view: int) -> list[int]:
        """The slots of the cache that hold a view."""
        return self._slots[view]

    @property
    def condensed(self) -> int:
        """How many views have fewer keys than they came with."""
        return sum(len(slots) < self.parts for slots in self._slots.values())

    @property
    def bytes(self) -> int:
        """That the pages of all views take, without those that are free."""
        pages_used = sum(len(slots) for slots in self._slots.values())
        return pages_used * self.cache.page_bytes if pages_used else 0

    def rooms(self, size: tuple[int, int]) -> list[int]:
        """Numbers of views of a size, (height, width), that rendering compiles for at first."""
        rooms, room = [1], self._room(size)
        while self._reads_in_one_piece and rooms[-1] < room:
            rooms.append(min(2 * rooms[-1], room))
        return rooms

    def leaving(self, poses: Mapping[int, np.ndarray], new: Views) -> int | None:
        """Which view has to leave before a new one comes, with a warning; None if there is room.

        Args:
          poses: c2w [4, 4] of all views, those that wait to be encoded as well.
          new: in the world of the poses.

        Raises:
          InputError: there is no room, and none is to be made; or never any for such a view.
        """
        parts, most = self._limits_of(new.image.shape[:2])
        most -= parts - 1  # the new one is not condensed, all others may have one page left
        if len(poses) < most:
            return None
        if self._when_full == "refuse":
            raise InputError(
                f"max_bytes={self._max_bytes} holds {most} views of this size and has them; "
                "remove() one first, or choose when_full='oldest', 'farthest', 'spread' or 'merge'"
            )
        leaving = min(poses)
        if self._when_full == "farthest":
            distances = {
                view: np.linalg.norm((c2w - new.c2w)[:3, 3]) for view, c2w in poses.items()
            }
            leaving = max(distances, key=distances.get)
        elif self._when_full in ("spread", "merge"):
            leaving = _least_useful(poses, dict.fromkeys(poses, 1))
        warnings.warn(
            f"view {leaving} was taken out to make room, as when_full={self._when_full!r} says: "
            f"max_bytes={self._max_bytes} holds {most} views of this size",
            stacklevel=3,
        )
        return leaving

    def add(
        self, view: int, page: Pages, size: tuple[int, int], poses: Mapping[int, np.ndarray]
    ) -> None:
        """Puts a view into the cache, which may grow, or other views be condensed.

        Args:
          view: its id.
          page: its keys and values as the model encodes them.
          size: (height, width) of its picture.
          poses: c2w [4, 4] of the views there are, at least.
        """
        page, (self.parts, most) = self._in_parts(page), self._limits_of(size)
        if self.cache is None:
            self.cache = pages.empty(self._room(size), page)
        while len(free := self._free_slots()) < self.parts:
            if self.cache.capacity < most:
                self.cache = pages.grow(self.cache, min(2 * self.cache.capacity, most))
            else:
                shares = {v: len(slots) for v, slots in self._slots.items() if len(slots) > 1}
                self._halve(_least_useful({v: poses[v] for v in self._slots}, shares))
        self.cache = pages.append(self.cache, page)
        self._slots[view] = free[: self.parts]  # as `append` takes them

    def replace(
        self, view: int, page: Pages, size: tuple[int, int], poses: Mapping[int, np.ndarray]
    ) -> None:
        """Puts another page in place of that of a view, not condensed; arguments as of `add`."""
        self.remove(view)
        self.add(view, page, size, poses)

    def remove(self, view: int) -> None:
        """Takes a view out."""
        for slot in self._slots.pop(view):
            self.cache = pages.remove(self.cache, slot)

    def condense(self, view: int) -> None:
        """Condenses a view as far as views ever are."""
        while len(self._slots[view]) > 1:
            self._halve(view)

    def _halve(self, view: int) -> None:
        slots = self._slots[view]
        self.cache = condense.halve(self.cache, slots)
        self._slots[view] = slots[: len(slots) // 2]

    def _free_slots(self) -> list[int]:
        taken = {slot for slots in self._slots.values() for slot in slots}
        return [slot for slot in range(self.cache.capacity) if slot not in taken]

    @property
    def _reads_in_one_piece(self) -> bool:
        return self._model.reads_in_one_piece and self._when_full != "merge"

    def _in_parts(self, page: Pages) -> Pages:
        """The page of one view as it lies in the cache."""
        if self._when_full != "merge":
            return page
        return condense.in_parts(page, condense.parts_of(page.page_tokens))

    def _room(self, size: tuple[int, int]) -> int:
        """Slots of the first cache for views of a size."""
        parts, most = self._limits_of(size)
        return min(self._capacity * parts, most)

    def _limits_of(self, size: tuple[int, int]) -> tuple[int, int]:
        """Pages of a view of a size, and how many pages max_bytes holds."""
        if self._max_bytes is None:
            return 1, sys.maxsize
        if size not in self._limits:
            shapes = ((*size, 3), (4, 4), (4,))
            view = Views(*(jax.ShapeDtypeStruct((1, 1, *shape), np.float32) for shape in shapes))
            whole = jax.eval_shape(self._model.encode, view)
            page = jax.eval_shape(self._in_parts, whole)
            named = f"{size[0]}x{size[1]} (height x width)"
            if self._when_full == "merge" and page.capacity == 1:
                raise InputError(
                    f"when_full='merge' halves views, and one of {named} has {page.page_tokens} "
                    "patches: choose a size with an even number of them, or another when_full"
                )
            most = self._max_bytes // page.page_bytes
            if most < page.capacity:
                raise InputError(
                    f"max_bytes={self._max_bytes} holds no view of {named}: one takes "
                    f"{page.page_bytes * page.capacity} bytes as {page.precision}"
                )
            self._limits[size] = page.capacity, most
        return self._limits[size]


def _least_useful(poses: Mapping[int, np.ndarray], shares: Mapping[int, int]) -> int:
    """The view that is nearest to another one for its share of tokens; of equals the latest.

    Args:
      poses: c2w [4, 4] of all views.
      shares: of those that may yield.
    """
    distances = camera_distances(np.stack(list(poses.values())))
    np.fill_diagonal(distances, np.inf)
    nearest = dict(zip(poses, distances.min(-1), strict=True))
    return min(shares, key=lambda view: (nearest[view] / shares[view], -view))
