"""The thread that owns the device: newest cameras alone, commands in order, errors survived."""

import threading

import pytest

from efficient_lvsm_jax import InputError
from efficient_lvsm_jax.viewer.worker import Worker

SECONDS = 30  # of a wait that should be over at once


class Renderer:
    """Makes pictures only when it is let, one by one, and remembers which."""

    def __init__(self):
        self.begun, self.go = threading.Semaphore(0), threading.Semaphore(0)
        self.made = []

    def of(self, name):
        def work():
            self.begun.release()
            assert self.go.acquire(timeout=SECONDS)
            self.made.append(name)

        return work


@pytest.fixture
def failures():
    return []


@pytest.fixture
def worker(failures):
    worker = Worker(lambda client, error: failures.append((client, str(error))))
    yield worker
    worker.stop()


def finished(worker):
    """Waits for all that was asked before."""
    done = threading.Event()
    worker.show("the last", done.set)
    assert done.wait(SECONDS)
    worker.call("the last", lambda: None)


def test_of_cameras_that_come_while_one_is_rendered_only_the_newest_is(worker):
    renderer = Renderer()
    worker.show("a", renderer.of(0))
    assert renderer.begun.acquire(timeout=SECONDS)
    for number in range(1, 100):
        worker.show("a", renderer.of(number))
    renderer.go.release(100)
    finished(worker)
    assert renderer.made == [0, 99]


def test_clients_take_turns_and_do_not_take_each_others_slots(worker):
    renderer = Renderer()
    worker.show("a", renderer.of("a0"))
    assert renderer.begun.acquire(timeout=SECONDS)
    for name in ("b0", "a1", "b1", "a2"):
        worker.show(name[0], renderer.of(name))
    renderer.go.release(100)
    finished(worker)
    assert renderer.made == ["a0", "b1", "a2"]


def test_commands_keep_their_order_and_a_picture_comes_between_them(worker):
    renderer = Renderer()
    worker.show("a", renderer.of("first"))
    assert renderer.begun.acquire(timeout=SECONDS)
    for number in range(3):
        worker.do("a", renderer.of(number))
    worker.show("a", renderer.of("picture"))
    renderer.go.release(100)
    finished(worker)
    assert [each for each in renderer.made if isinstance(each, int)] == [0, 1, 2]
    assert renderer.made.index("picture") < renderer.made.index(2)


def test_an_error_is_told_and_the_thread_lives_on(worker, failures):
    def fails():
        raise ValueError("lens cap")

    worker.show("a", fails)
    worker.do("b", fails)
    finished(worker)
    assert sorted(failures) == [("a", "lens cap"), ("b", "lens cap")]
    assert worker.call("a", lambda: 7) == 7


def test_it_lives_on_even_if_nobody_can_be_told():
    def gone(client, error):
        raise ConnectionError("the tab was closed")

    worker = Worker(gone)
    worker.show("a", lambda: 1 / 0)
    assert worker.call("a", lambda: 7) == 7
    worker.stop()


def test_a_call_hands_the_error_to_who_called(worker, failures):
    with pytest.raises(ZeroDivisionError):
        worker.call("a", lambda: 1 / 0)
    assert not failures


def test_a_client_that_left_gets_no_picture(worker):
    renderer = Renderer()
    worker.show("a", renderer.of("a"))
    assert renderer.begun.acquire(timeout=SECONDS)
    worker.show("b", renderer.of("b"))
    worker.forget("b")
    renderer.go.release(100)
    finished(worker)
    assert renderer.made == ["a"]


def test_stopping_ends_what_waits(worker):
    renderer = Renderer()
    worker.show("a", renderer.of("a"))
    assert renderer.begun.acquire(timeout=SECONDS)
    worker.show("b", renderer.of("b"))
    threading.Timer(0.1, renderer.go.release).start()
    worker.stop()
    assert renderer.made == ["a"]
    with pytest.raises(InputError, match="stopping"):
        worker.call("a", lambda: 7)
