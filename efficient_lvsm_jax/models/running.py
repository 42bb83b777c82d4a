"""A model of geometry, run part by part on recorded input."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from efficient_lvsm_jax.models.geometry_model import GeometryModel
from efficient_lvsm_jax.models.model import bind_as_is
from efficient_lvsm_jax.models.vggt import IMAGE_DEVIATION, IMAGE_MEAN


def bound(model: GeometryModel, params: dict) -> Any:
    """The network over parameters as `GeometryModel.ready` has them."""
    return bind_as_is(model.family, model.config, params)


@functools.partial(jax.jit, static_argnums=0)
def run(function: Callable, *args: Any) -> Any:
    """A function of arrays, compiled."""
    return function(*args)


def floats(pictures: np.ndarray) -> jax.Array:
    """uint8 [..., 3, Y, X] as the network takes them, [..., Y, X, 3]."""
    return jnp.asarray(np.moveaxis(pictures, -3, -1) / np.float32(255))


def normalised(images: jax.Array) -> jax.Array:
    """Floats as encoders have them after their first step."""
    return (images - np.float32(IMAGE_MEAN)) / np.float32(IMAGE_DEVIATION)


def with_settings(model: GeometryModel, **settings: Any) -> GeometryModel:
    """The same parameters with other settings."""
    config = dataclasses.replace(model.config, **settings)
    return dataclasses.replace(model, config=config)
