import functools
import re

import jax
import numpy as np
import pytest
from conftest import GOLDENS, channels_last, golden
from small_teachers import small_teacher
from torch_files import write_arrays

from efficient_lvsm_jax.backbones.backbone import PUBLISHED, Teacher, abstract_params
from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.files.safetensors_file import write_safetensors
from efficient_lvsm_jax.training.repa import IMAGENET_DEVIATION, IMAGENET_MEAN
from efficient_lvsm_jax.weights.backbones import load_teacher
from efficient_lvsm_jax.weights.source import open_state_dict

SIZES = {"dinov3": "64x96", "dinov2": "70x98"}
WHOLE_TABLE = (37, 37)


def normalised(family):
    image = channels_last(golden(family)[f"image_{SIZES[family]}"])
    return ((image - IMAGENET_MEAN) / IMAGENET_DEVIATION).astype(np.float32)


@jax.jit
def tokens_in(teacher, image):
    return teacher.module().embed(image, WHOLE_TABLE)[0]


@functools.partial(jax.jit, static_argnums=2)
def features(teacher, image, layers=(1, 2, 3)):
    return teacher.module().features(image, layers, WHOLE_TABLE)


@pytest.fixture(scope="module", params=sorted(SIZES))
def family(request):
    return request.param


def published(family):
    """The tensors of the small teacher by published name."""
    with open_state_dict(GOLDENS / f"{family}.pt") as state:
        return {name: tensor.numpy().astype(np.float32) for name, tensor in state.items()}


def refused(path):
    with pytest.raises(InputError) as error:
        load_teacher(path)
    return str(error.value)


def test_embedded_tokens_equal_the_published_program(family, parity):
    expected = golden(family)[f"tokens_in_{SIZES[family]}"]
    parity(
        "teacher tokens, embedded",
        tokens_in(small_teacher(family), normalised(family)),
        expected,
        1e-5,
    )


def test_tokens_after_every_layer_equal_the_published_program(family, parity):
    teacher = small_teacher(family)
    expected = golden(family)[f"tokens_after_blocks_{SIZES[family]}"]
    got = features(teacher, normalised(family))
    parity(
        "teacher tokens, after blocks", got, expected[:, :, teacher.module().prefix_tokens :], 1e-4
    )


def test_rotary_angles_equal_the_published_ones(parity):
    module = small_teacher("dinov3").module()
    for name, got in zip(("cos", "sin"), module.rotation((4, 6)), strict=True):
        parity("rotary angles", got[5:], golden("dinov3")[f"rope_{name}_64x96"], 1e-5)
        assert (got[:5] == (1 if name == "cos" else 0)).all()  # the prefix is not turned


def test_position_tables_equal_the_published_ones(parity):
    module, data = small_teacher("dinov2").module(), golden("dinov2")
    grids = [
        ((32, 32), (32, 32), data["pos_embed_timm32"], 16),
        ((64, 64), (64, 64), data["pos_embed_timm64_first12ch"], 16),
        ((24, 24), (32, 32), data["pos_embed_timm32_at336"], 9),
        ((5, 7), WHOLE_TABLE, data["pos_embed_70x98"], 1),
    ]
    for patches, grid, expected, stride in grids:
        table = module.position_table(patches, grid)[:, ::stride, : expected.shape[-1]]
        parity("position tables", table, expected, 1e-5)


def test_frozen_keeps_the_layers_asked_for_and_their_output(family):
    teacher, image = small_teacher(family), normalised(family)
    kept = teacher.frozen(layers=2, dtype="float32")
    assert {x.shape[0] for x in jax.tree.leaves(kept.params["blocks"])} == {2}
    expected = features(teacher, image)[1]
    np.testing.assert_allclose(features(kept, image, (2,))[0], expected, atol=1e-5)
    with pytest.raises(InputError, match="layer 3 is not there"):
        features(kept, image, (3,))


def test_every_parameter_is_filled(family):
    teacher = small_teacher(family)
    got, expected = (
        jax.tree.map(lambda x: (x.shape, x.dtype), params)
        for params in (teacher.params, abstract_params(teacher.config))
    )
    assert got == expected


def test_in_bfloat16_only_matrices_are_and_features_stay_float32():
    teacher, image = small_teacher("dinov3"), normalised("dinov3")
    half = teacher.frozen(layers=3, dtype="bfloat16")
    for path, x in jax.tree_util.tree_leaves_with_path(half.params):
        assert x.dtype.name == ("bfloat16" if path[-1].key == "kernel" else "float32")
    got, expected = features(half, image), features(teacher, image)
    assert got.dtype == np.float32
    assert 0 < np.abs(got - expected).max() < 0.15


@pytest.mark.parametrize("options", [{"layers": 4}, {"layers": 0}, {"dtype": "float16"}])
def test_freezing_to_what_is_not_there_is_refused(options):
    with pytest.raises(InputError, match="expected"):
        small_teacher("dinov3").frozen(**{"layers": 3, "dtype": "float32"} | options)


