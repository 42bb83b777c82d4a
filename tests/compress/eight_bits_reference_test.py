"""Every array of the goldens of eight bits and distillation, and one that is not as recorded."""

import re

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


@pytest.mark.parametrize(
    ("file", "kept", "compared"),
    [
        ("lite3r_fp8", r"bf16_.*", 3),
        ("lite3r_fp8", r"nonfinite_.*", 1),
        ("lite3r_fp8", r"headwise_.*", 1),
        ("lite3r_fp8", r"deploy_(weight|float32_scale)", 1),
        ("lite3r_fp8", r"int_linear_(x|weight|bias|out_weight|w4a8_grad_x)", 1),
        ("lite3r_fp8", r"int_linear_(x|weight|bias|calibration_x|smoothed_out)", 1),
        ("lite3r_distill", r"pose_encoding|camera_(masks|plain_pred|plain_parts)", 1),
        ("lite3r_distill", r"depth_tiny_(pred|confidence|target|mask|grad_pred)", 1),
        ("lite3r_distill", r"attention_plain_(student\d|teacher\d|grad2)", 1),
        ("lite3r_distill", r"schedule_(\w+_steps|steps|gamma)", 1),
    ],
)
def test_what_was_not_recorded_is_not_missed(file, kept, compared, tmp_path):
    arrays = np.load(GOLDENS / f"{file}.npz").items()
    kept = {name: array for name, array in arrays if re.fullmatch(kept, name)}
    lines = list(FILES[file].compare(kept))
    assert len(lines) == compared
    np.savez(tmp_path / "file.npz", **kept)
    differences, _ = compare(tmp_path / "file.npz")
    assert all(difference.within for difference in differences), differences


def test_a_layer_may_have_no_bias():
    arrays = dict(np.load(GOLDENS / "lite3r_fp8.npz").items())
    names = ("linear_x", "linear_weight", "linear_out", "linear_bias")
    x, weight, out, bias = (arrays[name] for name in names)
    without = {"linear_x": x, "linear_weight": weight, "linear_out": out - bias}
    ((_, _, got, recorded, limit),) = fp8_reference.compare(without)
    assert abs(got - recorded).max() <= limit


def test_how_many_updates_of_p_warm_up_is_told_by_p():
    p, x, y, moments = np.zeros((2, 2)), np.eye(2), np.array([[1.0, 2], [3, 4]]), (0.0, 0.0)
    found = []
    for step in range(5):
        gradient = (x @ p.T - y).T @ x / 2
        gradient *= min(1, 1 / (np.linalg.norm(gradient) + 1e-6))
        first = 0.9 * moments[0] + 0.1 * gradient
        second = 0.999 * moments[1] + 0.001 * gradient**2
        moments = first, second
        rate = 1e-3 * (step / 2 if step < 2 else 1 - 0.5 * (step - 2) / 3)
        first, second = first / (1 - 0.9 ** (step + 1)), second / (1 - 0.999 ** (step + 1))
        p = p - rate * first / (np.sqrt(second) + 1e-8)
        found.append(p)
    arrays = {"x": x, "y": y, "P0": np.zeros((2, 2)), "P": np.stack(found)}
    arrays = {f"optimiser_{name}": np.float32(array) for name, array in arrays.items()}
    ((_, name, got, recorded, limit),) = distill_reference.compare(arrays)
    assert name == "optimiser_P"
    assert abs(got - recorded).max() <= limit


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
