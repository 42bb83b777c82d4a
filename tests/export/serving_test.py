"""Exported programs and their loader, beside the live model."""

import dataclasses
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.export
import numpy as np
import pytest
from conftest import SMALL, one_view, random_views

from efficient_lvsm_jax import Session
from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.export import load_exported
from efficient_lvsm_jax.export.__main__ import main
from efficient_lvsm_jax.export.load_exported import Programs
from efficient_lvsm_jax.export.programs import CUDNN_CALL, PLATFORMS, Shapes, export
from efficient_lvsm_jax.models.families import configure
from efficient_lvsm_jax.models.model import Model, init_params
from efficient_lvsm_jax.nn import cache as pages
from efficient_lvsm_jax.weights.folder import save_weights

SIZE = (16, 24)
SHAPES = Shapes(sizes=(SIZE,), targets=(1, 3), capacity=4)
GUIDE = Path(__file__).parents[2] / "docs" / "export.md"


@pytest.fixture(scope="module")
def folder(small_model, tmp_path_factory):
    out = tmp_path_factory.mktemp("export") / "served"
    export(small_model, out, SHAPES)
    return out


@pytest.fixture(scope="module")
def served(folder):
    return Programs(folder)


@pytest.fixture
def copy(folder, tmp_path):
    return Path(shutil.copytree(folder, tmp_path / "copy"))


@pytest.fixture
def half(small_model):
    config = dataclasses.replace(SMALL, compute_dtype="bfloat16")
    return dataclasses.replace(small_model, config=config)


def page(served, views, index):
    view = one_view(views, index)
    return served.encode(view.image, view.c2w, view.fxfycxcy)


def same(served_cache, cache):
    for name in ("k", "v", "used"):
        np.testing.assert_array_equal(served_cache[name], getattr(cache, name))


@pytest.fixture(scope="module")
def live(small_model):
    """A live cache of three views."""
    views, cache = random_views(3), None
    for i in range(3):
        new = small_model.encode(one_view(views, i))
        cache = pages.append(cache or pages.empty(SHAPES.capacity, new), new)
    return cache


@pytest.fixture
def cache(served):
    """The same by the exported programs."""
    views, cache = random_views(3), served.empty(SIZE)
    for i in range(3):
        cache = served.append(cache, page(served, views, i))
    return cache


def test_encoding_and_appending_equal_the_live_model_bit_for_bit(cache, live):
    same(cache, live)


def test_decoding_equals_the_live_model_bit_for_bit(served, small_model, cache, live):
    views = random_views(3, seed=5)
    pictures = served.decode(cache, views.c2w, views.fxfycxcy, SIZE)
    np.testing.assert_array_equal(pictures, small_model.decode(live, views.cameras))


def test_removing_equals_that_of_the_live_cache(served, cache, live):
    same(served.remove(cache, 0), pages.remove(jax.tree.map(np.array, live), 0))


def test_replacing_equals_that_of_the_live_cache(served, small_model, cache, live):
    other = random_views(1, seed=9)
    expected = pages.replace(jax.tree.map(np.array, live), 1, small_model.encode(other))
    same(served.replace(cache, 1, page(served, other, 0)), expected)


def test_a_full_cache_a_missing_page_and_an_empty_cache_are_refused(served, cache):
    new = page(served, random_views(1), 0)
    with pytest.raises(
        ValueError, match=r"no view in slot 3 of the cache: there are in \[0, 1, 2\]"
    ):
        served.remove(cache, 3)
    with pytest.raises(ValueError, match="all 4 slots of the cache are in use"):
        served.append(served.append(cache, new), new)
    views = random_views(1)
    with pytest.raises(ValueError, match="the cache is empty"):
        served.decode(served.empty(SIZE), views.c2w, views.fxfycxcy, SIZE)


def test_nothing_compiles_after_the_first_call_of_each_shape(served, cache):
    for i in range(2):
        views = random_views(3, seed=i)
        cache = served.append(served.remove(cache, i), page(served, views, 0))
        served.decode(cache, views.c2w, views.fxfycxcy, SIZE)
    assert {program._cache_size() for program in served._ready.values()} == {1}