@pytest.mark.parametrize("layers", [(), (0, 1), (2, 1), (1, 1), (4,)])
def test_taps_that_are_no_ascending_layers_are_refused(layers):
    with pytest.raises(InputError, match="teacher layer"):
        small_teacher("dinov3").module().features(normalised("dinov3"), layers, (4, 6))


def test_a_picture_of_broken_patches_is_refused():
    with pytest.raises(InputError, match=r"40x64.*patch size 16"):
        small_teacher("dinov3").module().features(np.zeros((1, 40, 64, 3)), (1,), (4, 6))


@pytest.mark.parametrize(("family", "parameters"), [("dinov3", 85_669_632), ("dinov2", 86_580_480)])
def test_the_published_teachers_have_as_many_parameters_as_published(family, parameters):
    leaves = jax.tree.leaves(abstract_params(PUBLISHED[family]))
    unused, periods = 3 * 768, 16 if family == "dinov3" else 0  # mask token and final norm
    assert sum(x.size for x in leaves) == parameters - unused + periods


def test_a_teacher_is_an_argument_and_no_constant():
    teacher = Teacher(
        small_teacher("dinov3").config, abstract_params(small_teacher("dinov3").config)
    )
    program = tokens_in.trace(teacher, normalised("dinov3")).jaxpr
    assert all(np.size(constant) < 1000 for constant in program.consts)


def test_both_file_formats_give_the_same(family, tmp_path):
    write_safetensors(tmp_path / "x.safetensors", published(family))
    got = small_teacher(tmp_path / "x.safetensors")
    expected = small_teacher(family)
    assert got.config == expected.config
    jax.tree.map(np.testing.assert_array_equal, got.params, expected.params)


def test_the_bias_of_dinov3_is_multiplied_by_its_mask():
    bias, mask = (published("dinov3")[f"blocks.2.attn.qkv.{x}"] for x in ("bias", "bias_mask"))
    got = small_teacher("dinov3").params["blocks"]["qkv"]["bias"][2]
    np.testing.assert_array_equal(got.ravel(), bias * mask)
    assert 0 < mask.mean() < 1


def test_every_tensor_must_be_there_and_no_other(family, tmp_path):
    arrays = published(family)
    del arrays["blocks.1.ls2.gamma"], arrays["norm.bias"]
    arrays["register_tokens"] = np.zeros((1, 4, 64), np.float32)
    arrays["blocks.0.norm1.bias"] = np.zeros(63, np.float32)
    message = refused(write_arrays(tmp_path / "x.pth", arrays, bare=True))
    assert "missing: blocks.1.ls2.gamma" in message
    assert "unexpected: register_tokens" in message
    assert "norm.bias" not in message  # not used, so it may be absent
    assert "dl.fbaipublicfiles.com" in message


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("blocks.0.norm1.bias", np.zeros(63, np.float32), r"shape: blocks.0.norm1.bias is \(63,\)"),
        ("blocks.0.mlp.fc1.weight", np.zeros(64, np.float32), r"\(64,\), expected \(256, 64\)"),
        ("cls_token", np.zeros((1, 1, 64), np.int64), "dtype: cls_token"),
        ("blocks.1.ls1.gamma", np.full(64, np.nan, np.float32), "not finite: blocks.1.ls1.gamma"),
        ("patch_embed.proj.weight", np.zeros((0, 3, 14, 14), np.float32), r"\(64, 3, 14, 14\)"),
        ("pos_embed", np.zeros((1, 1371, 64), np.float32), r"expected \(1, 1370, 64\)"),
    ],
)
def test_a_tensor_that_cannot_be_used_is_named(name, value, reason, tmp_path):
    arrays = published("dinov2")
    path = write_arrays(tmp_path / "x.pth", arrays | {name: value}, bare=True)
    assert re.search(reason, refused(path))


def test_a_bias_mask_that_was_never_initialised_is_refused(tmp_path):
    arrays = published("dinov3")
    arrays["blocks.2.attn.qkv.bias_mask"][:] = np.nan
    message = refused(write_arrays(tmp_path / "x.pth", arrays, bare=True))
    assert "not finite: blocks.2.attn.qkv.bias_mask has NaN" in message


def test_an_absent_file_says_where_people_get_it(tmp_path):
    message = refused(tmp_path / "dinov3.pth")
    assert "dinov3.pth: no such file" in message
    assert "ai.meta.com" in message


@pytest.mark.parametrize(
    "name", ["embeddings.cls_token", "layer.0.norm1.weight", "encoder.layer.0.norm1.weight"]
)
def test_names_of_another_library_are_recognised(name, tmp_path):
    path = write_arrays(tmp_path / "x.pth", {name: np.zeros(3, np.float32)}, bare=True)
    assert "Transformers library" in refused(path)
