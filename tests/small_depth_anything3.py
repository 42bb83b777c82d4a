"""The small Depth Anything 3 of the goldens, and its recorded values."""

import dataclasses
import functools

from conftest import GOLDENS, golden

from efficient_lvsm_jax.models.depth_anything3 import DepthAnything3
from efficient_lvsm_jax.models.model import bind
from efficient_lvsm_jax.weights.load import read_published

FILE = GOLDENS / "da3.safetensors.index.json"


@functools.cache
def small_da3(**settings):
    """Family, configuration and parameters as a value; rays are kept."""
    model = read_published(FILE)
    config = dataclasses.replace(model.config, rays="kept", **settings)
    return dataclasses.replace(model, config=config)


def module(params, **settings) -> DepthAnything3:
    """The network, for use inside a jitted function."""
    return bind("depth_anything3", small_da3(**settings).config, params)


@functools.cache
def recorded(name):
    """The arrays of a golden."""
    return golden(f"da3_{name}")
