"""Starts the viewer, and what its browsers share: the scene, the thread, the list of pages."""

from __future__ import annotations

import argparse
import base64
import contextlib
import getpass
import io
import logging
import secrets
import socket
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence

import cv2

from data_pipeline.formats import open_scenes
from data_pipeline.read_options import read_options
from data_pipeline.scenes import Scenes
from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.models.model import Model
from efficient_lvsm_jax.viewer.scene import Settings, ViewedScene
from efficient_lvsm_jax.viewer.worker import Worker
from efficient_lvsm_jax.weights.load import load_renderer

try:
    import viser

    from efficient_lvsm_jax.viewer.gate import Gate, guarding
    from efficient_lvsm_jax.viewer.page import Page, stand_at
except ImportError as error:
    raise InputError(
        f"the viewer needs viser ({error}): pip install 'efficient-lvsm-jax[viewer]'"
    ) from error

THUMBNAIL = 64  # rows

# It says so of every message to a browser that just left.
warnings.filterwarnings("ignore", message="Queued a .* on a closed connection")

log = logging.getLogger(__name__)


class Viewer:
    """A model, the scenes it can show, the one that it shows, and the pages that show it.

    Attributes:
      worker: the one thread in which the scene is used.
      scene: replaced as a whole when another is chosen.
      thumbnails: of its photos, as JPEG in base64.
      names: of all scenes.
    """

    def __init__(
        self,
        model: Model,
        scenes: Scenes,
        *,
        scene: str | None = None,
        inputs: int | str | Sequence[int] | None = None,
        photos: int,
        settings: Settings,
    ):
        """Compiles and encodes the first scene; arguments and errors as of `ViewedScene`."""
        self.names = scenes.names
        self.pages: dict[int, Page] = {}
        self._lock = threading.Lock()  # of the pages
        self._model, self._scenes = model, scenes
        self._inputs, self._photos = inputs, photos
        self.worker = Worker(self._failed)
        self.scene: ViewedScene
        self.thumbnails: list[str]
        try:
            self.worker.call(None, lambda: self._open(scenes.find(scene or "0"), settings, True))
        except BaseException:
            self.worker.stop()
            raise

    def _open(self, index: int, settings: Settings, warm: bool) -> None:
        scene = ViewedScene(
            self._model,
            self._scenes[index],
            inputs=self._inputs,
            photos=self._photos,
            settings=settings,
            warm=warm,
        )
        thumbnails = [scene.thumbnail(photo, THUMBNAIL) for photo in range(len(scene.photos))]
        self.scene, self.thumbnails = scene, [_jpeg(each) for each in thumbnails]

    def open(self, client: int, name: str) -> None:
        """Shows another scene, to all; the same as before if it cannot be read."""

        def command() -> None:
            try:
                self._open(self._scenes.find(name), self.scene.settings, False)
            finally:
                for page in self._all_pages():
                    page.begin()

        self._do(client, command)

    def change(self, client: int, what: Callable[[ViewedScene], None]) -> None:
        """Changes the scene for all, whose pictures follow; those of another size begin anew."""

        def command() -> None:
            size = self.scene.size
            try:
                what(self.scene)
            finally:
                for page in self._all_pages():
                    page.follow() if self.scene.size == size else page.begin()

        self._do(client, command)

    def _do(self, client: int, command: Callable[[], None]) -> None:
        for page in self._all_pages():
            page.wait()
        self.worker.do(client, command)

    def connect(self, client: viser.ClientHandle) -> None:
        """Gives a browser its page."""
        page = Page(self, client)
        with self._lock:
            self.pages[client.client_id] = page
        self.worker.do(client.client_id, page.begin)

    def disconnect(self, client: viser.ClientHandle) -> None:
        """Forgets a browser."""
        with self._lock:
            page = self.pages.pop(client.client_id, None)
        if page is not None:
            page.gone = True
        self.worker.forget(client.client_id)

    def _all_pages(self) -> list[Page]:
        with self._lock:
            return list(self.pages.values())

    def _failed(self, client: int, error: Exception) -> None:
        with self._lock:
            page = self.pages.get(client)
        if page is not None:
            page.tell(error)
        elif not isinstance(error, InputError):
            log.warning("%r", error)


def _jpeg(image) -> str:
    _, data = cv2.imencode(".jpg", image[:, :, ::-1])
    return base64.b64encode(data).decode()


def view(arguments: argparse.Namespace) -> None:
    """Shows what the command line asks for until it is interrupted.

    Raises:
      InputError: no such capture, scene, weights or cache, or a port that is taken.
    """
    options, format = read_options(arguments)
    scenes = open_scenes(arguments.capture, options, format=format)
    _check_port(arguments.host, arguments.port)
    viewer = Viewer(
        load_renderer(arguments.weights),
        scenes,
        scene=arguments.scene,
        inputs=arguments.count,
        photos=arguments.photos,
        settings=Settings(arguments.cache, None, arguments.size),
    )
    try:
        with serving(viewer, arguments.host, arguments.port) as (address, port):
            print(f"{viewer.scene.name}: open {address}")
            how = "whoever knows that address can look, and the connection is not encrypted"
            if _is_local(arguments.host):
                there = f"{getpass.getuser()}@{socket.gethostname()}"
                how = f"from another machine, first: ssh -N -L {port}:127.0.0.1:{port} {there}"
            print(how, flush=True)
            threading.Event().wait()
    finally:
        viewer.worker.stop()


@contextlib.contextmanager
def serving(viewer: Viewer, host: str, port: int) -> Iterator[tuple[str, int]]:
    """Serves pages while it is open; gives the address to open, and the port.

    Args:
      viewer: what they show.
      host: to listen on; with another than this machine's own, a token is asked for.
      port: 0 is any free one.

    Raises:
      InputError: the port is taken, or no such host.
    """
    _check_port(host, port)
    token = None if _is_local(host) else secrets.token_urlsafe(16)
    with guarding(Gate(token)), contextlib.redirect_stdout(io.StringIO()):  # its own banner
        server = viser.ViserServer(host=host, port=port, label="elvsm view", verbose=False)
    try:
        found = server.get_port()
        if port not in (0, found):
            raise InputError(f"--port {port}: is taken; choose another, or 0 for any free one")
        server.gui.configure_theme(
            dark_mode=True, show_logo=False, show_share_button=False, control_width="medium"
        )
        server.gui.main_panel.dock_right()  # beside the picture, not over it
        start = server.initial_camera  # that "Reset view" goes back to
        start.position, start.look_at, start.up = stand_at(viewer.scene, viewer.scene.chosen[0])
        server.on_client_connect(viewer.connect)
        server.on_client_disconnect(viewer.disconnect)
        shown = socket.gethostname() if host in ("0.0.0.0", "::") else host
        shown = f"[{shown}]" if ":" in shown else shown
        yield f"http://{shown}:{found}/" + (f"?token={token}" if token else ""), found
    finally:
        with contextlib.redirect_stdout(io.StringIO()):
            server.stop()


def _is_local(host: str) -> bool:
    return host in ("127.0.0.1", "localhost", "::1")


def _check_port(host: str, port: int) -> None:
    """Refuses a port that is taken, instead of which viser would take another one."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        with socket.socket(family, socket.SOCK_STREAM) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind((host, port))
    except OSError as error:
        raise InputError(
            f"--host {host} --port {port}: cannot listen there ({error.strerror}); choose another "
            "port, or 0 for any free one"
        ) from error
