"""What one browser shows: the picture for its camera, the strip of photos, the controls.

viser calls back in threads of its own, which only ask the worker for things; whatever touches the
scene runs in the worker's thread.
"""

from __future__ import annotations

import dataclasses
import functools
import html
import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import viser

from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.files.writing import first_line
from efficient_lvsm_jax.nn.paged import PRECISIONS
from efficient_lvsm_jax.viewer.gate import ALIVE
from efficient_lvsm_jax.viewer.layers import Layers
from efficient_lvsm_jax.viewer.path_controls import PathControls
from efficient_lvsm_jax.viewer.scene import Settings, Shown, ViewedScene
from efficient_lvsm_jax.viewer.strip import go_label, strip, toggle_label
from efficient_lvsm_jax.viewer.window import Window, camera_of, fov_of, framed, stand

if TYPE_CHECKING:
    from efficient_lvsm_jax.viewer.server import Viewer

SLOW = 0.25  # seconds of a picture from which a page says that it is being rendered
MOVED = 1e-3  # of the scene's extent: no longer at a photo
ANGLE = 1e-3  # radians that a browser's field of view may differ from what it was given
KEYS = "1234567890"  # of the first photos
UNKNOWN = 3, 4  # the shape of pictures of which there are none yet, height and width
LARGEST = 2048  # rows or columns of pictures
READS = ("all green photos", "the nearest of them")
AS_COMPUTED = "as computed"
SAID = """
<div id="said" style="padding:0.1em 0.9em 0.4em;font-size:0.86em;line-height:1.5">
<div id="badge">{badge}</div>
<div id="hint" style="color:{colour};min-height:1.5em">{hint}</div></div>
"""
WARNING, HELP = "#ffa94d", "#909296"
# viser's sheet on a phone lies over the picture, to the right: here under it, where there is room,
# and its bar says what stands in SAID.
ON_A_PHONE = """
<style>@media (max-width: 36em) {{
 .mantine-Paper-root[style*="20em"] {{ width: 100vw !important;
  max-height: max(14em, (100vh - 100vw * {height} / {width}) / 2) !important }}
 .mantine-Paper-root[style*="20em"] [style*="20em"] {{ width: 100vw !important }}
 #said {{ display: none }}
}}</style>
"""
# viser's page tries to connect once a second and gives up the try before; Chromium lets a page that
# failed some thirty times wait for longer than that, so it would never come back by itself.
COMES_BACK = f"""
<img alt="" style="display:none" src="data:," onerror="window.watch ??= setInterval(async () => {{
 try {{ await fetch('{ALIVE}', {{cache: 'no-store'}}); window.away && location.reload() }}
 catch {{ window.away = true }}
}}, 2000)">
"""

log = logging.getLogger(__name__)


