"""The run that `torture.py` tries to lose, and a process of its own for each of its lives.

python tests/tortured_run.py WORKDIR --steps 150 [--stand-in] [--largest-file BYTES]
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
KEEP, SAVE_EVERY = 3, 3  # checkpoints kept; steps between them
PATIENCE = 120  # seconds after which a run hangs
COMMAND_LINE = {"JAX_PLATFORMS": "cpu", "PYTHONUNBUFFERED": "1"}


def small_config(steps: int):
    """configs/tiny.py for runs of a second."""
    from configs import tiny

    config = tiny.get_config()
    config.steps, config.checkpoint_every, config.checkpoints_to_keep = steps, SAVE_EVERY, KEEP
    config.log.update(every=1, pictures_every=0, tensorboard=False)
    config.model.update(width=16, head_dim=16, layers=1)
    config.data.update(scenes=4, views=3, size=16, batch_size=2, num_targets=1)
    config.data.num_inputs_cycle = (2,)
    config.optimizer.update(name="adamw", learning_rate=1e-3, warmup_steps=2)
    return config


def run_once(workdir: Path, steps: int, largest_file: int, *, stand_in: bool) -> None:
    """Trains in this process, which may not write files above `largest_file` bytes (0: any)."""
    if largest_file:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
    from efficient_lvsm_jax.commands import main_exit

    if stand_in:
        main_exit(lambda: train_stand_in(workdir, steps))
    import train

    main_exit(lambda: train.train(small_config(steps), workdir) and None)


def train_stand_in(workdir: Path, steps: int) -> None:
    """Saves, resumes and logs as train.py does; a "step" only adds. Compiles nothing: for tests."""
    import jax

    from efficient_lvsm_jax.models.families import configure
    from efficient_lvsm_jax.models.model import abstract_params
    from efficient_lvsm_jax.runs.run_log import METRICS_FILE, open_rows
    from efficient_lvsm_jax.training.checkpoints import Checkpoints
    from efficient_lvsm_jax.training.interruption import Interruption, exit_by
    from efficient_lvsm_jax.weights.workdir import claim_workdir

    model = configure("efficient_lvsm", small_config(steps).model.to_dict())
    claim_workdir(workdir, "efficient_lvsm", model)
    shapes, step, ended_by = abstract_params("efficient_lvsm", model), 0, 0
    with Interruption() as interruption, Checkpoints(workdir, keep=KEEP) as checkpoints:
        params = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
        if found := checkpoints.latest():
            print(f"going on from step {found} in {workdir}")
            step, params = found, checkpoints.restore(found, {"params": shapes})["params"]
        with open_rows(workdir / METRICS_FILE, step) as rows:
            while step < steps and not ended_by:
                step += 1
                params = jax.tree.map(functools.partial(np.add, np.float32(1 / step)), params)
                loss = float(jax.tree.leaves(params)[0].ravel()[0])
                rows.write(json.dumps({"step": step, "loss": loss}) + "\n")
                rows.flush()
                ended_by = interruption.after_step() if step < steps else 0
                if step % SAVE_EVERY == 0 or step == steps or ended_by:
                    checkpoints.save(step, {"params": params})
    if ended_by:
        exit_by(ended_by, f"saved step {step}")


class Life:
    """One start of a run, in a process of its own."""

    def __init__(
        self, workdir: Path, steps: int, cache: Path, *, stand_in: bool, largest_file: int = 0
    ):
        self.workdir = workdir
        self._output = tempfile.TemporaryFile("w+")
        command = [sys.executable, __file__, str(workdir), "--steps", str(steps)]
        command += ["--stand-in"] * stand_in
        compile_once = {
            "JAX_COMPILATION_CACHE_DIR": str(cache),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        }
        self._process = subprocess.Popen(
            [*command, "--largest-file", str(largest_file)],
            cwd=ROOT,
            env={**os.environ, **COMMAND_LINE, **compile_once, "PYTHONPATH": str(ROOT)},
            stdout=self._output,
            stderr=subprocess.STDOUT,
        )

    def wait_for(self, happened: Callable[[], bool]) -> bool:
        """Waits until something happened (True) or the run ended before it did (False)."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            if happened():
                return True
            if self._process.poll() is not None:
                return False
            time.sleep(0.002)
        self.end(signal.SIGKILL)
        raise TimeoutError(f"no sign of the run in {PATIENCE} s:\n{self.said()}")

    def wait(self) -> int:
        """The exit status."""
        self.wait_for(lambda: False)
        return self._process.returncode

    def end(self, number: int) -> int:
        """Sends a signal; the exit status. Does nothing to a run that has ended."""
        self._process.send_signal(number)
        return self._process.wait(PATIENCE)

    def said(self) -> str:
        """What it printed so far."""
        self._output.seek(0)
        return self._output.read()

    def went_on_from(self) -> int | None:
        """The step it says it goes on from; None if it said nothing or began anew."""
        found = re.search(r"going on from step (\d+)", self.said())
        return int(found[1]) if found else None


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("workdir", type=Path)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--largest-file", type=int, default=0)
    parser.add_argument("--stand-in", action="store_true")
    asked = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    run_once(asked.workdir, asked.steps, asked.largest_file, stand_in=asked.stand_in)


if __name__ == "__main__":
    main()
