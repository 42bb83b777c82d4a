import dataclasses
import re

import jax
import ml_dtypes
import numpy as np
import pytest
from conftest import GOLDENS
from torch_files import Raw, encode, write_arrays, write_torch

import efficient_lvsm_jax as elvsm
from efficient_lvsm_jax.convert.conversion import convert
from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.files.safetensors_file import read_safetensors, write_safetensors
from efficient_lvsm_jax.files.stored import StoredTensor
from efficient_lvsm_jax.files.torch_file import open_torch
from efficient_lvsm_jax.models.efficient_lvsm import EfficientLVSMConfig
from efficient_lvsm_jax.models.model import abstract_params
from efficient_lvsm_jax.training.checkpoints import Checkpoints
from efficient_lvsm_jax.weights.folder import load_weights, save_weights
from efficient_lvsm_jax.weights.load import load, read_published
from efficient_lvsm_jax.weights.published import bring_in, count_tensors
from efficient_lvsm_jax.weights.source import sha256
from efficient_lvsm_jax.weights.workdir import claim_workdir

SQUARE = EfficientLVSMConfig(width=64, head_dim=32, layers=3, patch=8, mlp_ratio=4)
FIRST = "input_self_attn_blocks.0"


@pytest.fixture(scope="module")
def published():
    """The tensors of a golden checkpoint by published name."""
    with open_torch(GOLDENS / "square.pt") as content:
        return {name: tensor.numpy() for name, tensor in content["model"].items()}


@pytest.fixture
def write(tmp_path, published):
    """Writes those tensors, with some changed (None: left out), as a checkpoint."""

    def write_changed(changes=None, **beside):
        arrays = {**published, **(changes or {})}
        arrays = {name: array for name, array in arrays.items() if array is not None}
        return write_arrays(tmp_path / "changed.pt", arrays, **beside)

    return write_changed


def assert_same(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


def report(path):
    """The lines of the message that refuses `path`."""
    with pytest.raises(InputError) as caught:
        read_published(path)
    assert str(path) in str(caught.value)
    return str(caught.value).split("\n  ")


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("square", SQUARE),
        (
            "wide_compiled",
            EfficientLVSMConfig(width=64, head_dim=16, layers=2, patch=8, mlp_ratio=4),
        ),
        ("train_init", EfficientLVSMConfig(width=64, head_dim=32, layers=2, patch=8, mlp_ratio=4)),
    ],
)
def test_configuration_is_inferred_and_every_parameter_filled(name, config):
    model = read_published(GOLDENS / f"{name}.pt")
    params, found = model.params, model.config
    assert found == config
    expected = abstract_params("efficient_lvsm", config)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), params) == jax.tree.map(
        lambda x: (x.shape, x.dtype), expected
    )


def test_rows_of_a_fused_projection_are_parts_then_heads_then_channels(published):
    params = read_published(GOLDENS / "square.pt").params
    kernel = params["encoder"]["attention"]["qkv"]["kernel"]  # [L, D, 3, H, K]
    weight = published["input_self_attn_blocks.1.attn.to_qkv.weight"]  # [3·H·K, D]
    for part, head, channel in ((0, 0, 0), (1, 1, 5), (2, 0, 31)):
        row = weight[part * 64 + head * 32 + channel]
        np.testing.assert_array_equal(kernel[1, :, part, head, channel], row)
    kernel = params["decoder"]["cross_attention"]["out"]["kernel"]  # [L, H, K, D]
    weight = published["self_cross_blocks.2.cross_attn.fc.weight"]  # [D, H·K]
    np.testing.assert_array_equal(kernel[2, 1, 7], weight[:, 32 + 7])


def test_the_published_model_has_207_tensors():
    assert count_tensors("efficient_lvsm", EfficientLVSMConfig()) == 207
    shapes = abstract_params("efficient_lvsm", EfficientLVSMConfig())
    assert sum(x.size for x in jax.tree.leaves(shapes)) == 199_070_208


