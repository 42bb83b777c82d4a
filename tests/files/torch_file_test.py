import argparse
import collections
import dataclasses
import datetime
import enum
import os
import pickle
import random
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from conftest import GOLDENS
from torch_files import (
    FOUR,
    ORDERED_DICT,
    Raw,
    call,
    encode,
    name,
    read,
    rebuilt,
    refused,
    storage,
    tensor,
    write_arrays,
    write_torch,
    write_zip,
)

from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.files import pickle_machine
from efficient_lvsm_jax.files.stored import Placeholder
from efficient_lvsm_jax.files.torch_file import open_torch


def said(path, *place):
    """What is said of the program at `place` of the content: by its placeholder, or a refusal."""
    try:
        with open_torch(path) as content:
            for key in place:
                content = content[key]
            assert isinstance(content, Placeholder)
            return str(content)
    except InputError as error:
        assert "nothing of it was run" in str(error)
        return str(error)


def test_reads_a_published_checkpoint():
    content = read(GOLDENS / "square.pt")
    assert set(content) == {
        "model",
        "optimizer",
        "lr_scheduler",
        "fwdbwd_pass_step",
        "param_update_step",
    }
    assert content["optimizer"] == {"state": {}, "param_groups": []}
    weight = content["model"]["rgbp_tokenizer.1.weight"]
    assert weight.shape == (64, 576) and weight.dtype == np.float32
    assert np.isfinite(weight).all() and weight.std() > 0


def test_reads_every_kind_of_number_a_training_checkpoint_has(tmp_path):
    arrays = {
        "f4": np.arange(6, dtype=np.float32).reshape(2, 3),
        "f2": np.arange(4, dtype=np.float16),
        "bf": np.arange(4).astype(ml_dtypes.bfloat16),
        "f8": np.array(0.5),
        "i8": np.arange(3),
        "b": np.array([True, False]),
        "none": np.zeros((0, 3), np.float32),
    }
    beside = {
        "optimizer": {"state": {0: {"step": 3.0}}, "betas": (0.9, 0.95), "fused": None},
        "lr_scheduler": {"last_epoch": -1, "_last_lr": [4e-4], "verbose": False},
    }
    content = read(write_arrays(tmp_path / "x.pt", arrays, **beside))
    for key, array in arrays.items():
        assert content["model"][key].dtype == array.dtype
        np.testing.assert_array_equal(content["model"][key], array)
    assert {key: content[key] for key in beside} == beside


def test_reads_transposed_and_sliced_tensors(tmp_path):
    content = {
        "transposed": tensor("0", (3, 2), (1, 3), length=8),
        "slice": tensor("0", (2, 2), (4, 2), offset=1, length=8),
    }
    values = np.arange(8, dtype=np.float32)
    found = read(write_torch(tmp_path / "x.pt", content, {"0": values.tobytes()}))
    np.testing.assert_array_equal(found["transposed"], values[:6].reshape(2, 3).T)
    np.testing.assert_array_equal(found["slice"], [[1, 3], [5, 7]])


def test_reads_parameters_untyped_storages_and_attributes_of_state_dicts(tmp_path):
    untyped = storage("0", 16, "UntypedStorage", "torch.storage")
    content = {
        "parameter": call(
            name("torch._utils", "_rebuild_parameter"), tensor("0", (4,)), True, ORDERED_DICT
        ),
        "untyped": call(
            name("torch._utils", "_rebuild_tensor_v3"),
            *(untyped, 0, (4,), (1,), False, ORDERED_DICT, name("torch", "float32")),
        ),
        "size": call(name("torch", "Size"), (2, 3)),
        "state": Raw(ORDERED_DICT.code + encode({"_metadata": {"": {"version": 1}}}) + b"b"),
    }
    found = read(write_torch(tmp_path / "x.pt", content, {"0": FOUR}))
    np.testing.assert_array_equal(found["parameter"], np.arange(4))
    np.testing.assert_array_equal(found["untyped"], np.arange(4))
    assert found["size"] == (2, 3) and found["state"] == {}


