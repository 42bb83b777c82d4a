import json
import shutil

import jax
import numpy as np
import pytest
from conftest import channels_last, golden
from torch_files import ORDERED_DICT, rebuilt, storage, write_arrays, write_legacy

import efficient_lvsm_jax as elvsm
from efficient_lvsm_jax.convert.__main__ import main
from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.files.stored import contiguous_strides
from efficient_lvsm_jax.metrics import lpips as lpips_module
from efficient_lvsm_jax.metrics.lpips import SCALE, SHIFT, STAGES, Lpips, lpips_loss
from efficient_lvsm_jax.weights.folder import save_weights
from efficient_lvsm_jax.weights.lpips import convert_lpips, find_lpips, load_lpips

# Otherwise equal pictures are 2e-12 apart.
pytestmark = pytest.mark.compiled_as_used
FEATURES = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))


def drawn_params():
    """The weights that the golden was recorded with."""
    seed = int(golden("lpips")["weight_seed"])
    params, channels = {}, 3
    layers = [(s, i, width) for s, widths in enumerate(STAGES, 1) for i, width in enumerate(widths)]
    for number, (stage, i, width) in enumerate(layers):
        rng = np.random.default_rng([seed, number])
        kernel = rng.standard_normal((3, 3, channels, width)).astype(np.float32)
        params[f"conv{stage}_{i + 1}"] = {
            "kernel": kernel * np.float32(np.sqrt(2 / (9 * channels))),
            "bias": rng.standard_normal(width).astype(np.float32) * np.float32(0.1),
        }
        channels = width
    for stage, widths in enumerate(STAGES):
        weights = np.random.default_rng([seed, 100 + stage]).standard_normal(widths[-1])
        params[f"linear{stage + 1}"] = {"kernel": np.abs(weights).astype(np.float32)}
    return params


def published(params, trunk="features", copies=False):
    """The two state dicts of the usual downloads; or in names of a saved module."""
    convolutions, linear = {}, {}
    for stage, numbers in enumerate(FEATURES, 1):
        for i, number in enumerate(numbers, 1):
            name = f"{trunk.format(stage=stage)}.{number}"
            layer = params[f"conv{stage}_{i}"]
            convolutions[f"{name}.weight"] = layer["kernel"].transpose(3, 2, 0, 1)
            convolutions[f"{name}.bias"] = layer["bias"]
        weights = params[f"linear{stage}"]["kernel"][None, :, None, None]
        linear[f"lin{stage - 1}.model.1.weight"] = weights
        if copies:
            linear[f"lins.{stage - 1}.model.1.weight"] = weights
    return convolutions, linear


def write_legacy_arrays(path, arrays):
    content = {}
    for key, (name, array) in enumerate(arrays.items()):
        stored = storage(str(key), array.size, view=(None,))
        strides = contiguous_strides(array.shape)
        content[name] = rebuilt(stored, 0, array.shape, strides, False, ORDERED_DICT)
    return write_legacy(path, content, {str(i): x for i, x in enumerate(arrays.values())})


@pytest.fixture(scope="module")
def params():
    return drawn_params()


@pytest.fixture(scope="module")
def lpips(params):
    return Lpips(jax.device_put(params))


@pytest.fixture(scope="module")
def downloads(params, tmp_path_factory):
    """The two usual downloads: VGG16 with its classifier in the old format, and linear layers."""
    folder = tmp_path_factory.mktemp("downloads")
    convolutions, linear = published(params)
    convolutions["classifier.0.weight"] = np.ones((2, 3), np.float32)
    return [
        write_legacy_arrays(folder / "vgg16-397923af.pth", convolutions),
        write_arrays(folder / "vgg.pth", linear, bare=True),
    ]