def test_a_weights_folder_says_where_it_comes_from(tmp_path):
    source = GOLDENS / "square.pt"
    done = convert(source, tmp_path / "weights")
    params, info = load_weights(tmp_path / "weights")
    info.pop("params_sha256")
    assert info == {
        "family": "efficient_lvsm",
        "config": {"width": 64, "head_dim": 32, "layers": 3, "patch": 8, "mlp_ratio": 4},
        "source": "square.pt",
        "sha256": sha256(source),
        "tensors": 54,
    }
    convert(source, tmp_path / "sized", trained_size=(32, 48))
    assert load(tmp_path / "sized").trained_sizes == ((32, 48),)
    assert done.parameters == sum(x.size for x in jax.tree.leaves(params))
    assert_same(params, read_published(source).params)


def test_there_and_back_is_bit_exact(tmp_path, published):
    convert(GOLDENS / "square.pt", tmp_path / "weights")
    convert(tmp_path / "weights", tmp_path / "out.safetensors")
    convert(tmp_path / "out.safetensors", tmp_path / "again")
    assert_same(load_weights(tmp_path / "again")[0], load_weights(tmp_path / "weights")[0])
    written = read_safetensors(tmp_path / "out.safetensors")
    assert set(written) == set(published)
    for name, tensor in written.items():
        assert tensor.numpy().tobytes() == published[name].tobytes()


def test_a_training_workdir_can_be_published(tmp_path, small_model):
    claim_workdir(tmp_path / "run", "efficient_lvsm", small_model.config)
    checkpoints = Checkpoints(tmp_path / "run", keep=1)
    checkpoints.save(7, {"params": small_model.params})
    checkpoints.close()
    convert(tmp_path / "run", tmp_path / "out.safetensors")
    assert_same(elvsm.load(tmp_path / "out.safetensors").params, small_model.params)


def test_a_file_keeps_what_shapes_do_not_show(tmp_path, small_model):
    config = dataclasses.replace(small_model.config, positions="prope", rays="camera")
    info = {"family": "efficient_lvsm", "config": dataclasses.asdict(config)}
    save_weights(tmp_path / "weights", small_model.params, info | {"trained_sizes": [[16, 24]]})
    done = convert(tmp_path / "weights", tmp_path / "half.safetensors", half=True)
    assert (tmp_path / "half.safetensors").stat().st_size < 2.2 * done.parameters
    model = load(tmp_path / "half.safetensors")
    assert model.config.positions == "prope" and model.config.rays == "camera"
    assert model.trained_sizes == ((16, 24),)
    for got, expected in zip(
        *map(jax.tree.leaves, (model.params, small_model.params)), strict=True
    ):
        assert got.dtype == np.float32
        np.testing.assert_array_equal(got, expected.astype(np.float16))
    convert(tmp_path / "half.safetensors", tmp_path / "again")
    again = load(tmp_path / "again")
    assert again.config == model.config and again.trained_sizes == ((16, 24),)


@pytest.mark.parametrize(
    ("told", "reason"),
    [
        ("{", "expected a JSON object of settings"),
        ("[1]", "expected a JSON object of settings"),
        ('{"width": 8}', "width=8 was told, but its tensors say 64"),
        ('{"positions": "guessed"}', "positions='guessed'"),
        ('{"trained_sizes": [[8]]}', "expected pairs"),
    ],
)
def test_what_a_file_says_of_itself_is_not_believed(tmp_path, published, told, reason):
    write_safetensors(tmp_path / "x.safetensors", published, {"efficient_lvsm_jax": told})
    with pytest.raises(InputError, match=re.escape(reason)) as raised:
        load(tmp_path / "x.safetensors")
    assert "x.safetensors" in str(raised.value)


