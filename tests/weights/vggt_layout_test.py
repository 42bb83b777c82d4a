"""The layout of VGGT fills every parameter, both ways, and counts as its authors do."""

import jax
import numpy as np
import pytest
from small_vggt import FILE, small_vggt
from torch_files import write_arrays

from efficient_lvsm_jax.convert.conversion import convert
from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.models.model import abstract_params
from efficient_lvsm_jax.models.vggt import VGGTConfig
from efficient_lvsm_jax.weights.load import load, load_renderer, read_file
from efficient_lvsm_jax.weights.published import bring_out, count_tensors
from efficient_lvsm_jax.weights.source import open_state_dict


@pytest.fixture(scope="module")
def published():
    with open_state_dict(FILE) as state:
        return {name: tensor.numpy() for name, tensor in state.items()}


def test_every_parameter_is_filled():
    model = small_vggt()
    got, expected = (
        jax.tree.map(lambda x: x.shape, params)
        for params in (model.params, abstract_params("vggt", model.config))
    )
    assert got == expected


def test_tensors_come_out_as_they_came_in(published):
    model = small_vggt()
    again = bring_out(model.params, "vggt", model.config)
    assert again.keys() == published.keys()
    for name, value in again.items():
        np.testing.assert_array_equal(value, published[name], err_msg=name)


def test_the_published_model_has_as_many_values_as_published():
    leaves = jax.tree.leaves(abstract_params("vggt", VGGTConfig()))
    assert sum(x.size for x in leaves) == 1_256_537_516
    assert count_tensors("vggt", VGGTConfig()) == 1797


def test_an_entry_named_model_is_read_too(published, tmp_path):
    path = write_arrays(tmp_path / "checkpoints.pth", published)
    for got, expected in zip(
        jax.tree.leaves(read_file(path).params), jax.tree.leaves(small_vggt().params), strict=True
    ):
        np.testing.assert_array_equal(got, expected)


def test_missing_and_misplaced_tensors_are_named(published, tmp_path):
    spoiled = published | {"extra": np.zeros(3, np.float32)}
    del spoiled["camera_head.embed_pose.bias"]
    spoiled["depth_head.resize_layers.0.weight"] = np.zeros((16, 16, 2, 2), np.float32)
    path = write_arrays(tmp_path / "spoiled.pth", spoiled, bare=True)
    with pytest.raises(InputError) as caught:
        read_file(path)
    text = str(caught.value)
    assert "missing: camera_head.embed_pose.bias" in text
    assert "unexpected: extra" in text
    assert "depth_head.resize_layers.0.weight is (16, 16, 2, 2), expected (16, 16, 4, 4)" in text


def test_the_sizes_it_was_trained_at_stay_with_it(tmp_path):
    convert(FILE, tmp_path / "weights", trained_size=(42, 56))
    convert(tmp_path / "weights", tmp_path / "file.safetensors")
    for path in ("weights", "file.safetensors"):
        assert load(tmp_path / path).trained_sizes == ((42, 56),)
    assert load(FILE).trained_sizes == ()


def test_a_model_of_geometry_renders_no_views():
    assert load(FILE).config == small_vggt().config
    with pytest.raises(InputError, match=r"vggt sees cameras and depth.*expected one of"):
        load_renderer(FILE)