@pytest.fixture(scope="module")
def folder(downloads, tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights") / "lpips"
    convert_lpips(downloads, folder)
    return folder


def pair(*lead, size=(16, 24)):
    return np.random.default_rng(0).random((2, *lead, *size, 3), np.float32)


def test_lpips_equals_the_published_metric(lpips, parity):
    data = golden("lpips")
    pictures = channels_last(data["pred"]), channels_last(data["target"])
    parity("LPIPS", lpips(*pictures), data["lpips"], 2e-7)
    parity("LPIPS, every stage", lpips.by_stage(*pictures), data["per_layer"], 2e-7)


def test_equal_pictures_have_no_distance_and_order_does_not_matter(lpips):
    a, b = pair(2)
    np.testing.assert_allclose(lpips(a, a), 0, atol=1e-12)
    np.testing.assert_allclose(lpips(a, b), lpips(b, a), atol=1e-6)


def test_more_noise_is_farther(lpips):
    picture = np.full((16, 24, 3), 0.5, np.float32)
    noise = np.random.default_rng(1).uniform(-0.4, 0.4, picture.shape).astype(np.float32)
    scores = [lpips(picture + amount * noise, picture) for amount in (0.01, 0.1, 1)]
    assert 0 < scores[0] < scores[1] < scores[2]


def test_any_leading_axes_give_a_score_per_view(lpips):
    a, b = pair(3, 1)
    scores = lpips(a, b)
    assert scores.shape == (3, 1) and scores.dtype == np.float32
    assert lpips(a[0, 0], b[0, 0]).shape == ()
    assert lpips(a[:0], b[:0]).shape == (0, 1)
    np.testing.assert_allclose(lpips(a[1, 0], b[1, 0]), scores[1, 0], atol=1e-6)
    assert len(np.unique(scores)) == 3


def test_groups_change_nothing(lpips, monkeypatch):
    a, b = pair(3)
    together = lpips(a, b)
    monkeypatch.setattr(lpips_module, "PIXELS_AT_ONCE", 2 * 16 * 24)
    np.testing.assert_allclose(lpips(a, b), together, atol=1e-6)


def test_poolings_drop_the_last_row_and_column_of_odd_sides(params):
    """Seen with convolutions that look at one pixel only."""
    pointwise = jax.tree.map(
        lambda x: x * (np.indices(x.shape)[:2] == 1).all(0) if x.ndim == 4 else x, params
    )
    a, _ = pair(size=(17, 19))
    changed = a.copy()
    changed[-1], changed[:, -1] = 1 - a[-1], 1 - a[:, -1]
    stages = Lpips(pointwise).by_stage(changed, a)
    assert stages[0] > 1e-3
    np.testing.assert_allclose(stages[1:], 0, atol=1e-12)


loss_and_gradient = jax.jit(jax.value_and_grad(lpips_loss, argnums=1))


def test_the_loss_is_the_mean_score_and_falls_along_its_gradient(params, lpips):
    a, b = pair(2)
    loss, gradient = loss_and_gradient(params, a, b)
    np.testing.assert_allclose(loss, lpips(a, b).mean(), rtol=1e-5)
    step = 3e-3 * np.asarray(gradient) / np.abs(gradient).max()
    after, before = (loss_and_gradient(params, a + s, b)[0] for s in (step, -step))
    np.testing.assert_allclose((after - before) / 2, (gradient * step).sum(), rtol=2e-2)


def test_equal_pictures_have_no_loss_and_no_gradient(params):
    a, _ = pair(2)
    loss, gradient = loss_and_gradient(params, a, a)
    np.testing.assert_allclose(loss, 0, atol=1e-12)
    np.testing.assert_allclose(gradient, 0, atol=1e-6)


def test_gradients_are_finite_where_features_are_all_zero(params):
    """The root has none at 0, whatever a dead ReLU in front of it lets through."""
    unit_length = lpips_module._unit_length
    gradient = jax.grad(lambda x: unit_length(x)[0, 0])(np.zeros((2, 3), np.float32))
    assert np.isfinite(gradient).all()
    dead = {**params, "conv1_2": jax.tree.map(lambda x: -np.abs(x), params["conv1_2"])}
    assert np.isfinite(loss_and_gradient(dead, *pair(2))[1]).all()


def test_other_ranges_are_refused_and_named(lpips):
    a, b = pair()
    with pytest.raises(InputError, match=r"prediction.*like \[-1, 1\]"):
        lpips(a * 2 - 1, b)
    with pytest.raises(InputError, match=r"target.*divide by 255"):
        lpips(a, b * 255)
    with pytest.raises(InputError, match=r"uint8.*divide by 255"):
        lpips(a, (b * 255).astype(np.uint8))
    with pytest.raises(InputError, match=r"expected \[0, 1\]"):
        lpips(a, np.full_like(b, np.nan))
    lpips(a - 1e-6, b + 1e-6)


def test_impossible_shapes_are_refused(lpips):
    a, b = pair()
    with pytest.raises(InputError, match="expected the same"):
        lpips(a[:, :16], b)
    with pytest.raises(InputError, match="at least 16 pixels"):
        lpips(a[:15], b[:15])
    with pytest.raises(InputError, match=r"\[\.\.\., Y, X, 3\]"):
        lpips(a[..., :1], b[..., :1])


def test_usual_downloads_give_the_weights(folder, params):
    loaded = load_lpips(folder).params
    jax.tree.map(np.testing.assert_array_equal, loaded, params)


def test_a_saved_module_gives_the_same_weights(folder, params, tmp_path):
    convolutions, linear = published(params, "net.slice{stage}", copies=True)
    constants = {
        "scaling_layer.shift": np.float32(SHIFT).reshape(1, 3, 1, 1),
        "scaling_layer.scale": np.float32(SCALE).reshape(1, 3, 1, 1),
    }
    module = write_arrays(tmp_path / "module.pth", constants | convolutions | linear, bare=True)
    done = convert_lpips([module], tmp_path / "lpips")
    assert done.unknown == ["module.pth"] and sum(done.left_out.values()) == 2
    first, second = (
        json.loads((x / "weights.json").read_text()) for x in (folder, tmp_path / "lpips")
    )
    assert first["params_sha256"] == second["params_sha256"]


def test_all_problems_are_in_one_message(downloads, params, tmp_path):
    _, linear = published(params, copies=True)
    linear["lin0.model.1.weight"] = linear["lin0.model.1.weight"][:, :32]
    linear["lins.1.model.1.weight"] = linear["lins.1.model.1.weight"] + 1
    linear["lin2.model.1.weight"] = linear["lin2.model.1.weight"] * np.float32(np.nan)
    linear["lin3.model.1.weight"] = np.zeros((1, 512, 1, 1), np.int64)
    del linear["lin4.model.1.weight"], linear["lins.4.model.1.weight"]
    linear["scaling_layer.shift"] = np.zeros((1, 3, 1, 1), np.float32)
    linear["fc\x1b.weight"] = np.zeros(1, np.float32)
    linear["features.0.bias"] = np.zeros(64, np.float32)
    other = write_arrays(tmp_path / "vgg.pth", linear, bare=True)
    with pytest.raises(InputError) as caught:
        convert_lpips([downloads[0], other], tmp_path / "lpips")
    message = str(caught.value)
    for problem in (
        "8 problems",
        "shape: lin0.model.1.weight is (1, 32, 1, 1), expected (1, 64, 1, 1)",
        "contradictory: lin1.model.1.weight and lins.1.model.1.weight",
        "not finite: lin2.model.1.weight",
        "dtype: lin3.model.1.weight is int64",
        "missing: lin4.model.1.weight",
        "scaling_layer.shift is [0.0, 0.0, 0.0]",
        "unexpected: fc\\x1b.weight",
        "twice: features.0.bias",
        "https://download.pytorch.org/models/",
    ):
        assert problem in message
    assert not (tmp_path / "lpips").exists()


def test_one_download_alone_is_not_enough(downloads, tmp_path):
    with pytest.raises(InputError, match=r"26 problems:\n  missing: features.0.weight"):
        convert_lpips(downloads[1:], tmp_path / "lpips")


def test_absent_weights_are_none_unless_they_were_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_lpips("") is None
    with pytest.raises(InputError, match=r"elsewhere holds no LPIPS weights: .*vgg16-397923af"):
        find_lpips("elsewhere")
    (tmp_path / "weights/lpips").mkdir(parents=True)
    with pytest.raises(InputError, match="holds no LPIPS weights"):
        find_lpips("")


def test_weights_in_the_usual_place_are_found(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(folder, tmp_path / "weights/lpips")
    assert isinstance(find_lpips(""), Lpips)


def test_weights_of_something_else_are_refused(folder, tmp_path):
    info = {"family": "efficient_lvsm", "config": {}}
    save_weights(tmp_path / "model", {"x": np.zeros(1, np.float32)}, info)
    with pytest.raises(InputError, match="holds weights of efficient_lvsm"):
        load_lpips(tmp_path / "model")
    with pytest.raises(InputError, match="unknown model family 'lpips_vgg16'"):
        elvsm.load(folder)


def test_changed_weights_are_refused(params, tmp_path):
    save_weights(
        tmp_path / "lpips", params, {"family": "lpips_vgg16", "config": {"version": "0.1"}}
    )
    info = json.loads((tmp_path / "lpips/weights.json").read_text())
    info["params_sha256"] = "0" * 64
    (tmp_path / "lpips/weights.json").write_text(json.dumps(info))
    with pytest.raises(InputError, match="differ from those written"):
        load_lpips(tmp_path / "lpips")


def test_command_line(downloads, tmp_path, capsys):
    sources = [str(path) for path in downloads]
    assert main(["--lpips", *sources, "--out", str(tmp_path / "lpips")]) == 0
    printed = capsys.readouterr().out
    assert "LPIPS 0.1 with VGG16, 14716160 parameters" in printed
    assert "note: vgg.pth is none of the usual downloads" in printed
    assert "left out 1 tensors: VGG16's classifier" in printed
    for wrong in ([], ["--lpips", "--reference", "r.npz"]):
        with pytest.raises(SystemExit) as caught:
            main([*sources, *wrong, "--out", "x"])
        assert caught.value.code == 2
    with pytest.raises(InputError, match="already exists"):
        main(["--lpips", *sources, "--out", str(tmp_path / "lpips")])
