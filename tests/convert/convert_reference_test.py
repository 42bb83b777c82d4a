"""Converted models beside recorded outputs: what `--reference` does."""

import dataclasses
import re

import jax
import numpy as np
import pytest
from conftest import GOLDENS, golden

import efficient_lvsm_jax as elvsm
from efficient_lvsm_jax.convert.__main__ import main
from efficient_lvsm_jax.convert.reference import QUANTITIES, compare, read_reference
from efficient_lvsm_jax.errors import InputError


@pytest.mark.parametrize("name", ["square", "wide_compiled"])
def test_reference_lines_say_error_and_limit(tmp_path, capsys, name):
    reference = ["--reference", str(GOLDENS / f"{name}.npz")]
    assert main([str(GOLDENS / f"{name}.pt"), "--out", str(tmp_path / "weights"), *reference]) == 0
    said = capsys.readouterr().out
    found = re.findall(r"^reference (\w+) max_abs_error=(\S+) limit=(\S+)$", said, re.M)
    assert said.endswith("not compared, nothing here gives it: l2, num_target, patch, psnr\n")
    limits = {quantity: float(limit) for quantity, _, limit in found}
    assert limits == {
        "render": 2e-5,
        "render_incremental": 2e-5,
        "cache": 1e-4,
        "tokens": 1e-5,
        "rays": 1e-5,
    }
    assert all(float(error) <= limits[quantity] for quantity, error, _ in found)


@pytest.fixture
def model():
    """The model of square.npz."""
    return elvsm.load(GOLDENS / "square.pt")


@pytest.fixture
def reference(tmp_path):
    """Writes square.npz, with some arrays changed (None: left out), as a reference file."""

    def write_changed(**changes):
        arrays = {**golden("square"), **changes}
        path = tmp_path / "ref.npz"
        np.savez(path, **{name: x for name, x in arrays.items() if x is not None})
        return path

    return write_changed


def test_a_limit_exceeded_is_exit_status_3(tmp_path, capsys, reference):
    data = golden("square")
    path = reference(render=data["render"] + np.float32(3e-5))
    arguments = [str(GOLDENS / "square.pt"), "--out", str(tmp_path / "weights")]
    assert main([*arguments, "--reference", str(path)]) == 3
    assert "reference render max_abs_error=3.0" in capsys.readouterr().out


def test_every_array_counts(model, reference):
    data = golden("square")
    data["cache_last_layer_v"] = data["cache_first_layer_v"].copy()  # not recorded there
    for name in (name for names, _ in QUANTITIES.values() for name in names):
        changed = data[name].copy()
        changed.flat[-1] += 0.01
        differences = list(compare(model, read_reference(reference(**{name: changed}))))
        above = [difference.quantity for difference in differences if not difference.within]
        assert len(above) == 1 and above[0].split("_")[0] in name.replace("ray_", "rays_")


def test_nan_is_above_the_limit(model, reference):
    broken = jax.tree.map(lambda x: x * np.nan, model.params)
    found = read_reference(reference())
    for difference in compare(dataclasses.replace(model, params=broken), found):
        assert difference.within == (difference.quantity == "rays")


def test_only_recorded_quantities_are_compared(model, reference):
    left_out = {
        name: None
        for quantity in ("render_incremental", "cache", "tokens", "rays")
        for name in QUANTITIES[quantity][0]
    }
    found = list(compare(model, read_reference(reference(**left_out))))
    assert [difference.quantity for difference in found] == ["render"]
    found = list(
        compare(
            model, read_reference(reference(**{**left_out, "ray_d": golden("square")["ray_d"]}))
        )
    )
    assert [difference.quantity for difference in found] == ["render", "rays"]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"render": None}, "has no array render"),
        ({"image": None, "c2w": None}, "has no array image, c2w"),
        ({"image": np.zeros((2, 5, 32, 32, 3), np.float32)}, "image is "),
        ({"c2w": np.zeros((2, 4, 4, 4), np.float32)}, "c2w is "),
        ({"c2w": np.zeros((2, 5, 4, 4), np.float32)}, "camera"),
        ({"num_input": np.array(5)}, "num_input is 5, expected a number from 1 to 4"),
        ({"num_input": np.array(0)}, "num_input is 0"),
        ({"num_input": np.array([2])}, "num_input is "),
        ({"num_input": np.array(2.0)}, "num_input (float64) is not"),
        ({"render": np.zeros((2, 3, 3, 32, 32), np.int32)}, "render (int32) is not"),
        ({"render": np.full((2, 3, 3, 32, 32), np.nan)}, "render (float64) is not"),
        ({"ray_d": np.array(["a"])}, "ray_d"),
        ({"render": np.array([{}], object)}, "not a readable .npz"),
    ],
)
def test_unusable_references_are_refused_before_anything_is_written(
    tmp_path, reference, changes, reason
):
    path = reference(**changes)
    with pytest.raises(InputError) as caught:
        main([str(GOLDENS / "square.pt"), "--out", str(tmp_path / "w"), "--reference", str(path)])
    assert str(path) in str(caught.value) and reason in str(caught.value)
    assert not (tmp_path / "w").exists()


def test_references_of_another_model_are_refused(model, reference):
    path = reference(cache_first_layer_k=np.zeros((2, 32, 4, 16), np.float32))
    with pytest.raises(InputError, match=r"cache_first_layer_k is .* but this model gives"):
        list(compare(model, read_reference(path)))


def test_files_that_are_no_references_are_refused(tmp_path):
    path = tmp_path / "ref.npz"
    for content in (b"", b"text", (GOLDENS / "square.npz").read_bytes()[:10_000]):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"ref\.npz: not a readable \.npz"):
            read_reference(path)
    with pytest.raises(InputError, match="absent"):
        read_reference(tmp_path / "absent.npz")
