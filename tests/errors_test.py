"""What a person sees when the input is wrong."""

import logging

import pytest

from efficient_lvsm_jax.commands import main_exit
from efficient_lvsm_jax.errors import InputError


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


def test_a_warning_is_said_once(capsys):
    def main():
        for name in ("a", "a", "b"):
            logging.getLogger("reader").warning("%s: frames absent", name)

    assert exit_of(main) == 0
    assert capsys.readouterr().err == "warning: a: frames absent\nwarning: b: frames absent\n"
