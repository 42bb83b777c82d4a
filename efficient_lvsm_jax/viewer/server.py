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
from pathlib import Path

import cv2

from data_pipeline.formats import open_scenes
from data_pipeline.read_options import read_options
from data_pipeline.scenes import Scene, Scenes
from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.files.writing import first_line
from efficient_lvsm_jax.models.model import Model
from efficient_lvsm_jax.sessions.session import Session
from efficient_lvsm_jax.sessions.unposed import SeenFrame
from efficient_lvsm_jax.viewer.clip import Clip, open_clip
from efficient_lvsm_jax.viewer.scene import POINTS, Settings, ViewedScene
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
CLIP = "clip"  # who waits for its next frame, among clients

# It says so of every message to a browser that just left.
warnings.filterwarnings("ignore", message="Queued a .* on a closed connection")

log = logging.getLogger(__name__)


class Viewer:
    """A model, the scenes it can show, the one that it shows, and the pages that show it.

    Attributes:
      worker: the one thread in which the scene is used, and a clip is read.
      doing: what is done before there is anything to show, in words.
      scene: replaced as a whole when another is chosen; None before `begin`, and before a clip's
        cameras fix one.
      home: the camera that "Reset view" goes back to, of the server if it is open.
      thumbnails: of its photos, as JPEG in base64.
      names: of all scenes.
      clip: that is read, or was; None of scenes that have their cameras.
      trouble: that the clip had last, such as that it ended early.
    """

    def __init__(
        self,
        *,
        inputs: int | str | Sequence[int] | None = None,
        photos: int,
        settings: Settings,
    ):
        """Starts its thread, until `worker.stop`; arguments as of `ViewedScene`."""
        self.pages: dict[int, Page] = {}
        self._lock = threading.Lock()  # of the pages
        self._inputs, self._photos, self._settings = inputs, photos, settings
        self.doing, self.names = "starting", ()
        self.clip: Clip | None = None
        self.scene: ViewedScene | None = None
        self.home: viser.InitialCameraConfig | None = None
        self.thumbnails: list[str] = []
        self.trouble: Exception | None = None
        self.worker = Worker(self._failed)

    def say(self, doing: str) -> None:
        """Tells all pages what is being done until there is something to show."""
        self.doing = doing
        for page in self._all_pages():
            page.count()

    def begin(self, model: Model, scenes: Scenes | Clip, scene: str | None = None) -> None:
        """Compiles and encodes the first scene, and shows it; errors as of `ViewedScene`.

        A clip is read from then on, and as many of its keyframes as `inputs` says are inputs.
        """
        self._model, self._scenes = model, scenes
        if isinstance(scenes, Clip):
            settings = self._settings
            Session(model, size=settings.size, precision=settings.precision)  # or it says why not
            self.clip, self.names = scenes, (scenes.name,)
            together = "this model sees all at once, and shows nothing before"
            self.say(together if scenes.together else "looking for where they were taken")
            self.worker.show(CLIP, self._read)
            return
        self.names = scenes.names

        def command() -> None:
            self._open(scenes.find(scene or "0"), self._settings, True)
            for page in self._all_pages():
                page.begin()

        self.worker.call(None, command)

    def stand_at_home(self) -> None:
        """Puts `home` where pages begin: at the first input, or in the middle of those to come."""
        if self.home is None:
            return
        stand = (0, 0, 0), (0, 0, 1), (0, -1, 0)
        if self.scene is not None:
            stand = stand_at(self.scene, self.scene.chosen[0])
        self.home.position, self.home.look_at, self.home.up = stand

    def _open(self, index: int, settings: Settings, warm: bool) -> None:
        scene = ViewedScene(
            self._model,
            self._scenes[index],
            inputs=self._inputs,
            photos=self._photos,
            settings=settings,
            warm=warm,
        )
        self._take(scene)

    def _take(self, scene: ViewedScene) -> None:
        thumbnails = [scene.thumbnail(photo, THUMBNAIL) for photo in range(len(scene.photos))]
        self.scene, self.thumbnails = scene, [_jpeg(each) for each in thumbnails]
        self.stand_at_home()

    def _read(self) -> None:
        """Sees the next frame of the clip; what is a keyframe becomes a photo."""
        clip, scene = self.clip, self.scene
        clip.read()
        if scene is None and clip.can_start:
            self.say("compiling what shows them")
            self._take(self._started())
        if not clip.over:  # in turn with the pictures of browsers, as one of them
            self.worker.show(CLIP, self._read)
        new = [] if scene is None else clip.chosen[len(scene.photos) :]
        try:
            self._append(new)
        finally:
            for page in self._all_pages():
                if scene is not self.scene:
                    page.begin()
                else:
                    page.follow() if new else page.count()
        clip.check()

    def _started(self) -> ViewedScene:
        """The scene of the clip's first keyframes, with their points."""
        chosen = self.clip.chosen
        scene = ViewedScene(
            self._model,
            Scene(self.clip.name, tuple(seen.posed for seen in chosen)),
            inputs=range(len(chosen))[: self._inputs],
            photos=self._photos,
            settings=self._settings,
        )
        for seen in chosen:
            scene.add_points(seen.surest(self._points_each))
        return scene

    def _append(self, seen: Sequence[SeenFrame]) -> None:
        """Makes keyframes photos, and inputs. Raises InputError if there is no room for one."""
        for each in seen:
            photo = len(self.scene.photos)
            self.scene.append(each.posed, each.surest(self._points_each))
            self.thumbnails.append(_jpeg(self.scene.thumbnail(photo, THUMBNAIL)))
            if self._inputs is None or len(self.scene.chosen) < self._inputs:
                self.scene.toggle(photo)
        if seen:
            poses = [self.scene.photos[photo].c2w for photo in self.scene.chosen]
            frame = self.clip.keyframes.outgrown(self.scene.encoded_in, poses)
            if frame is not None:
                self.scene.encode_in(frame)

    @property
    def _points_each(self) -> int:
        return POINTS // min(self.clip.count, self._photos)

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
        if self.scene is None:  # says so at once, and not after the frame that is being seen
            page.begin()
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
            pages = [page for each, page in self.pages.items() if client in (each, CLIP)]
        if client == CLIP:
            self.trouble = error
            log.warning("%s", first_line(error))
        elif not pages and not isinstance(error, InputError):
            log.warning("%r", error)
        for page in pages:
            page.tell(error)
            if client == CLIP:
                page.count()


