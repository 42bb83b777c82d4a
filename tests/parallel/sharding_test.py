import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import SMALL, random_views
from jax.sharding import PartitionSpec

from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.geometry.cameras import Batch
from efficient_lvsm_jax.nn import cache as pages
from efficient_lvsm_jax.parallel.sharding import make_mesh, put_batch, put_cache, state_shardings
from efficient_lvsm_jax.training.optimizer import OptimizerConfig
from efficient_lvsm_jax.training.step import Recipe, init_state

WORKER = [sys.executable, str(Path(__file__).parents[1] / "mesh_worker.py")]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
TIME_OUT = 240  # seconds for a worker; on two idle cores it takes some fifteen
# The first, on one device, is what the others must equal; each runs on as many devices as it has.
MESHES = ("data:1", "data:2,fsdp:2", "data:2,fsdp:2,context:2")


@pytest.fixture(scope="module")
def on_eight_devices(tmp_path_factory):
    """What MESHES trained, of the first devices of a process with eight."""
    out = tmp_path_factory.mktemp("meshes") / "out.npz"
    command = [*WORKER, "--devices", "8", out, *MESHES]
    subprocess.run(command, check=True, timeout=TIME_OUT, env=ENVIRONMENT)
    with np.load(out) as arrays:
        return dict(arrays)


@pytest.mark.parametrize("mesh", MESHES[1:])
def test_one_to_eight_devices_train_the_same_numbers(on_eight_devices, mesh):
    got, number = on_eight_devices, MESHES.index(mesh)
    np.testing.assert_allclose(got[f"losses_{number}"], got["losses_0"], rtol=1e-6)
    np.testing.assert_allclose(got[f"gradients_{number}"], got["gradients_0"], rtol=1e-5)
    np.testing.assert_allclose(got[f"params_{number}"], got["params_0"], atol=2e-5)


