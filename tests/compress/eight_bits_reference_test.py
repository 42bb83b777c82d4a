"""Every array of the goldens of eight bits and distillation, and one that is not as recorded."""

import numpy as np
import pytest
from conftest import GOLDENS

from efficient_lvsm_jax.compress import distill_reference, fp8_reference
from efficient_lvsm_jax.compress.reference import compare
from efficient_lvsm_jax.errors import InputError

FILES = {"lite3r_fp8": fp8_reference, "lite3r_distill": distill_reference}


@pytest.mark.parametrize("file", FILES)
def test_all_that_is_recorded_is_reached(file):
    names = set(np.load(GOLDENS / f"{file}.npz").files)
    assert [name for name, kind in FILES.items() if kind.is_of(names)] == [file]
    differences, not_compared = compare(GOLDENS / f"{file}.npz")
    assert not_compared == {}
    assert all(difference.within for difference in differences), differences
    assert len(differences) > 7


def test_one_code_that_is_another_is_seen():
    arrays = {
        name: array.copy()
        for name, array in np.load(GOLDENS / "lite3r_fp8.npz").items()
        if name.startswith(("rows_", "e4m3"))
    }
    arrays["rows_codes"][0, 0] ^= 1
    lines = fp8_reference.compare(arrays)
    wrong = [name for _, name, got, recorded, limit in lines if abs(got - recorded).max() > limit]
    assert wrong == ["rows_codes"]


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"rows_in": np.array("text")}, "rows_in: expected numbers, not <U4"),
        ({"linear_x": np.ones((2, 3))}, "has no array linear_weight"),
        (
            {"linear_x": np.ones((2, 3)), "linear_weight": np.ones((4, 5))}
            | {"linear_bias": np.ones(4), "linear_out": np.ones((2, 4))},
            "its arrays do not belong together",
        ),
        ({"rows_in": np.ones((2, 3)), "rows_scale": np.ones(5)}, "rows_scale is .5,., but this"),
    ],
)
def test_other_arrays_are_refused_in_a_line(arrays, said, tmp_path):
    np.savez(tmp_path / "file.npz", **arrays)
    with pytest.raises(InputError, match=said):
        compare(tmp_path / "file.npz")