def _jpeg(image) -> str:
    _, data = cv2.imencode(".jpg", image[:, :, ::-1])
    return base64.b64encode(data).decode()


def view(arguments: argparse.Namespace) -> None:
    """Shows what the command line asks for until it is interrupted.

    Raises:
      InputError: no such capture, scene, weights or cache, or a port that is taken.
    """
    _check_port(arguments.host, arguments.port)
    if arguments.geometry is None:
        options, format = read_options(arguments)
        scenes = open_scenes(arguments.capture, options, format=format)
        name = scenes.names[scenes.find(arguments.scene or "0")]
    else:
        scenes, name = None, Path(arguments.capture).stem
    settings = Settings(arguments.cache, None, arguments.size)
    viewer = Viewer(inputs=arguments.count, photos=arguments.photos, settings=settings)
    try:
        with serving(viewer, arguments.host, arguments.port) as (address, port):
            print(f"{name}: open {address}")
            how = "whoever knows that address can look, and the connection is not encrypted"
            if _is_local(arguments.host):
                there = f"{getpass.getuser()}@{socket.gethostname()}"
                how = f"from another machine, first: ssh -N -L {port}:127.0.0.1:{port} {there}"
            print(how, flush=True)
            if scenes is None:
                viewer.say("looking through the pictures and loading what finds their cameras")
                scenes = open_clip(arguments)
            viewer.say("loading the model")
            model = load_renderer(arguments.weights, products=arguments.products)
            viewer.say("compiling")
            viewer.begin(model, scenes, arguments.scene)
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
        viewer.home = server.initial_camera
        viewer.stand_at_home()
        server.on_client_connect(viewer.connect)
        server.on_client_disconnect(viewer.disconnect)
        shown = socket.gethostname() if host in ("0.0.0.0", "::") else host
        shown = f"[{shown}]" if ":" in shown else shown
        yield f"http://{shown}:{found}/" + (f"?token={token}" if token else ""), found
    finally:
        viewer.home = None
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
