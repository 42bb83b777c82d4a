"""Weights folders: written whole, read strictly."""

import json
import resource
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
from conftest import SMALL

import efficient_lvsm_jax as elvsm
from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.files.writing import write_json
from efficient_lvsm_jax.weights.folder import digest, load_weights, save_weights

INFO = {"family": "efficient_lvsm", "config": vars(SMALL)}


@pytest.fixture
def weights(small_model, tmp_path):
    save_weights(tmp_path / "weights", small_model.params, INFO)
    return tmp_path / "weights"


def test_weights_come_back_bit_for_bit(small_model, weights):
    params, info = load_weights(weights)
    jax.tree.map(np.testing.assert_array_equal, params, small_model.params)
    assert info["config"] == vars(SMALL)
    model = elvsm.load(weights)
    assert model.config == SMALL and model.family == "efficient_lvsm"


def test_a_folder_may_say_what_size_was_trained(small_model, weights, tmp_path):
    assert elvsm.load(weights).trained_sizes == ()
    assert elvsm.load(weights).trained_tokens == 32 * 32  # as of 256x256
    info = {**INFO, "trained_sizes": [[48, 64], [16, 16]]}
    save_weights(tmp_path / "sized", small_model.params, info)
    model = elvsm.load(tmp_path / "sized")
    assert model.trained_sizes == ((48, 64), (16, 16)) and model.trained_tokens == 48
    assert model.unlike_training((64, 64)) == "" == model.unlike_training((16, 24))
    assert "trained at 48x64, 16x16" in model.unlike_training((256, 256))


@pytest.mark.parametrize("sizes", [48, [48, 64], [[48]], [[48.0, 64]], [[0, 64]], [["48", 64]]])
def test_sizes_that_cannot_be_are_refused(small_model, tmp_path, sizes):
    save_weights(tmp_path / "w", small_model.params, {**INFO, "trained_sizes": sizes})
    with pytest.raises(InputError, match=r"weights.json: trained_sizes .* pairs \[height, width\]"):
        elvsm.load(tmp_path / "w")


def test_an_existing_folder_is_not_touched(small_model, weights):
    with pytest.raises(InputError, match="already exists"):
        save_weights(weights, small_model.params, INFO)
    load_weights(weights)


def test_one_flipped_bit_is_found(weights):
    payloads = [
        p for p in (weights / "params").rglob("*") if p.is_file() and p.stat().st_size > 4096
    ]
    largest = max(payloads, key=lambda path: path.stat().st_size)
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 1
    largest.write_bytes(data)
    with pytest.raises(InputError, match=str(weights)):
        load_weights(weights)


def test_a_failed_write_leaves_nothing(small_model, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("efficient_lvsm_jax.weights.folder.write_json", full)
    with pytest.raises(InputError, match=r"weights: cannot be written .*No space left.*free space"):
        save_weights(tmp_path / "weights", small_model.params, INFO)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_one_line_and_no_traceback_of_the_storage_library(tmp_path, caplog):
    unfit = {"x": np.random.default_rng(0).normal(size=100_000)}  # 800 kB that do not compress
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, limits[1]))
    try:
        with pytest.raises(InputError, match=r"weights: cannot be written .*File too large"):
            save_weights(tmp_path / "weights", unfit, INFO)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caplog.messages == [] and list(tmp_path.iterdir()) == []


def test_weights_of_another_shape_are_refused(weights):
    info = json.loads((weights / "weights.json").read_text())
    info["config"]["width"] = 64
    write_json(weights / "weights.json", info)
    message = (
        r"params: holds other parameters than its configuration says: decoder/\S+kernel is "
        r"float32\[2, 32, 2, 2, 16\], expected float32\[2, 64, 2, 4, 16\].*; and \d+ more\. "
    )
    with pytest.raises(InputError, match=message):
        load_weights(weights)


def test_mixed_folders_are_refused_in_one_line(weights):
    """In a process of its own: what a library says at its end counts as well."""
    info = json.loads((weights / "weights.json").read_text())
    info["config"]["layers"] = 3
    write_json(weights / "weights.json", info)
    program = (
        "import sys, efficient_lvsm_jax as elvsm\n"
        "from efficient_lvsm_jax.commands import main_exit\n"
        "main_exit(lambda: elvsm.load(sys.argv[1]) and None)\n"
    )
    command = [sys.executable, "-W", "always", "-c", program, str(weights)]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 2
    (line,) = ended.stderr.splitlines()
    assert line.startswith("error: ") and "expected float32[3, " in line


def test_what_is_missing_is_named(weights, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(InputError, match="empty is empty: expected a folder with"):
        elvsm.load(empty)
    with pytest.raises(InputError, match="does not exist"):
        elvsm.load(tmp_path / "absent")
    shutil.rmtree(weights / "params")
    with pytest.raises(InputError, match="params: cannot be read"):
        elvsm.load(weights)
    (weights / "weights.json").write_text("{")
    with pytest.raises(InputError, match=r"weights\.json: not a readable JSON"):
        elvsm.load(weights)
    write_json(weights / "weights.json", {"family": "efficient_lvsm"})
    with pytest.raises(InputError, match="has no config, params_sha256"):
        elvsm.load(weights)


def test_digest_sees_names_shapes_and_values():
    base = {"a": np.arange(4.0), "b": np.zeros(2)}
    assert digest(base) == digest(dict(reversed(base.items())))
    assert digest(base) != digest({"a": np.arange(4.0).reshape(2, 2), "b": np.zeros(2)})
    assert digest(base) != digest({"c": np.arange(4.0), "b": np.zeros(2)})