def test_reads_what_the_pickle_module_writes_in_any_protocol(tmp_path):
    value = {"a": [1, 2.5, None, True, "ä"], "b": ((), (1,), (1, 2), (1, 2, 3, 4)), 3: {}}
    value["again"] = value["a"]
    for protocol in (2, 3, 4, 5):
        path = write_torch(tmp_path / "x.pt", Raw(pickle.dumps(value, protocol)))
        assert read(path) == value


def test_values_are_read_only_when_asked_for(tmp_path):
    content = {"wanted": tensor("0", (4,)), "other": tensor("1", (4,))}
    path = write_torch(tmp_path / "x.pt", content, {"0": FOUR, "1": FOUR[::-1]})
    damaged = path.read_bytes().replace(FOUR[::-1], b"\xff" * 16)
    path.write_bytes(damaged)
    with open_torch(path) as content:
        np.testing.assert_array_equal(content["wanted"].numpy(), np.arange(4))
        with pytest.raises(InputError, match=r"member x/data/1 is damaged .*CRC"):
            content["other"].numpy()


def payloads(marker):
    """Programs that would create the file `marker`, by what must be said of them."""
    command = f"touch {marker}"
    touch = encode((command,)) + b"R"
    write = encode((f"open({str(marker)!r}, 'w')",)) + b"R"
    system = os.system.__module__  # posix
    return {
        "os.system": b"cos\nsystem\n" + touch,
        f"{system}.system": f"c{system}\nsystem\n".encode() + touch,
        "subprocess.getoutput": b"csubprocess\ngetoutput\n" + touch,
        "builtins.eval": b"cbuiltins\neval\n" + write,
        "__builtin__.exec": b"c__builtin__\nexec\n" + write,
        "builtins.getattr": encode(call(name("builtins", "getattr"), name("os", "path"), "os")),
        "torch.storage._load_from_bytes": b"ctorch.storage\n_load_from_bytes\n" + touch,
        "torch.load": b"ctorch\nload\n" + touch,
        "torch._utils.os.system": b"ctorch._utils\nos.system\n" + touch,
        "collections.OrderedDict.update": b"ccollections\nOrderedDict.update\n" + touch,
        # Both words come from the memo: the file nowhere has the name in one piece.
        "os.popen": b"X\2\0\0\0osq\x010X\5\0\0\0popenq\x020h\1h\2\x93" + touch,
        "os.spawn": b"(" + encode(command) + b"ios\nspawn\n",
        "os.exec": b"(" + encode(name("os", "exec")) + encode(command) + b"o",
        "subprocess.Popen": b"csubprocess\nPopen\n" + encode((command,)) + b"\x81",
        "subprocess.call": b"csubprocess\ncall\n" + encode((command,)) + encode({}) + b"\x92",
        "builtins.type": b"cbuiltins\ntype\n)R"
        + encode({"__setstate__": name("os", "system")})
        + b"b"
        + encode(command)
        + b"b",
        "builtins.map": b"cbuiltins\nmap\n"
        + encode((name("os", "system"), [command]))
        + b"R"
        + encode(command)
        + b"a("
        + encode("key")
        + encode(command)
        + b"u",
        "NEWOBJ": encode(name("torch", "FloatStorage")) + encode(()) + b"\x81",
        "EXT1 1": b"\x82\x01" + touch,
        "EXT4 1": b"\x84\x01\0\0\0" + touch,
        "PERSID os.system": b"Pos.system\n",
        "BUILD": encode({}) + encode({"__class__": 1}) + b"b",
        "calls a str": encode("os.system") + touch,
        "calls torch.FloatStorage": b"ctorch\nFloatStorage\n" + touch,
        "calls torch.float32": b"ctorch\nfloat32\n" + touch,
        "calls collections.OrderedDict": b"ccollections\nOrderedDict\n" + touch,
        "calls torch._utils._rebuild_tensor_v2": b"ctorch._utils\n_rebuild_tensor_v2\n" + touch,
        "calls torch._utils._rebuild_parameter": b"ctorch._utils\n_rebuild_parameter\n" + touch,
    }


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("what", payloads("marker"))
def test_hostile_programs_are_named_and_not_run(tmp_path, what, nested):
    code = Raw(payloads(tmp_path / "marker")[what])
    content = {"model": {"rgbp_tokenizer.1.weight": tensor("0", (4,)), "hostile": code}}
    path = write_torch(tmp_path / "x.pt", content if nested else code, {"0": FOUR})
    assert what in said(path, *("model", "hostile") * nested)
    assert not (tmp_path / "marker").exists()


