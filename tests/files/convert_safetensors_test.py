"""Damaged .safetensors files."""

import json

import pytest

from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.weights.load import read_published


def report(path):
    """The first line of the message that refuses `path`."""
    with pytest.raises(InputError) as caught:
        read_published(path)
    assert str(path) in str(caught.value)
    return str(caught.value).splitlines()[0]


def safetensors(path, entries, data=b"", *, length=None):
    header = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    length = len(header) if length is None else length
    path.write_bytes(length.to_bytes(8, "little") + header + data)
    return path


def entry(shape, start, stop, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


@pytest.mark.parametrize(
    ("entries", "reason"),
    [
        (b"not json", "malformed"),
        (b"[1]", "malformed"),
        (b"[" * 100_000, "malformed"),
        (b'{"a": 1, "a": 2}', "there twice"),
        ({"a": 1}, "malformed"),
        ({"a": entry([4], -4, 12)}, "lies nowhere"),
        ({"a": entry([4], "0", 16)}, "lies nowhere"),
        ({"a": entry("4", 0, 16)}, "without dtype or shape"),
        ({"a": entry([5], 0, 16)}, "bytes its shape needs"),
        ({"a": entry([2, -2], 0, 16)}, "impossible shape"),
        ({"a": entry([4.0], 0, 16)}, "impossible shape"),
        ({"a": entry([4], 0, 16, "F4")}, "a has a dtype that is not read"),
        ({"a": entry([1] * 40 + [4], 0, 16)}, "41 axes"),
        ({"a": entry([2], 0, 8), "b": entry([3], 4, 16)}, "b does not have the bytes"),
        ({"a": entry([2], 0, 8), "b": entry([1], 12, 16)}, "b does not have the bytes"),
        ({"a": entry([3], 0, 12)}, "end at byte"),
        ({"a": entry([5], 0, 20)}, "end at byte"),
    ],
)
def test_damaged_safetensors_are_refused(tmp_path, entries, reason):
    path = safetensors(tmp_path / "x.safetensors", entries, bytes(16))
    assert reason in report(path)


def test_safetensors_tables_are_bounded(tmp_path):
    path = tmp_path / "x.safetensors"
    for length in (0, 2**40, 2**63):
        assert "table of tensors" in report(safetensors(path, b"{}", length=length))
    path.write_bytes(b"")
    assert "table of tensors" in report(path)
    assert "No such file" in report(tmp_path / "absent.safetensors")
