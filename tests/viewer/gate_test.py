"""Who gets in, and what a browser may say."""

import pytest

pytest.importorskip("viser", reason="the extra [viewer] is not installed")

import msgspec
from websockets.http11 import Headers, Request

from efficient_lvsm_jax.viewer.gate import CLIENTS, Gate, understood

CAMERA = {
    "type": "ViewerCameraMessage",
    "wxyz": [1.0, 0, 0, 0],
    "position": [0.0, 0, 0],
    "fov": 1.0,
    "near": 0.01,
    "far": 1000.0,
    "image_height": 800,
    "image_width": 1280,
    "look_at": [0.0, 0, 1],
    "up_direction": [0.0, -1, 0],
}


def status(gate, path="/", **headers):
    headers = Headers({name.replace("_", "-"): value for name, value in headers.items()})
    answer = gate.answer(Request(path, headers))
    return None if answer is None else answer.status_code


@pytest.mark.parametrize("host", ["127.0.0.1:8080", "localhost:9000", "[::1]:8080", "localhost"])
def test_this_machine_gets_in_under_its_own_names(host):
    assert status(Gate(None), Host=host) is None
    assert status(Gate(None), Host=host, Origin=f"http://{host}", Upgrade="websocket") is None


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Host": "evil.example"},
        {"Host": "evil.example:8080"},
        {"Host": "127.0.0.1.evil.example"},
        {"Host": "localhost:8080", "Origin": "http://evil.example"},
        {"Host": "localhost:8080", "Origin": "http://localhost:8081"},
        {"Host": "localhost:8080", "Origin": "null"},
    ],
)
def test_other_names_and_pages_of_other_origins_do_not(headers):
    assert status(Gate(None), **headers) == 403


def test_headers_that_cannot_be_read_are_refused():
    assert status(Gate(None), Host="[::1") == 400
    headers = Headers()
    headers["Host"], headers["Host"] = "localhost", "localhost"
    assert Gate(None).answer(Request("/", headers)).status_code == 400


def test_elsewhere_the_token_of_the_first_address_becomes_a_cookie():
    gate = Gate("secret")
    assert status(gate, Host="there:1") == 403
    assert status(gate, "/?token=secrets", Host="there:1") == 403
    answer = gate.answer(Request("/?token=secret", Headers(Host="there:1")))
    assert answer.status_code == 303 and answer.headers["Location"] == "/"
    cookie = answer.headers["Set-Cookie"]
    assert "HttpOnly" in cookie and "SameSite=Strict" in cookie
    assert status(gate, Host="there:1", Cookie=cookie.partition(";")[0]) is None
    assert status(gate, Host="there:1", Cookie="elvsm_view=other") == 403
    assert status(gate, Host="there:1", Cookie="elvsm_view=secret", Origin="http://evil") == 403


def test_a_page_that_may_get_in_is_told_that_the_viewer_is_alive():
    assert status(Gate(None), "/alive", Host="localhost") == 204
    assert status(Gate("secret"), "/alive", Host="there:1") == 403


def test_only_so_many_browsers_look_at_a_time():
    gate = Gate(None)
    gate.clients = CLIENTS
    assert status(gate, Host="localhost", Upgrade="websocket") == 503


def test_what_browsers_say_is_understood_and_what_they_never_say_is_passed_over():
    assert understood(msgspec.msgpack.encode(CAMERA))["fov"] == 1.0
    click = {"type": "GuiUpdateMessage", "uuid": "a", "updates": {"value": True}}
    assert understood(msgspec.msgpack.encode(click)) == click
    for unsaid in (
        {"type": "ShareUrlRequest"},
        {"type": "RunJavascriptMessage", "source": "alert(1)"},
        {"type": "GuiUpdateMessage", "uuid": "a", "updates": {"update_cb": None}},
    ):
        assert understood(msgspec.msgpack.encode(unsaid)) is None


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("wxyz", [0, 0, 0, 0]),
        ("wxyz", [1.0, 0, 0]),
        ("position", [float("nan"), 0, 0]),
        ("position", [1e30, 0, 0]),
        ("position", "here"),
        ("fov", 4.0),
        ("fov", None),
        ("image_height", 0),
        ("image_height", 10**9),
        ("image_width", 1.5),
    ],
)
def test_a_camera_that_cannot_be_is_an_error(field, value):
    with pytest.raises(ValueError, match=f"camera {field}"):
        understood(msgspec.msgpack.encode({**CAMERA, field: value}))


@pytest.mark.parametrize(
    "raw", ["text", b"", b"\xff\xff", b"\x93\x01\x02\x03", msgspec.msgpack.encode({"type": 3})]
)
def test_what_is_no_message_is_an_error(raw):
    with pytest.raises((ValueError, msgspec.DecodeError)):
        understood(raw)
