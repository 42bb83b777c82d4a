"""The server: what hostile programs can do to it, ports, and what is said without viser."""

import contextlib
import http.client
import logging
import random
import socket
import time

import pytest

pytest.importorskip("viser", reason="the extra [viewer] is not installed")

import msgspec
import viser
import zstandard
from gate_test import CAMERA
from noise_capture import noise_viewer
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from efficient_lvsm_jax import InputError
from efficient_lvsm_jax.viewer.gate import understood
from efficient_lvsm_jax.viewer.server import serving
from efficient_lvsm_jax.viewer.window import fov_of

PROTOCOL = f"viser-v{viser.__version__}"
NO_VALUES = (None, 0, -1, 1e308, "x", "x" * 10_000, [], [1] * 1000, {}, {"value": 3}, True)
SAID = (
    CAMERA,
    {"type": "GuiUpdateMessage", "uuid": "", "updates": {"value": 1}},
    {"type": "CommandTriggerMessage", "uuid": ""},
    {
        "type": "SceneNodeClickMessage",
        "name": "/photos/1",
        "instance_index": None,
        "ray_origin": [0.0, 0, 0],
        "ray_direction": [0.0, 0, 1],
        "screen_pos": [0.5, 0.5],
        "modifier": None,
    },
    {
        "type": "FileTransferStartUpload",
        "source_component_uuid": "",
        "transfer_uuid": "a",
        "filename": "path.json",
        "mime_type": "application/json",
        "part_count": 1,
        "size_bytes": 2,
    },
    {
        "type": "FileTransferPart",
        "source_component_uuid": "",
        "transfer_uuid": "a",
        "part_index": 0,
        "content": b"{}",
    },
    {"type": "NoMessage"},
)
GROWTH = 150 * 2**20  # bytes that a server under attack may grow by


@pytest.fixture(scope="module")
def viewer(small_model):
    viewer = noise_viewer(small_model)
    yield viewer
    viewer.worker.stop()


@pytest.fixture(scope="module")
def port(viewer):
    with serving(viewer, "127.0.0.1", 0) as (_, port):
        yield port


def browser(port, origin=None, **headers):
    return connect(
        f"ws://127.0.0.1:{port}/",
        subprotocols=[PROTOCOL],
        origin=origin,
        additional_headers=headers,
        max_size=None,
        max_queue=None,  # or who never reads hears of no end, and each takes ten seconds
    )


def gets_a_picture(connection):
    """Whether a browser that says where its camera stands is sent a picture."""
    connection.send(msgspec.msgpack.encode(CAMERA))
    for _ in range(200):
        raw = connection.recv(timeout=60)
        said = raw[16 : 16 + int.from_bytes(raw[8:16], "little")]  # what follows is large arrays
        if b"\xff\xd8\xff" in raw + zstandard.decompress(said):  # a JPEG
            return True
    return False


def a_browser_gets_a_picture(port):
    with browser(port) as connection:
        return gets_a_picture(connection)


def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


def test_a_browser_that_says_where_it_stands_gets_a_picture(port):
    assert a_browser_gets_a_picture(port)


def test_a_browser_that_takes_another_field_of_view_keeps_the_scene_s(viewer, port):
    scene, there = viewer.scene, [*CAMERA["position"][:2], CAMERA["position"][2] - 0.5]
    with browser(port) as connection:
        assert gets_a_picture(connection)
        page = viewer.pages[max(viewer.pages)]
        moved = {**CAMERA, "position": there, "fov": 1.309}  # viser's own, as on a reset
        connection.send(msgspec.msgpack.encode(moved))
        while page.window.position.tolist() != there:
            time.sleep(0.01)
        expected = fov_of(scene.intrinsics(scene.chosen[0]), scene.size, page.window.aspect)
        assert page.window.fov == pytest.approx(expected)


def test_pages_of_other_origins_do_not_get_in(port):
    with pytest.raises(InvalidStatus, match="403"):
        browser(port, origin="http://evil.example")


@pytest.mark.parametrize(("host", "status"), [("evil.example", 403), ("localhost", 200)])
def test_it_answers_under_this_machine_s_own_names_alone(port, host, status):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", "/", headers={"Host": f"{host}:{port}"})
    assert connection.getresponse().status == status
    connection.close()


def test_a_huge_message_ends_its_connection_alone(port):
    with browser(port) as connection, pytest.raises(ConnectionClosed):
        connection.send(b"\x00" * (8 * 2**20))
        while True:
            connection.recv(timeout=60)
    assert a_browser_gets_a_picture(port)


def fuzzed(rng, controls):
    """A message of a browser but for one field, or bytes; its controls are those of the page."""
    if rng.random() < 0.05:
        return rng.randbytes(rng.randrange(200))
    message = dict(rng.choice(SAID))
    for field in ("uuid", "source_component_uuid"):
        if field in message:
            message[field] = rng.choice(controls)
    if "updates" in message:
        message["updates"] = {"value": rng.choice(NO_VALUES)}
    else:
        message[rng.choice([*message][1:] or ["more"])] = rng.choice(NO_VALUES)
    return msgspec.msgpack.encode(message)


def read_all(connection):
    """Takes what was sent: what no one takes lies in this process and counts as the server's."""
    with contextlib.suppress(TimeoutError):
        while True:
            connection.recv(timeout=0)


def is_refused(raw):
    try:
        understood(raw)
    except (ValueError, msgspec.DecodeError):
        return True
    return False


def test_two_thousand_fuzzed_messages_leave_it_alive_and_no_larger(viewer, port, caplog):
    caplog.set_level(logging.CRITICAL)  # kept records keep their errors, and those their pictures
    rng, connection, before = random.Random(0), None, resident()
    for _ in range(2000):
        if connection is None:
            connection = browser(port)
            assert gets_a_picture(connection)
            gui = viewer.pages[max(viewer.pages)].client.gui
            while not (controls := [*gui._gui_input_handle_from_uuid]):
                time.sleep(0.01)  # the truth's place is a picture, too, and comes before them
        raw = fuzzed(rng, controls)
        if is_refused(raw):
            with browser(port) as another, pytest.raises(ConnectionClosed):
                another.send(raw)
                while True:
                    another.recv(timeout=60)
        else:
            try:
                connection.send(raw)
                read_all(connection)
            except ConnectionClosed:
                connection = None
    assert a_browser_gets_a_picture(port)
    assert resident() - before < GROWTH


def test_elsewhere_than_on_this_machine_it_asks_for_the_token(viewer):
    with serving(viewer, "0.0.0.0", 0) as (address, port):
        assert "?token=" in address
        with pytest.raises(InvalidStatus, match="403"):
            browser(port)
        token = address.partition("?token=")[2]
        with browser(port, Cookie=f"elvsm_view={token}") as connection:
            assert connection.subprotocol == PROTOCOL


def test_a_port_that_is_taken_is_an_error_and_not_another_port(viewer):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(InputError, match=f"--port {port}: cannot listen there"):
            with serving(viewer, "127.0.0.1", port):
                pass
