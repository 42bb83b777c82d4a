import dataclasses
import hashlib
import http.server
import json
import os
import re
import subprocess
import sys
import threading

import jax
import ml_dtypes
import numpy as np
import pytest
from conftest import GOLDENS, golden
from torch_files import Raw, encode, write_arrays, write_torch

import efficient_lvsm_jax as elvsm
from efficient_lvsm_jax.checkpoints import (
    Checkpoints,
    claim_workdir,
    load_weights,
)
from efficient_lvsm_jax.convert import convert, read_published
from efficient_lvsm_jax.convert.__main__ import main
from efficient_lvsm_jax.convert.published import bring_in, count_tensors
from efficient_lvsm_jax.convert.reference import QUANTITIES, compare, read_reference
from efficient_lvsm_jax.convert.safetensors_file import read_safetensors, write_safetensors
from efficient_lvsm_jax.convert.source import sha256
from efficient_lvsm_jax.convert.stored import StoredTensor
from efficient_lvsm_jax.convert.torch_file import open_torch
from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.models import EfficientLVSMConfig, abstract_params

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


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.module."])
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
            "twice: rgbp_tokenizer.1.weight",
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
    assert "ends in .pt, .pth or .safetensors" in report(tmp_path / "x.bin")[0]
    assert "is a folder" in report(tmp_path)[0]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_named(write, published, tmp_path, value):
    name = "self_cross_blocks.1.mlp.mlp.0.weight"
    broken = published[name].copy()
    broken[3, 4] = value
    assert f"NaN or infinite values in {name}" in report(write({name: broken}))[0]


def test_tensors_that_share_values_are_refused(published):
    """Otherwise a small file could ask for any amount of memory."""
    path = GOLDENS / "square.pt"
    with open_torch(path) as content:
        large = content["model"]["rgbp_tokenizer.1.weight"].storage
        shared = {
            name: StoredTensor(large, x.dtype, x.shape, x.strides)
            for name, x in content["model"].items()
        }
        with pytest.raises(InputError, match="share their values"):
            bring_in(path, shared)


@pytest.mark.parametrize("destination", ["weights", "out.safetensors"])
def test_nothing_is_left_at_the_destination_after_a_failure(tmp_path, destination):
    code = Raw(b"cos\nsystem\n" + encode((f"touch {tmp_path / 'marker'}",)) + b"R")
    hostile = write_torch(tmp_path / "hostile.pt", {"model": {"x": code}})
    with pytest.raises(InputError, match=r"hostile\.pt: .* asks for os\.system"):
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


def safetensors(path, entries, data=b"", *, length=None):
    header = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    length = len(header) if length is None else length
    path.write_bytes(length.to_bytes(8, "little") + header + data)
    return path


