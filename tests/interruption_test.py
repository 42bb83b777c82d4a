import os
import signal
import subprocess
import sys

import pytest

from efficient_lvsm_jax import interruption
from efficient_lvsm_jax.interruption import Interruption, exit_by


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_waits_for_the_end_of_the_step(name, capfd):
    number = signal.Signals[name]
    before = signal.getsignal(number)
    with Interruption() as caught:
        assert caught.after_step() == 0
        os.kill(os.getpid(), number)
        assert caught.after_step() == number
        os.kill(os.getpid(), number)  # at once again: a launcher passed the same one on
        assert caught.after_step() == number
    assert signal.getsignal(number) == before
    assert f"{name}: saving after this step" in capfd.readouterr().err


def test_a_second_signal_ends_at_once():
    code = """
import os, signal
from efficient_lvsm_jax import interruption
interruption.SAME_SIGNAL = -1
with interruption.Interruption():
    os.kill(os.getpid(), signal.SIGINT)
    os.kill(os.getpid(), signal.SIGTERM)
    print("still there")
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert run.returncode == -signal.SIGTERM
    assert "still there" not in run.stdout


def test_the_exit_status_names_the_signal(capsys):
    for number, status in ((signal.SIGTERM, 143), (signal.SIGINT, 130)):
        with pytest.raises(SystemExit) as ended:
            exit_by(number, "saved step 7")
        assert ended.value.code == status
    assert "SIGINT: saved step 7; start again to go on" in capsys.readouterr().err


def test_with_several_processes_all_get_what_was_known_a_step_before(monkeypatch):
    monkeypatch.setattr(interruption.jax, "process_count", lambda: 2)
    with Interruption() as caught:
        assert caught.after_step() == 0
        os.kill(os.getpid(), signal.SIGTERM)
        assert caught.after_step() == 0
        assert caught.after_step() == signal.SIGTERM
