"""Which entry of a training program's file is read, and its tensors' names without wrappers."""

import argparse
import logging
import pickle

import jax
import numpy as np
import pytest
from conftest import GOLDENS
from torch_files import (
    ORDERED_DICT,
    Raw,
    call,
    encode,
    name,
    rebuilt,
    storage,
    write_arrays,
    write_legacy,
    write_torch,
)

import efficient_lvsm_jax as elvsm
from efficient_lvsm_jax.convert.conversion import convert
from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.files.safetensors_file import write_safetensors
from efficient_lvsm_jax.files.stored import contiguous_strides
from efficient_lvsm_jax.files.torch_file import open_torch
from efficient_lvsm_jax.weights.entries import bare_name
from efficient_lvsm_jax.weights.folder import read_weights_info
from efficient_lvsm_jax.weights.load import read_published

SQUARE = GOLDENS / "square.pt"
BLOCK = "self_cross_blocks.0."


@pytest.fixture(scope="module")
def arrays():
    with open_torch(SQUARE) as content:
        return {name: tensor.numpy() for name, tensor in content["model"].items()}


@pytest.fixture(scope="module")
def averages(arrays):
    return {name: array / 2 for name, array in arrays.items()}


@pytest.fixture(scope="module")
def trained():
    return read_published(SQUARE).params


@pytest.fixture
def write(tmp_path):
    """Writes nested dicts of arrays and other values as a checkpoint."""

    def write_nested(content, file="x.ckpt"):
        storages = {}

        def stored(value):
            if isinstance(value, dict):
                return {key: stored(x) for key, x in value.items()}
            if not isinstance(value, np.ndarray):
                return value
            key = str(len(storages))
            storages[key] = value.tobytes()
            kind = {"f": "FloatStorage", "i": "LongStorage"}[value.dtype.kind]
            strides = contiguous_strides(value.shape)
            reference = storage(key, value.size, kind)
            return rebuilt(reference, 0, value.shape, strides, False, ORDERED_DICT)

        return write_torch(tmp_path / file, stored(content), storages)

    return write_nested


def prefixed(prefix, arrays):
    return {prefix + name: array for name, array in arrays.items()}


