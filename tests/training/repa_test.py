import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import channels_last, golden
from small_teachers import small_teacher

from efficient_lvsm_jax.backbones.backbone import PUBLISHED, Teacher, abstract_params
from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.training.losses import projection_loss
from efficient_lvsm_jax.training.repa import (
    init_projectors,
    parse_layer_map,
    project,
    repa_loss,
    teacher_labels,
)

FAMILIES = ["dinov3", "dinov2"]
PUBLISHED_GRID = (32, 32)
labels_of = jax.jit(teacher_labels, static_argnums=(2, 3))
loss_of = jax.jit(repa_loss, static_argnums=(3, 4))


@functools.cache
def small(family):
    return small_teacher(family).frozen(layers=3, dtype="float32")


def layer_map(name, students=12, teachers=12):
    return parse_layer_map(name, student_layers=students, teacher_layers=teachers)


def both(*pairs):
    return tuple((stream, *pair) for stream in ("input", "target") for pair in pairs)


@pytest.mark.parametrize(
    ("name", "pairs"),
    [
        ("8-2", both((8, 2))),
        ("10-3", both((10, 3))),
        ("12-34", both((12, 3), (12, 4))),
        ("8-2i", (("input", 8, 2),)),
        ("12-3t", (("target", 12, 3),)),
        ("8-3t-8-2i", (("target", 8, 3), ("input", 8, 2))),
        ("48-23", both((4, 2), (8, 3))),
        ("48-13", both((4, 1), (8, 3))),
        ("369-123", both((3, 1), (6, 2), (9, 3))),
        ("4812-123", both((4, 2), (8, 4), (12, 3))),
        ("8-12", both((8, 12))),
    ],
)
def test_a_published_name_stands_for_its_layers(name, pairs):
    assert layer_map(name).pairs == pairs


def test_a_map_says_what_to_tap_and_what_to_load():
    mixed = layer_map("8-3t-4-12i-6-3i")
    assert mixed.streams == ("input", "target")
    assert mixed.last_teacher == 8
    assert mixed.students("input") == (3, 12)
    assert mixed.teachers("input") == (4, 6)
    assert layer_map("8-2t").streams == ("target",)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        (1, "published default 1"),
        ("1", "published default 1"),
        ("8-e2", "extra encoder layers"),
        ("8-3t-8-e4", "extra encoder layers"),
        ("8-2x", "cannot be read"),
        ("8-2-", "cannot be read"),
        ("-8-2", "cannot be read"),
        ("8-2-4", "cannot be read"),
        ("0-2", "0 is no ascending row"),
        ("8-102", "102 is no ascending row"),
        ("84-23", "84 is no ascending row"),
        ("48-2", "cannot be paired"),
        ("8-2-8-2i", "twice"),
        ("8-7", "the model has 6 layers, no 7"),
        ("12-2", "the teacher has 11 layers, no 12"),
    ],
)
def test_a_name_that_means_nothing_is_refused(name, reason):
    with pytest.raises(InputError, match=reason):
        layer_map(name, students=6, teachers=11)


@pytest.mark.parametrize("shape", ["square", "wide"])
@pytest.mark.parametrize("family", FAMILIES)
def test_labels_equal_the_published_ones(family, shape, parity):
    data = golden(family)
    images = channels_last(data[f"repa_{shape}_image"])[None]
    got = labels_of(small(family), images, (1, 3), PUBLISHED_GRID)[
        :, 0, :, :: int(data["repa_token_stride"])
    ]
    for label, layer in zip(got, (1, 3), strict=True):
        parity("REPA labels", label, data[f"repa_{shape}_tap{layer}"], 1e-4)


def test_at_the_grid_of_its_patches_dinov3_sees_the_picture_itself(parity):
    data = golden("dinov3")
    images = channels_last(data["image_64x96"])[None]
    got = labels_of(small("dinov3"), images, (1, 2, 3), (4, 6))
    parity("REPA labels", got[:, 0], data["tokens_after_blocks_64x96"][:, :, 5:], 1e-4)


def test_teachers_see_a_picture_that_grows_with_the_grid():
    grids = {(32, 32): (24, 24), (64, 64): (48, 48), (32, 64): (24, 48), (1, 2): (1, 2)}
    for grid, fewer in grids.items():
        assert small("dinov3").module().patch_grid(grid) == grid
        assert small("dinov2").module().patch_grid(grid) == fewer


@pytest.mark.parametrize("family", FAMILIES)
def test_a_512_pixel_picture_gets_a_label_for_each_of_its_tokens(family):
    teacher = Teacher(PUBLISHED[family], abstract_params(PUBLISHED[family]))
    images = jax.ShapeDtypeStruct((2, 3, 512, 512, 3), jnp.float32)
    labels = jax.eval_shape(lambda t, x: teacher_labels(t, x, (4, 8), (64, 64)), teacher, images)
    assert labels.shape == (2, 2, 3, 64 * 64, 768)


def test_pictures_are_labelled_each_by_itself_and_alike_each_time():
    images = np.random.default_rng(0).random((2, 3, 16, 24, 3), np.float32)
    labels = np.asarray(labels_of(small("dinov2"), images, (1, 2), (4, 6)))
    again = labels_of(small("dinov2"), images, (1, 2), (4, 6))
    np.testing.assert_array_equal(again, labels)
    images[1, 2] = 0
    others = np.ones((2, 3), bool)
    others[1, 2] = False
    changed = np.asarray(labels_of(small("dinov2"), images, (1, 2), (4, 6)))
    np.testing.assert_allclose(changed[:, others], labels[:, others], atol=1e-5)
    assert np.abs(changed - labels)[:, 1, 2].max() > 0.1