def test_values_beyond_float16_are_refused(tmp_path, published):
    name = f"{FIRST}.attn.fc.weight"
    write_safetensors(tmp_path / "x.safetensors", published | {name: published[name] * 1e6})
    with pytest.raises(InputError, match=rf"{re.escape(name)} has values above 65504"):
        convert(tmp_path / "x.safetensors", tmp_path / "half.safetensors", half=True)
    assert not (tmp_path / "half.safetensors").exists()


@pytest.mark.parametrize(
    "prefix",
    ["module.", "_orig_mod.", "module._orig_mod.module.", "model.", "model._fsdp_wrapped_module."],
)
def test_prefixes_and_bare_state_dicts(tmp_path, published, prefix):
    renamed = {prefix * (i % 2) + name: array for i, (name, array) in enumerate(published.items())}
    expected = read_published(GOLDENS / "square.pt").params
    assert_same(read_published(write_arrays(tmp_path / "x.pt", renamed)).params, expected)
    write_safetensors(tmp_path / "x.safetensors", renamed)
    assert_same(read_published(tmp_path / "x.safetensors").params, expected)
    with open_torch(tmp_path / "x.pt") as content:
        assert set(content) == {"model"}
    bare = write_arrays(tmp_path / "bare.pth", renamed, bare=True)
    assert_same(read_published(bare).params, expected)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_is_widened(write, published, dtype):
    cast = {name: x.astype(dtype) for name, x in published.items()}
    params = read_published(write(cast)).params
    scale = params["encoder"]["attention"]["q_norm"]["scale"]
    assert scale.dtype == np.float32
    expected = published[f"{FIRST}.attn.q_norm.weight"].astype(dtype).astype(np.float32)
    np.testing.assert_array_equal(scale[0], expected)


def test_only_training_networks_are_left_out(write, tmp_path):
    extra = dict.fromkeys(
        [
            "loss_computer.perceptual_loss_module.vgg.features.0.weight",
            "loss_computer.lpips_loss_module.lin0.model.1.weight",
            "repa_encoder.blocks.0.norm1.weight",
            "image_encoder.cls_token",
            "repa_projector.input.8.2.0.weight",
            "_orig_mod.repa_projector.target.8.3.4.bias",
        ],
        np.zeros(3, np.float32),
    )
    done = convert(write(extra), tmp_path / "weights")
    assert sorted(done.left_out.values()) == [2, 2, 2]
    assert done.tensors == 54


def test_one_report_has_every_problem(write):
    zero = np.zeros((64, 64), np.float32)
    path = write(
        {
            f"{FIRST}.attn.fc.weight": None,
            "self_cross_blocks.2.mlp.mlp.2.weight": None,
            "self_cross_blocks.1.norm1.weight": zero,
            "self_cross_blocks.01.attn.fc.weight": zero,
            "repa_projector.input.8.2.1.weight": zero,
            "align_projector.weight\x1b[31m": zero,
            "module.rgbp_tokenizer.1.weight": zero,
            "image_token_decoder.1.weight": zero,
            f"{FIRST}.attn.q_norm.weight": np.zeros((1, 32), np.float32),
            f"{FIRST}.attn.k_norm.weight": np.zeros(32, np.int64),
        }
    )
    first, *problems = report(path)
    assert first.endswith("not the weights of a model (read as Efficient-LVSM); 10 problems:")
    assert sorted(problems) == sorted(
        [
            "twice: rgbp_tokenizer.1.weight, as rgbp_tokenizer.1.weight and "
            "module.rgbp_tokenizer.1.weight",
            f"missing: {FIRST}.attn.fc.weight",
            "missing: self_cross_blocks.2.mlp.mlp.2.weight",
            "unexpected: self_cross_blocks.1.norm1.weight",
            "unexpected: self_cross_blocks.01.attn.fc.weight",
            "unexpected: repa_projector.input.8.2.1.weight",
            r"unexpected: align_projector.weight\x1b[31m",
            "shape: image_token_decoder.1.weight is (64, 64), expected (192, 64)",
            f"shape: {FIRST}.attn.q_norm.weight is (1, 32), expected (32,)",
            f"dtype: {FIRST}.attn.k_norm.weight is int64, expected one of float32, float16, "
            "bfloat16",
        ]
    )


