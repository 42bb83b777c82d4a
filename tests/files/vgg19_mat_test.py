import re
import struct
import tracemalloc
import zlib

import jax
import numpy as np
import pytest
import scipy.io
from conftest import GOLDENS
from vgg19_files import (
    HEADER,
    compressed,
    drawn_convolutions,
    element,
    layers,
    matrix,
    write_bytes,
    write_layers,
)

from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.weights.vgg19 import read_vgg19

LINK = re.escape("https://www.vlfeat.org/matconvnet/models/imagenet-vgg-verydeep-19.mat")


@pytest.fixture
def params():
    return drawn_convolutions(0, (2, 3, 4, 5, 6))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "vgg19.mat"


def refused(path, message):
    with pytest.raises(InputError, match=rf"vgg19\.mat: {message}[^;]*; .*{LINK}"):
        read_vgg19(path)


@pytest.mark.parametrize("older", [False, True])
@pytest.mark.parametrize("squeezed", [False, True])
def test_files_of_both_releases_give_their_convolutions(path, params, older, squeezed):
    write_layers(path, layers(params, older=older), compressed=squeezed)
    jax.tree.map(np.testing.assert_array_equal, read_vgg19(path), params)


def test_scipy_reads_the_same_from_the_recorded_file():
    path = GOLDENS / "vgg19_tiny.mat"
    stored = scipy.io.loadmat(path)["layers"]
    kernel, bias = stored[0, 30]["weights"][0, 0][0]
    layer = read_vgg19(path)["conv5_2"]
    np.testing.assert_array_equal(layer["kernel"], kernel)
    np.testing.assert_array_equal(layer["bias"], bias[:, 0])
    assert layer["kernel"].dtype == np.float32 and layer["kernel"].flags.c_contiguous


@pytest.mark.parametrize(
    ("number", "field", "value", "message"),
    [
        (0, "type", "relu", r"layer 1 \(conv1_1\) is of type relu, expected conv"),
        (4, "type", "po\x1bol", r"layer 5 \(pool\) is of type po\\x1bol, expected pool"),
        (2, "pad", 0.0, r"pad of layer 3 \(conv1_2\) is \[0\.0\], expected 1"),
        (2, "stride", np.array([[1.0, 2.0]]), r"stride of .* is \[1\.0, 2\.0\], expected 1"),
        (2, "dilate", np.ones((1, 5)), r"dilate of .* expected one to four numbers"),
        (5, "weights", 1.0, r"weights of .* is double \[1, 1\], expected cell \[1, 2\]"),
        (5, "type", None, r"layer 6 \(conv2_1\) has no field 'type'"),
        (5, "weights", None, r"layer 6 \(conv2_1\) has no field 'weights'"),
    ],
)
def test_another_network_is_refused_by_layer(path, params, number, field, value, message):
    found = layers(params)
    found[number][field] = value
    if value is None:
        del found[number][field]
    refused(write_layers(path, found), message)


@pytest.mark.parametrize(
    ("kernel", "bias", "message"),
    [
        ((3, 3, 4, 3), (3,), r"the kernel of layer 6 .*single \[3, 3, 4, 3\], .*\[3, 3, 2, up to"),
        ((5, 5, 2, 3), (3,), "the kernel of layer 6"),
        ((3, 3, 2, 600), (600,), r"the kernel of .* up to 512\]"),
        ((3, 3, 2, 3), (4,), r"the bias of .* is single \[4, 1\], expected single \[3, 1\]"),
    ],
)
def test_convolutions_that_do_not_fit_each_other_are_refused(path, params, kernel, bias, message):
    params["conv2_1"] = {"kernel": np.ones(kernel, "f4"), "bias": np.ones(bias, "f4")}
    refused(write_layers(path, layers(params)), message)


def test_other_numbers_than_finite_single_ones_are_refused(path, params):
    params["conv3_1"]["bias"][0] = np.nan
    refused(write_layers(path, layers(params)), "the bias of .* has NaN or infinite values")
    params["conv3_1"]["bias"] = np.ones(4)
    refused(write_layers(path, layers(params)), r"the bias of .* double \[4, 1\], expected class")
    params["conv3_1"]["bias"] = np.ones(4, "c8")
    refused(write_layers(path, layers(params)), r"found single \[4, 1\] where real")


def test_another_number_of_layers_is_refused(path, params):
    found = layers(params)
    refused(write_layers(path, found[:37]), r"layers is cell \[1, 37\], expected cell \[1, 43\]")


def test_files_without_layers_say_what_they_hold(path):
    scipy.io.savemat(path, {"net": 1.0, "other": 2.0})
    refused(path, "holds net, other; expected a variable 'layers'")
    write_bytes(path)
    refused(path, "holds nothing")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a MATLAB 5"),
        (b"<html>" * 100, "not a MATLAB 5"),
        (b"MATLAB 7.3 MAT-file".ljust(512) + b"\x89HDF\r\n", "a MATLAB 7.3 .* '-v7'"),
        (b"\x89HDF\r\n\x1a\n", "a MATLAB 7.3"),
        (HEADER[:-4] + b"\x01\x00MI", "a big-endian"),
        (HEADER + b"\x0e\0\0\0", "cut off at 132 bytes"),
        (HEADER + element(9, bytes(8)), "damaged: an element of kind 9 where a variable"),
    ],
)
def test_other_files_are_refused(path, content, message):
    path.write_bytes(content)
    refused(path, message)


