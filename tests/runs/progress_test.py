import io
import os
import pty

import jax.numpy as jnp
import pytest

from efficient_lvsm_jax.runs.progress import (
    WIDTH,
    Progress,
    Reading,
    StepClock,
    peak_flops,
    progress_line,
)

VALUES = {"loss": 0.01234, "psnr": 25.312, "learning_rate": 3.7e-4, "skipped": 0.0}
LARGE = Reading(100, 1.029, 0.0123, 0.0, 0.0, 1234.0, 7890.0, 0.451, 183_000.0)


class FakeTime:
    """Seconds that pass when told."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


class Terminal(io.StringIO):
    def isatty(self):
        return True


def run_steps(clock, time, count, *, step_s=0.0, data_s=0.0, flops=None):
    for _ in range(count):
        with clock.waiting("data"):
            time.now += data_s
        time.now += step_s
        clock.stepped(scenes=4, images=24, flops=flops)


def test_step_time_includes_data_but_no_checkpoint_and_no_pictures():
    time = FakeTime()
    clock = StepClock(clock=time)
    run_steps(clock, time, 10, step_s=0.3, data_s=0.1)
    for kind in ("checkpoint", "pictures"):
        with clock.waiting(kind):
            time.now += 3.0
    reading = clock.read(steps_to_go=5)
    assert reading.step_s == pytest.approx(0.4)
    assert reading.data_s == pytest.approx(0.1)
    assert reading.data_share == pytest.approx(0.25)
    assert reading.checkpoint_s == pytest.approx(3.0)
    assert reading.scenes_per_s == pytest.approx(10.0)
    assert reading.images_per_s == pytest.approx(60.0)
    assert clock.share("checkpoint") == pytest.approx(0.3)


def test_remaining_time_forgets_the_compilation_and_counts_everything_else():
    time = FakeTime()
    clock = StepClock(clock=time)
    run_steps(clock, time, 2, step_s=60.0)
    assert clock.read(10).remaining_s == pytest.approx(600.0)
    for _ in range(3):
        run_steps(clock, time, 2, step_s=1.0)
        with clock.waiting("checkpoint"):
            time.now += 2.0
        reading = clock.read(10)
    assert reading.remaining_s == pytest.approx(20.0)


def test_remaining_time_is_that_of_steps_after_those_that_compile():
    time = FakeTime()
    clock = StepClock(clock=time)
    run_steps(clock, time, 1, step_s=300.0)
    reading = clock.read(10)
    assert reading.remaining_s is None and "remaining_s" not in reading.numbers()
    assert "? left" in progress_line(VALUES, reading, WIDTH)
    run_steps(clock, time, 4, step_s=2.0)
    time.now += 200.0  # as many images as never before: another program
    clock.stepped(scenes=4, images=28)
    assert clock.read(10).remaining_s == pytest.approx(20.0)

    clock = StepClock(clock=time)
    run_steps(clock, time, 1, step_s=300.0)
    run_steps(clock, time, 3, step_s=2.0)
    assert clock.read(10).remaining_s == pytest.approx(20.0)


def test_utilisation_is_model_flops_over_peak_and_left_out_where_either_is_unknown():
    for peak, flops, expected in ((100.0, 20.0, 0.4), (None, 20.0, None), (100.0, None, None)):
        time = FakeTime()
        clock = StepClock(peak=peak, clock=time)
        run_steps(clock, time, 4, step_s=0.5, flops=flops)
        reading = clock.read(0)
        assert reading.mfu == (expected and pytest.approx(expected))
        assert ("mfu" in reading.numbers()) == (expected is not None)


def test_waiting_after_arrays_does_not_count_their_time_as_the_wait():
    time = FakeTime()

    class Unfinished:
        def block_until_ready(self):
            time.now += 5.0

    clock = StepClock(clock=time)
    with clock.waiting("checkpoint", after=[Unfinished(), jnp.zeros(1)]):
        time.now += 1.0
    assert clock.waited["checkpoint"] == pytest.approx(1.0)


def test_devices_without_a_known_peak_have_none():
    assert peak_flops("cpu") is None
    assert peak_flops() is None
    assert peak_flops("NVIDIA H200") == 989e12


def test_all_numbers_of_a_long_run_fit_the_width():
    out = Terminal()
    progress = Progress(123_456, 500_000, file=out)
    with progress:
        progress.show(VALUES, LARGE)
    line = max(out.getvalue().replace("\x1b", "\r").split("\r"), key=len).strip()
    assert len(line) <= WIDTH
    words = (
        "123456/500k loss 0.0123 25.3dB 2d02h lr 3.7e-4 1234 scenes 7890 img/s 1.0s data 12ms 1%"
    )
    for word in [*words.split(), "MFU 45%"]:
        assert word in line


def test_narrow_terminals_keep_the_leftmost_numbers():
    line = progress_line(VALUES | {"skipped": 3.0}, LARGE, 40)
    assert line == "loss 0.0123 25.3dB 3 skipped 2d02h left"


def test_without_a_terminal_there_is_one_plain_line_per_reading():
    out = io.StringIO()
    with Progress(0, 4, file=out) as progress:
        for _ in range(2):
            progress.stepped()
            progress.stepped()
            progress.show(VALUES, LARGE)
    assert [line[:15] for line in out.getvalue().splitlines()] == [
        "2/4 loss 0.0123",
        "4/4 loss 0.0123",
    ]
    assert "\r" not in out.getvalue() and "\x1b" not in out.getvalue()


def test_a_terminal_without_size_gets_plain_lines():
    reader, writer = pty.openpty()  # has no rows and no columns
    with open(writer, "w") as file, Progress(0, 4, file=file) as progress:
        progress.show(VALUES, LARGE)
    assert os.read(reader, 15) == b"0/4 loss 0.0123"
    os.close(reader)


def test_processes_but_the_first_say_nothing():
    for out in (io.StringIO(), Terminal()):
        with Progress(0, 4, file=out, process=1) as progress:
            progress.stepped()
            progress.show(VALUES, LARGE)
        assert out.getvalue() == ""
