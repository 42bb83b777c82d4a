"""compress --reference: files are told by their arrays, and every array is accounted for."""

import jax
import numpy as np
import pytest
from conftest import GOLDENS, golden

from efficient_lvsm_jax.compress.__main__ import ABOVE_LIMIT, main
from efficient_lvsm_jax.compress.reference import compare
from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.nn.sparse_linear import sparse_linear
from efficient_lvsm_jax.nn.sparsity import Sparsity

ATTENTION = GOLDENS / "lite3r_sla.npz"


def test_attention_comes_near_all_that_a_correct_program_can_give():
    differences, not_compared = compare(ATTENTION)
    assert all(difference.within for difference in differences), differences
    kinds = {difference.quantity.partition(":")[0] for difference in differences}
    assert kinds == {"token", "block", "class", "published SLA", "linear branch"}
    ((reason, names),) = not_compared.items()
    assert names == ["r_block16_0.3_sparse"] and "zeros were attended to" in reason


def few(**changes):
    """One case by tokens, under another name."""
    arrays = golden("lite3r_sla")
    names = {name: name.replace("c_", "new_", 1) for name in arrays if name.startswith("c_")}
    return {new: arrays[name] for name, new in names.items()} | changes


def of_case(case, name, *endings):
    """Inputs of a case under another name, and what was recorded of it with these endings."""
    arrays = golden("lite3r_sla")
    inputs = ("q", "k", "v", "P", "P2", "P_bias", "out_weight")
    chosen = [end for end in (*inputs, *endings) if f"{case}_{end}" in arrays]
    return {f"{name}_{end}": arrays[f"{case}_{end}"] for end in chosen}


@pytest.mark.parametrize(
    ("arrays", "quantities"),
    [
        (of_case("e", "e", "linear"), {"linear branch"}),
        (of_case("a", "a", "dual0.3_out"), {"token: output"}),
        (of_case("a", "of_two_words", "token0.3_selected"), {"token: choice"}),
        (of_case("thu", "thu", "softmax_linear"), {"published SLA: linear branch"}),
        (
            {
                name.replace("wide_classes", "wide_masked_classes"): array
                for name, array in of_case(
                    "b", "b", "three16_wide_classes", "three16_wide_sparse"
                ).items()
            },
            {"class: choice", "class: softmax branch"},
        ),
    ],
)
def test_files_with_few_of_the_arrays_are_compared_as_well(arrays, quantities, tmp_path):
    np.savez(tmp_path / "file.npz", **arrays)
    differences, _ = compare(tmp_path / "file.npz")
    assert {difference.quantity for difference in differences} == quantities
    assert all(difference.within for difference in differences), differences


def test_gradients_of_one_token_in_four_are_told_by_their_number(tmp_path):
    arrays = {
        name: array[:, :, :9] if array.ndim == 4 else array
        for name, array in of_case("a", "a").items()
    }
    q, k, v, weight, p = (np.float32(arrays[f"a_{x}"]) for x in ("q", "k", "v", "out_weight", "P"))

    def total(q):
        return (sparse_linear(q, k, v, p.T, Sparsity(0.3, "token")) * weight).sum()

    arrays["a_token0.3_grad_q"] = jax.grad(total)(q)[:, :, ::4]  # as many as of one in three
    np.savez(tmp_path / "file.npz", **arrays)
    ((difference,), _) = compare(tmp_path / "file.npz")
    assert difference.within


def test_the_command_says_error_and_limit_and_ends_with_3_above_one(tmp_path, capsys):
    path = tmp_path / "anything.npz"
    sparse = few()["new_token0.3_sparse"]
    for error, status in ((0, 0), (1, ABOVE_LIMIT)):
        changed = few(**{"new_token0.3_sparse": sparse + error}, stray=np.ones(3))
        np.savez(path, **changed)
        assert main(["--reference", str(path)]) == status
        line, rest = capsys.readouterr().out.splitlines()
        assert line.startswith("reference token: softmax branch max_abs_error=")
        assert line.endswith("limit=1e-05")
        assert rest == "not compared, nothing here gives it: stray"


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"x": np.ones(2)}, "of no known kind; known: sparse-linear attention"),
        (few(new_q=np.ones((1, 2, 96, 8), np.float32)), r"expected \[B,H,Q,K\] queries"),
        (few(new_q=np.ones(3, np.float32)), r"new_q \(3,\): expected \[B, H, N, K\]"),
        (few(new_v=np.array("text")), "new_v: expected finite numbers"),
        (few(**{"new_token0.3_sparse": np.ones(3)}), r"new_token0.3_sparse is \(3,\), but this"),
        (few(**{"new_token7_sparse": np.ones(3)}), "density=7.0: expected a number, above 0"),
    ],
)
def test_other_files_are_refused_in_a_line(arrays, words, tmp_path):
    np.savez(tmp_path / "file.npz", **arrays)
    with pytest.raises(InputError, match=words):
        compare(tmp_path / "file.npz")


def test_weights_are_asked_for_where_there_are_some():
    with pytest.raises(InputError, match=r"lite3r_sla\.npz .* takes no weights; leave out"):
        compare(ATTENTION, GOLDENS / "square.pt")