def test_appending_writes_in_place(served, cache):
    before = cache["k"].unsafe_buffer_pointer()
    after = served.append(cache, page(served, random_views(1), 0))
    assert after["k"].unsafe_buffer_pointer() == before


def test_another_shape_or_dtype_is_an_error_that_lists_those_exported(served, cache):
    views = random_views(2)
    with pytest.raises(ValueError, match=r"float32\[1,2,4,4\](.|\n)*exported:\n.*\[1,1,4,4\]"):
        served.decode(cache, views.c2w, views.fxfycxcy, SIZE)
    with pytest.raises(ValueError, match=r"uint8\[1,1,16,24,3\](.|\n)*float32\[1,1,16,24,3\]"):
        served.encode(*(np.zeros(s, np.uint8) for s in ((1, 1, *SIZE, 3), (1, 1, 4, 4), (1, 1, 4))))
    with pytest.raises(ValueError, match=r"no cache for pictures of \(8, 8\)"):
        served.empty((8, 8))


def test_another_platform_is_an_error_that_names_those_exported(small_model, tmp_path):
    export(small_model, tmp_path / "out", SHAPES, platforms=["cuda", "tpu"])
    with pytest.raises(ValueError, match="made for cuda, tpu, and this process computes on cpu"):
        Programs(tmp_path / "out")


def test_every_platform_has_programs_with_its_own_attention(folder, served):
    found = {
        (entry["function"], tuple(entry["platforms"]), entry["attention"])
        for entry in served.about["programs"]
    }
    alone = {("cpu", "cpu"), ("cuda", "xla"), ("tpu", "splash")}
    together = ("append", "replace")
    assert found == {(f, (p,), a) for f in ("encode", "decode") for p, a in alone} | {
        (name, tuple(PLATFORMS), None) for name in together
    }
    for entry in served.about["programs"]:
        exported = jax.export.deserialize(bytearray((folder / entry["file"]).read_bytes()))
        assert exported.platforms == tuple(entry["platforms"])
        assert ("tpu_custom_call" in exported.mlir_module()) == (entry["attention"] == "splash")


