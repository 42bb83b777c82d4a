"""The scene behind the viewer, without any browser: photos, which of them are inputs, pictures.

Whatever renders or changes it runs in one thread, see `worker`; others may read what it says.
"""

from __future__ import annotations

import dataclasses
import time
from collections import Counter
from collections.abc import Sequence

import numpy as np

from data_pipeline.captures.inputs import choose_inputs
from data_pipeline.pictures.transforms import fit, fit_intrinsics
from data_pipeline.scenes import Cloud, Frame, Scene
from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.geometry.cameras import Cameras, SceneFrame, spread
from efficient_lvsm_jax.geometry.choice import usefulness
from efficient_lvsm_jax.media.levels import from_bytes, to_bytes
from efficient_lvsm_jax.metrics.pictures import psnr
from efficient_lvsm_jax.models.model import Model
from efficient_lvsm_jax.sessions.pictures import size_for
from efficient_lvsm_jax.sessions.session import Session

PHOTOS = 24  # shown of a capture, spread over it
POINTS = 200_000  # shown at most
FARTHEST = 1000.0  # of the scene's extent: a point beyond is no place to look at
LITTLE = 0.1  # what no input is worth more to, `usefulness`, hardly any saw


@dataclasses.dataclass(frozen=True)
class Settings:
    """How photos are kept.

    precision: of the cache, as of `Session`; None is the model's own.
    max_bytes: the most the cache may take; None is no limit.
    size: (height, width) of inputs and pictures; None is that of most photos.
    """

    precision: str | None = None
    max_bytes: int | None = None
    size: tuple[int, int] | None = None


@dataclasses.dataclass(frozen=True)
class Shown:
    """A picture and what is said about it.

    image: uint8 [Y, X, 3]. seconds: it took. unseen: inputs hardly saw what it shows.
    """

    image: np.ndarray
    seconds: float
    unseen: bool


