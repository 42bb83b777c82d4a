"""Training of a model of geometry: the same step as of others, against the truth or a teacher."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import tiny_geometry
from data_pipeline.batches.pipeline import InMemory, training_dataset
from data_pipeline.procedural.rooms import ProceduralScenes, SceneRecipe
from efficient_lvsm_jax.aot.training_step import question
from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.geometry.cameras import Batch, Views
from efficient_lvsm_jax.geometry.pose_encoding import USUAL_CAMERA
from efficient_lvsm_jax.models.model import abstract_params, bind, prepared
from efficient_lvsm_jax.parallel.sharding import make_mesh, put_batch, state_shardings
from efficient_lvsm_jax.training.geometry_losses import losses_of
from efficient_lvsm_jax.training.geometry_objective import (
    GeometryLossConfig,
    GeometryTeacher,
    geometry_objective,
    true_geometry,
)
from efficient_lvsm_jax.training.objective import frozen_shardings
from efficient_lvsm_jax.training.optimizer import make_optimizer
from efficient_lvsm_jax.training.step import abstract_state, start_from, train_step
from efficient_lvsm_jax.weights.folder import save_weights
from efficient_lvsm_jax.weights.workdir import claim_workdir

STEPS = 12


def small_config():
    """configs/tiny_geometry.py, much smaller, and with an optimizer that compiles sooner."""
    config = tiny_geometry.get_config()
    config.steps = STEPS
    config.model.update(width=32, head_dim=16, encoder_layers=1, camera_heads=2)
    config.model.update(channels=(8, 8, 8, 8), features=8)
    config.model.update(camera_iterations=1, attention="xla")
    config.optimizer.update(name="adamw", learning_rate=1e-2, ema_decay=0.0)
    config.data.update(scenes=2, views=4, size=16, batch_size=2, num_inputs_cycle=(2,))
    config.losses.points = 0.0
    return config


def drawn(recipe):
    """First parameters, by NumPy: drawing them as a run does takes half a minute to compile."""
    rng = np.random.default_rng(0)

    def draw(path, x):
        name = path[-1].key
        if name == "kernel":
            return rng.normal(0, 0.5 * x.shape[-1] ** -0.5, x.shape)
        if name in ("scale", "scale1", "scale2"):
            return np.full(x.shape, 1.0 if name == "scale" else 0.1)
        return rng.normal(0, 0.02, x.shape) * (name not in ("bias", "empty"))

    params = jax.tree_util.tree_map_with_path(draw, abstract_params("vggt", recipe.model))
    params["camera_head"]["down"]["bias"] += np.array(USUAL_CAMERA)
    return jax.tree.map(jnp.float32, params)


@pytest.fixture(scope="module")
def asked():
    return question(small_config(), 1, abstract=False)


@pytest.fixture(scope="module")
def batch(asked):
    source = ProceduralScenes(2, seed=0, recipe=SceneRecipe(size=16, views=4), depth=True)
    return jax.tree.map(jnp.asarray, training_dataset(InMemory(source), asked.data, seed=0)[0][0])


@pytest.fixture(scope="module")
def compiled(asked, batch):
    """A step on the batch."""
    return train_step.lower(asked.recipe, abstract_state(asked.recipe), batch).compile()


@pytest.fixture(scope="module")
def trained(asked, batch, compiled):
    """Parameters before and after some steps on one batch, and their metrics."""
    state = start_from(asked.recipe, drawn(asked.recipe), jax.random.key(0))
    before = jax.tree.map(np.asarray, state.params)
    rows = []
    for _ in range(STEPS):
        state, metrics = compiled(state, batch)
        rows.append({name: float(value) for name, value in metrics.items()})
    return before, state, rows


def test_a_step_learns_and_names_its_losses(trained):
    rows = trained[2]
    named = {name for name in rows[0] if name.startswith("loss/")}
    assert named == {"loss/cameras", "loss/depth"} and "psnr" not in rows[0]
    weight = small_config().losses.cameras
    total = weight * rows[0]["loss/cameras"] + rows[0]["loss/depth"]
    np.testing.assert_allclose(rows[0]["loss"], total, rtol=1e-5)
    assert rows[-1]["skipped"] == 0
    assert rows[-1]["loss"] < 0.8 * rows[0]["loss"]
    assert rows[-1]["loss/cameras"] < rows[0]["loss/cameras"]


def test_two_devices_train_the_same_numbers(asked, batch, trained):
    mesh = make_mesh("fsdp:2", jax.devices()[:2])
    state = start_from(asked.recipe, drawn(asked.recipe), jax.random.key(0))
    places = state_shardings(mesh, jax.eval_shape(lambda: state))
    state = jax.device_put(state, places)
    with jax.set_mesh(mesh):
        for row in trained[2][:2]:
            state, metrics = train_step(asked.recipe, state, put_batch(mesh, batch))
            for name in ("loss", "loss/cameras", "loss/depth", "grad_norm"):
                np.testing.assert_allclose(metrics[name], row[name], rtol=1e-5)


def test_student_and_teacher_divided_among_devices_train_the_same_numbers(batch, tmp_path):
    config = small_config()
    config.losses.teacher = str(tmp_path / "teacher")
    config.data.depth = False
    recipe = question(config, 1).recipe
    params = drawn(recipe)
    told = {"family": "vggt", "config": config.model.to_dict()}
    save_weights(tmp_path / "teacher", jax.tree.map(np.asarray, params), told)
    asked = question(config, 1, abstract=False)
    batch = dataclasses.replace(batch, depth=None)
    # A student that has its teacher's weights is near it, and the difference rounding.
    params = jax.tree.map(lambda x: 1.1 * x, params)
    rows = []
    for spec in ("data:1", "fsdp:2"):
        mesh = make_mesh(spec, jax.devices()[: int(spec[-1])])
        state = start_from(asked.recipe, jax.tree.map(jnp.array, params), jax.random.key(0))
        state = jax.device_put(state, state_shardings(mesh, jax.eval_shape(lambda x=state: x)))
        frozen = jax.device_put(asked.frozen, frozen_shardings(mesh, asked.frozen))
        with jax.set_mesh(mesh):
            rows.append(train_step(asked.recipe, state, put_batch(mesh, batch), frozen)[1])
    for name in ("loss", "loss/cameras", "loss/depth", "grad_norm"):
        np.testing.assert_allclose(rows[1][name], rows[0][name], rtol=1e-4)
        assert rows[0][name] > 1e-3
    for tree in (frozen.geometry.params, state_shardings(mesh, params)):
        kernel = tree["within"]["up"]["kernel"]
        divided = getattr(kernel, "sharding", kernel)
        size = params["within"]["up"]["kernel"].shape
        assert 2 * np.prod(divided.shard_shape(size)) == np.prod(size)


def test_frozen_parameters_stay_and_have_no_moments(asked, trained):
    before, state, _ = trained
    for part in ("tracker", "mask_token"):
        jax.tree.map(np.testing.assert_array_equal, before[part], state.params[part])
    np.testing.assert_array_equal(before["camera_head"]["empty"], 0)
    np.testing.assert_array_equal(state.params["camera_head"]["empty"], 0)
    for part in ("encoder", "within", "among", "depth_head", "camera_head"):
        moved = jax.tree.map(
            lambda a, b: not np.array_equal(a, b), before[part], state.params[part]
        )
        assert any(jax.tree.leaves(moved)), part
    names = [
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, _ in jax.tree_util.tree_leaves_with_path(state.optimizer)
    ]
    assert not any("tracker" in name or name.endswith("empty") for name in names)
    assert any("depth_head" in name for name in names)
    wrong = dataclasses.replace(asked.recipe.optimizer, frozen=("encodr",))
    with pytest.raises(InputError, match=r"optimizer.frozen: no parameter's path.*'encodr'.*among"):
        make_optimizer(wrong).init({"model": state.params, "projectors": {}})


known = jax.jit(true_geometry)


def moved_world(views, depth, scale):
    """The same clip in a world that is turned, shifted and of another unit."""
    turn = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))[0]
    turn *= np.sign(np.linalg.det(turn))
    c2w = np.array(views.c2w)
    c2w[..., :3, :3] = turn @ c2w[..., :3, :3]
    c2w[..., :3, 3] = scale * (c2w[..., :3, 3] @ turn.T) + [3, -1, 2]
    return Views(views.image, c2w, views.fxfycxcy), scale * depth


def test_the_truth_is_in_the_first_camera_and_of_unit_size_whatever_the_world(batch):
    inputs, depth = batch.inputs, batch.depth.at[:, 1, :3].set(0)
    truth, valid = known(inputs, depth)
    assert not valid[:, 1, :3].any() and valid[:, 0].all()
    np.testing.assert_allclose(truth.cameras.c2w[:, 0], np.tile(np.eye(4), (2, 1, 1)), atol=1e-6)
    for scene in range(2):
        distance = np.linalg.norm(truth.points[scene][valid[scene]], axis=-1)
        np.testing.assert_allclose(distance.mean(), 1, rtol=1e-4)
    again, _ = known(*moved_world(inputs, depth, 2.5))
    for one, other in zip(jax.tree.leaves(truth), jax.tree.leaves(again), strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5)


def test_the_truth_has_no_loss_and_only_a_teachers_unit_is_forgiven(batch):
    truth, valid = known(batch.inputs, batch.depth)
    larger = dataclasses.replace(truth, depth=1.5 * truth.depth)

    @functools.partial(jax.jit, static_argnums=1)
    def loss(seen, fitted):
        return losses_of(seen, truth, valid, ("cameras", "depth"), fitted=fitted)

    for fitted in (True, False):
        assert max(map(float, loss(truth, fitted).values())) < 1e-5
    assert loss(larger, True)["depth"] < 1e-4 < 0.1 < loss(larger, False)["depth"]


def test_a_teacher_of_the_same_weights_agrees_about_clips_of_one_frame(asked, batch, trained):
    """Of one frame a causal network sees what one without a mask sees."""
    params, model = trained[1].params, asked.recipe.model
    losses = GeometryLossConfig(tracks=0.0, points=0.0, teacher="given")
    whole = dataclasses.replace(model, causal=False)
    teacher = GeometryTeacher("vggt", whole, prepared("vggt", whole, params))

    @jax.jit
    def parts(teacher, batch):
        floats = dataclasses.replace(
            batch.inputs, image=batch.inputs.image.astype(jnp.float32) / 255
        )
        module = bind("vggt", model, params)
        batch = dataclasses.replace(batch, inputs=floats, depth=None)
        return geometry_objective(losses, module, teacher, batch)[1]

    one = dataclasses.replace(batch, inputs=jax.tree.map(lambda x: x[:, :1], batch.inputs))
    found = parts(teacher, one)
    assert set(found) == {"cameras", "depth"} and float(found["cameras"]) < 1e-9


@pytest.mark.parametrize(
    ("group", "changed", "message"),
    [
        ("data", {"num_targets": 2, "depth": False}, "num_targets=2: vggt sees clips"),
        ("data", {"depth": False}, r"losses.teacher='': without a teacher.*data.depth=True"),
        ("losses", {"tracks": 0.5}, r"losses.tracks=0.5: tracks are learnt from a teacher"),
        ("losses", {"tracks": 0.5, "teacher": "x"}, "no points are asked for; set data.queries"),
        ("losses", {"cameras": 0.0, "depth": 0.0}, "nothing to learn"),
        ("losses", {"teacher": "nowhere"}, "nowhere does not exist"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(group, changed, message):
    config = small_config()
    config[group].update(changed)
    with pytest.raises(InputError, match=message):
        question(config, 1, abstract=False)


def test_a_teacher_is_a_model_of_geometry():
    config = small_config()
    config.losses.teacher = "rooms"
    with pytest.raises(InputError, match=r"losses.teacher=rooms: .*renders views"):
        question(config, 1, abstract=False)


def test_what_a_step_costs_is_counted(asked):
    parts = asked.recipe.model.observe_flops(2, (16, 16))
    clips = 2 * sum(part.total for part in parts.values())
    assert asked.flops().forward.total == clips and asked.flops().model.total == 3 * clips
    frozen = dataclasses.replace(asked.recipe.optimizer, frozen=("encoder",))
    without = dataclasses.replace(asked, recipe=dataclasses.replace(asked.recipe, optimizer=frozen))
    saved = asked.flops().backward.total - without.flops().backward.total
    assert saved == 2 * 2 * parts["encoder"].total > 0
    assert asked.loss_flops() == 0
    config = small_config()
    config.losses.teacher = "somewhere"
    taught = question(config, 1)
    assert clips < taught.loss_flops() < 1.01 * clips  # the teacher sees later frames, too


def test_the_memory_of_a_small_step_is_within_a_quarter_of_what_is_compiled(asked, compiled):
    memory = compiled.memory_analysis()
    needed = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    assert asked.estimate("cpu").total == pytest.approx(needed, rel=0.25)


@pytest.mark.parametrize(("remat", "points"), [("none", 1.0), ("attention", 0.0)])
def test_what_is_kept_of_larger_pictures_is_within_a_quarter_of_what_is_traced(remat, points):
    config = small_config()
    config.model.remat = remat
    config.losses.points = points
    config.data.update(size=112, batch_size=1)
    asked = question(config, 1)
    model = asked.recipe.model
    sizes = ((112, 112, 3), (4, 4), (4,), (112, 112))
    *views, depth = (jax.ShapeDtypeStruct((1, 2, *size), jnp.float32) for size in sizes)

    def way_back(params, batch):
        def loss(params):
            module = bind("vggt", model, params)
            return geometry_objective(asked.recipe.losses, module, None, batch)[0]

        return jax.vjp(loss, params)[1]

    batch = Batch(Views(*views), None, depth)
    traced = jax.eval_shape(way_back, abstract_params("vggt", model), batch)
    kept = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(traced))
    assert asked.estimate("cpu").bytes["kept for the backward pass"] == pytest.approx(
        kept, rel=0.25
    )


def test_a_workdir_is_known_again_by_a_model_whose_settings_are_tuples(asked, tmp_path):
    claim_workdir(tmp_path, "vggt", asked.recipe.model)
    claim_workdir(tmp_path, "vggt", asked.recipe.model)
    other = dataclasses.replace(asked.recipe.model, channels=(8, 8, 8, 4))
    with pytest.raises(InputError, match="channels was "):
        claim_workdir(tmp_path, "vggt", other)
