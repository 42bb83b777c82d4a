import dataclasses
import json
import math
import re

import jax
import numpy as np
import pytest
from conftest import GOLDENS

import efficient_lvsm_jax as elvsm
from efficient_lvsm_jax.compress.__main__ import main
from efficient_lvsm_jax.compress.storage import store
from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.files.safetensors_file import read_safetensors, write_safetensors
from efficient_lvsm_jax.nn.eight_bits import fake_kernel
from efficient_lvsm_jax.weights import kept
from efficient_lvsm_jax.weights.scaled import in_eight_bits, rounded


@pytest.fixture(scope="module", params=["fp8", "int8"])
def stored(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("stored") / "rooms.safetensors"
    return request.param, path, store("rooms", path, request.param)


def leaves(model):
    for path, leaf in jax.tree_util.tree_leaves_with_path(model.params):
        yield jax.tree_util.keystr(path, simple=True, separator="/"), np.asarray(leaf)


def test_kernels_of_layers_are_near_and_everything_else_is_as_it_was(stored):
    bits, path, done = stored
    before, after = dict(leaves(elvsm.load("rooms"))), dict(leaves(elvsm.load(path)))
    assert before.keys() == after.keys()
    for name, kernel in before.items():
        if not re.fullmatch(r"(encoder|decoder)/.+/kernel", name):
            np.testing.assert_array_equal(after[name], kernel, name)
            continue
        error = np.linalg.norm(after[name] - kernel) / np.linalg.norm(kernel)
        assert 0 < error < {"fp8": 0.03, "int8": 0.015}[bits], name
    assert elvsm.load(path).trained_sizes == elvsm.load("rooms").trained_sizes
    # A small model has larger tokenizers for its size than one of 199 M parameters.
    assert done.nbytes < 0.32 * 4 * done.parameters
    assert "tensors in eight bits" in str(done)


def test_trained_is_with_the_very_values_that_are_stored_and_gradients_pass(stored):
    bits, path, _ = stored
    model, after = elvsm.load("rooms"), dict(leaves(elvsm.load(path)))
    found = rounded(model.params, model.family, model.config, bits)
    for name, value in leaves(dataclasses.replace(model, params=found)):
        np.testing.assert_array_equal(value, after[name], name)
    kernel = model.params["encoder"]["attention"]["out"]["kernel"][:, :, :2, :3]
    slope = jax.grad(lambda kernel: fake_kernel(kernel, 2, bits).sum())(kernel)
    assert (slope == 1).all()


def test_a_file_of_the_hub_gets_no_float_copy(stored, monkeypatch):
    _, path, _ = stored
    monkeypatch.setattr(kept, "fetch", lambda source: path)
    monkeypatch.setattr(kept, "save_weights", None)  # whoever writes a folder fails
    assert kept.kept("hf://owner/repo/rooms.safetensors") == path
    assert elvsm.load("hf://owner/repo/rooms.safetensors").family == "efficient_lvsm"


def test_storing_again_what_is_stored_changes_no_value(stored, tmp_path):
    bits, path, _ = stored
    store(path, tmp_path / "again.safetensors", bits)
    again = dict(leaves(elvsm.load(tmp_path / "again.safetensors")))
    for name, kernel in leaves(elvsm.load(path)):
        np.testing.assert_allclose(again[name], kernel, rtol=1e-6, atol=0, err_msg=name)


def test_a_scale_that_is_not_one_for_each_row_is_refused(stored, tmp_path):
    _, path, _ = stored
    tensors = {name: tensor.numpy() for name, tensor in read_safetensors(path).items()}
    name = next(name for name in tensors if name.endswith("_scale"))
    tensors[name] = tensors[name][:3]
    write_safetensors(tmp_path / "spoiled.safetensors", tensors)
    with pytest.raises(InputError, match=f"{re.escape(name)} is float32 .3, 1., expected a scale"):
        elvsm.load(tmp_path / "spoiled.safetensors")


def test_numbers_of_eight_bits_without_a_scale_are_refused(stored, tmp_path):
    _, path, _ = stored
    tensors = {name: tensor.numpy() for name, tensor in read_safetensors(path).items()}
    name = next(name for name in tensors if name.endswith("_scale"))
    del tensors[name]
    write_safetensors(tmp_path / "spoiled.safetensors", tensors)
    kernel = re.escape(name.removesuffix("_scale"))
    with pytest.raises(InputError, match=rf"dtype: {kernel} is (int8|float8_e4m3fn), expected"):
        elvsm.load(tmp_path / "spoiled.safetensors")


def test_the_file_says_its_dtypes_as_others_read_them(stored):
    bits, path, _ = stored
    data = path.read_bytes()
    table = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    written = {"fp8": "F8_E4M3", "int8": "I8"}[bits]
    kernels = [name for name in table if f"{name}_scale" in table]
    assert kernels and all(table[name]["dtype"] == written for name in kernels)


@pytest.mark.parametrize(
    ("destination", "bits", "said"),
    [
        ("rooms.pt", "fp8", "name a file that ends in .safetensors"),
        ("rooms.safetensors", "int3", "bits 'int3': expected one of fp8, int8"),
    ],
)
def test_what_cannot_be_written_is_said(tmp_path, destination, bits, said):
    with pytest.raises(InputError, match=re.escape(said)):
        store("rooms", tmp_path / destination, bits)
    assert not list(tmp_path.iterdir())


def test_the_command_says_what_it_wrote_and_what_the_device_does(tmp_path, capsys):
    for bits, said in (("fp8", "storage alone here"), ("int8", "multiplies in eight bits here")):
        assert main(["rooms", str(tmp_path / f"{bits}.safetensors"), "--bits", bits]) == 0
        first, second = capsys.readouterr().out.splitlines()
        assert "tensors in eight bits" in first and said in second
    with pytest.raises(SystemExit):
        main(["rooms", str(tmp_path / "again.safetensors")])
    assert "--bits fp8|int8" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["lvsm_decoder_only", "lvsm_encoder_decoder"])
def test_the_baselines_too_are_stored_and_multiplied_by_output(name, tmp_path):
    before = elvsm.load(GOLDENS / f"{name}.pt")
    store(GOLDENS / f"{name}.pt", tmp_path / "small.safetensors", "int8")
    after = elvsm.load(tmp_path / "small.safetensors")
    assert after.config == before.config
    abstract = jax.eval_shape(lambda: in_eight_bits(after, "int8").params)
    for path, kernel in leaves(before):
        if not re.fullmatch(r"(encoder|decoder)/.+/kernel", path):
            continue
        step = np.abs(kernel).max() / 127
        got, eight = after.params, abstract
        for key in path.split("/"):
            got, eight = got[key], eight[key]
        assert 0 < np.abs(got - kernel).max() <= 0.501 * step, path
        inputs = 2 if path.endswith("out/kernel") else 1
        outputs = math.prod(kernel.shape[1 + inputs :])
        assert eight.scale.shape == (kernel.shape[0], outputs)
        assert eight.codes.shape == (kernel.shape[0], outputs, kernel[0].size // outputs)


def test_a_model_of_geometry_is_refused(tmp_path):
    with pytest.raises(InputError, match="renders no views"):
        store(GOLDENS / "stream_vggt.safetensors.index.json", tmp_path / "x.safetensors", "int8")
