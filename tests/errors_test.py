"""What a person sees when the input is wrong."""

import argparse
import errno
import gc
import logging
import os
import signal
import subprocess
import sys
import threading
import time

import jax
import pytest

from efficient_lvsm_jax.commands import Parser, command_line, main_exit, picture_size
from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.reconstruct.unfinished import unfinished


def exit_of(main) -> int:
    with pytest.raises(SystemExit) as raised:
        main_exit(main)
    return raised.value.code


@pytest.fixture(autouse=True)
def _logging_as_before():
    handlers = logging.getLogger().handlers[:]
    yield
    logging.getLogger().handlers[:] = handlers


def test_wrong_input_is_one_line_and_status_2(capsys):
    def main():
        raise InputError("capture: no such folder")

    assert exit_of(main) == 2
    assert capsys.readouterr().err == "error: capture: no such folder\n"


def test_control_characters_of_names_do_not_reach_the_terminal(capsys):
    def main():
        raise InputError("a\x1b[2J\udc80b: unreadable")

    exit_of(main)
    assert capsys.readouterr().err == "error: a\\x1b[2J\\udc80b: unreadable\n"


@pytest.mark.parametrize(
    "error",
    [
        jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 5 bytes.\nmore"),
        MemoryError("Unable to allocate 5 bytes"),
    ],
)
def test_out_of_memory_is_one_line_and_status_2(capsys, error):
    def main():
        raise error

    assert exit_of(main) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: out of memory (") and "5 bytes" in said and said.count("\n") == 1


def test_what_a_system_runs_out_of_is_one_line_and_status_2(capsys):
    def main():
        raise OSError(errno.EMFILE, "Too many open files", "a\x1bb")

    assert exit_of(main) == 2
    said = capsys.readouterr().err
    assert said.startswith(
        "error: the system has none left: [Errno 24] Too many open files: 'a\\x1b"
    )


@pytest.mark.parametrize(
    "error", [jax.errors.JaxRuntimeError("INTERNAL: a bug"), FileNotFoundError(2, "a bug", "x")]
)
def test_errors_of_the_program_are_not_hidden(error):
    def main():
        raise error

    with pytest.raises(type(error)):
        main_exit(main)


def test_a_warning_is_said_once(capsys):
    def main():
        for name in ("a", "a", "b"):
            logging.getLogger("reader").warning("%s: frames absent", name)

    assert exit_of(main) == 0
    assert capsys.readouterr().err == "warning: a: frames absent\nwarning: b: frames absent\n"


def test_a_reader_that_leaves_early_is_no_failure():
    program = (
        "import sys\n"
        "from efficient_lvsm_jax.commands import main_exit\n"
        "main_exit(lambda: print('\\n'.join(map(str, range(100_000)))))\n"
    )
    command = f'"{sys.executable}" -c "$PROGRAM" | head -n 1; echo ${{PIPESTATUS[0]}}'
    ended = subprocess.run(
        ["bash", "-c", command],
        env=os.environ | {"PROGRAM": program},
        capture_output=True,
        text=True,
    )
    assert ended.stdout.split() == ["0", "141"]
    assert ended.stderr == ""


def parse(*arguments):
    parser = Parser("python -m program", "What it does.", {"--output": "--out"})
    parser.add_argument("--out")
    parser.add_argument("--vertical-fov", type=float)
    return parser.parse_args(arguments)


@pytest.mark.parametrize(
    ("old", "new"),
    [("--output", "--out"), ("--output=x", "--out"), ("--vertical_fov", "--vertical-fov")],
)
def test_the_old_name_of_a_flag_is_answered_with_the_new_one(old, new):
    expected = f"{old.partition('=')[0]} is now {new}$"
    with pytest.raises(InputError, match=expected):
        parse(old, "1")
    with pytest.raises(InputError, match="--help_settings is now --help-settings"):
        command_line(["program", "--help_settings"], usage="")


def test_flags_are_not_abbreviated(capsys):
    with pytest.raises(SystemExit):
        parse("--ou", "x")
    said = capsys.readouterr().err  # one line, without the usage
    assert said == "error: unrecognized arguments: --ou x; see --help\n"
    assert parse("--out", "a_b").out == "a_b"


def test_a_size_is_a_square_or_height_x_width():
    assert picture_size("256") == (256, 256) and picture_size("256x384") == (256, 384)
    for wrong in ("0", "x", "256x", "1.5", "-8", "256x384x3"):
        with pytest.raises(argparse.ArgumentTypeError, match=r"256x384 \(HxW\)"):
            picture_size(wrong)


@pytest.fixture
def interruptible(monkeypatch):
    """Lets a Ctrl-C end `main_exit` as it would the process."""
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    monkeypatch.setattr(os, "_exit", sys.exit)
    monkeypatch.setattr("efficient_lvsm_jax.commands.interrupted", threading.Event())
    monkeypatch.setattr("efficient_lvsm_jax.commands.AGAIN", 0.1)
    before = [(each, signal.getsignal(each)) for each in (signal.SIGINT, signal.SIGALRM)]
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    for each, handler in before:
        signal.signal(each, handler)


def test_ctrl_c_ends_at_once_whatever_threads_are_at():
    program = """
import threading
from efficient_lvsm_jax.commands import main_exit

def main():
    threading.Thread(target=threading.Event().wait).start()
    print("begun", flush=True)
    threading.Event().wait()

main_exit(main)
"""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", program], **pipes) as process:
        try:
            assert process.stdout.readline() == "begun\n"
            process.send_signal(signal.SIGINT)
            _, said = process.communicate(timeout=20)
        finally:
            process.kill()
    assert (process.returncode, said) == (130, "interrupted\n")


@pytest.mark.usefixtures("interruptible")
def test_what_a_library_makes_of_ctrl_c_is_no_error_of_the_input(tmp_path, capsys):
    out = tmp_path / "out"

    def main():
        with unfinished(out, {}):
            try:
                os.kill(os.getpid(), signal.SIGINT)
                threading.Event().wait(60)
            except KeyboardInterrupt:
                raise InputError("the weights are damaged") from None

    assert exit_of(main) == 130
    *_, last = capsys.readouterr().err.splitlines()
    assert last == "interrupted" and (tmp_path / "out.partial").is_dir()


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_that_is_lost_comes_again_but_not_into_what_is_done_on_the_way_out():
    done = []

    def interrupt(*_):
        os.kill(os.getpid(), signal.SIGINT)
        threading.Event().wait(60)

    def main():
        gc.callbacks.append(interrupt)
        try:
            gc.collect()  # swallows it
        finally:
            gc.callbacks.remove(interrupt)
        try:
            threading.Event().wait(60)
        finally:
            threading.Event().wait(0.5)
            done.append("cleaned up")

    start = time.monotonic()
    assert exit_of(main) == 130 and done == ["cleaned up"]
    assert time.monotonic() - start < 30
