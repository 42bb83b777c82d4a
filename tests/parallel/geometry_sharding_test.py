"""Models of geometry on a mesh: large parameters are divided, and so is the work on clips."""

import dataclasses
import math

import jax
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AbstractMesh, AxisType, NamedSharding
from small_vggt import small_vggt

from efficient_lvsm_jax.models.families import families
from efficient_lvsm_jax.models.model import prepared
from efficient_lvsm_jax.models.scene_geometry import SceneGeometry
from efficient_lvsm_jax.nn import dpt
from efficient_lvsm_jax.parallel.sharding import BATCH, make_mesh, state_shardings
from efficient_lvsm_jax.training.geometry_objective import GeometryTeacher
from efficient_lvsm_jax.training.objective import FrozenNetworks, frozen_shardings

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


def test_a_divided_teacher_sees_what_a_whole_one_sees(monkeypatch):
    """Heads read frame by frame, as of large pictures, and each device its own scenes."""
    monkeypatch.setattr(dpt, "PIXELS_AT_ONCE", 0)
    model = small_vggt()
    config = dataclasses.replace(model.config, causal=False)
    teacher = GeometryTeacher("vggt", config, prepared("vggt", config, model.params))
    images = np.random.default_rng(0).random((4, 2, 28, 42, 3), np.float32)
    program = jax.jit(lambda teacher, images: teacher.observe(images, None))
    alone = program(teacher, images)
    for spec in ("data:4", "data:2,fsdp:2"):
        mesh = make_mesh(spec)
        shardings = frozen_shardings(mesh, FrozenNetworks(geometry=teacher)).geometry
        places = jax.device_put((teacher, images), (shardings, NamedSharding(mesh, BATCH)))
        with jax.set_mesh(mesh):
            compiled = program.lower(*places).compile()
            spread = compiled(*places)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), spread, alone
        )
        assert ("all-gather" in compiled.as_text()) == ("fsdp" in spec)
    kernel = places[0].params["within"]["up"]["kernel"]
    assert kernel.addressable_shards[0].data.size == kernel.size // 2
