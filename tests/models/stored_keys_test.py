"""Frames of a stream read keys of any precision, of the frames before and their own."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from efficient_lvsm_jax.models.families import configure
from efficient_lvsm_jax.models.scene_geometry import Sight
from efficient_lvsm_jax.models.vggt import VGGT
from efficient_lvsm_jax.nn.attention import attend
from efficient_lvsm_jax.nn.paged import Pages

SETTINGS = {"width": 16, "head_dim": 8, "patch": 2, "layers": 4, "taps": (1, 2, 3, 4)}
SIZE, TOKENS, FRAMES, LAYER = (2, 6), 8, 3, 2
WRONG = {"fp32": 1e-6, "bf16": 0.01, "int8": 0.02, "fp8": 0.08}


@pytest.mark.parametrize("precision", WRONG)
def test_what_is_stored_is_read(precision):
    config = configure("vggt", SETTINGS | {"cache": precision})
    memory = VGGT.start(config, FRAMES + 1, SIZE)
    assert memory.tokens.precision == precision and memory.cameras.precision == "fp32"
    draw = np.random.default_rng(0)
    q, k, v = (jnp.float32(draw.normal(size=(1, 2, FRAMES, TOKENS, 8))) for _ in "qkv")

    @jax.jit
    def one(memory, q, k, v):
        sight = Sight.of(memory, 1, True, "auto")
        mixed, pages = sight.attend(q[:, :, 0], k, v, memory.tokens, jnp.int32(LAYER))
        used = memory.used.at[sight.slots].set(True)
        return mixed, dataclasses.replace(memory, tokens=pages, used=used)

    for frame in range(FRAMES):
        mixed, memory = one(memory, *(x[:, :, frame : frame + 1] for x in (q, k, v)))
    expected = attend(q[:, :, -1], Pages(k, v))
    assert np.abs(mixed - expected).max() <= WRONG[precision]
    stored = memory.tokens
    others = np.delete(np.asarray(stored.k), LAYER, axis=0)
    assert not others.any() and not np.asarray(stored.k)[LAYER, :, :, FRAMES:].any()
