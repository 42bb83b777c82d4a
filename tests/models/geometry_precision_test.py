"""What models of geometry compute in bfloat16, and what stays float32."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_depth_anything3 import small_da3
from small_vggt import small_vggt

from efficient_lvsm_jax.models.families import family_named
from efficient_lvsm_jax.models.model import bind_as_is, prepared

SMALL = {"vggt": small_vggt, "depth_anything3": small_da3}
IMAGES = np.random.default_rng(0).random((1, 2, 28, 42, 3), np.float32)


def in_dtype(model, dtype):
    """What leaves the last round, and the geometry, of IMAGES."""
    config = dataclasses.replace(model.config, compute_dtype=dtype)

    @jax.jit
    def observe(params):
        module = bind_as_is(model.family, config, params)
        last = None if module.takes_cameras else module.sight(None, 2)
        rounds = (IMAGES, last) if module.takes_cameras else (None, IMAGES, last)
        return module.rounds(*rounds)[0], module.observe(None, IMAGES)[1]

    return observe(prepared(model.family, config, model.params))


@pytest.mark.parametrize("family", SMALL)
def test_bfloat16_stays_near_with_residuals_and_heads_in_float32(family):
    model = SMALL[family]()
    (residual, geometry), (exact, truth) = (
        in_dtype(model, dtype) for dtype in ("bfloat16", "float32")
    )
    assert residual.dtype == jnp.float32
    # Sums that were once bfloat16 would be among its numbers.
    assert (residual.astype(jnp.bfloat16) == residual).mean() < 0.01
    pairs = {"residual": (residual, exact)} | {
        name: (getattr(geometry, name), getattr(truth, name))
        for name in ("encodings", "depth", "depth_confidence")
    }
    for name, (got, expected) in pairs.items():
        assert got.dtype == jnp.float32, name
        assert 1e-4 < np.abs(got - expected).max() / np.abs(expected).max() < 0.04, name


@pytest.mark.parametrize("family", SMALL)
def test_kernels_outside_of_heads_become_bfloat16(family):
    model = SMALL[family]()
    config = dataclasses.replace(model.config, compute_dtype="bfloat16")
    heads = family_named(family).module.float32
    for path, x in jax.tree_util.tree_leaves_with_path(prepared(family, config, model.params)):
        names = [key.key for key in path]
        half = names[-1] == "kernel" and names[0] not in heads
        assert x.dtype == (jnp.bfloat16 if half else jnp.float32), names
