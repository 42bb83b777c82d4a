import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from efficient_lvsm_jax.training import interruption
from efficient_lvsm_jax.training.interruption import Interruption, exit_by


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
from efficient_lvsm_jax.training import interruption
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


TWO_PROCESSES = """
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp

from efficient_lvsm_jax.training.checkpoints import Checkpoints
from efficient_lvsm_jax.commands import main_exit
from efficient_lvsm_jax.training.interruption import Interruption, exit_by
from efficient_lvsm_jax.parallel.sharding import AxisType, NamedSharding, PartitionSpec

workdir, port, index = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
jax.config.update("jax_num_cpu_devices", 2)
jax.distributed.initialize(f"localhost:{port}", 2, index, initialization_timeout=60)
mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
sharding = NamedSharding(mesh, PartitionSpec("data"))
start = jax.jit(lambda: jnp.arange(8.0), out_shardings=sharding)
step_of = jax.jit(lambda x: x + 1)


def main():
    with Interruption() as interruption, Checkpoints(workdir, keep=2) as checkpoints:
        found, array, step, ended_by = checkpoints.latest(), start(), 0, 0
        if found is not None:
            item = {"params": {"x": jax.ShapeDtypeStruct((8,), jnp.float32, sharding=sharding)}}
            array, step = checkpoints.restore(found, item)["params"]["x"], found
        begun = step
        while step < 10**6 and not ended_by:
            array, step = step_of(array), step + 1
            ended_by = interruption.after_step()
            if step == begun + 3:
                (workdir / f"ready-{index}-{begun}").touch()
        checkpoints.save(step, {"params": {"x": array}})
    first = float(array.addressable_shards[0].data[0])
    print(f"begun {begun} ended {step} holds {first}", flush=True)
    exit_by(ended_by, "saved")


main_exit(main)
"""


def end_one_of_two(workdir, number, begun):
    """Starts two processes at step `begun` and signals one; what each did."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-c", TWO_PROCESSES, str(workdir), str(port)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    running = [subprocess.Popen([*command, str(index)], **pipes) for index in range(2)]
    try:
        deadline = time.monotonic() + 120
        while not all((workdir / f"ready-{index}-{begun}").exists() for index in range(2)):
            assert time.monotonic() < deadline, "the processes did not come"
            assert all(process.poll() is None for process in running), running[0].communicate()
            time.sleep(0.01)  # they need the processors
        running[1].send_signal(number)
        said = [process.communicate(timeout=120) for process in running]
        return [process.returncode for process in running], [
            out.splitlines()[-1].split() for out, _ in said
        ]
    finally:
        for process in running:
            process.kill()


def test_two_processes_end_after_the_same_step_and_go_on_from_it(tmp_path):
    statuses, said = end_one_of_two(tmp_path, signal.SIGTERM, 0)
    assert statuses == [143, 143]
    steps = [int(words[3]) for words in said]
    assert steps[0] == steps[1] >= 3
    assert [float(words[5]) for words in said] == [steps[0], steps[0] + 4.0]
    statuses, said = end_one_of_two(tmp_path, signal.SIGINT, steps[0])
    assert statuses == [130, 130]
    assert [words[1] for words in said] == [str(steps[0])] * 2
    ended = int(said[0][3])
    assert [float(words[5]) for words in said] == [ended, ended + 4.0]
