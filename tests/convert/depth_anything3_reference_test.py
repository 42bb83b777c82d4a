"""convert --reference with files recorded from Depth Anything 3."""

import json
import re

import numpy as np
import pytest
from conftest import GOLDENS
from small_depth_anything3 import FILE, recorded, small_da3
from small_vggt import FILE as VGGT_FILE

from efficient_lvsm_jax.convert.__main__ import ABOVE_LIMIT, main
from efficient_lvsm_jax.convert.reference import compare, read_reference
from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.weights.load import load


def file_of(name):
    return GOLDENS / f"da3_{name}.npz"


def saved(path, arrays):
    np.savez(path, **arrays)
    return path


def differences(path):
    """By quantity; all are within their limits."""
    found = {each.quantity: each for each in compare(small_da3(), read_reference(path))}
    assert all(each.within for each in found.values()), [str(each) for each in found.values()]
    return found


@pytest.mark.parametrize(
    ("name", "quantities"),
    [
        ("rays", {"cameras", "intrinsics", "matrices of rays", "rays that agree"}),
        ("reference_view", {"reference views", "orders of views"}),
        (
            "preprocess",
            {
                "sizes of pictures",
                "levels of pictures",
                "share of pixels that differ",
                "sums of pictures",
                "intrinsics of pictures",
            },
        ),
        (
            "geometry",
            {
                "pose encodings",
                "camera tokens",
                "cameras",
                "intrinsics",
                "known cameras",
                "alignments",
                "position tables",
                "positions of DPT heads",
                "rotary positions",
            },
        ),
    ],
)
def test_files_of_parts(name, quantities):
    assert differences(file_of(name)).keys() == quantities


@pytest.mark.parametrize(
    ("name", "kept", "quantities"),
    [
        ("geometry", r"(align|normalise)_.*_5", {"alignments", "known cameras"}),
        ("geometry", r"decode_(encoding|hw|extrinsics)", {"cameras"}),
        ("preprocess", r"40x50\w+_98", {"levels of pictures", "share of pixels that differ"}),
    ],
)
def test_files_with_few_of_the_arrays_are_compared_as_well(name, kept, quantities, tmp_path):
    arrays = {name: x for name, x in recorded(name).items() if re.fullmatch(kept, name)}
    path = saved(tmp_path / "file.npz", arrays | {"stray": np.ones(3)})
    assert differences(path).keys() == quantities
    reference = read_reference(path)
    list(compare(small_da3(), reference))
    assert reference.not_compared == ["stray"]


def case_of(name, case):
    """The arrays of a file that are of one case, or of all."""
    kept = ("block_index", "config", "images_u8")
    cases = f"_{case}"
    return {k: x for k, x in recorded(name).items() if k in kept or k.endswith(cases)}


def test_views(tmp_path):
    """Of four views one is chosen, and comes first in the tokens after blocks."""
    arrays = case_of("70x28", "v4")
    for name in ("reference_view_v4", "pose_encoding_first_v4", "pose_encoding_middle_v4"):
        del arrays[name]
    found = differences(saved(tmp_path / "v4.npz", arrays))
    tokens = {"tokens", "camera tokens"}
    maps = {"depth", "depth confidence", "rays", "rays confidence"}
    assert found.keys() == tokens | maps | {"poses", "cameras", "intrinsics"}


def test_files_of_views_tell_settings():
    told = read_reference(file_of("42x56")).told
    config = small_da3().config
    assert told == {key: getattr(config, key) for key in told}
    assert {"taps", "head_dim", "camera_heads", "encoder_layers"} <= told.keys()


def test_the_command_says_error_and_limit_and_ends_with_3_above_one(tmp_path, capsys):
    arrays = recorded("rays")
    for error, status in ((0, 0), (3e-5, ABOVE_LIMIT)):
        changed = arrays | {"extrinsics": arrays["extrinsics"] + np.float32(error)}
        path, out = saved(tmp_path / "rays.npz", changed), tmp_path / f"out{error}"
        assert main([str(FILE), "--out", str(out), "--reference", str(path)]) == status
        line = next(x for x in capsys.readouterr().out.splitlines() if " cameras " in x)
        assert line.startswith("reference cameras max_abs_error=")
        assert line.endswith("limit=1e-05")
    assert load(tmp_path / "out0").family == "depth_anything3"


@pytest.mark.parametrize(
    ("source", "reference", "holds", "expected"),
    [
        (VGGT_FILE, file_of("42x56"), "vggt", "depth_anything3"),
        (FILE, GOLDENS / "stream_vggt_causal.npz", "depth_anything3", "vggt"),
    ],
)
def test_weights_of_another_family_are_refused(source, reference, holds, expected, tmp_path):
    words = rf"\(family {holds}\); expected weights of the family {expected}$"
    with pytest.raises(InputError, match=words):
        main([str(source), "--out", str(tmp_path / "out"), "--reference", str(reference)])
    assert not (tmp_path / "out").exists()


def test_models_of_another_family_are_refused():
    with pytest.raises(InputError, match=r"causal\.npz: was recorded from vggt, but the model is"):
        list(compare(small_da3(), read_reference(GOLDENS / "stream_vggt_causal.npz")))


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"qknorm_start": 4}, r"changed\.npz: config: alt_start=2, qknorm_start=4, rope_start=2"),
        ({"out_layers": [3, 5, 6, 9]}, r"config: out_layers=\[3, 5, 6, 9\]: expected layers"),
        ({"out_layers": 3}, "config: expected a JSON object of sizes"),
    ],
)
def test_settings_of_no_such_network_are_refused(config, words, tmp_path):
    arrays = case_of("70x28", "v1")
    config = json.loads(str(arrays["config"])) | config
    path = saved(tmp_path / "changed.npz", arrays | {"config": np.array(json.dumps(config))})
    with pytest.raises(InputError, match=words):
        read_reference(path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"images_u8": np.zeros((1, 28, 28, 3), np.uint8)}, "expected uint8"),
        ({"block_index": np.array([0, 10])}, r"block_index is \[0, 10\]: expected numbers from 0"),
        ({"depth_v5": np.zeros((5, 28, 28), np.float32)}, "case v5: images_u8 has 4 views"),
    ],
)
def test_arrays_of_no_such_views_are_refused(changes, words, tmp_path):
    path = saved(tmp_path / "changed.npz", case_of("70x28", "none") | changes)
    with pytest.raises(InputError, match=rf"changed\.npz: .*{words}"):
        list(compare(small_da3(), read_reference(path)))


def test_files_without_anything_to_compare_are_refused(tmp_path):
    path = saved(tmp_path / "empty.npz", case_of("70x28", "none"))
    with pytest.raises(InputError, match="has no array that is compared"):
        list(compare(small_da3(), read_reference(path)))
