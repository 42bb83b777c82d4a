"""Every parameter of models of geometry has its place on a mesh, and the large ones are divided."""

import math

import jax
import pytest
from flax import nnx
from jax.sharding import AbstractMesh, AxisType

from efficient_lvsm_jax.models.families import families
from efficient_lvsm_jax.models.scene_geometry import SceneGeometry
from efficient_lvsm_jax.parallel.sharding import state_shardings

WHOLE = 2 * 10**6  # numbers that every device may hold of one parameter


@pytest.mark.parametrize("name", families(SceneGeometry))
def test_large_parameters_are_divided(name):
    family = families()[name]
    params = jax.eval_shape(lambda: nnx.to_pure_dict(nnx.split(family.module(family.config()))[1]))
    mesh = AbstractMesh((1, 2), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
    shardings = state_shardings(mesh, params)
    for (path, x), sharding in zip(
        jax.tree_util.tree_leaves_with_path(params), jax.tree.leaves(shardings), strict=True
    ):
        share = math.prod(sharding.shard_shape(x.shape))
        name = jax.tree_util.keystr(path)
        assert share == x.size or share == x.size // 2, name
        assert share < x.size or x.size < WHOLE, name
