"""What one browser shows: the picture for its camera, the strip of photos, the controls.

viser calls back in threads of its own, which only ask the worker for things; whatever touches the
scene runs in the worker's thread.
"""

from __future__ import annotations

import functools
import html
import io
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import viser
from PIL import Image

from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.files.writing import first_line
from efficient_lvsm_jax.nn.paged import PRECISIONS
from efficient_lvsm_jax.viewer import flights
from efficient_lvsm_jax.viewer.flights import Camera
from efficient_lvsm_jax.viewer.scene import Settings, Shown, ViewedScene
from efficient_lvsm_jax.viewer.window import Window, camera_of, fov_of, framed, stand

if TYPE_CHECKING:
    from efficient_lvsm_jax.viewer.server import Viewer

SLOW = 0.25  # seconds of a picture from which a page says that it is being rendered
MOVED = 1e-3  # of the scene's extent: no longer at a photo
KEYS = "1234567890"  # of the first photos
GREEN, GREY = (64, 192, 87), (134, 142, 150)
FRUSTUM = 0.03  # of the scene's extent
NEAR = 0.2  # of it: a frustum that is nearer than that stands in the way
LARGEST = 2048  # rows or columns of pictures
AS_COMPUTED = "as computed"
STRIP = """
<div style="display:grid;grid-template-columns:repeat(4,1fr);gap:5px;padding:0 0.6em">{}</div>
"""
PHOTO = """
<div role="button" tabindex="0" id="photo-{n}" data-cached="{cached}"
 aria-label="photo {n}, {state}" title="photo {n} ({name}), {state}: click to {verb}"
 onclick="[...document.querySelectorAll('button')]
  .find(b=>b.textContent.trim()==='Photo {n}').click()"
 onkeydown="if(event.key==='Enter')this.click()"
 style="position:relative;cursor:pointer;border:3px solid rgb{colour};border-radius:5px;
  overflow:hidden;line-height:0">
 <img alt="" src="data:image/jpeg;base64,{data}" style="width:100%;aspect-ratio:4/3;
  object-fit:cover;{look}">
 <span style="position:absolute;left:0;bottom:0;background:rgb{colour};color:#fff;
  font:600 11px/15px sans-serif;padding:0 4px;border-radius:0 4px 0 0">{n}</span>
</div>
"""
SAID = """
<div style="padding:0.1em 0.9em;font-size:0.86em"><div id="badge">{badge}</div>
<div id="hint" style="color:#ffa94d;min-height:1.3em">{hint}</div></div>
"""

log = logging.getLogger(__name__)


