"""The torture itself, a few times; `make torture` does it often."""

import sys

import numpy as np
import pytest
from torture import Torture, change_file, table

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="mounts and limits as Linux does")


def test_a_run_that_is_killed_interrupted_and_damaged_loses_nothing(tmp_path):
    torture = Torture(tmp_path, steps=60, seed=0, stand_in=True)
    torture.end_early(kills=2, signals=1)
    torture.change(20)
    counts = torture.rows.values()
    assert sum(row.tried for row in counts) == 23
    bad = [row.lost + row.undetected + row.mismatching + row.failures for row in counts]
    assert not any(bad), table(torture.rows)


def test_a_changed_file_is_another_file(tmp_path):
    rng = np.random.default_rng(0)
    seen = set()
    for _ in range(50):
        path = tmp_path / "file"
        path.write_bytes(bytes(100) + rng.bytes(100))
        before = path.read_bytes()
        seen.add(change_file(path, rng))
        assert not path.exists() or path.read_bytes() != before
    assert seen == {"bit", "cut", "zeros", "gone"}
