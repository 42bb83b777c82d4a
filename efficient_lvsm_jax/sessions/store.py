"""The cache of a session: which slots a view has, how the cache grows, who leaves a full one."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Mapping

import jax
import numpy as np

from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.geometry.cameras import Views
from efficient_lvsm_jax.models.model import Model
from efficient_lvsm_jax.nn import cache as pages
from efficient_lvsm_jax.nn.paged import Pages

WHEN_FULL = ("refuse", "oldest", "farthest")


class Store:
    """Pages of the encoded views of a session in one cache, never of more than max_bytes.

    Attributes:
      cache: all pages; None before the first.
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
        self.cache: Pages | None = None
        self._model = model
        self._capacity = capacity
        self._max_bytes, self._when_full = max_bytes, when_full
        self._most: dict[tuple[int, int], int] = {}  # views that max_bytes holds, by their size
        self._slots: dict[int, int] = {}  # of every view

    @property
    def views(self) -> list[int]:
        """Ids of the views that are encoded."""
        return list(self._slots)

    def __contains__(self, view: int) -> bool:
        return view in self._slots

    def slots_of(self, view: int) -> list[int]:
        """The slots of the cache that hold a view."""
        return [self._slots[view]]

    def room(self, size: tuple[int, int]) -> int:
        """Views of a size, (height, width), that the first cache has room for."""
        return min(self._capacity, self._most_views(size))

    def leaving(self, centres: Mapping[int, np.ndarray], new: Views) -> int | None:
        """Which view has to leave before a new one comes, with a warning; None if there is room.

        Args:
          centres: [3] of the cameras of all views, those that wait to be encoded as well.
          new: in the world of the centres.

        Raises:
          InputError: there is no room, and none is to be made; or never any for such a view.
        """
        most = self._most_views(new.image.shape[:2])
        if len(centres) < most:
            return None
        if self._when_full == "refuse":
            raise InputError(
                f"max_bytes={self._max_bytes} holds {most} views of this size and has them; "
                "remove() one first, or choose when_full='oldest' or 'farthest'"
            )
        leaving = min(centres)
        if self._when_full == "farthest":
            distances = {
                view: np.linalg.norm(centre - new.c2w[:3, 3]) for view, centre in centres.items()
            }
            leaving = max(distances, key=distances.get)
        warnings.warn(
            f"view {leaving} was taken out to make room, as when_full={self._when_full!r} says: "
            f"max_bytes={self._max_bytes} holds {most} views of this size",
            stacklevel=3,
        )
        return leaving

    def add(self, view: int, page: Pages, size: tuple[int, int]) -> None:
        """Puts the page of a view of a size, (height, width), into the cache, which may grow."""
        if self.cache is None:
            self.cache = pages.empty(self.room(size), page)
        if len(self._slots) == self.cache.capacity:
            capacity = min(2 * self.cache.capacity, self._most_views(size))
            self.cache = pages.grow(self.cache, capacity)
        slot = int(np.argmin(self.cache.used))  # the first free one, as `append` takes it
        self.cache = pages.append(self.cache, page)
        self._slots[view] = slot

    def replace(self, view: int, page: Pages) -> None:
        """Puts another page in place of that of a view."""
        self.cache = pages.replace(self.cache, self._slots[view], page)

    def remove(self, view: int) -> None:
        """Takes a view out."""
        self.cache = pages.remove(self.cache, self._slots[view])
        del self._slots[view]

    def _most_views(self, size: tuple[int, int]) -> int:
        """How many views of a size max_bytes holds."""
        if self._max_bytes is None:
            return sys.maxsize
        if size not in self._most:
            shapes = ((*size, 3), (4, 4), (4,))
            view = Views(*(jax.ShapeDtypeStruct((1, 1, *shape), np.float32) for shape in shapes))
            page = jax.eval_shape(self._model.encode, view)
            self._most[size] = self._max_bytes // page.page_bytes
            if self._most[size] < 1:
                raise InputError(
                    f"max_bytes={self._max_bytes} holds no view of {size[0]}x{size[1]} (height x "
                    f"width): one takes {page.page_bytes} bytes as {page.precision}"
                )
        return self._most[size]
