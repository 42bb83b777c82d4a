"""Reading .npy files that may be damaged or hostile."""

import pickle

import numpy as np
import pytest

from data_pipeline.formats.npy_arrays import read_numbers
from efficient_lvsm_jax.errors import InputError


def npy(header, content=bytes(3 * 4 * 8)):
    """An .npy file with this text as its header."""
    line = header.encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + len(line).to_bytes(2, "little") + line + content


def described(shape="(3, 4)", kind="'<f8'"):
    return f"{{'descr': {kind}, 'fortran_order': False, 'shape': {shape}, }}"


class Touch:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("kind", ["f2", ">f4", "f8", "i8", "u1"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_numbers_of_any_kind_are_read_as_float64(tmp_path, kind, order):
    values = np.arange(12).reshape(3, 4)
    np.save(tmp_path / "a.npy", np.asarray(values, kind, order=order))
    read = read_numbers(tmp_path / "a.npy", (None, 4))
    assert read.dtype == np.float64
    np.testing.assert_array_equal(read, values)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x93NUMPY",
        b"PK\x03\x04",
        npy(described(), b"short"),
        npy(described("(1000000000000, 4)")),
        npy(described("(99999999999999999999999999, 4)")),
        npy(described("(-1, 4)")),
        npy(described("(-3, -4)")),
        npy(described("(True, 4)")),
        npy(described("(0, 4)")),
        npy(described("()")),
        npy(described("(3,)")),
        npy(described(kind="'|O'")),
        npy(described(kind="'<M8[s]'")),
        npy(described(kind="'<c8'")),
        npy(described(kind="[('x', '<f8')]")),
        npy(described(kind="(1, 2)")),
        npy("{" * 5000),
        npy("__import__('os').getcwd()"),
    ],
)
def test_damaged_files_are_refused_by_name(tmp_path, content):
    (tmp_path / "a.npy").write_bytes(content)
    with pytest.raises(InputError, match=r"a\.npy"):
        read_numbers(tmp_path / "a.npy", (None, 4))


def test_pickled_objects_are_never_loaded(tmp_path):
    witness = tmp_path / "touched"
    (tmp_path / "a.npy").write_bytes(npy(described("(1, 4)", "'|O'"), pickle.dumps(Touch(witness))))
    with pytest.raises(InputError, match=r"a\.npy: not a \.npy file of numbers"):
        read_numbers(tmp_path / "a.npy", (None, 4))
    assert not witness.exists()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_numbers_must_be_finite(tmp_path, value):
    np.save(tmp_path / "a.npy", np.full((3, 4), value))
    with pytest.raises(InputError, match=r"a\.npy: holds NaN or infinity"):
        read_numbers(tmp_path / "a.npy", (3, 4))


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(InputError, match=r"a\.npy: cannot be read \(No such file"):
        read_numbers(tmp_path / "a.npy", (3, 4))
