import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import GOLDENS, channels_last, golden
from vgg19_files import drawn_convolutions, layers, write_layers

from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.metrics import perceptual
from efficient_lvsm_jax.metrics.perceptual import activations, perceptual_loss
from efficient_lvsm_jax.weights import vgg19
from efficient_lvsm_jax.weights.vgg19 import load_vgg19


@pytest.fixture(scope="module")
def tiny():
    return load_vgg19(GOLDENS / "vgg19_tiny.mat")


loss_and_gradient = jax.jit(jax.value_and_grad(perceptual_loss, argnums=1), static_argnames="dtype")


def pair(*lead, size=(16, 24)):
    return np.random.default_rng(0).random((2, *lead, *size, 3), np.float32)


def compare_with_golden(params, name, parity):
    data = golden(name)
    predicted, true = (channels_last(data[key]) for key in ("pred", "target"))
    loss = jax.jit(perceptual_loss)
    each = [loss(params, x[None], y[None]) for x, y in zip(predicted, true, strict=True)]
    parity(f"perceptual loss, {name}", each, data["loss_each"], 1e-5, relative=True)
    whole = loss(params, predicted, true)
    parity(f"perceptual loss, {name}", whole, data["loss_batch"], 1e-5, relative=True)


def test_loss_equals_the_published_one(parity):
    seed = int(golden("perceptual")["weight_seed"])
    params = drawn_convolutions(seed, perceptual.PUBLISHED_WIDTHS)
    compare_with_golden(params, "perceptual", parity)


def test_loss_with_weights_from_a_file_equals_the_published_one(tiny, parity):
    compare_with_golden(tiny, "vgg19_tiny", parity)


def test_activations_equal_the_published_ones(tiny, parity):
    data = golden("vgg19_tiny")
    for number, found in enumerate(activations(tiny, channels_last(data["target"][:1])), 1):
        expected = channels_last(data[f"feature{number}"])
        size = np.abs(expected).max()
        found = found[..., : expected.shape[-1]] / size
        parity("VGG19 activations, of their largest", found, expected / size, 2e-6)


def test_equal_pictures_have_no_loss_and_a_finite_gradient(tiny):
    x, _ = pair(1)
    loss, gradient = loss_and_gradient(tiny, x, x)
    np.testing.assert_allclose(loss, 0, atol=1e-6)
    assert np.isfinite(gradient).all()


def test_equal_values_pull_in_no_direction():
    """As in PyTorch; the gradient of jnp.abs is 1 there."""
    x = np.array([1.0, 2.0, 3.0], np.float32)
    y = np.array([1.0, 3.0, 2.0], np.float32)
    gradient = jax.grad(perceptual._mean_absolute)(x, y)
    np.testing.assert_allclose(gradient, [0, -1 / 3, 1 / 3])


def test_gradient_equals_finite_differences(tiny):
    """Along the gradient and parts of it; elsewhere kinks and rounding are as large as it is."""
    x, y = pair(1)
    gradient = np.asarray(loss_and_gradient(tiny, x, y)[1])
    for part in (np.s_[...], np.s_[..., 0], np.s_[:, 4:9]):
        step = np.zeros_like(x)
        step[part] = 3e-4 * gradient[part] / np.abs(gradient).max()
        after, before = (loss_and_gradient(tiny, x + s, y)[0] for s in (step, -step))
        np.testing.assert_allclose((after - before) / 2, (gradient * step).sum(), rtol=2e-2)


def test_walking_views_changes_neither_loss_nor_gradient(tiny):
    """The other way is all pictures together."""
    x, y = pair(2, 3)

    @jax.value_and_grad
    def together(x):
        pictures = x.reshape(-1, 16, 24, 3), y.reshape(-1, 16, 24, 3)
        return 3 * perceptual._distance(tiny, *pictures, jnp.float32)

    walked = jax.value_and_grad(lambda x: 3 * perceptual_loss(tiny, x, y))
    (loss, gradient), (expected, expected_gradient) = (jax.jit(f)(x) for f in (walked, together))
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-4, atol=1e-8)


def test_between_forward_and_backward_only_the_gradient_is_kept(tiny):
    x, y = pair(2, 3)
    backward = jax.vjp(jax.jit(lambda x: perceptual_loss(tiny, x, y)), x)[1]
    assert sum(leaf.size for leaf in jax.tree.leaves(backward)) == x.size


def test_no_gradient_reaches_weights_or_true_pictures(tiny):
    x, y = pair(1)
    gradients = jax.jit(jax.grad(perceptual_loss, argnums=(0, 2)))(tiny, x, y)
    assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(gradients))


def test_gradient_is_finite_for_flat_pictures(tiny):
    for value in (0.0, 0.5, 1.0):
        x = np.full((1, 16, 24, 3), value, np.float32)
        _, gradient = loss_and_gradient(tiny, x, 1 - x)
        assert np.isfinite(gradient).all()


def test_bfloat16_convolutions_are_near(tiny):
    x, y = pair(1)
    loss, gradient = loss_and_gradient(tiny, x, y, dtype=jnp.bfloat16)
    expected, expected_gradient = loss_and_gradient(tiny, x, y)
    assert loss.dtype == gradient.dtype == jnp.float32
    np.testing.assert_allclose(loss, expected, rtol=1e-2)
    cosine = (gradient * expected_gradient).sum() / (
        jnp.linalg.norm(gradient.ravel()) * jnp.linalg.norm(expected_gradient.ravel())
    )
    assert loss != expected and cosine > 0.98


def test_one_device_or_four_is_the_same(tiny):
    x, y = pair(4, 2)
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.NamedSharding(mesh, jax.P("data"))
    loss, gradient = loss_and_gradient(tiny, x, y)
    placed = [jax.device_put(value, sharding) for value in (x, y)]
    sharded = loss_and_gradient.lower(tiny, *placed).compile()
    loss_of_four, gradient_of_four = sharded(tiny, *placed)
    np.testing.assert_allclose(loss_of_four, loss, rtol=1e-6)
    np.testing.assert_allclose(gradient_of_four, gradient, rtol=1e-4, atol=1e-8)
    assert "all-gather" not in sharded.as_text()


def test_impossible_pictures_are_refused(tiny):
    x, y = pair(1)
    with pytest.raises(InputError, match="expected one shape"):
        perceptual_loss(tiny, x, y[:, 1:])
    with pytest.raises(InputError, match=r"\[\.\.\., Y, X, 3\]"):
        perceptual_loss(tiny, x[..., :1], y[..., :1])
    with pytest.raises(InputError, match="at least 16 pixels"):
        perceptual_loss(tiny, x[:, 1:], y[:, 1:])
    with pytest.raises(InputError, match="no pictures"):
        perceptual_loss(tiny, x[:0], y[:0])


def test_an_absent_file_says_where_people_get_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path in ("", "elsewhere.mat"):
        with pytest.raises(InputError, match=r"\.mat: no such file; .*https://www\.vlfeat\.org/"):
            load_vgg19(path)


def test_weights_are_found_in_their_usual_place_and_other_widths_said(
    tmp_path, monkeypatch, caplog
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights").mkdir()
    drawn = drawn_convolutions(0, (2, 2, 2, 2, 2))
    write_layers(tmp_path / vgg19.WEIGHTS_FILE, layers(drawn))
    params = load_vgg19("")
    assert len(params) == 14 and "conv5_3" not in params
    assert "(2, 2, 2, 2, 2) channels instead of (64, 128, 256, 512, 512)" in caplog.text