@pytest.mark.parametrize("name", ["weights.npz", "decode-16x24-1-targets-cpu.jaxexport"])
def test_a_flipped_bit_is_found_before_the_file_is_used(copy, name, live):
    content = bytearray((copy / name).read_bytes())
    content[len(content) // 2] ^= 1
    (copy / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{name}: its content differs"):
        views, memory = random_views(1), {n: getattr(live, n) for n in ("k", "v", "used")}
        Programs(copy).decode(memory, views.c2w, views.fxfycxcy, SIZE)


def test_a_changed_manifest_and_another_format_are_refused(copy):
    manifest = copy / "manifest.json"
    text = manifest.read_text()
    manifest.write_text(text.replace('"patch": 8', '"patch": 4'))
    with pytest.raises(ValueError, match=r"manifest.json is damaged"):
        Programs(copy)
    manifest.write_text(text.replace('"format": 2', '"format": 1'))
    with pytest.raises(ValueError, match="of format 1, this reads 2"):
        Programs(copy)


def test_a_jax_that_cannot_read_the_files_is_told_which_one_wrote_them(copy, monkeypatch):
    monkeypatch.setattr(jax.export, "maximum_supported_calling_convention_version", 8)
    with pytest.raises(ValueError, match=f"made with jax {re.escape(jax.__version__)}"):
        Programs(copy)


def test_a_model_without_a_cache_equals_the_live_one(tmp_path):
    family, settings = "lvsm_encoder_decoder", {"encoder_layers": 1, "decoder_layers": 1}
    settings |= {"width": 32, "head_dim": 16, "mlp_ratio": 2, "latents": 10, "init": "uniform"}
    config = configure(family, settings)
    model = Model(family, config, init_params(family, config, jax.random.key(0)))
    shapes = Shapes(sizes=(SIZE,), targets=(2,), inputs=(2, 3))
    about = export(model, tmp_path / "out", shapes, platforms=["cpu"])
    # The latents do not tell how many views there were: one program decodes both.
    assert [entry["function"] for entry in about["programs"]] == ["encode", "decode", "encode"]
    served, inputs, targets = Programs(tmp_path / "out"), random_views(2), random_views(2, seed=1)
    memory = served.encode(inputs.image, inputs.c2w, inputs.fxfycxcy)
    pictures = served.decode(memory, targets.c2w, targets.fxfycxcy, SIZE)
    expected = model.decode(model.encode(inputs), targets.cameras)
    np.testing.assert_array_equal(pictures, expected)


@pytest.mark.parametrize("family", ["efficient_lvsm", "lvsm_decoder_only"])
def test_relative_cameras_are_served_as_live(tmp_path, family):
    settings = {"width": 32, "head_dim": 16, "layers": 1, "mlp_ratio": 2, "positions": "prope"}
    config = configure(family, settings)
    model = Model(family, config, init_params(family, config, jax.random.key(0)))
    counts = {"capacity": 1} if model.paged else {"inputs": (1,)}
    export(
        model, tmp_path / "out", Shapes(sizes=(SIZE,), targets=(2,), **counts), platforms=["cpu"]
    )
    served, inputs, targets = Programs(tmp_path / "out"), random_views(1), random_views(2, seed=1)
    memory, expected = page(served, inputs, 0), model.encode(inputs)
    if model.paged:
        memory = served.append(served.empty(SIZE), memory)
        expected = pages.append(pages.empty(1, expected), expected)
    pictures = served.decode(memory, targets.c2w, targets.fxfycxcy, SIZE)
    np.testing.assert_array_equal(pictures, model.decode(expected, targets.cameras))


def test_bfloat16_programs_keep_half_the_weights_and_equal_the_live_model(half, folder, tmp_path):
    export(half, tmp_path / "out", Shapes((SIZE,), (1,), 2), platforms=["cpu"])
    size_of_halves = (tmp_path / "out" / "weights.npz").stat().st_size
    assert size_of_halves < 0.6 * (folder / "weights.npz").stat().st_size
    view = random_views(1)
    found, expected = page(Programs(tmp_path / "out"), view, 0), half.encode(view)
    assert found["k"].dtype == "bfloat16"  # of a page; a cache keeps its bits
    for name in ("k", "v"):
        np.testing.assert_array_equal(found[name], getattr(expected, name))


@pytest.mark.parametrize("precision", ["bf16", "int8", "fp8"])
def test_stored_precisions_are_served_as_live(small_model, tmp_path, precision):
    config = dataclasses.replace(SMALL, cache=precision)
    model = dataclasses.replace(small_model, config=config)
    export(model, tmp_path / "out", Shapes((SIZE,), (1,), 2), platforms=["cpu"])
    served, view = Programs(tmp_path / "out"), random_views(1)
    cache = served.append(served.empty(SIZE), page(served, view, 0))
    expected = model.encode(view)
    live = pages.append(pages.empty(2, expected), expected)
    same(cache, live)
    got = served.decode(cache, view.c2w, view.fxfycxcy, SIZE)
    np.testing.assert_array_equal(got, model.decode(live, view.cameras))


def test_the_guide_serves_what_a_session_renders_without_the_package(small_model, folder, tmp_path):
    inputs, targets = random_views(3), random_views(1, seed=2)
    arrays = {
        "images": inputs.image[0],
        "input_c2w": inputs.c2w[0],
        "input_fxfycxcy": inputs.fxfycxcy[0],
        "target_c2w": targets.c2w[0],
        "target_fxfycxcy": targets.fxfycxcy[0],
    }
    np.savez(tmp_path / "arrays.npz", **arrays)
    serving, frame, _ = re.findall(r"```python\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    program = "\n".join(
        [
            "import sys; sys.modules['efficient_lvsm_jax'] = None  # importing it fails",
            frame,
            "globals().update(np.load(sys.argv[1] + '/arrays.npz'))",
            serving.replace("(256, 256)", str(SIZE)),
            "assert not any(name.startswith('efficient_lvsm_jax.') for name in sys.modules)",
            "assert 'flax' not in sys.modules",
            "np.save(sys.argv[1] + '/pictures.npy', pictures)",
        ]
    )
    subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        cwd=folder.parent,
        check=True,
    )
    session = Session(small_model)
    ids = [session.add(*view) for view in zip(*list(arrays.values())[:3], strict=True)]
    session.render(arrays["target_c2w"], arrays["target_fxfycxcy"], SIZE)
    session.remove(ids[0])
    expected = session.render(arrays["target_c2w"], arrays["target_fxfycxcy"], SIZE)
    np.testing.assert_allclose(np.load(tmp_path / "pictures.npy")[0], expected, atol=1e-4)


def test_the_guides_twenty_lines_run_the_programs(served, folder):
    _, _, loader = re.findall(r"```python\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    found = {}
    exec(loader, found)
    programs, view = found["load"](folder), random_views(1)
    arguments = {name: getattr(view, name) for name in ("image", "c2w", "fxfycxcy")}
    got = programs["encode-16x24-cpu.jaxexport"](**arguments)
    jax.tree.map(np.testing.assert_array_equal, got, served.encode(**arguments))
    with pytest.raises(ValueError, match="cuda"):
        programs["encode-16x24-cuda.jaxexport"](**arguments)
    with pytest.raises(ValueError, match=r"16,\s*24"):
        programs["encode-16x24-cpu.jaxexport"](**arguments | {"image": np.zeros((1, 1, 8, 8, 3))})


def test_the_command_line_exports_a_weights_folder(small_model, tmp_path, capsys):
    info = {"family": small_model.family, "config": dataclasses.asdict(small_model.config)}
    save_weights(tmp_path / "weights", small_model.params, info)
    arguments = ["--size", "16x24", "--targets", "1", "--capacity", "2", "--platforms", "cpu"]
    folders = ["--weights", str(tmp_path / "weights"), "--out", str(tmp_path / "out")]
    main([*folders, *arguments])
    assert "efficient_lvsm, 4 programs in float32" in capsys.readouterr().out
    loader = (tmp_path / "out" / "load.py").read_bytes()
    assert loader == Path(load_exported.__file__).read_bytes()


@pytest.mark.parametrize(
    ("shapes", "options", "message"),
    [
        (Shapes(((16, 20),), (1,), 2), {}, "16x20 .* multiples of the patch size 8"),
        (Shapes((SIZE,), (1,)), {}, "--capacity is needed for efficient_lvsm"),
        (Shapes((SIZE,), (1,), 2, (2,)), {}, "--count is not"),
        (SHAPES, {"cudnn": True}, "--cudnn: .* add --compute-dtype bfloat16"),
    ],
)
def test_what_cannot_be_exported_is_an_input_error_and_leaves_nothing(
    small_model, tmp_path, shapes, options, message
):
    with pytest.raises(InputError, match=message):
        export(small_model, tmp_path / "out", shapes, **options)
    assert not list(tmp_path.iterdir())


def test_an_lvsm_model_has_no_capacity():
    model = Model("lvsm_decoder_only", configure("lvsm_decoder_only", {}), {})
    with pytest.raises(InputError, match="--count is needed for lvsm_decoder_only"):
        SHAPES.check(model)


def test_an_existing_folder_is_kept(small_model, tmp_path):
    with pytest.raises(InputError, match="already exists"):
        export(small_model, tmp_path, SHAPES)


def test_without_flatbuffers_the_error_names_the_extra(small_model, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "flatbuffers", None)
    with pytest.raises(InputError, match=r"efficient-lvsm-jax\[export\]"):
        export(small_model, tmp_path / "out", SHAPES)


def cudnn_version(monkeypatch, version):
    from jax._src.cudnn import fused_attention_stablehlo as fused

    monkeypatch.setattr(fused, "check_cudnn_version", version)


def test_cudnn_calls_are_exported_when_asked_for_and_marked(half, tmp_path, monkeypatch):
    cudnn_version(monkeypatch, lambda: 91500)
    about = export(half, tmp_path / "out", SHAPES, platforms=["cpu", "cuda"], cudnn=True)
    calls = {(e["attention"], tuple(e["without_promise"])) for e in about["programs"] if e["size"]}
    assert calls == {("cpu", ()), ("cudnn", (CUDNN_CALL,))}


def test_where_jax_finds_no_cudnn_the_error_says_so(half, tmp_path, monkeypatch):
    def missing():
        raise RuntimeError("cuDNN is not detected.")

    cudnn_version(monkeypatch, missing)
    with pytest.raises(InputError, match="JAX finds no cuDNN on this machine"):
        export(half, tmp_path / "out", SHAPES, cudnn=True)