class Page:
    """One browser; it holds its camera and what is set for it alone.

    Attributes:
      viewer: what all pages share.
      client: viser's side of the browser.
      id: of the client, by which the worker knows it.
      gone: the browser left, so that what is being made for it may end.
      window: its camera, once it has said it.
      last: the picture that it was sent last.
      playing: whether it shows a path, and not what its camera sees.
      layers: over the picture.
    """

    def __init__(self, viewer: Viewer, client: viser.ClientHandle):
        """Made when a browser comes; `begin` fills it, in the worker's thread."""
        self.gone = False
        self.viewer, self.client, self.id = viewer, client, client.client_id
        self.window: Window | None = None
        self._fov: float | None = None  # that the browser was given
        self._at: int | None = None  # the photo whose camera is looked through
        self._arrived = False  # there: a browser reports other cameras on its way
        self._seconds = np.inf  # of the last picture; of none yet, it may be long
        self.last: Shown | None = None
        self.playing = False
        self.layers = Layers(client)
        self._paths = PathControls(self)
        self._said: viser.GuiHtmlHandle | None = None  # badge and hint, from `begin` on
        self._speed = ""  # in words
        self._ready = False  # `begin` is through
        client.camera.on_update(self._moved)

    # In the worker's thread.

    def begin(self) -> None:
        """Builds all of the page for the scene that is shown, and stands at its first input."""
        if self.gone:
            return
        self._ready, self._seconds = False, np.inf
        gui, scene = self.client.gui, self.viewer.scene
        gui.reset()
        self.client.scene.reset()
        self._at, self.layers = None, Layers(self.client)
        gui.add_html(COMES_BACK)
        height, width = UNKNOWN if scene is None else scene.size
        gui.add_html(ON_A_PHONE.format(height=height, width=width))
        self._said = gui.add_html(SAID.format(badge="", hint="", colour=HELP))
        if scene is None:
            self.count()
            return
        if len(self.viewer.names) > 1:
            names = gui.add_dropdown("Scene", self.viewer.names, initial_value=scene.name)
            self.on(names.on_update, lambda: self.viewer.open(self.id, names.value))
        self._build_photos()
        self._build_camera()
        with gui.add_folder("Cache", expand_by_default=False):
            self._build_cache()
        with gui.add_folder("Path and files", expand_by_default=False):
            self._paths.build()
        self._numbers = gui.add_folder("Photos by number", expand_by_default=False)
        self._show_photos()
        self._to_start()
        self._ready = True
        self._look(self.client.camera)  # a browser that stands there already reports nothing
        self._show_points()
        if self.viewer.trouble is not None:
            self.tell(self.viewer.trouble)

    def follow(self) -> None:
        """Shows what became of the scene: strip, truth and, for the same camera, a new picture."""
        if self.gone or not self._ready:
            return
        self._show_photos()
        self._show_points()
        if self._at is not None:
            self._compare(self._at)
        self.ask()

    def count(self) -> None:
        """Says what is done, or how many frames are read; without a place yet, shows the last."""
        if self.gone or self._said is None:
            return
        if self._ready:
            self._say(self._speed)
            return
        clip, camera = self.viewer.clip, self.client.camera
        if clip is None:
            self._write(f"{self.viewer.doing}…", "", HELP)
            return
        if clip.picture is not None:
            window = Window(
                camera.wxyz, camera.position, camera.fov, camera.aspect, camera.image_height
            )
            image = framed(clip.picture, window)
            self.client.scene.set_background_image(image, format="jpeg")
        if self.viewer.trouble is None:
            self._write(f"{clip}: {self.viewer.doing}", "", HELP)
        else:
            self._write(str(clip), str(self.viewer.trouble), WARNING)

    def _picture(self, window: Window) -> None:
        """Renders and sends the picture of a window."""
        scene = self.viewer.scene
        camera = camera_of(window, scene.frame, scene.size)
        self.send(scene.render(*camera, self.views()), window)

    def send(self, shown: Shown, window: Window) -> None:
        """Shows a picture in a window, which says its shape."""
        if self.gone:
            return
        start = time.perf_counter()
        image = framed(shown.image, window)
        self.client.scene.set_background_image(image, format="jpeg", jpeg_quality=90)
        self._seconds, self.last = shown.seconds + time.perf_counter() - start, shown
        self._say(f"{1 / self._seconds:.0f} fps" if self._seconds < 1 else f"{self._seconds:.1f} s")
        self.client.flush()

    def _say(self, speed: str) -> None:
        """The badge: the last change, how many views, their bytes, how fast; and the hint."""
        scene, self._speed = self.viewer.scene, speed
        count = len(scene.chosen)
        read = "" if self.viewer.clip is None else str(self.viewer.clip)
        parts = [read, scene.change, f"{count} view{'s' * (count != 1)}"]
        if scene.can_choose:
            parts.append(f"{scene.cache_bytes / 1e6:.3g} MB")
        hint, colour = "", WARNING
        if not count:
            hint = "No photo is in the cache: click one."
        elif self.last is not None and self.last.unseen:
            hint = "Hardly seen by the cached photos: made up."
        elif not scene.change:
            hint, colour = "Click a photo to use it; drag to look around.", HELP
        self._write(", ".join(filter(None, [*parts, speed])), hint, colour)

    def _write(self, badge: str, hint: str, colour: str) -> None:
        content = SAID.format(badge=html.escape(badge), hint=html.escape(hint), colour=colour)
        if content != self._said.content:
            self._said.content = content
            if self.client.camera.aspect < 1:
                self.client.gui.set_panel_label(hint or badge)

    def _show_photos(self) -> None:
        scene = self.viewer.scene
        for photo in range(len(self.layers.frusta), len(scene.photos)):
            self._add_photo(photo)
            self._goal.max, self._nearest.max = len(scene.photos), max(2, len(scene.photos))
        self._strip.content = strip(scene, self.viewer.thumbnails)
        self.layers.colour(scene.chosen)

    def _show_points(self) -> None:
        """Sends the points that the browser has not got yet, if they are to be shown."""
        if self.gone or not self._ready:
            return
        if self._points_shown.value:
            try:
                self.layers.add_points(self.viewer.scene.clouds())
            except InputError:
                self._points_shown.value = False
                raise
        self.show_layers()

    def _compare(self, photo: int) -> None:
        _, truth, psnr = self.viewer.scene.compare(photo)
        shape = dataclasses.replace(self.here(), aspect=truth.shape[1] / truth.shape[0])
        self._truth.image = framed(truth, shape)
        among = " (it is in the cache)" if photo in self.viewer.scene.chosen else ""
        self._truth.label = f"Photo {photo + 1}: {psnr:.1f} dB{among}"
        self._truth.visible = True

    # In viser's threads.

    async def _moved(self, camera: viser.CameraHandle) -> None:
        if self._ready:
            self._look(camera)  # on the event loop, so that the order of cameras stays

    def _look(self, camera: viser.CameraHandle) -> None:
        before, scene = self.window, self.viewer.scene
        if before is not None and before.aspect != camera.aspect:  # the picture shows as much
            _, lens = camera_of(before, scene.frame, scene.size)
            self._fov = camera.fov = fov_of(lens, scene.size, camera.aspect)
        elif self._fov is not None and abs(camera.fov - self._fov) > ANGLE:
            camera.fov = self._fov  # it took viser's own, as it does when it starts or resets
        self.window = Window(
            camera.wxyz, camera.position, camera.fov, camera.aspect, camera.image_height
        )
        if self._at is not None:
            there = self.layers.apart(self._at, camera.position) < MOVED
            if self._arrived and not there:
                self._at, self._truth.visible = None, False
            self._arrived = there
        self.show_layers()
        self.ask()

    def here(self) -> Window:
        """Where the browser's camera is."""
        if self.window is None:
            raise InputError("the browser has not said yet where its camera stands")
        return self.window

    def ask(self) -> None:
        """Wants a new picture for its camera."""
        if (window := self.window) is None or self.playing:
            return
        self.wait()
        self.viewer.worker.show(self.id, functools.partial(self._picture, window))

    def wait(self) -> None:
        """Says that a picture is being made, where that takes a while."""
        if self._ready and self._seconds > SLOW:
            self._say("rendering…")

    def tell(self, error: Exception) -> None:
        """A notice of what went wrong; what is no mistake of the user's is logged as well."""
        text = str(error) if isinstance(error, InputError) else f"unexpected: {first_line(error)}"
        if not isinstance(error, InputError):
            log.warning("%r", error)
        self.client.add_notification(
            "That did not work", text, color="orange", auto_close_seconds=10
        )

    def on(self, event: Callable[[Callable], Any], action: Callable[[], None]) -> None:
        """Does something at an event of a control; an error is a notice."""

        def handle(_: Any) -> None:
            try:
                action()
            except Exception as error:
                self.tell(error)

        event(handle)

    def button(
        self, label: str, action: Callable[[], None], hint: str | None = None
    ) -> viser.GuiButtonHandle:
        """Adds a button."""
        button = self.client.gui.add_button(label, hint=hint, color="gray")
        self.on(button.on_click, action)
        return button

    def command(self, key: str, label: str, action: Callable[[], None]) -> None:
        """Adds a key."""
        self.on(self.client.gui.add_command(label, hotkey=key).on_trigger, action)

    def views(self) -> str:
        """Which photos in the cache its pictures read, as of `ViewedScene.render`."""
        return f"nearest:{self._nearest.value}" if self._reads.value != READS[0] else "all"

    # The controls.

    def _build_photos(self) -> None:
        gui = self.client.gui
        self._strip = gui.add_html("")
        self._truth = gui.add_image(np.zeros((8, 8, 3), np.uint8), label="Photo", visible=False)
        swap = functools.partial(self.viewer.change, self.id, ViewedScene.swap)
        self.button("Before or after the last change (X)", swap, hint="back, and forth again")
        self.command("X", "Before or after the last change", swap)

    def _add_photo(self, photo: int) -> None:
        """Its frustum, the buttons that the strip presses, and of the first ones the key."""
        toggle = functools.partial(self._toggle, photo)
        self.on(self.layers.add_camera(self.viewer.scene).on_click, toggle)
        with self._numbers:
            self.button(toggle_label(photo), toggle)
            self.button(go_label(photo), functools.partial(self._go, photo))
        if photo < len(KEYS):
            self.command(KEYS[photo], f"Photo {photo + 1} in or out", toggle)

    def _toggle(self, photo: int) -> None:
        self.viewer.change(self.id, lambda scene: scene.toggle(photo))

    def _build_camera(self) -> None:
        gui, scene = self.client.gui, self.viewer.scene
        self._goal = gui.add_slider("Photo", min=1, max=len(scene.photos), step=1, initial_value=1)
        self.button("Go to this photo (G)", lambda: self._go(int(self._goal.value) - 1))
        self.command("G", "Go to the photo chosen", lambda: self._go(int(self._goal.value) - 1))
        self.button("Back to start (H)", self._to_start)
        self.command("H", "Back to start", self._to_start)
        self._cameras_shown = gui.add_checkbox("Show cameras", initial_value=True)
        self.on(self._cameras_shown.on_update, self.show_layers)
        self._points_shown = gui.add_checkbox(
            "Show points", self.viewer.clip is not None, visible=scene.has_points
        )
        show_points = functools.partial(self.viewer.worker.do, self.id, self._show_points)
        self.on(self._points_shown.on_update, show_points)
        most = max(2, len(scene.photos))
        self._reads = gui.add_dropdown("Made from", READS, disabled=not scene.can_choose)
        self._nearest = gui.add_slider(
            "How many", min=1, max=most, step=1, initial_value=min(4, most), visible=False
        )

        def choose() -> None:
            self._nearest.visible = self._reads.value != READS[0]
            self.ask()

        self.on(self._reads.on_update, choose)
        self.on(self._nearest.on_update, self.ask)

    def show_layers(self) -> None:
        """Shows points, and the photos' cameras but those that stand in the way.

        On a path there is none: they would lie where the browser's own camera sees them.
        """
        if not self._ready:
            return
        self.layers.show(
            lambda: (
                self._cameras_shown.value and not self.playing,
                self._points_shown.value and not self.playing,
            ),
            np.inf if self.window is None else self.window.position,
        )

    def _go(self, photo: int) -> None:
        self._at, self._arrived = photo, self.layers.apart(photo, self.here().position) < MOVED
        self._stand_at(photo)
        self.viewer.worker.do(self.id, functools.partial(self._compare, photo))

    def _to_start(self) -> None:
        self._stand_at((self.viewer.scene.chosen or [0])[0])

    def _stand_at(self, photo: int) -> None:
        scene, camera = self.viewer.scene, self.client.camera
        position, look_at, up = stand_at(scene, photo)
        with self.client.atomic():
            camera.up_direction = up
            camera.position = position
            camera.look_at = look_at
            self._fov = camera.fov = fov_of(scene.intrinsics(photo), scene.size, camera.aspect)

    def _build_cache(self) -> None:
        gui, scene = self.client.gui, self.viewer.scene
        precision = gui.add_dropdown(
            "Precision",
            (AS_COMPUTED, *PRECISIONS),
            initial_value=scene.settings.precision or AS_COMPUTED,
            disabled=not scene.can_choose,
        )
        budget = gui.add_number(
            "Budget, MB (0: none)",
            (scene.settings.max_bytes or 0) / 1e6,
            min=0,
            step=0.1,
            disabled=not scene.can_choose,
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
            self.viewer.change(self.id, lambda scene: scene.keep(chosen))

        self.button("Apply (for all who look)", apply, hint="encodes all photos in the cache anew")


def stand_at(scene: ViewedScene, photo: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """As `window.stand`, of a photo among all."""
    poses = np.stack([frame.c2w for frame in scene.photos])
    return stand(poses[photo], scene.frame, poses)
