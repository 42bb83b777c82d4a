"""Who may talk to the viewer, and what a browser may say.

viser answers whoever asks, from any page and under any name of this machine, and takes any of its
messages; so its one call of `websockets.serve` is given these checks (`guarding`).
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import http
import logging
import math
from collections.abc import Awaitable, Callable, Iterator
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qs, urlsplit

import msgspec
import websockets.asyncio.server
from websockets.asyncio.server import ServerConnection
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Headers, Request, Response

LOOPBACK = ("127.0.0.1", "localhost", "::1")
CLIENTS = 16  # at a time
MOST_BYTES = 2**20  # of a message
MOST_UPLOADED = 32 * 2**20  # by a client
COOKIE = "elvsm_view"
ALIVE = "/alive"  # a path that a page asks for to know whether the viewer is there
SPOKEN = {  # what a browser may say, and the fields that it must have
    "ViewerCameraMessage": ("wxyz", "position", "fov", "image_height", "image_width"),
    "GuiUpdateMessage": ("uuid", "updates"),
    "CommandTriggerMessage": ("uuid",),
    "SceneNodeClickMessage": ("name",),
    "FileTransferStartUpload": ("transfer_uuid",),
    "FileTransferPart": ("transfer_uuid", "content"),
}
WIDEST = 20_000  # pixels of a window

log = logging.getLogger(__name__)


class Gate:
    """Decides about requests and messages.

    On the loopback device a request must name this machine as that, so that no page of another
    name that resolves to it gets in. Elsewhere it must know the token: in the first address, which
    puts it into a cookie. In both cases pages of other origins are refused.
    """

    def __init__(self, token: str | None):
        """`token` is None on the loopback device."""
        self._token = token
        self.clients = 0

    def answer(self, request: Request) -> Response | None:
        """A refusal, a redirection that leaves a cookie, or ALIVE; None lets the request pass."""
        try:
            host, origin = request.headers.get("Host", ""), request.headers.get("Origin")
            address, name = urlsplit(request.path), urlsplit(f"//{host}").hostname
            if origin is not None and urlsplit(origin).netloc != host:
                return _refused("a page of another origin")
            if self._token is None:
                if name not in LOOPBACK:
                    return _refused(f"Host {host!r}: expected one of {', '.join(LOOPBACK)}")
            elif hmac.compare_digest(
                parse_qs(address.query).get("token", [""])[0].encode(), self._token.encode()
            ):
                cookie = f"{COOKIE}={self._token}; HttpOnly; SameSite=Strict; Path=/"
                headers = Headers(Location="/", **{"Set-Cookie": cookie, "Content-Length": "0"})
                return Response(http.HTTPStatus.SEE_OTHER, "See Other", headers)
            elif not self._knows_token(request.headers.get("Cookie", "")):
                return _refused("no valid token; open the address that elvsm view printed")
        except (LookupError, ValueError):  # a header twice, or one that is none
            return _refused("headers that cannot be read", http.HTTPStatus.BAD_REQUEST)
        if request.headers.get("Upgrade") and self.clients >= CLIENTS:
            what = f"{CLIENTS} browsers look already"
            return _refused(what, http.HTTPStatus.SERVICE_UNAVAILABLE)
        if address.path == ALIVE:
            return Response(http.HTTPStatus.NO_CONTENT, "No Content", Headers())
        return None

    def _knows_token(self, header: str) -> bool:
        try:
            cookie = SimpleCookie(header).get(COOKIE)
        except CookieError:
            return False
        return cookie is not None and hmac.compare_digest(
            cookie.value.encode(), self._token.encode()
        )


def _refused(why: str, status: http.HTTPStatus = http.HTTPStatus.FORBIDDEN) -> Response:
    body = f"elvsm view: {why}\n".encode()
    headers = Headers({"Content-Type": "text/plain", "Content-Length": str(len(body))})
    return Response(status, status.phrase, headers, body)


def understood(raw: Any) -> dict | None:
    """A browser's message, or None of what it has no reason to say.

    Raises:
      ValueError: no message at all, or a camera that cannot be.
    """
    if not isinstance(raw, bytes):
        raise ValueError("text")
    message = msgspec.msgpack.decode(raw)
    kind = message.get("type") if isinstance(message, dict) else None
    if not isinstance(kind, str):
        raise ValueError("no message")
    if kind not in SPOKEN:
        return None
    if missing := [field for field in SPOKEN[kind] if field not in message]:
        raise ValueError(f"{kind} without {missing[0]}")
    if kind == "ViewerCameraMessage":
        _check_camera(message)
    if kind == "GuiUpdateMessage":
        updates = message["updates"]
        if not isinstance(message["uuid"], str) or not isinstance(updates, dict):
            raise ValueError(f"{kind} of another form")
        if set(updates) != {"value"}:  # viser would set any attribute
            return None
    return message


def _check_camera(message: dict) -> None:
    for field, count in (("wxyz", 4), ("position", 3), ("look_at", 3), ("up_direction", 3)):
        values = message.get(field)
        if not isinstance(values, list) or len(values) != count or not all(map(_finite, values)):
            raise ValueError(f"camera {field}")
    if not any(message["wxyz"]):
        raise ValueError("camera wxyz")
    if not _finite(message["fov"]) or not 0 < message["fov"] < math.pi:
        raise ValueError("camera fov")
    for field in ("image_height", "image_width"):
        if type(message[field]) is not int or not 0 < message[field] <= WIDEST:
            raise ValueError(f"camera {field}")


def _finite(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < 1e12


Handler = Callable[[ServerConnection], Awaitable[None]]


@contextlib.contextmanager
def guarding(gate: Gate) -> Iterator[None]:
    """Servers that are started within ask the gate."""
    serve = websockets.asyncio.server.serve

    def guarded(handler: Handler, *args: Any, process_request: Any, **options: Any) -> Any:
        def process(connection: ServerConnection, request: Request) -> Response | None:
            if (answer := gate.answer(request)) is not None:
                return answer
            response = process_request(connection, request)
            if response is not None:
                response.headers["X-Frame-Options"] = "DENY"
                response.headers["Referrer-Policy"] = "no-referrer"
            return response

        async def listen(connection: ServerConnection) -> None:
            asyncio.get_running_loop().set_exception_handler(_say)
            gate.clients += 1
            connection.recv = _filtered(connection)
            try:
                await handler(connection)
            except Exception as error:
                log.warning("a browser was sent away: %r", error)
            finally:
                gate.clients -= 1

        options |= {"max_size": MOST_BYTES, "close_timeout": 1}  # for who is sent away
        return serve(listen, *args, process_request=process, **options)

    websockets.asyncio.server.serve = guarded
    try:
        yield
    finally:
        websockets.asyncio.server.serve = serve


def _filtered(connection: ServerConnection) -> Callable[[], Awaitable[bytes]]:
    """`recv` of a connection, without what a browser has no reason to say."""
    receive, uploaded = connection.recv, 0

    async def recv() -> bytes:
        nonlocal uploaded
        while True:
            raw = await receive()
            try:
                message = understood(raw)
                if message is not None and message["type"] == "FileTransferPart":
                    uploaded += len(raw)
                    if uploaded > MOST_UPLOADED:
                        raise ValueError(f"uploads of more than {MOST_UPLOADED} bytes")
            except (ValueError, RecursionError, msgspec.DecodeError) as error:
                with contextlib.suppress(ConnectionClosed):
                    await connection.close(1008, "not understood")
                log.warning("a browser was sent away, as it said what none says: %s", error)
                continue  # raises that it is closed
            if message is not None:
                return raw

    return recv


def _say(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """One line of an error in a message's task, instead of a traceback for each."""
    log.warning("a browser's message failed: %r", context.get("exception", context["message"]))
