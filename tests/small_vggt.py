"""The small VGGT of the goldens, and its recorded values."""

import dataclasses
import functools

import numpy as np
from conftest import GOLDENS, golden

from efficient_lvsm_jax.geometry.cameras import Cameras
from efficient_lvsm_jax.models.model import bind
from efficient_lvsm_jax.models.vggt import VGGT
from efficient_lvsm_jax.weights.load import read_published

FILE = GOLDENS / "stream_vggt.safetensors.index.json"


@functools.cache
def small_vggt():
    """Family, configuration and parameters as a value."""
    return read_published(FILE)


def module(params, **settings) -> VGGT:
    """The network, for use inside a jitted function."""
    return bind("vggt", configured(**settings), params)


def configured(**settings):
    """Its configuration with other settings."""
    return dataclasses.replace(small_vggt().config, **settings)


@functools.cache
def recorded(name):
    """The arrays of a golden."""
    return golden(f"stream_vggt_{name}")


def cameras_of(extrinsics, intrinsics, size) -> Cameras:
    """Published world-to-camera [..., 3, 4] and [..., 3, 3] in our conventions, float64."""
    rotation, translation = np.float64(extrinsics[..., :3]), np.float64(extrinsics[..., 3])
    c2w = np.broadcast_to(np.eye(4), (*extrinsics.shape[:-2], 4, 4)).copy()
    c2w[..., :3, :3] = np.swapaxes(rotation, -1, -2)
    c2w[..., :3, 3] = -np.einsum("...ji,...j->...i", rotation, translation)
    fxfycxcy = np.stack([intrinsics[..., i, j] for i, j in ((0, 0), (1, 1), (0, 2), (1, 2))], -1)
    return Cameras(c2w, fxfycxcy, *size)


def seeing_wide():
    """The model with fields of view of 1 radian, whatever it sees; its own are often 0."""
    model = small_vggt()
    head = model.params["camera_head"]
    down = {name: np.array(value) for name, value in head["down"].items()}
    down["kernel"][..., 7:] = 0
    down["bias"][7:] = 1 / model.config.camera_iterations
    return dataclasses.replace(model, params=model.params | {"camera_head": head | {"down": down}})
