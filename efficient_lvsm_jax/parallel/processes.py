"""Several processes of one run: who they are is found in the environment, before JAX is used.

JAX_COORDINATOR_ADDRESS=host0:1234 JAX_NUM_PROCESSES=2 JAX_PROCESS_ID=0 python train.py …
srun python train.py …                    (SLURM, one process per task)
python train.py --config.processes=all …  (every worker of a TPU slice)
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping

import jax

from efficient_lvsm_jax.errors import InputError

CHOICES = ("auto", "one", "all")
NAMED = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
JOIN_TIMEOUT = 300  # seconds that processes wait for each other at the start

log = logging.getLogger(__name__)


def join_processes(choice: str, environment: Mapping[str, str] = os.environ) -> None:
    """Makes this process one of its run. To be called before anything else of JAX.

    Args:
      choice: "one" joins nothing. "all" joins what JAX finds by itself: SLURM, Open MPI,
        Kubernetes, TPU slices. "auto" does if the environment names several processes: the three
        variables above, more than one task of an `srun`, or several TPU workers; else it is "one".
      environment: of this process.

    Raises:
      InputError: another choice, some but not all of the three variables or values that are no
        numbers, nothing found although "all" was asked for, or the others did not come in time.
    """
    if choice not in CHOICES:
        raise InputError(f"processes={choice!r}: expected {', '.join(CHOICES)}")
    arguments = None if choice == "one" else _named(environment)
    if arguments is None and choice == "auto" and _several(environment):
        arguments = {}
    if arguments is None and choice == "all":
        arguments = {}
    if arguments is None:
        return
    try:
        jax.distributed.initialize(**arguments, initialization_timeout=JOIN_TIMEOUT)
    except (ValueError, RuntimeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"processes={choice!r}: the processes of this run could not join ({reason}); set "
            f"{', '.join(NAMED)} for each of them, or --config.processes=one for one process"
        ) from error
    log.info("process %d of %d", jax.process_index(), jax.process_count())


def say(line: str) -> None:
    """Prints in the first process."""
    if jax.process_index() == 0:
        print(line, flush=True)


def _named(environment: Mapping[str, str]) -> dict | None:
    """What the three variables say; None without them."""
    given = [name for name in NAMED if name in environment]
    if not given:
        return None
    missing = [name for name in NAMED if name not in environment]
    if missing:
        raise InputError(
            f"{' and '.join(given)} without {' and '.join(missing)}: set all of them, or none"
        )
    address, *numbers = (environment[name] for name in NAMED)
    for name, number in zip(NAMED[1:], numbers, strict=True):
        if not number.isdecimal():
            raise InputError(f"{name}={number!r}: expected a number")
    count, index = map(int, numbers)
    if index >= count:
        raise InputError(f"JAX_PROCESS_ID={index}: expected 0 to {count - 1}")
    return {"coordinator_address": address, "num_processes": count, "process_id": index}


def _several(environment: Mapping[str, str]) -> bool:
    """Whether a launcher says that this is one of several processes."""
    tasks = environment.get("SLURM_NTASKS", "1")
    if "SLURM_STEP_NODELIST" in environment and tasks.isdecimal() and int(tasks) > 1:
        return True  # a task of an srun; a batch script itself is no task
    workers = environment.get("TPU_PROCESS_ADDRESSES") or environment.get("TPU_WORKER_HOSTNAMES")
    return "," in (workers or "")
