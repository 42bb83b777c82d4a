"""Checkpoints that are cut, damaged or claim too much."""

import copy
import zipfile

import numpy as np
import pytest
from conftest import GOLDENS
from torch_files import (
    FOUR,
    read,
    refused,
    tensor,
    write_torch,
    write_zip,
)

from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.files import torch_file


@pytest.mark.parametrize("part", [0.999, 0.9, 0.5, 0.1, 0.0001])
def test_a_truncated_file_says_so(tmp_path, part):
    data = (GOLDENS / "square.pt").read_bytes()
    path = tmp_path / "x.pt"
    path.write_bytes(data[: int(len(data) * part)])
    assert "truncated or damaged" in refused(path)


def test_damage_anywhere_gives_a_message_or_other_values(tmp_path):
    whole = (GOLDENS / "wide_compiled.pt").read_bytes()
    with zipfile.ZipFile(GOLDENS / "wide_compiled.pt") as archive:
        members = {member: archive.read(member) for member in archive.namelist()}
    rng = np.random.default_rng(0)
    path = tmp_path / "x.pt"

    def damaged(data, start, end):
        data = bytearray(data)
        for index in rng.integers(start, end, size=rng.integers(1, 5)):
            data[index] = rng.integers(256)
        return bytes(data)

    pickled = members["wide_compiled/data.pkl"]
    for trial in range(300):
        if trial % 2:  # the zip's directory; checksums catch most
            path.write_bytes(damaged(whole, len(whole) - 5000, len(whole)))
        else:
            write_zip(path, members | {"wide_compiled/data.pkl": damaged(pickled, 0, 600)})
        try:
            read(path)
        except InputError:
            continue


def test_members_that_torch_never_writes_are_refused(tmp_path):
    with_pickle = {"x/data.pkl": b"\x80\2}."}
    path = tmp_path / "x.pt"
    for members, reason in (
        ({"../evil": b"x"}, "../evil lies outside"),
        ({"/etc/passwd": b"x"}, "/etc/passwd lies outside"),
        ({"x/../../evil": b"x"}, "lies outside"),
        ({"x/..\\evil": b"x"}, "lies outside"),
        ({"y/data.pkl": b"x"}, "no single"),
        ({"x/byteorder": b"big"}, "not little-endian"),
        ({"x/byteorder": b"x" * 99}, "not little-endian"),
    ):
        write_zip(path, with_pickle | members)
        assert reason in refused(path)
    write_zip(path, {"x/data.pkl": b"\x80\2}.", "x/data/0": bytes(10**6)}, compressed=True)
    assert "compressed" in refused(path)
    write_zip(path, with_pickle)
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(path, "a") as archive:
        archive.writestr("x/data.pkl", b"\x80\2].")
    assert "twice" in refused(path)


def test_sizes_are_bounded(tmp_path, monkeypatch):
    path = write_torch(tmp_path / "x.pt", {"x": tensor("0", (4,))}, {"0": FOUR})
    for limit, value, reason in (
        ("MAX_MEMBERS", 3, "4 members"),
        ("MAX_PICKLE_BYTES", 10, "larger than 10 bytes"),
        ("MAX_READ_BYTES", 100, "a directory of"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(torch_file, limit, value)
            assert reason in refused(path)


def test_entries_that_claim_the_same_bytes_are_refused(tmp_path):
    """A bomb without compression: many names for one large member."""
    path = tmp_path / "x.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", b"\x80\2}.")
        archive.writestr("x/data/0", bytes(50_000))
        for key in range(1, 10):
            again = copy.copy(archive.filelist[-1])
            again.filename = f"x/data/{key}"
            archive.filelist.append(again)
    assert "members of 500004 bytes" in refused(path)
