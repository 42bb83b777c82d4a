"""Every array of the goldens of eight bits and distillation, and one that is not as recorded."""

from pathlib import Path

import numpy as np
import pytest

from efficient_lvsm_jax.compress import distill_reference, fp8_reference

GOLDENS = Path(__file__).parent.parent / "goldens"
FILES = {"lite3r_fp8": fp8_reference, "lite3r_distill": distill_reference}


class Noting(dict):
    """Arrays that remember which of them were read."""

    def __init__(self, arrays):
        super().__init__(arrays)
        self.read = set()

    def __getitem__(self, name):
        self.read.add(name)
        return super().__getitem__(name)


def errors(lines):
    return {name: (np.abs(got - recorded).max(), limit) for _, name, got, recorded, limit in lines}


@pytest.mark.parametrize("file", FILES)
def test_all_that_is_recorded_is_reached(file):
    arrays = Noting(np.load(GOLDENS / f"{file}.npz"))
    assert [name for name, kind in FILES.items() if kind.is_of(set(arrays))] == [file]
    found = errors(FILES[file].compare(arrays))
    assert {name: error for name, error in found.items() if not error[0] <= error[1]} == {}
    assert set(arrays) == arrays.read
    assert len(found) > 40


def test_one_code_that_is_another_is_seen():
    arrays = {
        name: array.copy()
        for name, array in np.load(GOLDENS / "lite3r_fp8.npz").items()
        if name.startswith(("rows_", "e4m3"))
    }
    arrays["rows_codes"][0, 0] ^= 1
    found = errors(fp8_reference.compare(arrays))
    assert [name for name, (error, limit) in found.items() if error > limit] == ["rows_codes"]
