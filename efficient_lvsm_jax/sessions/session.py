"""A live scene: add and remove posed photos one at a time, render any camera from the cache."""

from __future__ import annotations

import dataclasses
import itertools
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from data_pipeline.read_options import ReadOptions
from data_pipeline.scenes import Frame
from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.geometry.cameras import Cameras, SceneFrame, Views, check_cameras
from efficient_lvsm_jax.geometry.intrinsics import check_view
from efficient_lvsm_jax.media.progress import Progress
from efficient_lvsm_jax.models.model import Model
from efficient_lvsm_jax.sessions import choice
from efficient_lvsm_jax.sessions.choice import TARGET_GROUPS
from efficient_lvsm_jax.sessions.pictures import (
    Picture,
    camera_of,
    checked_size,
    doubt_of_poses,
    size_for,
    view_of,
)
from efficient_lvsm_jax.sessions.store import Store

CHECKED = 4  # views whose cameras are checked against their pictures


class Session:
    """Input views of one scene, encoded once each, and pictures of it from any camera.

    An LVSM model cannot take a view more or less into its memory; it encodes all views again at the
    first `render` after they changed, and compiles for every number of views.

    The model sees poses in a scene frame: centred, turned and scaled by the input cameras (the
    published normalisation, over inputs only). Cached keys embed that frame, so it is fixed once,
    at the first `render`, from the views added until then; views added later are expressed in it.
    Pass `frame` to fix it beforehand, for instance from all cameras of a capture.

    Cameras are OpenCV camera-to-world matrices (x right, y down, z forward) in any unit; intrinsics
    are (fx, fy, cx, cy) in pixels of the image they belong to, pixel centres at +0.5.

    Attributes:
      frame: the SceneFrame in use, None until it is fixed.
    """

    def __init__(
        self,
        model: Model,
        *,
        frame: SceneFrame | None = None,
        size: int | tuple[int, int] | None = None,
        capacity: int = 4,
        precision: str | None = None,
        max_bytes: int | None = None,
        when_full: str = "refuse",
        check_poses: bool = True,
    ):
        """Starts an empty session.

        Args:
          model: what encodes and renders.
          frame: the scene frame; None fixes it at the first `render`.
          size: (height, width) of all input pictures, or the side of squares; None is the first
            one's: an array's own, a photo's shape with as many tokens as the model was trained on.
          capacity: views that there is room for; room doubles when it runs out, which compiles
            everything that reads the cache anew.
          precision: how keys and values are stored, one of `nn.paged.PRECISIONS`; None is as
            `model.config.cache` says.
          max_bytes: most bytes that the cache may take; None is no limit. While room doubles, the
            old cache is there beside it.
          when_full: what `add` does when max_bytes holds no further view: "refuse" it; take out
            the "oldest" view, the one whose camera is "farthest" from the new one, or the later of
            the two nearest to each other, which keeps the rest "spread"; or "merge" tokens of views
            near others, down to an eighth of them, until even that is full and one leaves as with
            "spread". A warning names every view that is taken out.
          check_poses: whether the first CHECKED views are matched with each other at the first
            render, some ten milliseconds, and a warning says if their cameras do not fit them.

        Raises:
          InputError: an impossible value, a precision or limit for a model without a cache, or a
            model that renders no views.
        """
        if not isinstance(model, Model):
            raise InputError(
                f"{model!r} renders no views, which a Session is for; see elvsm.Stream"
            )
        if (precision or max_bytes is not None) and not model.paged:
            raise InputError(
                f"precision and max_bytes are about the cache, and {model.family} has none"
            )
        if precision:
            config = dataclasses.replace(model.config, cache=precision)
            model = dataclasses.replace(model, config=config)
        self.frame = frame
        self._model = model
        self._size = None if size is None else checked_size(size, model.config.patch, "size")
        self._size_given = size is not None
        self._store = Store(model, capacity=capacity, max_bytes=max_bytes, when_full=when_full)
        self._cameras: dict[int, Cameras] = {}  # of all views, in world units
        # One view each, in world units: added before the frame is fixed, not encoded yet.
        self._waiting: dict[int, Views] = {}
        self._memory: tuple[list[Views], Any] = [], None  # of an LVSM: views, and what they became
        self._ids = itertools.count()
        self._unchecked: dict[int, Views] | None = {} if check_poses else None
        self._warned_of: set[tuple[int, int]] = set()  # sizes unlike those of training

    @classmethod
    def from_capture(
        cls,
        model: Model,
        capture: str | Path,
        *,
        inputs: int | str | Sequence[int] | None = None,
        scene: str | None = None,
        format: str | None = None,
        read: ReadOptions | None = None,
        **options: Any,
    ) -> Session:
        """A session of some pictures of a capture, its scene frame fixed by them.

        Args:
          model: what encodes and renders.
          capture: folder or file that `data_pipeline.formats` reads.
          inputs: how many, spread over the capture, also as "spread:8"; or the indices of which
            ones; None is 8, or all of fewer.
          scene: its name, of several.
          format, read: how the capture is read, see `open_scenes`.
          options: of `Session`; `size` None keeps the shape of most of the inputs.

        Raises:
          InputError: a capture that cannot be read, no such scene or frames, or what `Session` and
            `add` refuse.
        """
        # Here, as readers of captures need libraries that a machine which renders may lack.
        from data_pipeline.captures.inputs import choose_inputs, open_scene

        found = open_scene(capture, scene, options=read, format=format)
        frames = [found.frames[index] for index in choose_inputs(found, inputs)]
        options.setdefault("frame", SceneFrame.from_cameras(np.stack([f.c2w for f in frames])))
        if options.get("size") is None:
            shapes = Counter((frame.height, frame.width) for frame in frames)
            options["size"] = size_for(model, shapes.most_common(1)[0][0])
        session = cls(model, **{"capacity": len(frames), **options})
        for frame in frames:
            session.add(frame)
        return session

    def __repr__(self) -> str:
        parts = [f"{len(self.views)} views"]
        if self._size:
            parts[0] += f" of {self._size[0]}x{self._size[1]}"
        if self._store.condensed:
            parts.append(f"{self._store.condensed} condensed")
        if (cache := self._store.cache) is not None:
            held = cache.capacity * cache.page_bytes / 2**20
            room = cache.capacity // self._store.parts
            parts.append(f"cache of {held:.1f} MiB with room for {room} ({cache.precision})")
        return f"Session({', '.join(parts)}; {self._model.family})"

    @property
    def views(self) -> list[int]:
        """Ids of the views in the scene."""
        return sorted([*self._store.views, *self._waiting])

    @property
    def size(self) -> tuple[int, int] | None:
        """(height, width) of the input pictures; None before there is one."""
        return self._size

    @property
    def cache_bytes(self) -> int:
        """Bytes that encoded views take in the cache; 0 without one."""
        return self._store.bytes

    def add(
        self,
        image: Picture,
        c2w: np.ndarray | None = None,
        fxfycxcy: np.ndarray | None = None,
    ) -> int:
        """Adds one input view and returns its id.

        Args:
          image: a frame of a capture, a PIL image or the name of a photo file, of any size: it is
            resized and its middle cropped to the session's size, the intrinsics moved along. Or an
            array as the model takes it, [H, W, 3], uint8 or floats in [0, 1], of that very size.
          c2w: [4, 4] camera-to-world; a frame has its own.
          fxfycxcy: [4], in pixels of `image` as it is given; a frame has its own.

        Raises:
          InputError: a picture that cannot be read, an array of another size, not divisible by the
            patch, out of range or not finite; a camera that is not finite or rigid, or whose
            intrinsics cannot be in pixels of the picture (`geometry.intrinsics`); no room.
        """
        view = self._view(image, c2w, fxfycxcy)
        self._size = view.image.shape[:2]
        waits = self.frame is None or not self._model.paged
        page = None if waits else self._encode(view)  # before anything else changes
        leaving = self._store.leaving(self._poses, view)
        if leaving is not None:
            self.remove(leaving)
        view_id = next(self._ids)
        if waits:
            self._waiting[view_id] = view
        else:
            self._store.add(view_id, page, self._size, self._poses)
        self._cameras[view_id] = view.cameras
        if self._unchecked is not None and len(self._unchecked) < CHECKED:
            self._unchecked[view_id] = view
        return view_id

    def remove(self, view: int) -> None:
        """Takes a view out, as if it had never been added. Raises InputError for an unknown id."""
        self._known(view)
        self._cameras.pop(view, None)
        (self._unchecked or {}).pop(view, None)
        if self._waiting.pop(view, None) is not None:
            return
        self._store.remove(view)

    def replace(
        self,
        view: int,
        image: Picture,
        c2w: np.ndarray | None = None,
        fxfycxcy: np.ndarray | None = None,
    ) -> None:
        """Puts another picture in place of a view; the id stays. Arguments and errors as `add`."""
        self._known(view)
        new = self._view(image, c2w, fxfycxcy)
        if view in self._waiting:
            self._waiting[view] = new
        else:
            self._store.replace(view, self._encode(new), self._size, self._poses)
        self._cameras[view] = new.cameras
        if view in (self._unchecked or {}):
            self._unchecked[view] = new

    def reframe(self, frame: SceneFrame, pictures: Mapping[int, Frame]) -> None:
        """Puts the scene into another frame: all views are encoded anew, their ids stay.

        Args:
          frame: from now on.
          pictures: of every view its picture with its camera, which the session does not keep.

        Raises:
          InputError: a view without one; or as `add`.
        """
        absent = [view for view in self.views if view not in pictures]
        if absent:
            raise InputError(f"reframe: no picture of view(s) {absent}; expected one of every view")
        self.frame = frame
        for view in self.views:
            self.replace(view, pictures[view])

    def render(
        self,
        c2w: np.ndarray | Frame,
        fxfycxcy: np.ndarray | None = None,
        size: int | tuple[int, int] | None = None,
        views: str | Sequence[int] = "all",
    ) -> np.ndarray:
        """Pictures of the scene, float32 in [0, 1].

        Args:
          c2w: [4, 4], or [T, 4, 4] for T pictures; or a frame, whose camera is taken.
          fxfycxcy: [4], or [T, 4]; pixels of a picture of `size`. A frame has its own, of its own
            picture; they are moved along as `add` does.
          size: (height, width) in pixels, multiples of the patch size, or the side of a square;
            None is the inputs' size.
          views: which views are read: "all", ids, or for each picture by itself "nearest:k", its
            k most useful ones (`geometry.choice`). Time follows what is read.

        Returns:
          [H, W, 3], or [T, H, W, 3].

        Raises:
          InputError: no view yet, no such choice of views, or a camera or size that `add` would
            refuse as well.
        """
        if size is None and self._size is None:
            raise InputError("nothing to render: the session has no view yet; add() one first")
        patch = self._model.config.patch
        size = self._size if size is None else checked_size(size, patch, "render size")
        if isinstance(c2w, Frame):
            c2w, fxfycxcy = camera_of(c2w, fxfycxcy, size, patch)
        elif fxfycxcy is None:
            raise InputError("render camera without fxfycxcy: expected [4] or [T, 4], in pixels")
        c2w, fxfycxcy = np.asarray(c2w, np.float64), np.asarray(fxfycxcy, np.float64)
        many = c2w.ndim == 3
        if not many:
            c2w, fxfycxcy = c2w[None], fxfycxcy[None]
        check_cameras(c2w, fxfycxcy, "render camera")
        check_view(fxfycxcy if many else fxfycxcy[0], size, "render camera")
        choice.check_views(views, self.views, self._model)
        if not len(c2w):
            return np.zeros((0, *size, 3), np.float32)
        if not self.views:
            raise InputError("nothing to render: the session has no view yet; add() one first")
        self._warn_of_size(size)
        self._check_poses()
        memory = self._settled_memory()

        targets = Cameras(c2w, fxfycxcy, *size)
        slots = choice.slots_read(views, targets, self._cameras, self._store.slots_of, memory)
        targets = Cameras(self.frame.apply(c2w), fxfycxcy.astype(np.float32), *size)
        found = choice.pictures(self._model, memory, targets, slots)
        return found if many else found[0]

    def warm_up(
        self,
        size: tuple[int, int],
        *,
        render_sizes: Sequence[tuple[int, int]] | None = None,
        targets: Sequence[int] = TARGET_GROUPS,
        progress: bool = False,
    ) -> None:
        """Compiles beforehand all that a session of such pictures runs until its room doubles.

        Args:
          size: (height, width) of the input pictures, from now on.
          render_sizes: of the pictures to render; None is `size` alone. A picture of another size
            compiles when it is first rendered: padding it to one of these would change it, as the
            patches of a picture attend to each other.
          targets: how many pictures are rendered at a time, out of TARGET_GROUPS.
          progress: say on standard error how far it is.

        Raises:
          InputError: there are views already, a size the patch does not divide, an unknown group,
            or a model without a cache, which compiles for every number of views.
        """
        render_sizes = [size] if render_sizes is None else render_sizes
        for each in (size, *render_sizes):
            checked_size(each, self._model.config.patch, "warm_up size")
        if not self._model.paged:
            raise InputError(f"warm_up: {self._model.family} compiles for every number of views")
        if self.views:
            raise InputError("warm_up: the session has views already; call it before the first add")
        if not set(targets) <= set(TARGET_GROUPS):
            raise InputError(f"targets={targets}: expected some of {TARGET_GROUPS}")
        frame, ids, self.frame = self.frame, self._ids, SceneFrame.identity()
        unchecked, self._unchecked = self._unchecked, None
        self._ids = itertools.count()
        camera = np.eye(4), np.array([size[1], size[0], size[1] / 2, size[0] / 2])
        rooms = self._store.rooms(size)
        steps = [(each, count) for each in render_sizes for count in targets]
        total = 1 + len(rooms) * len(steps)
        picture = np.zeros((*size, 3), np.float32)
        try:
            with Progress("compiling", total, "programs", shown=progress) as compiled:
                view = self.add(picture, *camera)
                self._store.condense(view)
                self.replace(view, picture, *camera)
                compiled.advance()
                for room in rooms:
                    while len(self.views) < room:
                        self.add(picture, *camera)
                    for each, count in steps:
                        cameras = Cameras(*(np.stack([x] * count) for x in camera), *each)
                        self.render(cameras.c2w, cameras.fxfycxcy, each)
                        unlike = choice.all_but_one(count, self._store.cache.capacity)
                        choice.pictures(self._model, self._store.cache, cameras, unlike)
                        compiled.advance()
        finally:
            for view in self.views:
                self.remove(view)
            self.frame, self._ids, self._unchecked = frame, ids, unchecked

    @property
    def _poses(self) -> dict[int, np.ndarray]:
        """c2w [4, 4] of all views, in world units."""
        return {view: camera.c2w for view, camera in self._cameras.items()}

    def block_until_ready(self) -> None:
        """Waits until the cache holds what was encoded so far; for timing."""
        jax.block_until_ready(self._store.cache)

    def _settled_memory(self) -> Any:
        """The memory of all views, after encoding what was not yet."""
        if self.frame is None:
            self.frame = self._fitted_frame()
        if self._model.paged:
            while self._waiting:
                view_id = next(iter(self._waiting))
                page = self._encode(self._waiting[view_id])
                self._store.add(view_id, page, self._size, self._poses)
                del self._waiting[view_id]
            return self._store.cache
        views, memory = self._memory
        if views != list(self._waiting.values()):
            views = list(self._waiting.values())
            memory = self._encode(*views)
            self._memory = views, memory
        return memory

    def _fitted_frame(self) -> SceneFrame:
        """The scene frame that the waiting views give."""
        c2w = np.stack([view.c2w for view in self._waiting.values()])
        if len(c2w) > 1:
            return SceneFrame.from_cameras(c2w)
        warnings.warn(
            "the scene frame is fixed from a single camera, which says nothing about the size of "
            "the scene: world units are taken as they are; add more views before the first render, "
            "or pass Session(model, frame=SceneFrame.from_cameras(...))",
            stacklevel=4,
        )
        return SceneFrame(np.linalg.inv(c2w[0]), 1.0)

    def _encode(self, *views: Views) -> Any:
        found = jax.tree.map(lambda *arrays: np.stack(arrays)[None], *views)  # [1, V, …]
        c2w, fxfycxcy = self.frame.apply(found.c2w), found.fxfycxcy.astype(np.float32)
        return self._model.encode(Views(found.image, c2w, fxfycxcy))

    def _known(self, view: int) -> None:
        if view not in self._store and view not in self._waiting:
            raise InputError(f"no view {view!r} in this session; it has {self.views}")

    def _view(self, image: Picture, c2w: np.ndarray | None, fxfycxcy: np.ndarray | None) -> Views:
        """One view with its camera in world units, of the session's size if that is settled."""
        settled = self._size_given or self._store.cache is not None or self._waiting
        return view_of(image, c2w, fxfycxcy, self._model, self._size if settled else None)

    def _check_poses(self) -> None:
        """Warns once of cameras that do not fit the first views."""
        views = list((self._unchecked or {}).values())
        if len(views) < 2:
            return
        self._unchecked = None
        if doubt := doubt_of_poses(views):
            warnings.warn(doubt, stacklevel=4)

    def _warn_of_size(self, size: tuple[int, int]) -> None:
        """Says once that a model renders at a size far from those it was trained at."""
        if size not in self._warned_of and (doubt := self._model.unlike_training(size)):
            warnings.warn(doubt, stacklevel=4)
        self._warned_of.add(size)
