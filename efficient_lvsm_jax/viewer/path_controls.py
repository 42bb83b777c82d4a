"""The controls of one browser's paths: flights, films of them, and files in and out."""

from __future__ import annotations

import functools
import io
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from PIL import Image

from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.viewer import flights
from efficient_lvsm_jax.viewer.flights import Camera
from efficient_lvsm_jax.viewer.scene import Shown
from efficient_lvsm_jax.viewer.window import Window, camera_of

if TYPE_CHECKING:
    from efficient_lvsm_jax.viewer.page import Page


class PathControls:
    """What a page shows under "Path and files"; it runs in viser's threads."""

    def __init__(self, page: Page):
        """`build` fills it."""
        self._page = page
        self._busy = threading.Lock()  # while a flight is made or played

    def build(self) -> None:
        """Adds the controls, without keyframes or a file."""
        # Windows and the file's text: cameras are in pixels, and pictures may get another size.
        self._keyframes: list[Window] = []
        self._file = b""
        gui = self._page.client.gui
        self._kind = gui.add_dropdown("Path", flights.KINDS)
        self._frames = gui.add_number("Frames", 60, min=1, max=flights.MOST_FRAMES, step=1)
        self._fps = gui.add_number("Frames a second", 30, min=1, max=flights.MOST_FPS, step=1)
        self._page.button("Add keyframe (K)", self._add_keyframe)
        self._page.command("K", "Add keyframe", self._add_keyframe)
        self._drop = self._page.button("Drop keyframes", self._drop_keyframes)
        self._page.button("Preview (P)", lambda: self._alone(self._preview))
        self._page.command("P", "Preview of the path", lambda: self._alone(self._preview))
        self._progress = gui.add_progress_bar(0, visible=False)
        for name in ("film.mp4", "film.gif"):
            self._page.button(f"Make {name}", functools.partial(self._alone, self._film, name))
        self._page.button("Save path (nerfstudio .json)", self._save_path)
        upload = gui.add_upload_button(
            "Open path (nerfstudio .json)", mime_type="application/json", color="gray"
        )
        self._page.on(upload.on_upload, lambda: self._open_path(upload.value.content))
        self._page.button("Snapshot .png", self._snapshot)
        self._page.button("Path as capture .zip", lambda: self._alone(self._capture))

    def _add_keyframe(self) -> None:
        self._keyframes.append(self._page.here())
        self._kind.value = flights.KEYFRAMES
        self._drop.label = f"Drop keyframes ({len(self._keyframes)})"
        self._page.client.add_notification(
            f"Keyframe {len(self._keyframes)}", "The path goes through it.", auto_close_seconds=3
        )

    def _drop_keyframes(self) -> None:
        self._keyframes.clear()
        self._drop.label = "Drop keyframes"

    def _cameras(self) -> list[Camera]:
        """The path that is chosen."""
        scene, kind = self._page.viewer.scene, self._kind.value
        if kind == flights.FILE:
            return flights.read_flight(self._file, scene.size)
        windows = [self._page.here(), *self._keyframes]
        here, *stops = (Camera(*camera_of(each, scene.frame, scene.size)) for each in windows)
        return flights.flight(kind, scene, here.fxfycxcy, int(self._frames.value), stops)

    def _pictures(self, cameras: Sequence[Camera]) -> Iterator[Shown]:
        """Of a flight, one by one, between which the worker makes others' pictures."""
        views = self._page.views()
        for count, camera in enumerate(cameras, 1):
            if self._page.gone:
                raise InputError("the browser left")
            yield self._page.viewer.worker.call(
                self._page.id,
                lambda c=camera: self._page.viewer.scene.render(c.c2w, c.fxfycxcy, views),
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
        self._page.playing = True
        try:
            self._page.show_layers()
            for shown in self._pictures(self._cameras()):
                time.sleep(max(0, due - time.monotonic()))
                self._page.send(shown, self._page.window)
                due = max(due, time.monotonic()) + 1 / self._fps.value
            time.sleep(max(0, due - time.monotonic()))
        finally:
            self._page.playing = False
            self._page.show_layers()
            self._page.ask()

    def _film(self, name: str) -> None:
        pictures = (shown.image for shown in self._pictures(self._cameras()))
        self._download(name, flights.film(name, pictures, int(self._fps.value)))

    def _capture(self) -> None:
        cameras = self._cameras()
        pictures = (shown.image for shown in self._pictures(cameras))
        self._download("capture.zip", flights.capture(cameras, pictures))

    def _save_path(self) -> None:
        size, fps = self._page.viewer.scene.size, int(self._fps.value)
        self._download("path.json", flights.path_file(self._cameras(), size, fps))

    def _open_path(self, content: bytes) -> None:
        flights.read_flight(content, self._page.viewer.scene.size)  # an error is one now
        self._file, self._kind.options = content, (*flights.KINDS, flights.FILE)
        self._kind.value = flights.FILE

    def _snapshot(self) -> None:
        if self._page.last is None:
            raise InputError("no picture yet")
        file = io.BytesIO()
        Image.fromarray(self._page.last.image).save(file, "PNG")
        self._download("snapshot.png", file.getvalue())

    def _download(self, name: str, content: bytes) -> None:
        self._page.client.send_file_download(name, content, save_immediately=True)
