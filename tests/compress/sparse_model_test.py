"""`elvsm compress WEIGHTS OUT --density` fits P alone, on other scenes than it is judged by."""

import json

import jax
import numpy as np
import pytest
from capture_writers import nerfstudio
from five_cameras import five_cameras

import efficient_lvsm_jax as elvsm
from efficient_lvsm_jax.compress.__main__ import main
from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.weights.folder import save_weights
from efficient_lvsm_jax.weights.published import unshown

SPARSE = "cross=0.3:block4:from0"


@pytest.fixture(scope="module")
def given(small_model, tmp_path_factory):
    """A folder with weights of the small model and three captures."""
    folder = tmp_path_factory.mktemp("given")
    config = {**small_model.config.architecture, **unshown(small_model.config)}
    save_weights(
        folder / "weights", small_model.params, {"family": small_model.family, "config": config}
    )
    for seed in range(3):
        truth = five_cameras(seed=seed, same_intrinsics=True)
        nerfstudio.write(folder / "captures" / f"place{seed}", truth)
    return folder


def command(given, out, *flags, data="captures"):
    where = ("--data", str(given / data), "--size", "48", "--inputs", "2")
    return main([str(given / "weights"), str(out), *where, *flags])


def leaves(params):
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }


def test_p_alone_is_trained_and_the_report_says_what_was_lost(given, small_model, tmp_path, capsys):
    assert command(given, tmp_path / "out", "--sparsity", SPARSE, "--steps", "2") == 0
    model = elvsm.load(tmp_path / "out")
    assert model.config.attention_sparsity == SPARSE
    before, after = leaves(small_model.params), leaves(model.params)
    place = "decoder/cross_attention"
    trained = {f"{place}/sparse/{name}" for name in ("kernel", "share")}
    assert after.keys() - before.keys() == trained
    for name, value in before.items():
        np.testing.assert_array_equal(after[name], value, name)
    assert all(np.any(after[name] != (name.endswith("share"))) for name in trained)

    report = json.loads((tmp_path / "out/compress.json").read_text())
    layers, size = small_model.config.layers, small_model.config.head_dim
    assert report["trained values"] == layers * (size**2 + 1)
    assert report["fitted on"] == ["place0", "place1"] and report["held out"] == ["place2"]
    assert {*report["attention"]} == {*report["share"]} == {*report["ridge"]} == {place}
    np.testing.assert_allclose(report["share"][place], after[f"{place}/sparse/share"])
    assert len(report["ridge"][place]) == layers
    for errors in report["attention"].values():
        assert set(errors) == {"P = 0", "fitted", "fitted, by head", "distilled", "random blocks"}
        assert all(len(values) == layers for values in errors.values())
    scores = report["scores"]
    assert set(scores) == {"dense", "P = 0", "fitted", "distilled", "random blocks"}
    assert scores["dense"]["PSNR to the dense model, dB"][0] == "inf"
    assert 0 < scores["fitted"]["PSNR to the dense model, dB"][0] < 100
    assert scores["fitted"] != scores["distilled"]
    shown = capsys.readouterr().out
    assert f"{report['trained values']} values fitted on 2 scenes" in shown
    assert all(what in shown for what in scores)

    with pytest.raises(InputError, match="still dense"):  # what is sparse already
        main([str(tmp_path / "out"), str(tmp_path / "o"), "--density", "0.3", "--generated", "2"])


def test_weights_are_trained_to_be_rounded_and_the_report_says_what_that_gains(
    given, small_model, tmp_path, capsys
):
    out = tmp_path / "out.safetensors"
    assert command(given, out, "--bits", "fp8", "--steps", "12") == 0
    report = json.loads((tmp_path / "out.compress.json").read_text())
    assert report["fitted on"] == ["place0", "place1"] and report["held out"] == ["place2"]
    shown, scores = capsys.readouterr().out, report["scores"]
    assert list(scores) == ["float32", "eight bits", "trained"]
    assert all(what in shown for what in scores)
    near = {what: of["PSNR to the float model, dB"][0] for what, of in scores.items()}
    assert near["eight bits"] < near["trained"]
    before, after = leaves(small_model.params), leaves(elvsm.load(out).params)
    assert all(np.any(after[name] != value) for name, value in before.items())

    with pytest.raises(InputError, match=r"out\.compress\.json already exists"):
        out.unlink()
        command(given, out, "--bits", "fp8", "--steps", "1")


def test_bad_input_is_a_line(given, tmp_path):
    out = tmp_path / "out"
    some = ("--sparsity", SPARSE)
    for flags, data, expected in (
        (("--density", "1.5"), "captures", "density=1.5"),
        (some, "nowhere", "nowhere: no such file"),
        (some, "captures/place0", "0 to fit on and 1 held out; expected two or more to fit on"),
        (("--density", "0.3"), "captures", "too few keys for any place"),
        ((*some, "--inputs", "9"), "captures", "9 inputs asked for"),
        (("--sparsity", "window=0.3"), "captures", "'window=0.3': expected PLACE=DENSITY"),
        ((*some, "--size", "50"), "captures", "multiple of the model's patch size 8"),
        ((*some, "--steps", "-1"), "captures", "--steps -1"),
    ):
        with pytest.raises(InputError, match=expected):
            command(given, out, *flags, data=data)
        assert not out.exists()
    out.mkdir()
    with pytest.raises(InputError, match="out already exists"):
        command(given, out, *some)


def test_flags_of_other_ways_are_refused(given, tmp_path, capsys):
    for flags, expected in (
        (("--density", "0.3", "--bits", "int8"), "expected WEIGHTS OUT"),
        (("--density", "0.3"), "name scenes to fit on"),
        (("--bits", "int8", "--steps", "9"), "name scenes to fit on"),
        (("--bits", "int8", "--generated", "9"), "--density, --sparsity or --steps"),
        ((), "expected WEIGHTS OUT"),
    ):
        with pytest.raises(SystemExit):
            main([str(given / "weights"), str(tmp_path / "out"), *flags])
        assert expected in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["--reference", "recorded.npz", "--steps", "9"])
    assert "--reference takes no" in capsys.readouterr().err
