import os
import pickle

import numpy as np
import pytest
from conftest import GOLDENS
from torch_file_test import payloads, said
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
    write_legacy,
)

from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.files import legacy_torch_file
from efficient_lvsm_jax.files.stored import Placeholder
from efficient_lvsm_jax.files.torch_file import open_torch

VALUES = np.frombuffer(FOUR, "<f4")


def old_storage(key="0", length=4, kind="FloatStorage", view=None):
    return storage(key, length, kind, view=(view,))


def tensor(reference, shape=(4,), strides=(1,), offset=0):
    return rebuilt(reference, offset, shape, strides, False, ORDERED_DICT)


def word(text):
    """A string as Python 2 pickles it."""
    return Raw(b"U" + bytes([len(text.encode())]) + text.encode())


def filled(new, state):
    """An empty instance, kept in the memo, and the state it gets."""
    return Raw(new + b"q\x63" + encode(state) + b"b")


def test_reads_what_pytorch_wrote():
    content = read(GOLDENS / "legacy.pt")
    base = np.random.default_rng(0).standard_normal((4, 6)).astype(np.float32)
    np.testing.assert_array_equal(content["shared"], base)
    np.testing.assert_array_equal(content["transposed"], base.T)
    np.testing.assert_array_equal(content["slice"], base[1:3, ::2])
    np.testing.assert_array_equal(content["half"], np.arange(5))
    np.testing.assert_allclose(content["bfloat16"].astype(float), np.arange(5) / 3, rtol=1e-2)
    np.testing.assert_array_equal(content["long"], np.arange(-2, 3))
    np.testing.assert_array_equal(content["bool"], [True, False])
    np.testing.assert_array_equal(content["parameter"], np.ones((2, 2)))
    assert content["double"].shape == () and content["double"] == 0.1
    assert content["empty"].shape == (0, 3)
    assert {key: value.shape for key, value in content["model"].items()} == {
        "weight": (2, 3),
        "bias": (2,),
    }
    assert content["step"] == 7 and content["betas"] == (0.9, 0.95)
    assert content["none"] is None and content["list"] == [1, "ä"]


def test_values_are_found_behind_other_storages(tmp_path):
    arrays = {"7": np.arange(3), "0": VALUES, "x/../y": np.zeros(0, np.float32)}
    content = {
        "wanted": tensor(old_storage()),
        "before": tensor(old_storage("7", 3, "LongStorage"), (3,)),
        "none": tensor(old_storage("x/../y", 0), (0,)),
    }
    found = read(write_legacy(tmp_path / "x.pth", content, arrays))
    np.testing.assert_array_equal(found["wanted"], VALUES)
    np.testing.assert_array_equal(found["before"], np.arange(3))
    assert found["none"].shape == (0,)


@pytest.mark.parametrize(
    "old",
    [
        call(name("torch._utils", "_rebuild_tensor"), old_storage(), 1, (3,), (1,)),
        call(name("torch._utils", "_rebuild_tensor_v2"), old_storage(), 1, (3,), (1,), False, None),
        filled(b"ctorch\nFloatTensor\n)\x81", (old_storage(), 1, (3,), (1,))),
        filled(b"ctorch\nFloatTensor\n)R", (old_storage(), 1, (3,), (1,))),
        filled(
            b"ctorch.nn.parameter\nParameter\n)\x81",
            (tensor(old_storage(), (3,), offset=1), None, ORDERED_DICT, True, False),
        ),
        filled(
            call(
                name("torch.nn.parameter", "Parameter"), tensor(old_storage(), (3,), offset=1)
            ).code,
            (True, False, ORDERED_DICT),
        ),
        tensor(old_storage(view=("1", 1, 3)), (3,)),
    ],
)
def test_reads_tensors_as_every_old_version_wrote_them(tmp_path, old):
    """The second use comes from the memo, as that of a shared parameter does."""
    again = Raw(b"h\x63") if b"q\x63" in old.code else old
    found = read(write_legacy(tmp_path / "x.pth", {"first": old, "again": again}, {"0": VALUES}))
    for key in ("first", "again"):
        np.testing.assert_array_equal(found[key], [1, 2, 3])


def test_reads_strings_and_ordered_dicts_of_python_2(tmp_path):
    pairs = [[word("weight"), tensor(old_storage())], [word("ä"), 3]]
    content = call(name("collections", "OrderedDict"), pairs)
    found = read(write_legacy(tmp_path / "x.pth", content, {"0": VALUES}, keys=[word("0")]))
    np.testing.assert_array_equal(found["weight"], VALUES)
    assert found["ä"] == 3