class Hostile:
    """Runs a command when unpickled."""

    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_payload_made_by_pickle_is_not_run(tmp_path, protocol):
    marker = tmp_path / "marker"
    pickled = pickle.dumps({"model": [Hostile(f"touch {marker}")]}, protocol)
    path = write_torch(tmp_path / "x.pt", Raw(pickled))
    assert f"made by {os.system.__module__}.system, which" in said(path, "model", 0)
    assert not marker.exists()
    pickle.loads(pickled)  # it would have run
    assert marker.exists()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (tensor("0", (4,), (2,), length=4), "beyond its storage"),
        (tensor("0", (4,), offset=1, length=4), "beyond its storage"),
        (tensor("0", (4,), offset=-1, length=4), "not whole numbers"),
        (tensor("0", (4,), (-1,), length=4), "not whole numbers"),
        (tensor("0", (-4,), (1,), length=4), "not whole numbers"),
        (tensor("0", (2.0, 2), (2, 1), length=4), "not whole numbers"),
        (tensor("0", (True,), (1,), length=4), "not whole numbers"),
        (tensor("0", (4,), (1, 1), length=4), "1 axes and 2 strides"),
        (tensor("0", (1,) * 40, length=4), "40 axes"),
        (tensor("0", (5,)), "said to have 5 values"),
        (tensor("0", (3,)), "said to have 3 values"),
        (tensor("1", (4,)), "storage 1 is not in the file"),
        (tensor("../data/0", (4,)), "storage ../data/0 is not in the file"),
        (rebuilt(storage("0", 4), 0, [4], (1,), False, ORDERED_DICT), "arguments"),
        (rebuilt("0", 0, (4,), (1,), False, ORDERED_DICT), "arguments"),
        (storage(0, 4), "not a storage"),
        (storage("0", -4), "not a storage"),
        (storage("0", True), "not a storage"),
        (storage("0", 4, "float32"), "not a storage"),
        (Raw(encode("module") + b"Q"), "not a storage"),
        (Raw(encode(("storage",)) + b"Q"), "not a storage"),
        (Raw(encode([1]) + encode(1) + encode(2) + b"s"), "fills a list"),
        (Raw(encode({}) + encode(1) + b"a"), "fills a dict"),
        (Raw(b"\x8a\xff" + b"\x7f" * 255), "absurdly long number"),
        (Raw(b"h\7"), "malformed"),
        (Raw(b"a"), "fills a dict"),
        (Raw(b"t"), "malformed"),
        (Raw(b"\xff"), "malformed"),
        (Raw(encode(1) + encode(2)), "malformed"),
        (Raw(b"}(" + encode("odd") + b"u"), "malformed"),
        (Raw(b"X\xff\xff\xff\x7fshort"), "malformed"),
        (Raw(b"(" * 1000), "too deeply nested"),
        (Raw(b"]" * 100_000), "too deeply nested"),
    ],
)
def test_impossible_content_is_refused(tmp_path, content, reason):
    path = write_torch(tmp_path / "x.pt", {"model": {"x": content}}, {"0": FOUR})
    assert reason in refused(path)


@dataclasses.dataclass
class Settings:
    """An object as programs keep them beside a model."""

    rate: float
    nested: object = None


class Phase(enum.IntEnum):
    TRAIN = 1


