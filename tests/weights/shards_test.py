"""Weights in several files with an index, as the Hugging Face hub has them."""

import hashlib
import json

import jax
import numpy as np
import pytest
from conftest import GOLDENS
from torch_files import write_arrays

import efficient_lvsm_jax as elvsm
from efficient_lvsm_jax.convert.conversion import convert
from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.files.safetensors_file import write_safetensors
from efficient_lvsm_jax.files.torch_file import open_torch
from efficient_lvsm_jax.weights.folder import load_weights

SQUARE = GOLDENS / "square.pt"
INDEX = "model.safetensors.index.json"


@pytest.fixture(scope="module")
def arrays():
    with open_torch(SQUARE) as content:
        return {name: tensor.numpy() for name, tensor in content["model"].items()}


@pytest.fixture
def sharded(tmp_path, arrays):
    """Writes shards of the model and an index, in a folder; what is in it may be changed."""

    def write(index=INDEX, **changes):
        folder = tmp_path / "sharded"
        folder.mkdir()
        kind = index.split(".")[1]
        names = list(arrays)
        parts = {f"model-{i + 1}-of-3.{kind}": names[i::3] for i in range(3)}
        for file, part in parts.items():
            tensors = {name: arrays[name] for name in part}
            if kind == "safetensors":
                write_safetensors(folder / file, tensors)
            else:
                write_arrays(folder / file, tensors, bare=True)
        where = {name: file for file, part in parts.items() for name in part} | changes
        content = {"metadata": {"total_size": 3}, "weight_map": where}
        (folder / index).write_text(json.dumps(content))
        return folder

    return write


@pytest.mark.parametrize("index", [INDEX, "pytorch_model.bin.index.json"])
def test_the_same_as_one_file(tmp_path, sharded, index):
    folder = sharded(index)
    expected = elvsm.load(SQUARE).params
    for source in (folder, folder / index):
        jax.tree.map(np.testing.assert_array_equal, elvsm.load(source).params, expected)
    done = convert(folder, tmp_path / "out")
    jax.tree.map(np.testing.assert_array_equal, load_weights(tmp_path / "out")[0], expected)
    files = sorted(path for path in folder.iterdir() if path.name != index)
    lines = "".join(
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in files
    )
    assert done.sha256 == hashlib.sha256(lines.encode()).hexdigest()
    convert(folder, tmp_path / "out.safetensors")
    jax.tree.map(
        np.testing.assert_array_equal, elvsm.load(tmp_path / "out.safetensors").params, expected
    )


def refused(folder):
    with pytest.raises(InputError) as caught:
        elvsm.load(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    "file", ["../x.safetensors", "/x.safetensors", "a\\x.safetensors", "a/x.safetensors", "x.pt", 3]
)
def test_files_elsewhere_are_refused(sharded, file):
    message = refused(sharded(**{"rgbp_tokenizer.1.weight": file}))
    assert f"{INDEX}: says that rgbp_tokenizer.1.weight is in {file!r}" in message


def test_a_missing_shard_is_named(sharded):
    folder = sharded()
    (folder / "model-2-of-3.safetensors").unlink()
    assert "model-2-of-3.safetensors: missing" in refused(folder)


def test_tensors_in_the_wrong_shard_are_named(sharded):
    message = refused(sharded(**{"rgbp_tokenizer.1.weight": "model-2-of-3.safetensors"}))
    assert "rgbp_tokenizer.1.weight, which by model.safetensors.index.json is in model-2" in message


def test_a_tensor_in_two_shards_is_named(sharded, arrays):
    folder = sharded()
    name = "rgbp_tokenizer.1.weight"
    (folder / "model-2-of-3.safetensors").unlink()
    again = {x: arrays[x] for x in [name, *list(arrays)[1::3]]}
    write_safetensors(folder / "model-2-of-3.safetensors", again)
    assert f"model-2-of-3.safetensors: has {name}, which" in refused(folder)


def test_an_unknown_tensor_in_the_index_is_named(sharded):
    message = refused(sharded(absent="model-2-of-3.safetensors"))
    assert "model-2-of-3.safetensors: does not have absent, which" in message


@pytest.mark.parametrize(
    ("index", "reason"),
    [
        ("{}", "expected a weight_map"),
        ('{"weight_map": {}}', "expected a weight_map"),
        ("[]", "expected a JSON object"),
        ('{"weight_map": {"a": "x.safetensors", "a": "y.safetensors"}}', "there twice"),
    ],
)
def test_damaged_indices_are_refused(sharded, index, reason):
    folder = sharded()
    (folder / INDEX).write_text(index)
    assert reason in refused(folder)


def test_several_indices_are_refused(sharded):
    folder = sharded()
    (folder / "other.safetensors.index.json").write_text("{}")
    assert "several indices" in refused(folder)


def test_hidden_files_beside_the_shards_change_nothing(sharded):
    folder = sharded()
    for file in list(folder.iterdir()):
        file.with_name(f"._{file.name}").write_bytes(b"\0\x05\x16\x07")
    assert elvsm.load(folder).family == "efficient_lvsm"
