"""Ending a run early without losing a step: Ctrl-C, and what a scheduler sends before it kills.

The first SIGTERM or SIGINT only sets a flag: the step that runs is finished, a checkpoint is
committed, and the program exits with 143 (SIGTERM) or 130 (SIGINT), as a shell reports these
signals. Started again with the same arguments the run goes on from there. A second signal ends the
program at once, as if there were no handler; the run then goes on from the last checkpoint before.

For SLURM: `#SBATCH --signal=TERM@120` and, in the job script,

    srun python train.py ... || { [ $? -eq 143 ] && scontrol requeue "$SLURM_JOB_ID"; }

With several processes a signal to any of them stops all, after the same step. They agree by a
collective per step that is read one step later, so no step waits for it. JAX has
`reached_preemption_sync_point` for this; it knows SIGTERM alone and leaves no way to end at once.
The handler that `jax.distributed.initialize` installs for it is replaced here.
"""

from __future__ import annotations

import functools
import os
import signal
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

SIGNALS = (signal.SIGTERM, signal.SIGINT)
SAME_SIGNAL = 0.5  # seconds: a repetition within is no second signal, launchers pass on ours


class Interruption:
    """Catches SIGTERM and SIGINT while training runs; a context manager, for the main thread."""

    def __init__(self):
        self._received = 0
        self._received_at = 0.0
        self._asked: jax.Array | None = None
        self._before: dict[int, object] = {}

    def __enter__(self) -> Interruption:
        self._before = {number: signal.signal(number, self._handle) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            # None: not of Python, such as the one of jax.distributed, which cannot be put back.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _handle(self, number: int, _: object) -> None:
        if not self._received:
            self._received, self._received_at = number, time.monotonic()
            name = signal.Signals(number).name
            # Not print: the handler may run in the middle of another.
            os.write(2, f"\n{name}: saving after this step; again to end at once\n".encode())
        elif time.monotonic() - self._received_at > SAME_SIGNAL:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    def after_step(self) -> int:
        """The signal that ends the run after this step, 0 if none does.

        All processes call it after every step, and all get the same answer. With several processes
        that is what was known one step earlier.
        """
        if jax.process_count() == 1:
            return self._received
        asked, self._asked = self._asked, _largest(self._received)
        return 0 if asked is None else int(asked.addressable_data(0))


def _largest(value: int) -> jax.Array:
    """The largest of the values that the processes give, computed without waiting for it."""
    sharding, largest = _reduction()
    local = np.full(jax.local_device_count(), value, np.int32)
    return largest(jax.make_array_from_process_local_data(sharding, local))


@functools.cache
def _reduction():
    mesh = jax.make_mesh((jax.device_count(),), ("all",), axis_types=(AxisType.Auto,))
    largest = jax.jit(jnp.max, out_shardings=NamedSharding(mesh, PartitionSpec()))
    return NamedSharding(mesh, PartitionSpec("all")), largest


def exit_by(number: int, what: str) -> None:
    """Ends the program as ended by signal `number`, after saying `what` was done.

    Raises:
      SystemExit: always.
    """
    name = signal.Signals(number).name
    print(f"{name}: {what}; start again to go on", file=sys.stderr)
    sys.exit(128 + number)