def test_two_processes_train_the_same_numbers(on_eight_devices, tmp_path):
    """Parameters are split over the processes, the views of a scene over the devices of each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    runs, outs = [], [tmp_path / f"{process}.npz" for process in range(2)]
    try:
        for process, out in enumerate(outs):
            options = ["--process", str(process), "--processes", "2", "--port", str(port)]
            command = [*WORKER, "--devices", "2", *options, out, "fsdp:2,context:2"]
            runs.append(subprocess.Popen(command, env=ENVIRONMENT))
        assert [run.wait(timeout=TIME_OUT) for run in runs] == [0, 0]
    finally:
        for run in runs:
            run.kill()
            run.wait()
    for out in outs:
        with np.load(out) as got:
            np.testing.assert_allclose(got["losses_0"], on_eight_devices["losses_0"], rtol=1e-6)


def test_parameters_and_moments_are_split_over_fsdp():
    recipe = Recipe("efficient_lvsm", SMALL, OptimizerConfig())
    state = jax.eval_shape(lambda: init_state(recipe, jax.random.key(0)))
    shardings = state_shardings(make_mesh("fsdp:4"), state)
    kernel = shardings.params["encoder"]["mlp"]["up"]["kernel"]
    assert kernel.spec == PartitionSpec(None, "fsdp")
    assert kernel.shard_shape((2, 32, 64)) == (2, 8, 64)
    moments = shardings.optimizer[0].mu["model"]["decoder"]["cross_attention"]["kv"]["kernel"]
    assert moments.spec == PartitionSpec(None, "fsdp")


def test_256_views_on_eight_devices_render_as_on_one_and_pages_stay_where_they_are(tmp_path):
    out = tmp_path / "out.npz"
    worker = str(Path(__file__).parents[1] / "cache_worker.py")
    command = [sys.executable, worker, "--devices", "8", "--views", "256", out]
    subprocess.run(command, check=True, timeout=TIME_OUT, env=ENVIRONMENT)
    with np.load(out) as got:
        assert got["difference"] <= 1e-6
        # In each of two layers, for 12 queries in each of two heads: 16 channels and two numbers,
        # in an all-reduce, which sends everything not quite twice.
        assert got["sent_bytes"] == 7 / 8 * 2 * 2 * 2 * 12 * (16 + 2) * 4
        assert got["page_bytes"] > 10 * got["sent_bytes"]


def test_a_rule_of_more_axes_than_an_array_has_is_passed_over():
    """A family may have a layer that is in no stack."""
    kernel = jax.ShapeDtypeStruct((8, 16), jnp.float32)
    found = state_shardings(make_mesh("fsdp:4"), {"mlp": {"up": {"kernel": kernel}}})
    assert found["mlp"]["up"]["kernel"].spec == PartitionSpec(None, "fsdp")
    found = state_shardings(make_mesh("fsdp:4"), {"mlp": {"down": {"kernel": kernel}}})
    assert found["mlp"]["down"]["kernel"].spec == PartitionSpec("fsdp")
    with pytest.raises(InputError, match="no sharding rule matches mlp/out/kernel, of 2 axes"):
        state_shardings(make_mesh("fsdp:4"), {"mlp": {"out": {"kernel": kernel}}})


def test_an_array_without_a_rule_is_an_error():
    mesh = make_mesh("data:4")
    with pytest.raises(InputError, match=r"no sharding rule matches mystery/weights"):
        state_shardings(mesh, {"mystery": {"weights": jax.ShapeDtypeStruct((2,), jnp.float32)}})


def test_a_mesh_that_does_not_divide_a_parameter_is_an_error():
    mesh = make_mesh("fsdp:4")
    leaf = jax.ShapeDtypeStruct((2, 6, 8), jnp.float32)
    with pytest.raises(InputError, match=r"6 is not divisible by the mesh axis fsdp:4"):
        state_shardings(mesh, {"up": {"kernel": leaf}})


@pytest.mark.parametrize(
    "spec", ["data:3", "data", "rows:4", "data:0", "data:-1,fsdp:3", "context:2", ""]
)
def test_a_mesh_that_does_not_fit_the_devices_is_an_error(spec):
    with pytest.raises(InputError, match="mesh="):
        make_mesh(spec)


def test_input_views_are_spread_over_the_context_axis_and_targets_are_not():
    views = random_views(4, batch=2)
    placed = put_batch(make_mesh("data:2,context:2"), Batch(views, views))
    for side, own in ((placed.inputs, 2), (placed.targets, 4)):
        shapes = [x.addressable_shards[0].data.shape for x in jax.tree.leaves(side)]
        assert shapes == [(1, own, 16, 24, 3), (1, own, 4, 4), (1, own, 4)]


def test_input_views_that_the_context_axis_does_not_divide_are_an_error(small_model):
    mesh, views = make_mesh("data:2,context:2"), random_views(3, batch=2)
    with pytest.raises(InputError, match=r"3 input views do not divide.*context:2"):
        put_batch(mesh, Batch(views, views))
    with jax.set_mesh(mesh), pytest.raises(InputError, match=r"3 input views.*context:2"):
        small_model.encode(views)


def test_pages_or_scenes_that_the_mesh_does_not_divide_are_an_error(small_model):
    cache = small_model.encode(random_views(3, batch=2))
    targets = random_views(1, batch=2).cameras
    with jax.set_mesh(make_mesh("data:2,context:2")):
        with pytest.raises(InputError, match=r"3 pages of the cache.*context:2"):
            small_model.decode(cache, targets)
    with jax.set_mesh(make_mesh("data:4")), pytest.raises(InputError, match=r"2 scenes.*data:4"):
        small_model.decode(cache, targets)


def test_a_scene_whose_views_are_on_several_processes_is_an_error():
    class Device:
        def __init__(self, number):
            self.id, self.process_index = number, number // 2
            self.platform = self.device_kind = "cpu"

    with pytest.raises(InputError, match=r"context:4 spreads.*several processes"):
        make_mesh("context:4", [Device(number) for number in range(4)])


@pytest.mark.parametrize("spec", ["context:4", "data:2,context:2"])
def test_a_partly_filled_cache_spread_over_devices_renders_as_on_one(small_model, spec):
    mesh, batch = make_mesh(spec), 1 if spec == "context:4" else 2
    views, targets = random_views(3, batch=batch), random_views(2, seed=1, batch=batch).cameras
    cache = pages.grow(small_model.encode(views), 8)  # 3 pages: some devices hold none in use
    alone = small_model.decode(cache, targets)
    with jax.set_mesh(mesh):
        spread = small_model.decode(put_cache(mesh, cache), targets)
    np.testing.assert_allclose(spread, alone, atol=1e-6)


def test_updates_keep_the_pages_of_a_cache_spread_and_never_bring_them_together(small_model):
    page = small_model.encode(random_views(1))
    cache = put_cache(make_mesh("context:4"), pages.empty(64, page))
    for update, arguments in (
        (pages._append, (page,)),
        (pages._write, (np.int32(0), page)),
    ):
        compiled = update.lower(cache, *arguments).compile()
        assert compiled.output_shardings.k == cache.k.sharding
        assert "all-gather" not in compiled.as_text()
        assert compiled.memory_analysis().temp_size_in_bytes <= 4 * page.k.nbytes + 4096


def test_a_spread_cache_holds_what_one_on_a_device_would(small_model):
    views = [small_model.encode(random_views(1, seed=seed)) for seed in range(4)]
    caches = [pages.empty(4, views[0]), put_cache(make_mesh("context:4"), pages.empty(4, views[0]))]
    for number, cache in enumerate(caches):
        for view in views:
            cache = pages.append(cache, view)
        caches[number] = pages.remove(pages.replace(cache, 1, views[0]), 2)
    jax.tree.map(np.testing.assert_array_equal, *caches)