def test_a_missing_last_layer_of_one_stream_is_seen(write, published):
    layer = dict.fromkeys(name for name in published if name.startswith("self_cross_blocks.2."))
    _, *problems = report(write(layer))
    assert sorted(problems) == sorted(f"missing: {name}" for name in layer)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("rgbp_tokenizer.1.weight", (64, 9 * 16)),
        ("target_pose_tokenizer.1.weight", (64, 6 * 16)),
        ("image_token_decoder.1.weight", (3 * 16, 64)),
    ],
)
def test_patch_sizes_must_agree(write, name, shape):
    _, problem = report(write({name: np.zeros(shape, np.float32)}))
    assert problem.startswith(f"shape: {name} is {shape}, expected")


def test_other_files_are_refused_for_what_they_are(tmp_path):
    listed = {"self_cross_blocks.0.self_attn.fc.weight": [1]}
    path = write_torch(tmp_path / "x.pt", {"model": listed})
    assert "not a tensor: self_cross_blocks.0.self_attn.fc.weight is a list" in report(path)
    stranger = report(write_arrays(path, {"blocks.0.weight": np.zeros(2, np.float32)}))[0]
    assert "by the names of its tensors: blocks.0.weight. Known are Efficient-LVSM" in stranger
    assert "decoder-only LVSM (transformer_blocks.*)" in stranger
    assert "expected tensors by name" in report(write_torch(path, {"epoch": 3}))[0]
    assert "holds a list" in report(write_torch(path, [1]))[0]
    (tmp_path / "x.bin").write_bytes(b"")
    assert "expected a .pt, .pth, .ckpt or .safetensors file" in report(tmp_path / "x.bin")[0]
    assert "is a folder" in report(tmp_path)[0]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_named(write, published, tmp_path, value):
    name = "self_cross_blocks.1.mlp.mlp.0.weight"
    broken = published[name].copy()
    broken[3, 4] = value
    assert f"not finite: {name} has NaN or infinite values" in report(write({name: broken}))


def test_tensors_that_share_values_are_refused(published):
    path = GOLDENS / "square.pt"
    with open_torch(path) as content:
        large = content["model"]["rgbp_tokenizer.1.weight"].storage
        shared = {
            name: StoredTensor(large, x.dtype, x.shape, x.strides)
            for name, x in content["model"].items()
        }
        with pytest.raises(InputError, match=r"overlapping: .* share some of their values"):
            bring_in(path, shared)


@pytest.mark.parametrize("destination", ["weights", "out.safetensors"])
def test_nothing_is_left_at_the_destination_after_a_failure(tmp_path, destination):
    code = Raw(b"cos\nsystem\n" + encode((f"touch {tmp_path / 'marker'}",)) + b"R")
    name = "self_cross_blocks.0.self_attn.fc.weight"
    hostile = write_torch(tmp_path / "hostile.pt", {"model": {name: code}})
    with pytest.raises(InputError, match=rf"{name} is made by os\.system, which is never run"):
        convert(hostile, tmp_path / destination)
    assert list(tmp_path.iterdir()) == [hostile]


def test_a_full_disk_leaves_no_file(tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(InputError, match=r"out\.safetensors: cannot be written \(No space"):
        convert(GOLDENS / "square.pt", tmp_path / "out.safetensors")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["weights", "out.safetensors"])
def test_an_existing_destination_is_not_touched(tmp_path, name):
    (tmp_path / name).write_text("mine")
    with pytest.raises(InputError, match=f"{name} already exists"):
        convert(GOLDENS / "square.pt", tmp_path / name)
    assert (tmp_path / name).read_text() == "mine"