def test_views_walked_one_by_one_get_the_labels_they_get_together(monkeypatch):
    images = np.random.default_rng(0).random((2, 3, 16, 24, 3), np.float32)
    together = labels_of(small("dinov2"), images, (1, 2), (4, 6))
    monkeypatch.setattr("efficient_lvsm_jax.training.repa.CPU_TOKENS_AT_ONCE", 1)
    one_by_one = jax.jit(lambda *args: teacher_labels(*args, (1, 2), (4, 6)))
    np.testing.assert_allclose(one_by_one(small("dinov2"), images), together, atol=1e-5)


def test_no_gradient_flows_through_labels():
    images = jnp.full((1, 1, 8, 8, 3), 0.5)
    gradient = jax.grad(lambda x: labels_of(small("dinov3"), x, (1,), (2, 2)).sum())
    assert not gradient(images).any()


def test_pictures_without_a_view_axis_are_refused():
    with pytest.raises(InputError, match=r"\(1, 8, 8, 3\): expected \[B, V, Y, X, 3\]"):
        teacher_labels(small("dinov3"), np.zeros((1, 8, 8, 3)), (1,), (2, 2))


def drawn(pairs, *, width=6, teacher_width=5):
    """Projectors, and random features and labels with 2 input and 3 target views."""
    rng = np.random.default_rng(0)
    features = {
        stream: rng.normal(size=(len(pairs.students(stream)), 2, views, 4, width))
        for stream, views in (("input", 2), ("target", 3))
    }
    labels = {
        stream: rng.normal(size=(len(pairs.teachers(stream)), 2, views, 4, teacher_width))
        for stream, views in (("input", 2), ("target", 3))
    }
    projectors = init_projectors(
        jax.random.key(0), pairs, width=width, teacher_width=teacher_width, hidden=7
    )
    return jax.tree.map(jnp.float32, (projectors, features, labels))


@pytest.mark.parametrize("kind", ["cos", "l2", "sl1"])
def test_the_loss_is_a_mean_over_pairs_and_views(kind):
    pairs = layer_map("48-23i-8-1t")
    projectors, features, labels = drawn(pairs)
    items = []
    for stream, index, name in (("input", 0, "4-2"), ("input", 1, "8-3"), ("target", 0, "8-1")):
        projected = np.asarray(jax.jit(project)(projectors[stream][name], features[stream][index]))
        label = labels[stream][index]
        views = len(label[0])
        flat = (x.reshape(2 * views, *x.shape[2:]) for x in (projected, label))
        items.append(jax.jit(projection_loss, static_argnums=2)(*flat, kind))
    items = np.concatenate(items)
    assert items.shape == (2 * 2 * 2 + 2 * 3,)
    got = loss_of(projectors, features, labels, pairs, kind)
    np.testing.assert_allclose(got, items.mean(), rtol=1e-5)


def test_gradients_reach_features_and_projectors_but_not_labels():
    pairs = layer_map("8-2")
    gradient = jax.jit(jax.grad(lambda tree: repa_loss(*tree, pairs, "sl1")))
    projectors, features, labels = gradient(drawn(pairs))
    assert all(x.any() for x in jax.tree.leaves((projectors, features)))
    assert not any(x.any() for x in jax.tree.leaves(labels))


def test_features_in_bfloat16_give_a_float32_loss():
    pairs = layer_map("8-2")
    projectors, features, labels = drawn(pairs)
    expected = loss_of(projectors, features, labels, pairs, "sl1")
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), features)
    got = loss_of(projectors, half, labels, pairs, "sl1")
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, expected, rtol=0.02)


def test_an_unknown_kind_is_refused():
    pairs = layer_map("8-2")
    with pytest.raises(InputError, match="'sll'"):
        repa_loss(*drawn(pairs), pairs, "sll")


def test_features_of_other_layers_are_refused():
    with pytest.raises(InputError, match=r"features of input views are of 1 layers.*\(3, 4\)"):
        repa_loss(*drawn(layer_map("8-3")), layer_map("8-34"), "sl1")


def test_labels_of_another_grid_are_refused():
    pairs = layer_map("8-2")
    projectors, features, labels = drawn(pairs)
    labels = jax.tree.map(lambda x: x[..., :1, :], labels)
    with pytest.raises(InputError, match="expected one shape"):
        repa_loss(projectors, features, labels, pairs, "sl1")


def test_a_projector_has_the_published_size_and_initialisation():
    def projectors(size):
        pairs = layer_map("8-2")
        key = jax.random.key(0)
        return init_projectors(key, pairs, width=size, teacher_width=size, hidden=2048)

    published = jax.eval_shape(lambda: projectors(768))
    assert sum(x.size for x in jax.tree.leaves(published)) == 2 * 7_344_896
    drawn = projectors(64)
    for layer in drawn["target"]["8-2"].values():
        bound = len(layer["kernel"]) ** -0.5
        for x in layer.values():
            assert 0.9 * bound < np.abs(x).max() <= bound
            assert abs(x.mean()) < 0.2 * bound
    first, second = (drawn[stream]["8-2"]["layer1"]["bias"] for stream in ("input", "target"))
    assert (first != second).any()