def entry(shape, start, stop, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


@pytest.mark.parametrize(
    ("entries", "reason"),
    [
        (b"not json", "malformed"),
        (b"[1]", "malformed"),
        (b"[" * 100_000, "malformed"),
        (b'{"a": 1, "a": 2}', "there twice"),
        ({"a": 1}, "malformed"),
        ({"a": entry([4], -4, 12)}, "lies nowhere"),
        ({"a": entry([4], "0", 16)}, "lies nowhere"),
        ({"a": entry("4", 0, 16)}, "without dtype or shape"),
        ({"a": entry([5], 0, 16)}, "bytes its shape needs"),
        ({"a": entry([2, -2], 0, 16)}, "impossible shape"),
        ({"a": entry([4.0], 0, 16)}, "impossible shape"),
        ({"a": entry([4], 0, 16, "F4")}, "a has a dtype that is not read"),
        ({"a": entry([1] * 40 + [4], 0, 16)}, "41 axes"),
        ({"a": entry([2], 0, 8), "b": entry([3], 4, 16)}, "b does not have the bytes"),
        ({"a": entry([2], 0, 8), "b": entry([1], 12, 16)}, "b does not have the bytes"),
        ({"a": entry([3], 0, 12)}, "end at byte"),
        ({"a": entry([5], 0, 20)}, "end at byte"),
    ],
)
def test_damaged_safetensors_are_refused(tmp_path, entries, reason):
    path = safetensors(tmp_path / "x.safetensors", entries, bytes(16))
    message = report(path)[0]
    assert reason in message


def test_safetensors_tables_are_bounded(tmp_path):
    path = tmp_path / "x.safetensors"
    for length in (0, 2**40, 2**63):
        assert "table of tensors" in report(safetensors(path, b"{}", length=length))[0]
    path.write_bytes(b"")
    assert "table of tensors" in report(path)[0]
    assert "No such file" in report(tmp_path / "absent.safetensors")[0]


def run(*arguments, **environment):
    """The command line in a process of its own: exit status, output, errors."""
    done = subprocess.run(
        [sys.executable, "-m", "efficient_lvsm_jax.convert", *map(str, arguments)],
        env={**os.environ, "JAX_PLATFORMS": "cpu", **environment},
        cwd=GOLDENS.parent.parent,
        capture_output=True,
        text=True,
        timeout=300,
    )
    return done.returncode, done.stdout, done.stderr


def test_command_line_reports_what_it_wrote_and_what_is_wrong(tmp_path):
    status, output, _ = run(GOLDENS / "square.pt", tmp_path / "weights")
    assert status == 0
    assert (
        "efficient_lvsm (width 64, head_dim 32, patch 8, mlp_ratio 4, layers 3), 418368 parameters"
        in output
    )
    assert f"sha256 {sha256(GOLDENS / 'square.pt')}" in output
    status, output, errors = run(GOLDENS / "square.pt", tmp_path / "weights")
    assert status == 2 and not output
    assert errors.startswith("error: ") and "already exists" in errors


@pytest.mark.parametrize("name", ["square", "wide_compiled"])
def test_reference_lines_say_error_and_limit(tmp_path, capsys, name):
    reference = ["--reference", str(GOLDENS / f"{name}.npz")]
    assert main([str(GOLDENS / f"{name}.pt"), str(tmp_path / "weights"), *reference]) == 0
    found = re.findall(
        r"^reference (\w+) max_abs_error=(\S+) limit=(\S+)$", capsys.readouterr().out, re.M
    )
    limits = {quantity: float(limit) for quantity, _, limit in found}
    assert limits == {
        "render": 2e-5,
        "render_incremental": 2e-5,
        "cache": 1e-4,
        "tokens": 1e-5,
        "rays": 1e-5,
    }
    assert all(float(error) <= limits[quantity] for quantity, error, _ in found)


@pytest.fixture
def model():
    """The model of square.npz."""
    return elvsm.load(GOLDENS / "square.pt")


@pytest.fixture
def reference(tmp_path):
    """Writes square.npz, with some arrays changed (None: left out), as a reference file."""

    def write_changed(**changes):
        arrays = {**golden("square"), **changes}
        path = tmp_path / "ref.npz"
        np.savez(path, **{name: x for name, x in arrays.items() if x is not None})
        return path

    return write_changed


def test_a_limit_exceeded_is_exit_status_3(tmp_path, capsys, reference):
    data = golden("square")
    path = reference(render=data["render"] + np.float32(3e-5))
    arguments = [str(GOLDENS / "square.pt"), str(tmp_path / "weights"), "--reference", str(path)]
    assert main(arguments) == 3
    assert "reference render max_abs_error=3.0" in capsys.readouterr().out


def test_every_array_counts(model, reference):
    data = golden("square")
    for name in (name for names, _ in QUANTITIES.values() for name in names):
        changed = data[name].copy()
        changed.flat[-1] += 0.01
        differences = list(compare(model, read_reference(reference(**{name: changed}))))
        above = [difference.quantity for difference in differences if not difference.within]
        assert len(above) == 1 and above[0].split("_")[0] in name.replace("ray_", "rays_")


def test_nan_is_above_the_limit(model, reference):
    broken = jax.tree.map(lambda x: x * np.nan, model.params)
    found = read_reference(reference())
    for difference in compare(dataclasses.replace(model, params=broken), found):
        assert difference.within == (difference.quantity == "rays")


def test_only_recorded_quantities_are_compared(model, reference):
    left_out = {
        name: None
        for quantity in ("render_incremental", "cache", "tokens", "rays")
        for name in QUANTITIES[quantity][0]
    }
    found = list(compare(model, read_reference(reference(**left_out))))
    assert [difference.quantity for difference in found] == ["render"]
    found = list(
        compare(
            model, read_reference(reference(**{**left_out, "ray_d": golden("square")["ray_d"]}))
        )
    )
    assert [difference.quantity for difference in found] == ["render", "rays"]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"render": None}, "has no array render"),
        ({"image": None, "c2w": None}, "has no array image, c2w"),
        ({"image": np.zeros((2, 5, 32, 32, 3), np.float32)}, "image is "),
        ({"c2w": np.zeros((2, 4, 4, 4), np.float32)}, "c2w is "),
        ({"c2w": np.zeros((2, 5, 4, 4), np.float32)}, "camera"),
        ({"num_input": np.array(5)}, "num_input is 5, expected a number from 1 to 4"),
        ({"num_input": np.array(0)}, "num_input is 0"),
        ({"num_input": np.array([2])}, "num_input is "),
        ({"num_input": np.array(2.0)}, "num_input (float64) is not"),
        ({"render": np.zeros((2, 3, 3, 32, 32), np.int32)}, "render (int32) is not"),
        ({"render": np.full((2, 3, 3, 32, 32), np.nan)}, "render (float64) is not"),
        ({"ray_d": np.array(["a"])}, "ray_d"),
        ({"render": np.array([{}], object)}, "not a readable .npz"),
    ],
)
def test_unusable_references_are_refused_before_anything_is_written(
    tmp_path, reference, changes, reason
):
    path = reference(**changes)
    with pytest.raises(InputError) as caught:
        main([str(GOLDENS / "square.pt"), str(tmp_path / "w"), "--reference", str(path)])
    assert str(path) in str(caught.value) and reason in str(caught.value)
    assert not (tmp_path / "w").exists()


