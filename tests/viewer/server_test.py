"""The server: what hostile programs can do to it, ports, and what is said without viser."""

import random
import socket

import pytest

pytest.importorskip("viser", reason="the extra [viewer] is not installed")

import msgspec
import viser
from gate_test import CAMERA
from noise_capture import noise_viewer
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from efficient_lvsm_jax import InputError
from efficient_lvsm_jax.viewer.server import serving

PROTOCOL = f"viser-v{viser.__version__}"
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
    )


def gets_a_picture(port):
    """Whether a browser that says where its camera stands is sent a picture."""
    with browser(port) as connection:
        connection.send(msgspec.msgpack.encode(CAMERA))
        for _ in range(200):
            if b"\xff\xd8\xff" in connection.recv(timeout=60):  # a JPEG, beside the messages
                return True
    return False


def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


def test_a_browser_that_says_where_it_stands_gets_a_picture(port):
    assert gets_a_picture(port)


def test_pages_of_other_origins_do_not_get_in(port):
    with pytest.raises(InvalidStatus, match="403"):
        browser(port, origin="http://evil.example")


def test_a_huge_message_ends_its_connection_alone(port):
    with browser(port) as connection, pytest.raises(ConnectionClosed):
        connection.send(b"\x00" * (8 * 2**20))
        while True:
            connection.recv(timeout=60)
    assert gets_a_picture(port)


def test_two_thousand_fuzzed_messages_leave_it_alive_and_no_larger(port):
    rng = random.Random(0)
    before = resident()
    kinds = (
        "ViewerCameraMessage",
        "GuiUpdateMessage",
        "CommandTriggerMessage",
        "NoMessage",
        "SceneNodeClickMessage",
        "FileTransferStartUpload",
        "FileTransferPart",
    )
    values = (None, 0, -1, 1e308, "x", "x" * 10_000, [], [1] * 1000, {}, {"value": 3}, True)
    connection = browser(port)
    for number in range(2000):
        if number % 3 == 0:
            raw = rng.randbytes(rng.randrange(200))
        else:
            message = {**CAMERA, "type": rng.choice(kinds)}
            for field in rng.sample([*CAMERA, "uuid", "updates", "name", "transfer_uuid"], 3):
                message[field] = rng.choice(values)
            raw = msgspec.msgpack.encode(message)
        try:
            connection.send(raw)
        except ConnectionClosed:
            connection = browser(port)
    connection.close()
    assert gets_a_picture(port)
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