class ViewedScene:
    """Photos of one scene, some of which are inputs, and pictures from any camera.

    Photos are counted from 0, in the order of the capture. Poses are in the capture's world; the
    scene frame, fixed by the inputs it starts with, is that of browsers.

    Attributes:
      name: of the scene.
      photos: the frames that can be inputs.
      frame: the scene frame.
      encoded_in: that of the inputs; the same, unless `encode_in` was told another.
      settings: how photos are kept.
      size: (height, width) of pictures.
      chosen: which photos are inputs, ascending.
      change: the last change of them in words, such as "+1 view 12 ms"; empty at first.
    """

    def __init__(
        self,
        model: Model,
        scene: Scene,
        *,
        inputs: int | str | Sequence[int] | None = None,
        photos: int = PHOTOS,
        settings: Settings = Settings(),
        warm: bool = False,
    ):
        """Encodes the first inputs.

        Args:
          model: what renders.
          scene: of a capture.
          inputs: those to start with, see `choose_inputs`.
          photos: how many can be inputs, spread over the scene; the first inputs always can.
          settings: how photos are kept.
          warm: compile first, with a bar on standard error.

        Raises:
          InputError: no such inputs, or what `Session` refuses.
        """
        first = choose_inputs(scene, inputs)
        usable = scene.usable
        some = spread(scene.c2w[usable], min(photos, len(usable)))
        listed = sorted({*first, *(usable[index] for index in some)})
        self.name = scene.name
        self.photos: list[Frame] = [scene.frames[index] for index in listed]
        self.frame = self.encoded_in = SceneFrame.from_cameras(scene.c2w[first])
        self.chosen = sorted(listed.index(index) for index in first)
        self.change = ""
        self._read_points, self._clouds = scene.cloud, []
        self._previous = list(self.chosen)
        self._model = model
        self._start(settings, self.chosen, warm=warm)

    def _start(self, settings: Settings, chosen: Sequence[int], *, warm: bool = False) -> None:
        """A new session of the chosen photos; nothing changes if that fails."""
        shapes = Counter((frame.height, frame.width) for frame in self.photos)
        size = settings.size or size_for(self._model, shapes.most_common(1)[0][0])
        session = Session(
            self._model,
            frame=self.encoded_in,
            size=size,
            capacity=min(len(self.photos), 2 * max(len(chosen), 2)),
            precision=settings.precision,
            max_bytes=settings.max_bytes,
        )
        if warm and self._model.paged:
            session.warm_up(size, targets=(1,), progress=True)
        views = {photo: session.add(self.photos[photo]) for photo in chosen}
        self.settings, self.size, self._session, self._views = settings, size, session, views
        self.chosen = sorted(views)

    @property
    def has_points(self) -> bool:
        """Whether there are any for `clouds`."""
        return self._read_points is not None or bool(self._clouds)

    def clouds(self) -> list[Cloud]:
        """Points in the scene frame, POINTS at most; read from the capture at the first call.

        Raises:
          InputError: their file is not there or damaged.
        """
        if self._read_points is not None:
            self.add_points(self._read_points(POINTS))
            self._read_points = None
        return list(self._clouds)

    def add_points(self, cloud: Cloud) -> None:
        """More points, of the world."""
        turn, shift = self.frame.frame_from_world[:3, :3], self.frame.frame_from_world[:3, 3]
        points = self.frame.scale * (cloud.points @ turn.T + shift)
        near = (np.abs(points) < FARTHEST).all(axis=-1)
        self._clouds.append(Cloud(points[near].astype(np.float32), cloud.colours[near]))

    @property
    def can_choose(self) -> bool:
        """Whether pictures can be made of some inputs alone."""
        return self._model.paged

    @property
    def precision(self) -> str | None:
        """How keys and values are stored; None without a cache."""
        return (self.settings.precision or self._model.config.cache) if self.can_choose else None

    @property
    def cache_bytes(self) -> int:
        """That the inputs take in the cache."""
        return self._session.cache_bytes

    def thumbnail(self, photo: int, height: int) -> np.ndarray:
        """A photo, uint8 [height, X, 3], of its own shape."""
        frame = self.photos[photo]
        size = height, max(1, round(height * frame.width / frame.height))
        return fit(frame.image(), frame.fxfycxcy, size, patch=1)[0]

    def intrinsics(self, photo: int) -> np.ndarray:
        """fxfycxcy [4] of a photo fitted to `size`."""
        frame = self.photos[photo]
        patch = self._model.config.patch
        return fit_intrinsics(frame.fxfycxcy, (frame.height, frame.width), self.size, patch=patch)

    def truth(self, photo: int) -> np.ndarray:
        """A photo as it goes into the model, uint8 [*size, 3]."""
        frame = self.photos[photo]
        return fit(frame.image(), frame.fxfycxcy, self.size, patch=self._model.config.patch)[0]

    def compare(self, photo: int) -> tuple[Shown, np.ndarray, float]:
        """A photo's camera rendered, the photo as `truth`, and the PSNR between them in dB."""
        shown = self.render(self.photos[photo].c2w, self.intrinsics(photo))
        truth = self.truth(photo)
        return shown, truth, float(psnr(from_bytes(shown.image), from_bytes(truth)))

    def append(self, frame: Frame, cloud: Cloud) -> None:
        """One more photo, no input yet, and what it adds to the points."""
        self.photos = [*self.photos, frame]
        self.add_points(cloud)

    def encode_in(self, frame: SceneFrame) -> None:
        """Encodes the inputs anew in another scene frame; where they are shown stays."""
        photos = {view: self.photos[photo] for photo, view in self._views.items()}
        self._session.reframe(frame, photos)
        self.encoded_in = frame

    def toggle(self, photo: int) -> None:
        """Puts a photo in, or takes it out. Raises InputError if there is none, or no room."""
        if photo not in range(len(self.photos)):
            raise InputError(f"photo {photo}: there are {len(self.photos)}, counted from 0")
        self.choose({*self.chosen} ^ {photo})

    def choose(self, photos: Sequence[int] | set[int]) -> None:
        """Makes these photos the inputs, and says in `change` what that took.

        Raises:
          InputError: no room, or a photo that cannot be read; those before it are in.
        """
        before, start = list(self.chosen), time.perf_counter()
        try:
            for photo in sorted({*before} - {*photos}):
                self._session.remove(self._views.pop(photo))
            for photo in sorted({*photos} - {*before}):
                self._views[photo] = self._session.add(self.photos[photo])
        finally:
            self.chosen = sorted(self._views)
            if self.chosen != before:
                self._previous = before
        milliseconds = (time.perf_counter() - start) * 1000
        came, went = len({*self.chosen} - {*before}), len({*before} - {*self.chosen})
        parts = [f"{sign}{n} view{'s' * (n > 1)}" for sign, n in (("+", came), ("−", went)) if n]
        self.change = f"{' '.join(parts)} {milliseconds:.0f} ms" if parts else ""

    def swap(self) -> None:
        """Back to the inputs before the last change, and with the next swap forth again."""
        self.choose(self._previous)

    def keep(self, settings: Settings) -> None:
        """Encodes all inputs anew, to be kept otherwise.

        Raises:
          InputError: as `Session`; then everything stays as it was.
        """
        start = time.perf_counter()
        self._start(settings, self.chosen)
        self.change = f"encoded anew {time.perf_counter() - start:.1f} s"

    def render(self, c2w: np.ndarray, fxfycxcy: np.ndarray, views: str = "all") -> Shown:
        """A picture of `size`; camera and views as of `Session.render`, which says what it raises.

        Without any input it is black, and `unseen`.
        """
        start = time.perf_counter()
        if not self.chosen:
            return Shown(np.zeros((*self.size, 3), np.uint8), 0.0, True)
        image = to_bytes(self._session.render(c2w, fxfycxcy, self.size, views))
        seconds = time.perf_counter() - start
        target = Cameras(np.asarray(c2w)[None], np.asarray(fxfycxcy)[None], *self.size)
        frames = [self.photos[photo] for photo in self.chosen]
        inputs = Cameras(
            np.stack([frame.c2w for frame in frames]),
            np.stack([self.intrinsics(photo) for photo in self.chosen]),
            *self.size,
        )
        return Shown(image, seconds, bool(usefulness(target, inputs).max() < LITTLE))
