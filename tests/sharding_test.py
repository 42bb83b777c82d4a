import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import SMALL, random_views
from jax.sharding import PartitionSpec

from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.optimizer import OptimizerConfig
from efficient_lvsm_jax.sharding import make_mesh, put_batch, state_shardings
from efficient_lvsm_jax.training import Recipe, init_state, train_step

FAMILY = "efficient_lvsm"


def run(mesh_spec: str, steps: int, optimizer: OptimizerConfig):
    """Losses and final parameters of a few steps on random views."""
    mesh = make_mesh(mesh_spec)
    recipe = Recipe(FAMILY, SMALL, optimizer)

    def init(key):
        return init_state(recipe, key)

    shardings = state_shardings(mesh, jax.eval_shape(init, jax.random.key(0)))
    state = jax.jit(init, out_shardings=shardings)(jax.random.key(0))
    assert all(
        x.sharding.is_equivalent_to(s, x.ndim)
        for x, s in zip(jax.tree.leaves(state), jax.tree.leaves(shardings), strict=True)
    )
    losses = []
    for step in range(steps):
        batch = {
            side: vars(random_views(2, seed=10 * step + offset, batch=4))
            for offset, side in enumerate(("inputs", "targets"))
        }
        state, metrics = train_step(recipe, state, put_batch(mesh, batch))
        losses.append(float(metrics["loss"]))
    return losses, jax.tree.map(np.asarray, state.params), state


@pytest.mark.parametrize(
    ("name", "meshes"), [("adamw", ("data:4", "data:2,fsdp:2")), ("muon", ("data:-1,fsdp:2",))]
)
def test_every_mesh_trains_the_same_numbers(name, meshes):
    optimizer = OptimizerConfig(name=name, learning_rate=1e-3, warmup_steps=1, ema_decay=0.9)
    losses, params, _ = run("fsdp:4", 3, optimizer)
    for mesh in meshes:
        other, other_params, _ = run(mesh, 3, optimizer)
        np.testing.assert_allclose(other, losses, rtol=1e-6)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), other_params, params)


def test_parameters_and_moments_are_split_over_fsdp():
    _, _, state = run("fsdp:4", 1, OptimizerConfig())
    kernel = state.params["encoder"]["mlp"]["up"]["kernel"]
    assert kernel.sharding.spec == PartitionSpec(None, "fsdp")
    assert kernel.addressable_shards[0].data.shape[1] == SMALL.width // 4
    moments = state.optimizer[0].mu["decoder"]["cross_attention"]["kv"]["kernel"]
    assert moments.addressable_shards[0].data.shape[1] == SMALL.width // 4


def test_an_array_without_a_rule_is_an_error():
    mesh = make_mesh("data:4")
    with pytest.raises(InputError, match=r"no sharding rule matches mystery/weights"):
        state_shardings(mesh, {"mystery": {"weights": jax.ShapeDtypeStruct((2,), jnp.float32)}})


def test_a_mesh_that_does_not_divide_a_parameter_is_an_error():
    mesh = make_mesh("fsdp:4")
    leaf = jax.ShapeDtypeStruct((2, 6, 8), jnp.float32)
    with pytest.raises(InputError, match=r"6 is not divisible by the mesh axis fsdp:4"):
        state_shardings(mesh, {"up": {"kernel": leaf}})


@pytest.mark.parametrize("spec", ["data:3", "data", "rows:4", "data:0", "data:-1,fsdp:3", ""])
def test_a_mesh_that_does_not_fit_the_devices_is_an_error(spec):
    with pytest.raises(InputError, match="mesh="):
        make_mesh(spec)
