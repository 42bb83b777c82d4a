"""convert --reference with files recorded from StreamVGGT, and settings that files do not say."""

import re
import shutil

import numpy as np
import pytest
from conftest import GOLDENS
from small_vggt import FILE, small_vggt

from efficient_lvsm_jax.convert.__main__ import ABOVE_LIMIT, main
from efficient_lvsm_jax.convert.reference import compare, read_reference
from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.weights.load import load


def file_of(name):
    return GOLDENS / f"stream_vggt_{name}.npz"


@pytest.mark.parametrize("name", ["causal", "streaming", "track"])
def test_other_files_tell_sizes(name):
    reference = read_reference(file_of(name))
    config = small_vggt().config
    assert reference.told.items() <= {key: getattr(config, key) for key in reference.told}.items()
    assert "images_u8_56x70" in reference.frames


def test_the_command_says_error_and_limit_and_ends_with_3_above_one(tmp_path, capsys):
    with np.load(file_of("geometry")) as file:
        arrays = dict(file)
    for error, status in ((0, 0), (1, ABOVE_LIMIT)):
        path = tmp_path / "changed_geometry.npz"
        np.savez(path, **arrays | {"unproject_points": arrays["unproject_points"] + error})
        out = tmp_path / f"out{error}"
        assert main([str(FILE), "--out", str(out), "--reference", str(path)]) == status
        line = next(x for x in capsys.readouterr().out.splitlines() if "unprojected" in x)
        assert line.startswith("reference unprojected points max_abs_error=")
        assert line.endswith("limit=1e-05")
    assert load(tmp_path / "out0").config == small_vggt().config


@pytest.mark.parametrize(
    ("name", "kept", "quantity"),
    [
        ("geometry", r"uv_.*|dpt_position.*", "positions of DPT heads"),
        ("geometry", r"unproject_.*", "unprojected points"),
        ("geometry", r"image_size_hw|random_encoding|decoded_intrinsics", "fields of view"),
        ("geometry", r"image_size_hw|extrinsics|intrinsics|pose_encoding", "pose encodings"),
        ("preprocess", r"raw_(land|tall)|(crop|pad)_(land|tall)_row_sums", "prepared pictures"),
    ],
)
def test_files_with_few_of_the_arrays_are_compared_as_well(name, kept, quantity, tmp_path):
    with np.load(file_of(name)) as file:
        arrays = {name: array for name, array in file.items() if re.fullmatch(kept, name)}
    np.savez(tmp_path / "file.npz", **arrays, stray=np.ones(3))
    reference = read_reference(tmp_path / "file.npz")
    (difference,) = compare(small_vggt(), reference)
    assert difference.quantity == quantity and difference.within
    assert reference.not_compared == ["stray"]


def test_losses_of_tracks_far_apart_are_compared_in_shares(tmp_path):
    with np.load(file_of("losses")) as file:
        arrays = {name: x for name, x in file.items() if name[:4] in ("stud", "teac", "vali")}
        near = file["loss_track"]
    apart = np.linalg.norm(arrays["student_track"] - np.float64(arrays["teacher_track"]), axis=-1)
    for who in ("student", "teacher"):
        arrays[f"{who}_track"] *= 1024
    far = near + 1023 * (arrays["student_track_conf"] * apart).mean()
    np.savez(tmp_path / "file.npz", **arrays, loss_track=far)
    (difference,) = compare(small_vggt(), read_reference(tmp_path / "file.npz"))
    assert difference.within and difference.relative


def test_settings_are_told_and_kept(tmp_path, capsys):
    out = tmp_path / "vggt"
    settings = ("causal=false", "camera_heads=8")
    flags = [word for setting in settings for word in ("--setting", setting)]
    assert main([str(FILE), "--out", str(out), *flags]) == 0
    assert "read as causal" not in capsys.readouterr().out
    config = load(out).config
    assert (config.causal, config.camera_heads) == (False, 8)
    main([str(FILE), "--out", str(tmp_path / "stream")])
    assert "--setting causal=false" in capsys.readouterr().out
    main([str(out), "--out", str(tmp_path / "vggt.safetensors")])  # a folder says what it is
    assert "read as causal" not in capsys.readouterr().out
    assert not load(tmp_path / "vggt.safetensors").config.causal


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("width=64", "width=64 was told, but its tensors say 32"),
        ("heads=2", "heads is not a known setting"),
        ("camera_heads=3", "divisor of twice the width"),
    ],
)
def test_settings_that_tensors_contradict_are_refused(setting, words, tmp_path):
    with pytest.raises(InputError, match=words):
        main([str(FILE), "--out", str(tmp_path / "out"), "--setting", setting])
    assert not (tmp_path / "out").exists()


def test_frames_are_looked_for_beside(tmp_path):
    path = shutil.copy(file_of("track"), tmp_path)
    with pytest.raises(InputError, match=r"expected them in stream_vggt_causal\.npz beside it"):
        read_reference(path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"config": np.array("{")}, "config: expected a JSON object"),
        ({"config": np.array('{"taps": [0]}')}, "config: expected a JSON object of sizes"),
        ({"tokens_in": np.full((2, 25, 32), np.nan)}, "tokens_in has NaN"),
    ],
)
def test_unusable_files_are_refused(changes, words, tmp_path):
    with np.load(file_of("encoder")) as file:
        np.savez(tmp_path / "changed.npz", **dict(file) | changes)
    with pytest.raises(InputError, match=words):
        read_reference(tmp_path / "changed.npz")


def test_arrays_of_another_shape_and_missing_ones_are_named(tmp_path):
    with np.load(file_of("geometry")) as file:
        arrays = dict(file)
    path = tmp_path / "changed.npz"
    np.savez(path, **arrays | {"pose_encoding": arrays["pose_encoding"][:, :3]})
    with pytest.raises(InputError, match=r"pose_encoding is \(1, 3, 9\), but this model gives"):
        list(compare(small_vggt(), read_reference(path)))
    np.savez(path, **arrays | {"intrinsics": arrays["intrinsics"][..., :1, :1]})
    with pytest.raises(InputError, match="its arrays do not belong together"):
        list(compare(small_vggt(), read_reference(path)))
    del arrays["unproject_depth"]
    np.savez(path, **arrays)
    with pytest.raises(InputError, match="has no array unproject_depth"):
        list(compare(small_vggt(), read_reference(path)))


def test_files_of_another_kind_of_model_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"was not recorded from a model like GeometryModel"):
        list(compare(small_vggt(), read_reference(GOLDENS / "square.npz")))