@pytest.mark.parametrize("place", ["magic", "version", "machine", "content", "keys"])
def test_hostile_programs_are_not_run_wherever_they_are(tmp_path, place):
    for what, code in payloads(tmp_path / "marker").items():
        header = {} if place == "content" else {place: Raw(code)}
        content = {"x": Raw(code)} if place == "content" else {}
        path = write_legacy(tmp_path / "x.pth", content, **header)
        assert what in said(path, "x") if place == "content" else refused(path)
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize(
    ("content", "header", "reason"),
    [
        ({}, {"magic": 7}, "not one of torch.save"),
        ({}, {"version": 1000}, "format version 1000"),
        ({}, {"machine": {"little_endian": False}}, "not little-endian"),
        ({}, {"machine": 3}, "not little-endian"),
        ({"x": tensor(old_storage("1"))}, {}, "or others"),
        ({"x": tensor(old_storage())}, {"keys": []}, "has 0 storages, but describes 1"),
        ({"x": tensor(old_storage())}, {"keys": ["0", "0"]}, "has 2 storages"),
        ({"x": tensor(old_storage())}, {"keys": "0"}, "not one of names"),
        ({"x": tensor(old_storage())}, {"keys": [0]}, "not one of names"),
        ({"x": tensor(old_storage())}, {"keys": [[]]}, "not one of names"),
        ({"x": tensor(old_storage())}, {"keys": [old_storage()]}, "not a storage"),
        ({"x": tensor(old_storage())}, {"end": b"x"}, "1 bytes follow"),
        ({"x": tensor(old_storage(length=3), (3,))}, {}, "said to have 3 values"),
        ({"x": tensor(old_storage(length=5))}, {}, "ends within storage 0"),
        ({"x": tensor(old_storage(length=2**60), (2**60,))}, {}, "more than the file"),
        ({"x": tensor(old_storage()), "y": old_storage(length=3)}, {}, "in two ways"),
        (
            {"x": tensor(old_storage()), "y": old_storage(kind="IntStorage")},
            {},
            "in two ways",
        ),
        ({"x": tensor(old_storage(view=("1", 1, 4)))}, {}, "not a storage"),
        ({"x": tensor(old_storage(view=("1", -1, 4)))}, {}, "not a storage"),
        ({"x": tensor(old_storage(view=("1", 4, -1)))}, {}, "not a storage"),
        ({"x": tensor(old_storage(view=3))}, {}, "not a storage"),
        ({"x": tensor(old_storage(view=("1", 1, 3)))}, {}, "beyond its storage"),
        ({"x": Raw(b"ctorch\nFloatTensor\n)\x81" + encode((1, 2)) + b"b")}, {}, "something else"),
        ({"x": call(name("collections", "OrderedDict"), [["odd"]])}, {}, "malformed"),
        ({"x": call(name("collections", "OrderedDict"), [3])}, {}, "malformed"),
    ],
)
def test_impossible_content_is_refused(tmp_path, content, header, reason):
    assert reason in refused(write_legacy(tmp_path / "x.pth", content, {"0": VALUES}, **header))


def test_what_else_lies_beside_is_passed_over(tmp_path):
    """Its storages too: those of known kinds, whatever the tensors are."""
    beside = {
        "scalar": Raw(
            b"cnumpy.core.multiarray\nscalar\n(cnumpy\ndtype\nU\x08" + bytes([255] * 8) + b"tR"
        ),
        "pairs": call(name("collections", "OrderedDict"), [[(1,), 2]]),
        "counts": call(
            name("torch._utils", "_rebuild_qtensor"), old_storage("q", 2, "QInt8Storage")
        ),
        "waves": tensor(old_storage("c", 2, "ComplexFloatStorage"), (2,)),
    }
    storages = {"q": np.zeros(2, np.int8), "c": np.array([1j, 2], np.complex64), "0": VALUES}
    content = {**beside, "x": tensor(old_storage())}
    found = read(write_legacy(tmp_path / "x.pth", content, storages))
    np.testing.assert_array_equal(found["x"], VALUES)
    np.testing.assert_array_equal(found["waves"], storages["c"])
    assert {type(found[key]) for key in ("scalar", "counts")} == {Placeholder}


def test_bare_pickles_are_refused(tmp_path):
    path = tmp_path / "x.pth"
    path.write_bytes(pickle.dumps({"weight": [1.0]}, 2))
    assert "not one of torch.save" in refused(path)


def test_a_long_description_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(legacy_torch_file, "MAX_PICKLE_BYTES", 1000)
    path = write_legacy(tmp_path / "x.pth", {"x": "y" * 2000})
    assert "description of tensors is malformed" in refused(path)


def test_truncation_anywhere_gives_a_message(tmp_path):
    data = (GOLDENS / "legacy.pt").read_bytes()
    path = tmp_path / "x.pth"
    for length in (*range(0, len(data), 50), len(data) - 1):
        path.write_bytes(data[:length])
        refused(path)


def test_damage_anywhere_gives_a_message_or_other_values(tmp_path):
    whole = (GOLDENS / "legacy.pt").read_bytes()
    rng = np.random.default_rng(0)
    path = tmp_path / "x.pth"
    outcomes = {"read": 0, "refused": 0}
    for _ in range(400):
        data = bytearray(whole)
        for index in rng.integers(len(data), size=rng.integers(1, 5)):
            data[index] = rng.integers(256)
        path.write_bytes(data)
        try:
            read(path)
            outcomes["read"] += 1
        except InputError as error:
            assert str(path) in str(error)
            outcomes["refused"] += 1
    assert min(outcomes.values()) > 10


def test_a_file_that_shrinks_while_it_is_open_says_so(tmp_path):
    many = np.zeros(10_000, np.float32)  # more than Python reads ahead
    content = {"x": tensor(old_storage(length=len(many)), many.shape)}
    path = write_legacy(tmp_path / "x.pth", content, {"0": many})
    with open_torch(path) as content:
        os.truncate(path, path.stat().st_size - 1)
        with pytest.raises(InputError, match="became shorter"):
            content["x"].numpy()
