"""The layout of Depth Anything 3 fills every parameter, both ways, and counts as its authors do."""

import dataclasses
import re

import jax
import numpy as np
import pytest
from small_depth_anything3 import FILE, small_da3
from torch_files import write_arrays

from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.models.depth_anything3 import DepthAnything3Config
from efficient_lvsm_jax.models.model import abstract_params
from efficient_lvsm_jax.weights.depth_anything3 import LEFT_OUT, RAY_NORMS
from efficient_lvsm_jax.weights.load import load, read_file
from efficient_lvsm_jax.weights.published import bring_out, count_tensors
from efficient_lvsm_jax.weights.source import open_state_dict

DEAD = 42  # tensors of the three levels of rays that nothing reads
SIZES = {
    "small": ({}, 437, 34_299_463),
    "base": (
        {"width": 768, "channels": (96, 192, 384, 768), "features": 128},
        437,
        135_366_599,
    ),
    "large": (
        {
            "width": 1024,
            "layers": 24,
            "encoder_layers": 8,
            "taps": (2, 4, 6, 8),
            "channels": (256, 512, 1024, 1024),
            "features": 256,
        },
        637,
        410_941_767,
    ),
}


@pytest.fixture(scope="module")
def published():
    with open_state_dict(FILE) as state:
        return {name: tensor.numpy() for name, tensor in state.items()}


def is_left_out(name):
    return any(re.fullmatch(what, name) for what in LEFT_OUT)


def test_every_parameter_is_filled():
    model = load(FILE)
    got, expected = (
        jax.tree.map(lambda x: x.shape, params)
        for params in (model.params, abstract_params("depth_anything3", model.config))
    )
    assert got == expected
    config = dataclasses.asdict(model.config)
    assert config | {"layers": 10, "encoder_layers": 2, "taps": (1, 2, 3, 4)} == config


def test_tensors_come_out_as_they_came_in(published):
    model = small_da3()
    again = bring_out(model.params, "depth_anything3", model.config)
    bare = {name.removeprefix("model."): value for name, value in published.items()}
    kept = {name: value for name, value in bare.items() if not is_left_out(name)}
    assert (len(published), len(kept)) == (409, 409 - DEAD)
    assert again.keys() == kept.keys()
    for name, value in again.items():
        np.testing.assert_array_equal(value, kept[name], err_msg=name)


@pytest.mark.parametrize("size", SIZES)
def test_published_sizes_have_as_many_values_as_published(size):
    settings, tensors, values = SIZES[size]
    config = DepthAnything3Config(**settings)
    assert count_tensors("depth_anything3", config) + DEAD == tensors
    parameters = jax.tree.leaves(abstract_params("depth_anything3", config))
    few = config.features // 2
    neck = 5 * 9 * 2 * few * few + 7 * few  # a level's five convolutions
    ends = 32 * few * 9 + 32 + 7 * 32 + 7
    assert sum(x.size for x in parameters) + 3 * (neck + ends) == values


def test_the_norm_of_rays_may_have_all_its_names(published, tmp_path):
    aliases = {
        f"model.{norm}.{part}": published[f"model.{RAY_NORMS[0]}.{part}"]
        for norm in RAY_NORMS
        for part in ("weight", "bias")
    }
    read = read_file(write_arrays(tmp_path / "all.pth", published | aliases, bare=True))
    norm = read.params["ray_head"]["norm"]
    np.testing.assert_array_equal(norm["scale"], aliases[f"model.{RAY_NORMS[3]}.weight"])
    aliases[f"model.{RAY_NORMS[3]}.weight"] = np.ones(32, np.float32)
    path = write_arrays(tmp_path / "contradictory.pth", published | aliases, bare=True)
    with pytest.raises(InputError, match=r"contradictory: .*0\.2\.weight and .*should be equal"):
        read_file(path)


def test_missing_and_misplaced_tensors_are_named(published, tmp_path):
    spoiled = published | {
        "model.head.resize_layers.0.weight": np.zeros((16, 16, 2, 2), np.float32)
    }
    missing = f"{RAY_NORMS[0]}.weight", "backbone.pretrained.blocks.2.attn.q_norm.bias"
    for name in missing:
        del spoiled[f"model.{name}"]
    path = write_arrays(tmp_path / "spoiled.pth", spoiled, bare=True)
    with pytest.raises(InputError) as caught:
        read_file(path)
    text = str(caught.value)
    for name in missing:
        assert f"missing: {name}" in text
    assert "head.resize_layers.0.weight is (16, 16, 2, 2), expected (16, 16, 4, 4)" in text


def test_nested_files_are_refused(published, tmp_path):
    nested = {name.replace("model.", "model.da3."): value for name, value in published.items()}
    with pytest.raises(InputError, match="not the weights of a family that this program knows"):
        read_file(write_arrays(tmp_path / "nested.pth", nested, bare=True))