def test_references_of_another_model_are_refused(model, reference):
    path = reference(cache_first_layer_k=np.zeros((2, 32, 4, 16), np.float32))
    with pytest.raises(InputError, match=r"cache_first_layer_k is .* but this model gives"):
        list(compare(model, read_reference(path)))


def test_files_that_are_no_references_are_refused(tmp_path):
    path = tmp_path / "ref.npz"
    for content in (b"", b"text", (GOLDENS / "square.npz").read_bytes()[:10_000]):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"ref\.npz: not a readable \.npz"):
            read_reference(path)
    with pytest.raises(InputError, match="absent"):
        read_reference(tmp_path / "absent.npz")


class Hub(http.server.BaseHTTPRequestHandler):
    """Answers as the hub does for owner/repo, which has square.pt on main."""

    def do_HEAD(self):
        self.answer()

    def do_GET(self):
        self.wfile.write(self.answer())

    def answer(self):
        found = self.path == "/owner/repo/resolve/main/weights/square.pt"
        body = (GOLDENS / "square.pt").read_bytes() if found else b"Entry not found"
        self.send_response(200 if found else 404)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Repo-Commit", "0123456789" * 4)
        if found:
            self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
        else:
            self.send_header("X-Error-Code", "EntryNotFound")
        self.end_headers()
        return body

    def log_message(self, *arguments):
        pass


def test_hub_files_are_fetched_and_named(tmp_path):
    pytest.importorskip("huggingface_hub")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        environment = {
            "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
            "HF_HOME": str(tmp_path / "hub"),
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
        }
        source = "hf://owner/repo/weights/square.pt"
        status, _, errors = run(source, tmp_path / "weights", **environment)
        assert status == 0, errors
        absent = run("hf://owner/repo/absent.pt", tmp_path / "absent", **environment)
        server.shutdown()
    params, info = load_weights(tmp_path / "weights")
    assert info["source"] == source and info["sha256"] == sha256(GOLDENS / "square.pt")
    assert_same(params, read_published(GOLDENS / "square.pt").params)
    status, _, errors = absent
    assert status == 2
    assert errors.startswith("error: hf://owner/repo/absent.pt: cannot be downloaded (")
    assert not (tmp_path / "absent").exists()


def test_hub_sources_need_the_extra_and_three_parts(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(InputError, match=r"pip install 'efficient-lvsm-jax\[hub\]'"):
        convert("hf://owner/repo/x.pt", tmp_path / "w")
    for source in ("hf://", "hf://owner/x.pt", "hf://owner/repo/../x.pt"):
        with pytest.raises(InputError, match="expected hf://OWNER/REPO/FILE"):
            convert(source, tmp_path / "w")
