import pytest

from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.parallel import processes
from efficient_lvsm_jax.parallel.processes import join_processes

NAMED = {
    "JAX_COORDINATOR_ADDRESS": "host0:1234",
    "JAX_NUM_PROCESSES": "2",
    "JAX_PROCESS_ID": "1",
}
SRUN = {"SLURM_STEP_NODELIST": "node[1-2]", "SLURM_NTASKS": "2"}


@pytest.fixture
def joined(monkeypatch):
    """Arguments that JAX was called with."""
    calls = []
    monkeypatch.setattr(
        processes.jax.distributed, "initialize", lambda **arguments: calls.append(arguments)
    )
    return calls


@pytest.mark.parametrize(
    ("choice", "environment"),
    [
        ("auto", {}),
        ("one", NAMED),
        ("one", SRUN),
        ("auto", {"SLURM_NTASKS": "2"}),  # a batch script, not a task
        ("auto", SRUN | {"SLURM_NTASKS": "1"}),
        ("auto", {"TPU_WORKER_HOSTNAMES": "localhost"}),
    ],
)
def test_one_process_joins_nothing(choice, environment, joined):
    join_processes(choice, environment)
    assert joined == []


@pytest.mark.parametrize(
    ("choice", "environment"),
    [("auto", SRUN), ("auto", {"TPU_WORKER_HOSTNAMES": "a,b"}), ("all", {})],
)
def test_launchers_are_left_to_jax(choice, environment, joined):
    join_processes(choice, environment)
    assert joined == [{"initialization_timeout": processes.JOIN_TIMEOUT}]


def test_named_processes_are_taken_at_their_word(joined):
    join_processes("auto", NAMED | SRUN)
    assert joined == [
        {
            "coordinator_address": "host0:1234",
            "num_processes": 2,
            "process_id": 1,
            "initialization_timeout": processes.JOIN_TIMEOUT,
        }
    ]


@pytest.mark.parametrize(
    ("choice", "environment", "message"),
    [
        ("some", {}, "expected auto, one, all"),
        ("auto", {"JAX_PROCESS_ID": "0"}, "JAX_PROCESS_ID without JAX_COORDINATOR_ADDRESS and"),
        ("auto", NAMED | {"JAX_PROCESS_ID": "2"}, "JAX_PROCESS_ID=2: expected 0 to 1"),
        ("auto", NAMED | {"JAX_NUM_PROCESSES": "two"}, "'two': expected a number"),
    ],
)
def test_half_an_environment_is_refused(choice, environment, message, joined):
    with pytest.raises(InputError, match=message):
        join_processes(choice, environment)
    assert joined == []


def test_processes_that_do_not_come_are_one_message(monkeypatch):
    def fail(**_):
        raise RuntimeError("DEADLINE_EXCEEDED: Barrier timed out\nmany more lines")

    monkeypatch.setattr(processes.jax.distributed, "initialize", fail)
    with pytest.raises(InputError, match=r"not join \(DEADLINE_EXCEEDED: Barrier timed out\)"):
        join_processes("auto", NAMED)