def assert_same(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


def assert_half(params, trained):
    assert_same(params, jax.tree.map(lambda x: x / 2, trained))


@pytest.mark.parametrize(
    ("name", "bare"),
    [
        ("blocks.0._orig_mod.mlp.0.weight", "blocks.0.mlp.0.weight"),
        ("blocks.0._checkpoint_wrapped_module.mlp.weight", "blocks.0.mlp.weight"),
        ("_fsdp_wrapped_module.blocks.0._fsdp_wrapped_module.x", "blocks.0.x"),
        ("_forward_module.blocks.0._fpw_module.x", "blocks.0.x"),  # Lightning's, an older FSDP's
        ("model.module._orig_mod.model.x", "x"),
        ("_forward_module.module.blocks.0.x", "blocks.0.x"),
        ("module.model.x._orig_mod.module.y", "x.y"),
        ("lin0.model.1.weight", "lin0.model.1.weight"),
        ("my_module.weight", "my_module.weight"),
        ("modules.module", "modules.module"),
    ],
)
def test_words_of_wrappers_are_no_part_of_names(name, bare):
    assert bare_name(name) == bare


@pytest.mark.parametrize(
    "wrapper", ["module", "_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module"]
)
def test_wrappers_within_names(tmp_path, arrays, trained, wrapper):
    wrapped = {x.replace(BLOCK, f"{BLOCK}{wrapper}."): array for x, array in arrays.items()}
    assert_same(read_published(write_arrays(tmp_path / "x.pt", wrapped)).params, trained)
    write_safetensors(tmp_path / "x.safetensors", wrapped)
    assert_same(read_published(tmp_path / "x.safetensors").params, trained)


def test_names_that_begin_with_an_attribute_of_the_program_are_told_how_to_read(
    tmp_path, arrays, trained
):
    path = tmp_path / "x.safetensors"
    write_safetensors(path, {f"net.core.{name}": array for name, array in arrays.items()})
    with pytest.raises(
        InputError, match=r"names \(net\.core\) is part of the place .* --entry NAME"
    ):
        read_published(path)
    assert_same(read_published(path, entry="net.core").params, trained)


def test_names_that_become_the_same_are_named_both(tmp_path, arrays):
    first = f"{BLOCK}mlp.mlp.0.weight"
    wrapped = f"{BLOCK}_orig_mod.mlp.mlp.0.weight"
    path = write_arrays(tmp_path / "x.pt", arrays | {wrapped: arrays[first]})
    with pytest.raises(InputError, match=f"twice: {first}, as {first} and {wrapped}"):
        read_published(path)
    both = {"x": {f"ema.{first}": arrays[first], f"module.ema.{first}": arrays[first]}}
    path = write_arrays(tmp_path / "y.pt", arrays | both["x"])
    with pytest.raises(InputError, match=f"module.ema.{first} are both ema.{first}"):
        read_published(path, entry="model.ema")


def test_lightning(write, arrays, averages, trained, caplog):
    content = {
        "epoch": 3,
        "global_step": 1000,
        "pytorch-lightning_version": "2.5.0",
        "state_dict": prefixed("model.", arrays),
        "loops": {"fit_loop": {"state_dict": {}}},
        "callbacks": {
            "EMA{'decay': 0.99}": {"ema_state_dict": prefixed("model.", averages), "steps": 3}
        },
        "hyper_parameters": Raw(pickle.dumps(argparse.Namespace(rate=0.1), 2)[2:-1]),
    }
    path = write(content)
    assert_same(read_published(path).params, trained)
    place = "callbacks.EMA{'decay': 0.99}.ema_state_dict"
    assert f"(averages, EMA?) as {place}: choose with --entry" in caplog.text
    assert_half(elvsm.load(path, entry=place).params, trained)


def test_a_lightning_module_with_more_than_its_model(write, arrays, averages, trained, caplog):
    state = prefixed("model.", arrays) | prefixed("ema_model.module.", averages)
    path = write({"state_dict": state | {"ema_model.n_averaged": np.array(3)}})
    assert_same(read_published(path).params, trained)
    assert "(averages, EMA?) as state_dict.ema_model: choose" in caplog.text
    assert_half(read_published(path, entry="state_dict.ema_model").params, trained)
    state |= {"lpips.net.0.weight": np.ones(3, np.float32)}
    path = write({"state_dict": state})
    with pytest.raises(InputError, match=r"unexpected: lpips\.net\.0\.weight"):
        read_published(path)
    assert "beside those of model (lpips); if they are no part of it, name state_dict.model" in (
        caplog.text
    )
    assert_same(read_published(path, entry="state_dict.model").params, trained)


def test_lightning_that_stored_the_averages_as_state(write, arrays, averages, trained, caplog):
    path = write({"state_dict": averages, "current_model_state": arrays})
    assert_same(read_published(path).params, trained)
    assert "as state_dict: choose" in caplog.text


@pytest.mark.parametrize("key", ["ema", "ema_model", "model_ema", "ema_state_dict", "best"])
@pytest.mark.parametrize("model", ["model", "state_dict", "module"])
def test_copies_are_named_and_can_be_chosen(
    tmp_path, write, arrays, averages, trained, caplog, key, model
):
    path = write({model: arrays, key: prefixed("module.", averages), "step": 3})
    assert_same(elvsm.load(path).params, trained)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING and f"as {key}: choose" in record.getMessage()
    convert(path, tmp_path / "out", entry=key)
    assert_half(elvsm.load(tmp_path / "out").params, trained)
    assert read_weights_info(tmp_path / "out")["entry"] == key
    assert len(caplog.records) == 1


def test_averaged_models(write, arrays, averages, trained, caplog):
    averaged = prefixed("module.", averages) | {"n_averaged": np.array(7)}
    path = write({"model": arrays, "ema": averaged})
    assert_same(read_published(path).params, trained)
    assert_half(read_published(path, entry="ema").params, trained)
    ema_pytorch = prefixed("ema_model.", averages) | prefixed("online_model.", arrays)
    path = write({"model": arrays, "ema": ema_pytorch | {"step": np.array(3)}})
    assert_half(read_published(path, entry="ema.ema_model").params, trained)
    caplog.clear()
    assert_half(read_published(write({"model": averaged})).params, trained)
    assert "its model is an average by itself: it has n_averaged" in caplog.text


def test_averages_without_names_are_named_too(write, arrays, trained, caplog):
    path = write({"model": arrays, "ema": {"shadow_params": [0.5]}})
    assert_same(read_published(path).params, trained)
    assert "ema, which looks like averages, has not the names of its tensors" in caplog.text


def test_what_there_is_to_choose_from_is_said(write, arrays):
    path = write({"net": arrays, "step": 3})
    with pytest.raises(InputError, match=r"holds a dict with net, step; .* Tensors are in net: "):
        read_published(path)
    read_published(path, entry="net")
    with pytest.raises(InputError, match=r"no tensors at the entry 'ema'\. Tensors are in net"):
        read_published(path, entry="ema")
    module = call(name("my_program", "Model"), 3)
    with pytest.raises(InputError, match=r"holds made by my_program\.Model.* save the model's sta"):
        read_published(write(module))
    with pytest.raises(InputError, match=r"its model is made by my_program\.Model, which is never"):
        read_published(write({"model": module}))


def test_entries_are_of_published_files(tmp_path):
    convert(SQUARE, tmp_path / "w")
    with pytest.raises(InputError, match="has no entries to choose from"):
        elvsm.load(tmp_path / "w", entry="ema")


def test_dicts_that_hold_each_other_end(tmp_path):
    circle = Raw(b"}q\x01(" + encode("a") + b"h\x01" + encode("b") + b"h\x01u")
    with pytest.raises(InputError, match="expected tensors by name"):
        read_published(write_torch(tmp_path / "x.pt", circle))


@pytest.mark.parametrize("legacy", [False, True])
def test_parameters_that_are_parts_of_one_buffer(tmp_path, arrays, trained, legacy, monkeypatch):
    """As ZeRO and FSDP keep them; columns of one matrix, too, lie between each other."""
    columns = ["rgbp_tokenizer.1.weight", "target_pose_tokenizer.1.weight"]  # [D, I], [D, T]
    wide = np.concatenate([arrays[name] for name in columns], axis=1)
    rest = [name for name in arrays if name not in columns]
    flat = np.concatenate([arrays[name].ravel() for name in rest])
    view = (None,) if legacy else ()
    tensors, start = {}, 0
    for key in rest:
        shape = arrays[key].shape
        buffer = storage("0", flat.size, view=view)
        strides = contiguous_strides(shape)
        tensors[key] = rebuilt(buffer, start, shape, strides, False, ORDERED_DICT)
        start += arrays[key].size
    for key, start in zip(columns, (0, arrays[columns[0]].shape[1]), strict=True):
        buffer = storage("1", wide.size, view=view)
        strides = (wide.shape[1], 1)
        tensors[key] = rebuilt(buffer, start, arrays[key].shape, strides, False, ORDERED_DICT)
    if legacy:
        path = write_legacy(tmp_path / "x.pt", tensors, {"0": flat, "1": wide})
    else:
        path = write_torch(tmp_path / "x.pt", tensors, {"0": flat.tobytes(), "1": wide.tobytes()})
    reads = count_reads(monkeypatch, legacy)
    assert_same(read_published(path).params, trained)
    assert len(reads) == 2 + (not legacy) * 2  # byteorder and data.pkl


def count_reads(monkeypatch, legacy):
    from efficient_lvsm_jax.files import legacy_torch_file, torch_file

    module, reads = legacy_torch_file if legacy else torch_file, []
    read = module._read
    monkeypatch.setattr(module, "_read", lambda *a: reads.append(a) or read(*a))
    return reads


def test_parameters_that_overlap_are_named(tmp_path, arrays):
    one, other = "self_cross_blocks.0.mlp.mlp.0.weight", "self_cross_blocks.0.mlp.mlp.2.weight"
    content = {
        key: rebuilt(storage(key_, x.size), 0, x.shape, contiguous_strides(x.shape), False, None)
        for key_, (key, x) in zip(map(str, range(99)), arrays.items(), strict=False)
    }
    storages = {str(i): x.tobytes() for i, x in enumerate(arrays.values())}
    both = np.zeros(arrays[one].size + 100, np.float32)
    for key, start in ((one, 0), (other, 100)):
        shape = arrays[key].shape
        reference = storage("99", both.size)
        content[key] = rebuilt(reference, start, shape, contiguous_strides(shape), False, None)
    path = write_torch(tmp_path / "x.pt", content, storages | {"99": both.tobytes()})
    with pytest.raises(InputError, match=f"overlapping: {one} and {other} share some"):
        read_published(path)