def test_absent_files_and_folders_are_refused(path):
    refused(path, r"cannot be read \(No such file")
    path.mkdir()
    refused(path, "cannot be read")


def test_files_cut_off_or_damaged_anywhere_are_refused(path, params):
    whole = write_layers(path, layers(params)).read_bytes()
    for end in (200, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:end])
        refused(path, "cut off at")
    for at in (len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
        with pytest.raises(InputError, match=LINK):
            read_vgg19(path)


def test_compressed_data_that_ends_early_or_late_is_refused(path, params):
    """All that is needed comes before either end; but the checksum is missing, or wrong."""
    whole = write_layers(path, layers(params), compressed=False).read_bytes()
    cells = whole[whole.index(element(1, b"layers")) - 40 :]
    write_bytes(path, compressed(cells))
    read_vgg19(path)
    cut = zlib.compress(cells)[:-4]
    write_bytes(path, struct.pack("<II", 15, len(cut)), cut)
    refused(path, "damaged: its compressed data ends too early")
    write_bytes(path, compressed(cells + bytes(8)))
    refused(path, "damaged: more data than its header says")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (struct.pack("<II", 14, 2**31) + bytes(64), "a matrix reaches beyond what it is in"),
        (matrix(2, (1, 1), struct.pack("<II", 5, 4)), "begins where the one around it ends|beyond"),
        (matrix(2, (1, 1), element(5, bytes(8))), "8 bytes where at most 4 belong"),
        (matrix(2, (1, 1), struct.pack("<HHI", 5, 9, 0)), "9 bytes in an element of 4"),
        (matrix(2, (1, 1), element(5, b"\0\0\0\0")), "lengths of field names"),
        (matrix(2, (1, 1), element(5, b"\x20\0\0\0") + element(1, b"type")), "field names"),
        (element(14, element(6, bytes(8))), "a matrix of class 0"),
        (element(14, element(6, b"\2" + bytes(7)) + element(5, b"\xff" * 8)), "matrix of shape"),
        (element(9, bytes(64)), "an element of kind 9 where a matrix belongs"),
    ],
)
def test_elements_that_contradict_each_other_are_refused(path, content, message):
    write_bytes(path, matrix(1, (1, 43), content, name=b"layers"))
    refused(path, f"damaged: .*(?:{message})")


def test_an_element_that_leaves_its_matrix_is_refused(path):
    """Though the file is long enough for it."""
    layer = matrix(2, (1, 1), struct.pack("<III", 0x40005, 32, 0)[:8] + struct.pack("<II", 1, 512))
    cells = matrix(1, (1, 43), layer + bytes(4096), name=b"layers")
    refused(write_bytes(path, cells), "damaged: an element reaches beyond the one it is in")


@pytest.mark.parametrize("code", [3, 5, 16, 17])
def test_objects_functions_and_sparse_arrays_are_refused_where_they_matter(path, code):
    content = matrix(code, (1, 1), element(1, b"x" * 100), name=b"layers")
    if code == 17:  # has no name where others have one
        content = matrix(1, (1, 43), matrix(code, (1, 1)) * 43, name=b"layers")
    with pytest.raises(InputError, match=r"damaged|expected cell|found"):
        read_vgg19(write_bytes(path, content))


def test_sizes_are_refused_before_anything_is_allocated(path):
    """What is stated is compared with what belongs there and with the file first."""
    huge = [
        matrix(1, (1, 2**31 - 1), name=b"layers"),
        matrix(1, (1, 43), matrix(2, (2**31 - 1, 2**31 - 1)), name=b"layers"),
        matrix(1, (1, 43), matrix(2, (1, 1), element(5, b"\xff\xff\xff\x7f")), name=b"layers"),
        matrix(1, (1, 43), struct.pack("<II", 14, 2**32 - 1), name=b"layers"),
        struct.pack("<II", 14, 2**32 - 8),
    ]
    for content in huge:
        for way in (bytes, compressed):
            write_bytes(path, way(content))
            tracemalloc.start()
            with pytest.raises(InputError, match=LINK):
                read_vgg19(path)
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            assert peak < 2e6


def test_what_inflates_enormously_is_passed_over_in_small_pieces(path, params):
    """A field that nobody asks for, of 30 MB, in 30 kB."""
    found = layers(params)
    found[1]["leak"] = np.zeros(30_000_000, np.uint8)
    write_layers(path, found)
    assert path.stat().st_size < 100_000
    tracemalloc.start()
    read = read_vgg19(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    jax.tree.map(np.testing.assert_array_equal, read, params)
    assert peak < 3e6


def test_cells_within_cells_are_not_followed(path):
    """scipy.io.loadmat ends the process on this."""
    start = element(6, struct.pack("<II", 1, 0)) + element(5, struct.pack("<ii", 1, 1))
    start += element(1, b"")
    size, nested = 0, []
    for _ in range(30_000):
        size += len(start)
        nested.append(struct.pack("<II", 14, size) + start)
        size += 8
    cells = matrix(1, (1, 43), b"".join(reversed(nested)), name=b"layers")
    refused(write_bytes(path, compressed(cells)), r"found cell \[1, 1\] where a single struct")