class Page:
    """One browser; it holds its camera and what is set for it alone.

    Attributes:
      gone: the browser left, so that what is being made for it may end.
    """

    def __init__(self, viewer: Viewer, client: viser.ClientHandle):
        """Made when a browser comes; `begin` fills it, in the worker's thread."""
        self.gone = False
        self._viewer, self._client, self._id = viewer, client, client.client_id
        self._window: Window | None = None
        self._at: int | None = None  # the photo whose camera is looked through
        self._arrived = False  # there: a browser reports other cameras on its way
        self._seconds = 0.0  # of the last picture
        self._last: Shown | None = None
        self._busy = threading.Lock()  # while a flight is made or played
        # Windows and the file's text: cameras are in pixels, and pictures may get another size.
        self._keyframes: list[Window] = []
        self._file = b""
        self._ready = False  # `begin` is through
        client.camera.on_update(self._moved)

    # In the worker's thread.

    def begin(self) -> None:
        """Builds all of the page for the scene that is shown, and stands at its first input."""
        if self.gone:
            return
        self._ready = False
        gui, scene = self._client.gui, self._viewer.scene
        gui.reset()
        self._client.scene.reset()
        self._at, self._keyframes, self._file = None, [], b""
        self._said = gui.add_html(SAID.format(badge="", hint=""))
        if len(self._viewer.names) > 1:
            names = gui.add_dropdown("Scene", self._viewer.names, initial_value=scene.name)
            self._on(names.on_update, lambda: self._viewer.open(self._id, names.value))
        self._build_photos()
        self._build_camera()
        with gui.add_folder("Cache", expand_by_default=False):
            self._build_cache()
        with gui.add_folder("Path and files", expand_by_default=False):
            self._build_flights()
        self._show_photos()
        self._to_start()
        if self._client.camera.aspect < 1:  # a phone: nothing in front of the picture
            gui.main_panel.minimize()
        self._ready = True
        self._look(self._client.camera)  # a browser that stands there already reports nothing

    def follow(self) -> None:
        """Shows what became of the scene: strip, truth and, for the same camera, a new picture."""
        if self.gone or not self._ready:
            return
        self._show_photos()
        if self._at is not None:
            self._compare(self._at)
        self._ask()

    def _picture(self, window: Window) -> None:
        """Renders and sends the picture of a window."""
        scene = self._viewer.scene
        camera = camera_of(window, scene.frame, scene.size)
        self._send(scene.render(*camera, self._views()), window)

    def _send(self, shown: Shown, window: Window) -> None:
        if self.gone:
            return
        start = time.perf_counter()
        image = framed(shown.image, window)
        self._client.scene.set_background_image(image, format="jpeg", jpeg_quality=90)
        self._seconds, self._last = shown.seconds + time.perf_counter() - start, shown
        self._say(f"{1 / self._seconds:.0f} fps" if self._seconds < 1 else f"{self._seconds:.1f} s")
        self._client.flush()

    def _say(self, speed: str) -> None:
        """The badge: the last change, how many views, their bytes, how fast; and the hint."""
        scene = self._viewer.scene
        count = len(scene.chosen)
        parts = [scene.change, f"{count} view{'s' * (count != 1)}"]
        if scene.can_choose:
            parts.append(f"{scene.cache_bytes / 1e6:.3g} MB")
        hint = ""
        if not count:
            hint = "No photo is in the cache: click one."
        elif self._last is not None and self._last.unseen:
            hint = "The photos in the cache hardly saw what is here: it is made up."
        badge = ", ".join([*filter(None, parts), speed])
        content = SAID.format(badge=html.escape(badge), hint=html.escape(hint))
        if content != self._said.content:
            self._said.content = content
            if self._client.camera.aspect < 1:
                self._client.gui.set_panel_label(hint or badge)

    def _show_photos(self) -> None:
        scene = self._viewer.scene
        cells = []
        for photo, (frame, data) in enumerate(
            zip(scene.photos, self._viewer.thumbnails, strict=True)
        ):
            cached = photo in scene.chosen
            cells.append(
                PHOTO.format(
                    n=photo + 1,
                    name=html.escape(frame.name, quote=True),
                    cached=int(cached),
                    state="in the cache" if cached else "available",
                    verb="take it out" if cached else "put it in",
                    colour=GREEN if cached else GREY,
                    data=data,
                    look="" if cached else "filter:grayscale(0.8);opacity:0.6",
                )
            )
            self._frusta[photo].color = GREEN if cached else GREY
        self._strip.content = STRIP.format("".join(cells))

    def _compare(self, photo: int) -> None:
        _, truth, psnr = self._viewer.scene.compare(photo)
        self._truth.image = framed(truth, self._here())
        among = " (it is in the cache)" if photo in self._viewer.scene.chosen else ""
        self._truth.label = f"Photo {photo + 1}: {psnr:.1f} dB{among}"
        self._truth.visible = True

    # In viser's threads.

    async def _moved(self, camera: viser.CameraHandle) -> None:
        if self._ready:
            self._look(camera)  # on the event loop, so that the order of cameras stays

    def _look(self, camera: viser.CameraHandle) -> None:
        self._window = Window(
            camera.wxyz, camera.position, camera.fov, camera.aspect, camera.image_height
        )
        apart = np.linalg.norm(self._centres - camera.position, axis=-1)
        if self._at is not None:
            there = apart[self._at] < MOVED
            if self._arrived and not there:
                self._at, self._truth.visible = None, False
            self._arrived = there
        self._show_frusta(apart)
        self._ask()

    def _ask(self) -> None:
        if (window := self._window) is None:
            return
        if self._seconds > SLOW:
            self._say("rendering…")
        self._viewer.worker.show(self._id, functools.partial(self._picture, window))

    def tell(self, error: Exception) -> None:
        """A notice of what went wrong; what is no mistake of the user's is logged as well."""
        text = str(error) if isinstance(error, InputError) else f"unexpected: {first_line(error)}"
        if not isinstance(error, InputError):
            log.warning("%r", error)
        self._client.add_notification(
            "That did not work", text, color="orange", auto_close_seconds=10
        )

    def _on(self, event: Callable[[Callable], Any], action: Callable[[], None]) -> None:
        """Does something at an event of a control; an error is a notice."""

        def handle(_: Any) -> None:
            try:
                action()
            except Exception as error:
                self.tell(error)

        event(handle)

    def _button(self, label: str, action: Callable[[], None], hint: str | None = None) -> None:
        self._on(self._client.gui.add_button(label, hint=hint, color="gray").on_click, action)

    def _command(self, key: str, label: str, action: Callable[[], None]) -> None:
        self._on(self._client.gui.add_command(label, hotkey=key).on_trigger, action)

    def _views(self) -> str:
        return f"nearest:{self._nearest.value}" if self._reads.value != "all" else "all"

    # The controls.

    def _build_photos(self) -> None:
        gui, scene = self._client.gui, self._viewer.scene
        self._strip = gui.add_html("")
        self._frusta = []
        poses = scene.frame.apply(np.stack([frame.c2w for frame in scene.photos]))
        self._centres = poses[:, :3, 3].astype(np.float64)
        height, width = scene.size
        change = functools.partial(self._viewer.change, self._id)
        with gui.add_folder("Photos by number", expand_by_default=False):
            for photo in range(len(scene.photos)):
                toggle = functools.partial(change, lambda scene, photo=photo: scene.toggle(photo))
                self._button(f"Photo {photo + 1}", toggle)
                if photo < len(KEYS):
                    self._command(KEYS[photo], f"Photo {photo + 1} in or out", toggle)
                turn = viser.transforms.SO3.from_matrix(poses[photo, :3, :3].astype(np.float64))
                frustum = self._client.scene.add_camera_frustum(
                    f"/photos/{photo + 1}",
                    fov=2 * np.arctan(height / 2 / scene.intrinsics(photo)[1]),
                    aspect=width / height,
                    scale=FRUSTUM,
                    thickness=2.0,
                    thickness_units="screen",
                    color=GREY,
                    wxyz=turn.wxyz,
                    position=self._centres[photo],
                )
                self._on(frustum.on_click, toggle)
                self._frusta.append(frustum)
        swap = functools.partial(change, ViewedScene.swap)
        self._button("A/B: the photos before (X)", swap, hint="back, and forth again")
        self._command("X", "A/B: the photos before", swap)

    def _build_camera(self) -> None:
        gui, scene = self._client.gui, self._viewer.scene
        go = gui.add_slider("Photo", min=1, max=len(scene.photos), step=1, initial_value=1)
        self._button("Go to this photo (G)", lambda: self._go(go.value - 1))
        self._command("G", "Go to the photo chosen", lambda: self._go(go.value - 1))
        self._button("Back to start (H)", self._to_start)
        self._command("H", "Back to start", self._to_start)
        self._truth = gui.add_image(np.zeros((8, 8, 3), np.uint8), label="Photo", visible=False)
        self._cameras_shown = gui.add_checkbox("Show cameras", initial_value=True)
        self._on(self._cameras_shown.on_update, self._show_frusta)
        most = max(2, len(scene.photos))
        self._reads = gui.add_dropdown(
            "Reads",
            ("all", "nearest"),
            disabled=not scene.can_choose,
            hint="of photos in the cache",
        )
        self._nearest = gui.add_slider(
            "How many", min=1, max=most, step=1, initial_value=min(4, most), visible=False
        )

        def choose() -> None:
            self._nearest.visible = self._reads.value != "all"
            self._ask()

        self._on(self._reads.on_update, choose)
        self._on(self._nearest.on_update, self._ask)

    def _show_frusta(self, apart: np.ndarray | None = None) -> None:
        """Shows the photos' cameras but those that stand in the way; `apart` is how far all are."""
        if apart is None:
            position = np.inf if self._window is None else self._window.position
            apart = np.linalg.norm(self._centres - position, axis=-1)
        for frustum, shown in zip(self._frusta, apart > NEAR, strict=True):
            if frustum.visible != (shown := bool(shown) and self._cameras_shown.value):
                frustum.visible = shown

    def _go(self, photo: int) -> None:
        apart = np.linalg.norm(self._centres[photo] - self._here().position)
        self._at, self._arrived = photo, apart < MOVED
        self._stand_at(photo)
        self._viewer.worker.do(self._id, functools.partial(self._compare, photo))

    def _to_start(self) -> None:
        self._stand_at((self._viewer.scene.chosen or [0])[0])

    def _stand_at(self, photo: int) -> None:
        scene, camera = self._viewer.scene, self._client.camera
        position, look_at, up = stand_at(scene, photo)
        with self._client.atomic():
            camera.up_direction = up
            camera.position = position
            camera.look_at = look_at
            camera.fov = fov_of(scene.intrinsics(photo), scene.size, camera.aspect)

    def _build_cache(self) -> None:
        gui, scene = self._client.gui, self._viewer.scene
        precision = gui.add_dropdown(
            "Precision",
            (AS_COMPUTED, *PRECISIONS),
            initial_value=scene.settings.precision or AS_COMPUTED,
            disabled=not scene.can_choose,
        )
        budget = gui.add_number(
            "Budget, MB",
            (scene.settings.max_bytes or 0) / 1e6,
            min=0,
            step=0.1,
            disabled=not scene.can_choose,
            hint="0: no limit",
        )
        sizes = [
            gui.add_number(side, v, min=1, max=LARGEST, step=1)
            for side, v in zip(("Height, px", "Width, px"), scene.size, strict=True)
        ]

        def apply() -> None:
            if not all(1 <= side.value <= LARGEST for side in sizes):  # a browser may say anything
                height, width = (side.value for side in sizes)
                raise InputError(f"pictures of {height} x {width} pixels: expected 1 to {LARGEST}")
            chosen = Settings(
                None if precision.value == AS_COMPUTED else precision.value,
                round(budget.value * 1e6) or None,
                tuple(int(side.value) for side in sizes),
            )
            self._viewer.change(self._id, lambda scene: scene.keep(chosen))

        self._button("Apply, for all", apply, hint="encodes all photos in the cache anew")

    def _build_flights(self) -> None:
        gui = self._client.gui
        self._kind = gui.add_dropdown("Path", flights.KINDS)
        self._frames = gui.add_number("Frames", 60, min=1, max=flights.MOST_FRAMES, step=1)
        self._fps = gui.add_number("Frames a second", 30, min=1, max=flights.MOST_FPS, step=1)
        self._button("Add keyframe (K)", self._add_keyframe)
        self._command("K", "Add keyframe", self._add_keyframe)
        self._button("Drop keyframes", lambda: self._keyframes.clear())
        self._button("Preview (P)", lambda: self._alone(self._preview))
        self._command("P", "Preview of the path", lambda: self._alone(self._preview))
        self._progress = gui.add_progress_bar(0, visible=False)
        for name in ("film.mp4", "film.gif"):
            self._button(f"Make {name}", functools.partial(self._alone, self._film, name))
        self._button("Save path (nerfstudio .json)", self._save_path)
        upload = gui.add_upload_button("Open path (nerfstudio .json)", mime_type="application/json")
        self._on(upload.on_upload, lambda: self._open_path(upload.value.content))
        self._button("Snapshot .png", self._snapshot)
        self._button("Path as capture .zip", lambda: self._alone(self._capture))

    # Flights and files.

    def _here(self) -> Window:
        """Where the browser's camera is."""
        if self._window is None:
            raise InputError("the browser has not said yet where its camera stands")
        return self._window

    def _add_keyframe(self) -> None:
        self._keyframes.append(self._here())
        self._kind.value = flights.KEYFRAMES
        self._client.add_notification(
            f"Keyframe {len(self._keyframes)}", "The path goes through it.", auto_close_seconds=3
        )

    def _cameras(self) -> list[Camera]:
        """The path that is chosen."""
        scene, kind = self._viewer.scene, self._kind.value
        if kind == flights.FILE:
            return flights.read_flight(self._file, scene.size)
        windows = [self._here(), *self._keyframes]
        here, *stops = (Camera(*camera_of(each, scene.frame, scene.size)) for each in windows)
        return flights.flight(kind, scene, here.fxfycxcy, int(self._frames.value), stops)

    def _pictures(self, cameras: Sequence[Camera]) -> Iterator[Shown]:
        """Of a flight, one by one, between which the worker makes others' pictures."""
        views = self._views()
        for count, camera in enumerate(cameras, 1):
            if self.gone:
                raise InputError("the browser left")
            yield self._viewer.worker.call(
                self._id,
                lambda c=camera: self._viewer.scene.render(c.c2w, c.fxfycxcy, views),
            )
            self._progress.value = 100 * count / len(cameras)

    def _alone(self, action: Callable[..., None], *arguments: Any) -> None:
        """Does something that takes long, unless such a thing is under way."""
        if not self._busy.acquire(blocking=False):
            raise InputError("a path is under way already; wait for its end")
        try:
            self._progress.value, self._progress.visible = 0, True
            action(*arguments)
        finally:
            self._progress.visible = False
            self._busy.release()

    def _preview(self) -> None:
        due = time.monotonic()
        for shown in self._pictures(self._cameras()):
            due = max(due + 1 / self._fps.value, time.monotonic())
            time.sleep(max(0, due - time.monotonic()))
            self._send(shown, self._window)
        self._ask()

    def _film(self, name: str) -> None:
        pictures = (shown.image for shown in self._pictures(self._cameras()))
        self._download(name, flights.film(name, pictures, int(self._fps.value)))

    def _capture(self) -> None:
        cameras = self._cameras()
        pictures = (shown.image for shown in self._pictures(cameras))
        self._download("capture.zip", flights.capture(cameras, pictures))

    def _save_path(self) -> None:
        size, fps = self._viewer.scene.size, int(self._fps.value)
        self._download("path.json", flights.path_file(self._cameras(), size, fps))

    def _open_path(self, content: bytes) -> None:
        flights.read_flight(content, self._viewer.scene.size)  # an error is one now
        self._file, self._kind.options = content, (*flights.KINDS, flights.FILE)
        self._kind.value = flights.FILE

    def _snapshot(self) -> None:
        if self._last is None:
            raise InputError("no picture yet")
        file = io.BytesIO()
        Image.fromarray(self._last.image).save(file, "PNG")
        self._download("snapshot.png", file.getvalue())

    def _download(self, name: str, content: bytes) -> None:
        self._client.send_file_download(name, content, save_immediately=True)


def stand_at(scene: ViewedScene, photo: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """As `window.stand`, of a photo among all."""
    poses = np.stack([frame.c2w for frame in scene.photos])
    return stand(poses[photo], scene.frame, poses)
