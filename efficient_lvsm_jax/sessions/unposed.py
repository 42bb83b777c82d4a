"""Views of a session from frames without cameras: a network says where each was taken.

    scene = elvsm.UnposedScene(model, elvsm.Stream(geometry, capacity=200))
    for frame in video:
        scene.add(frame)
    picture = scene.session.render(c2w, fxfycxcy)

Axes: R frame, Y X pixel of a picture, y x pixel of the network's copy of it.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image

from data_pipeline.scenes import Cloud, Frame
from data_pipeline.unposed.photos import Photo, Photos
from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.geometry.cameras import Cameras, SceneFrame, check_cameras
from efficient_lvsm_jax.geometry.intrinsics import check_intrinsics
from efficient_lvsm_jax.geometry.points import unproject
from efficient_lvsm_jax.media.progress import Progress
from efficient_lvsm_jax.models.geometry_model import GeometryModel
from efficient_lvsm_jax.models.model import Model
from efficient_lvsm_jax.models.scene_geometry import Geometry
from efficient_lvsm_jax.sessions.kept_stream import KeptStream
from efficient_lvsm_jax.sessions.session import Session
from efficient_lvsm_jax.sessions.streaming import Stream

BASELINE = 0.05  # from the nearest keyframe, of the depth that is seen
TURN = 15.0  # degrees, that are as much
SURE = 0.5  # of the confidence that frames have in the median
LONGEST = 1e4  # focal length in long sides of the picture; beyond, a network meant 0 degrees
START = 4  # keyframes that fix the scene's frame and scale at first
GROWN = 1.25  # by which cameras may be further out, or in, than in a frame of their own


@dataclasses.dataclass(frozen=True)
class SeenFrame:
    """A picture and what a network says of it.

    c2w: [4, 4]. fxfycxcy: [4], pixels of the picture. depth: [y, x] float32, of the whole picture
    along the viewing direction, in the unit of the cameras. confidence: of it.
    """

    photo: Photo
    c2w: np.ndarray
    fxfycxcy: np.ndarray
    depth: np.ndarray
    confidence: np.ndarray

    @property
    def posed(self) -> Frame:
        """The picture with its camera."""
        height, width = self.photo.image.shape[:2]
        return Frame(
            self.photo.name, self.c2w, self.fxfycxcy, width, height, lambda: self.photo.image
        )

    def surest(self, count: int) -> Cloud:
        """At most so many points of the world, evenly chosen from the surer half."""
        height, width = self.depth.shape
        image = Image.fromarray(self.photo.image)
        scale = np.tile(np.divide((width, height), image.size), 2)
        cameras = Cameras(
            np.float32(self.c2w), np.float32(self.fxfycxcy * scale), height=height, width=width
        )
        points = np.asarray(unproject(self.depth, cameras)).reshape(-1, 3)
        colours = np.asarray(image.resize((width, height))).reshape(-1, 3)
        confidence = self.confidence.ravel()
        sure = np.flatnonzero(confidence >= np.median(confidence))
        # Not every so manieth, which of rows of nearly a multiple of it would be stripes.
        kept = sure[np.linspace(0, len(sure) - 1, min(count, len(sure))).astype(int)]
        return Cloud(points[kept], colours[kept])


def see(
    model: GeometryModel,
    photos: Photos,
    *,
    side: int | None = None,
    remember: int | None = None,
    keep: Path | None = None,
) -> Iterator[SeenFrame]:
    """What a network says of pictures: a stream of each as it comes, others of all at the end.

    Args:
      model: of any family of geometry.
      side: pixels of the long side that the network sees; None is as its family was trained.
      remember: how many frames a stream remembers at a time, None is all; see `Stream`'s "window".
      keep: a folder in which a stream is kept, and goes on from where an interrupted call with the
        same arguments left it; others have nothing to keep.

    Raises:
      InputError: pictures of more than one shape, or too narrow, before any is seen; cameras that
        cannot be, as of damaged weights.
    """
    if remember is not None and not model.config.causal:
        raise InputError(f"{model.family} sees all pictures at once, and remembers none")
    _check_shapes(model, photos, side)
    if model.config.causal:
        options = {"capacity": remember or photos.count, "when_full": "window"}
        kept = None if keep is None else KeptStream(keep, model, **options)
        stream = Stream(model, **options) if kept is None else kept.stream
        done = len(stream)
        with Progress("seeing", photos.count, "pictures", done=done) as progress:
            for number, photo in enumerate(photos):
                if number < done:
                    yield SeenFrame(photo, **kept.said(number))
                    continue
                geometry = stream.observe(fitted(model, photo.image, side))
                seen = seen_frame(model, photo, geometry)
                if kept is not None:
                    kept.keep({name: x for name, x in vars(seen).items() if name != "photo"})
                yield seen
                progress.advance()
        return
    together = list(photos)
    pictures = [fitted(model, photo.image, side) for photo in together]
    _, geometry = model.observe(None, np.stack(pictures)[None].astype(np.float32) / 255)
    for index, photo in enumerate(together):
        parts = geometry.cameras, geometry.depth, geometry.depth_confidence
        cameras, depth, confidence = jax.tree.map(lambda x, r=index: x[0, r], parts)
        yield seen_frame(model, photo, Geometry(cameras, None, depth, confidence))


def _check_shapes(model: GeometryModel, photos: Photos, side: int | None) -> None:
    """Raises an InputError that names the first picture that the network cannot see with others."""
    from data_pipeline.formats.depth_maps import MOST_STRETCH

    sizes: dict[tuple[int, ...], tuple[int, ...]] = {}  # of the network's copy by the picture's
    first = None
    for photo in photos:
        shape, first = photo.image.shape, first or photo
        if shape not in sizes:
            try:
                sizes[shape] = fitted(model, photo.image, side).shape
            except InputError as error:
                raise InputError(f"{photo.name} of {photos.name}: {error}") from error
            rows, columns, _ = sizes[shape]
            stretch = rows * shape[1] / (columns * shape[0])
            if max(stretch, 1 / stretch) > MOST_STRETCH:
                raise InputError(
                    f"{photo.name} of {photos.name}: {_shape(photo.image)} (width x height) is "
                    f"{columns}x{rows} in whole patches, another shape by more than "
                    f"{MOST_STRETCH - 1:.0%}; crop it to one less narrow, or let a larger size be "
                    "seen (--size)"
                )
        if sizes[shape] != sizes[first.image.shape]:
            raise InputError(
                f"{photo.name} of {photos.name}: {_shape(photo.image)}, {first.name} is "
                f"{_shape(first.image)} (width x height): expected pictures of one shape; "
                "crop them, or take those of one orientation"
            )
        if photos.film:  # whose frames have one size
            return


def fitted(model: GeometryModel, picture: np.ndarray, side: int | None = None) -> np.ndarray:
    """All of a picture, uint8 [Y, X, 3], as its family sees pictures, uint8 [y, x, 3]."""
    # Here, as a machine which is given arrays may lack their libraries.
    from data_pipeline.pictures import depth_anything3, unposed

    image, patch = Image.fromarray(picture), model.config.patch
    side = side or max(map(max, model.trained_sizes), default=None)
    if model.family == "depth_anything3":
        return depth_anything3.fit(image, side=side or depth_anything3.SIDE, patch=patch)[0]
    return unposed.fit_long_side(image, side or unposed.SIDE, patch)


def seen_frame(model: GeometryModel, photo: Photo, geometry: Geometry) -> SeenFrame:
    """A single frame's geometry, in pixels of the picture itself.

    Raises:
      InputError: it is not finite, or its camera is none.
    """
    depth, confidence = np.asarray(geometry.depth), np.asarray(geometry.depth_confidence)
    c2w = np.asarray(geometry.cameras.c2w, np.float64)
    fxfycxcy = np.asarray(geometry.cameras.fxfycxcy, np.float64)
    what = f"{photo.name}: what {model.family} says of it"
    check_field_of_view(fxfycxcy, depth.shape, what)
    finite = (np.isfinite(each).all() for each in (c2w, fxfycxcy, depth, confidence))
    if not all(finite):
        raise InputError(
            f"{what}: not finite (NaN); leave the picture out, or, if it is so of all, convert the "
            "weights again"
        )
    check_cameras(c2w, fxfycxcy, what)
    size = photo.image.shape[1::-1]
    fxfycxcy = fxfycxcy * np.tile(np.divide(size, depth.shape[::-1]), 2)
    check_intrinsics(fxfycxcy, size, what)
    return SeenFrame(photo, c2w, fxfycxcy, depth, confidence)


def check_field_of_view(fxfycxcy: np.ndarray, size: tuple[int, int], what: str) -> None:
    """Raises InputError if one of the cameras [..., 4] of pictures of (height, width) has none."""
    if (fxfycxcy[..., :2] > LONGEST * max(size)).any():
        raise InputError(
            f"{what}: a field of view of 0, so an infinite focal length, which no camera has; "
            "leave the picture out"
        )


class Keyframes:
    """Chooses frames that are worth a view: taken away from those chosen before, and well seen.

    Attributes:
      poses: c2w [4, 4] of the chosen.
    """

    def __init__(self):
        self.poses: list[np.ndarray] = []
        self._depth = 0.0  # that the last of them sees, the median
        self._sure: list[float] = []

    def take(self, seen: SeenFrame) -> bool:
        """Whether a frame, of the world of those before, is one; it then belongs to the chosen.

        Away is BASELINE of the depth that it sees, or TURN degrees. Well seen is a confidence, in
        the mean, of SURE times the median of all frames so far.
        """
        self._sure.append(float(seen.confidence.mean()))
        if self._sure[-1] < SURE * np.median(self._sure):
            return False
        depth = float(np.median(seen.depth))
        if self.poses:
            others = np.stack(self.poses)
            away = np.linalg.norm(others[:, :3, 3] - seen.c2w[:3, 3], axis=-1)
            turned = np.rad2deg(np.arccos(np.clip(others[:, :3, 2] @ seen.c2w[:3, 2], -1, 1)))
            if ((away < BASELINE * depth) & (turned < TURN)).any():
                return False
        self.poses.append(seen.c2w)
        self._depth = depth
        return True

    @property
    def frame(self) -> SceneFrame | None:
        """The scene frame that START or more of them fix; None of fewer, or if they only turn."""
        return self._frame_of(self.poses)

    def outgrown(self, frame: SceneFrame, c2w: Sequence[np.ndarray]) -> SceneFrame | None:
        """The scene frame of views, if their cameras do not fit into the one in use by GROWN.

        Models know cameras within the frame's unit; far outside they render nothing that is right.

        Args:
          frame: in use.
          c2w: [4, 4] each, of the views that there are now.

        Returns:
          Another one, or None: the one in use stays.
        """
        found = self._frame_of(c2w)
        if found is None:
            return None
        furthest = (np.abs(each.apply(np.stack(c2w))[:, :3, 3]).max() for each in (frame, found))
        own, best = furthest
        fits = own <= GROWN * best and found.scale <= GROWN * frame.scale
        return None if fits else found

    def _frame_of(self, c2w: Sequence[np.ndarray]) -> SceneFrame | None:
        if len(c2w) < START:
            return None
        # Cameras that only turn say nothing of the scale: then later ones do.
        still = np.ptp([pose[:3, 3] for pose in c2w], axis=0).max() < BASELINE * self._depth
        return None if still else SceneFrame.from_cameras(np.stack(c2w))


class UnposedScene:
    """A session whose views come without cameras, from a stream that says where each was taken.

    Attributes:
      session: its views are the keyframes, in the world of the stream.
      stream: all frames were seen by.
      newest: what is known of the frame that came last, None before the first.
    """

    def __init__(self, model: Model, stream: Stream, *, side: int | None = None, **options: Any):
        """Starts without a frame.

        Args:
          model: what encodes and renders views.
          stream: empty.
          side: as of `see`.
          options: of the `Session`. Without a `frame`, the scene's frame and scale are fixed by the
            first START keyframes, or at the first render if that comes before; when the views' no
            longer fit into it by GROWN, it is made of them anew, and all are encoded again.
        """
        self.session, self.stream = Session(model, check_poses=False, **options), stream
        self.newest: SeenFrame | None = None
        self._side, self._keyframes = side, Keyframes()
        self._posed: dict[int, Frame] = {}  # of the views
        self._frame_given = options.get("frame") is not None

    def add(self, frame: np.ndarray | Image.Image | str | os.PathLike) -> int | None:
        """Sees a frame, and makes it a view if it is a keyframe, see `Keyframes`.

        Args:
          frame: uint8 [Y, X, 3], a PIL image or the path of a photo, of the shape of those before.

        Returns:
          The view's id in the session, or None.

        Raises:
          InputError: as `Stream.observe` and `Session.add`, or what `see` says of cameras.
        """
        photo = _photo(frame, len(self.stream))
        geometry = self.stream.observe(fitted(self.stream.model, photo.image, self._side))
        self.newest = seen_frame(self.stream.model, photo, geometry)
        if not self._keyframes.take(self.newest):
            return None
        try:
            view = self.session.add(self.newest.posed)
        except InputError:
            self._keyframes.poses.pop()
            raise
        self._posed[view] = self.newest.posed
        self._posed = {kept: self._posed[kept] for kept in self.session.views}
        if not self._frame_given:
            self._follow()
        return view

    def _follow(self) -> None:
        """The scene frame as the views now fix it, if there was none or they have left it."""
        if self.session.frame is None:
            frame = self._keyframes.frame
        else:
            poses = [frame.c2w for frame in self._posed.values()]
            frame = self._keyframes.outgrown(self.session.frame, poses)
        if frame is not None:
            self.session.reframe(frame, self._posed)


def _photo(frame: np.ndarray | Image.Image | str | os.PathLike, number: int) -> Photo:
    from data_pipeline.pictures.images import load_upright, rgb

    if isinstance(frame, Image.Image):
        image = rgb(frame, f"frame {number}")
    else:
        image = frame if isinstance(frame, np.ndarray) else load_upright(frame)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise InputError(
            f"frame {number}, {image.dtype} {image.shape}: expected uint8 [Y, X, 3] (RGB)"
        )
    return Photo(f"{number:06d}", image)


def _shape(image: np.ndarray) -> str:
    return f"{image.shape[1]}x{image.shape[0]}"
