"""The fuzzer itself, on few inputs; `make fuzz` takes many."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from fuzz_targets import targets
from mutations import mutate

FUZZER = Path(__file__).parent / "fuzz.py"

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits and measures as Linux does")


def test_mutated_inputs_are_read_or_refused_by_name():
    command = [sys.executable, str(FUZZER), "--count", "200", "--seed", "0"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "| all | 200 |" in run.stdout


def test_an_input_is_a_function_of_seed_and_number():
    files = targets()["nerfstudio"].variants[0]
    once, again = (mutate(files, np.random.default_rng([0, 7])) for _ in range(2))
    assert once == again
    assert once != mutate(files, np.random.default_rng([0, 8]))