def in_a_circle():
    """An object in a tuple that it holds itself."""
    settings = Settings(0.1)
    settings.nested = (settings, settings, settings, settings)
    return settings


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize(
    "value",
    [
        np.float64(31.5),
        np.arange(9),
        np.random.RandomState(0).get_state(),
        np.random.default_rng(0),
        random.Random(0).getstate(),
        argparse.Namespace(rate=0.1, nested=argparse.Namespace()),
        Settings(0.1, Settings(0.2)),
        in_a_circle(),
        collections.defaultdict(dict, {1: {}}),
        collections.deque([1, 2]),
        {1, 2},
        frozenset([1]),
        {(1, 2): 3, b"x": 4, Phase.TRAIN: 5},
        Path("a/b"),
        datetime.timedelta(3),
        bytearray(b"x"),
        b"\xff",
        len,
        Settings,
        2**127,
        slice(1, 2),
    ],
    ids=lambda value: type(value).__name__,
)
def test_whatever_else_lies_beside_is_passed_over(tmp_path, value, protocol):
    beside = Raw(pickle.dumps([value, value], protocol)[2:-1])
    content = {"x": tensor("0", (4,)), "beside": beside, "after": 3}
    found = read(write_torch(tmp_path / "x.pt", content, {"0": FOUR}))
    np.testing.assert_array_equal(found["x"], np.arange(4))
    assert len(found["beside"]) == 2 and found["after"] == 3


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (tensor("0", (2**40,), (0,), length=4), "repeats or overlaps"),
        (tensor("0", (3, 3), (1, 1), length=4), "repeats or overlaps"),
        (rebuilt(storage("0", 4), 0, (4,), (1,), False, ORDERED_DICT, {"neg": True}), "negated"),
        (rebuilt(storage("0", 4, "QUInt4x2Storage"), 0, (4,), (1,)), "torch.QUInt4x2Storage"),
        (
            call(name("torch._utils", "_rebuild_sparse_tensor"), tensor("0", (4,)), (4,)),
            "torch._utils._rebuild_sparse_tensor",
        ),
        (
            call(
                name("torch._utils", "_rebuild_parameter"),
                *(call(name("torch._utils", "_rebuild_qtensor"), tensor("0", (4,))), True, {}),
            ),
            "torch._utils._rebuild_qtensor",
        ),
        (
            call(
                name("torch._utils", "_rebuild_tensor_v3"),
                *(storage("0", 16, "UntypedStorage", "torch.storage"), 0, (16,), (1,), False),
                *(ORDERED_DICT, name("torch", "float8_e5m2")),
            ),
            "torch.float8_e5m2",
        ),
    ],
)
def test_tensors_that_are_not_read_are_named(tmp_path, content, what):
    path = write_torch(tmp_path / "x.pt", {"x": content}, {"0": FOUR})
    with open_torch(path) as found:
        assert what in str(found["x"])


def test_shared_containers_cost_nothing(tmp_path):
    """Lists that hold the list before twice: 2**200 items if anything walked through them."""
    lists = {"0": Raw(b"]q\0")}
    for i in range(200):
        lists[str(i + 1)] = Raw(b"](h%ch%ceq%c" % (i, i, i + 1))
    content = read(write_torch(tmp_path / "x.pt", lists))
    assert content["200"][0] is content["199"]


def test_a_long_program_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(pickle_machine, "MAX_INSTRUCTIONS", 1000)
    path = write_torch(tmp_path / "x.pt", Raw(b"]" + (encode(1) + b"a") * 1000))
    assert "too long" in refused(path)


def test_files_that_are_no_checkpoints_say_what_they_are(tmp_path):
    path = tmp_path / "x.pt"
    assert "cannot be read (No such file" in refused(path)
    path.write_bytes(b"")
    assert "the file is empty" in refused(path)
    path.write_text("<html>not found</html>")
    assert "not a PyTorch checkpoint" in refused(path)
    path.write_bytes(pickle.dumps({"model": Hostile(f"touch {tmp_path / 'marker'}")}))
    assert "not one of torch.save" in refused(path)
    assert not (tmp_path / "marker").exists()
    write_zip(path, {"word/document.xml": b"x"})
    assert "not one of torch.save" in refused(path)
