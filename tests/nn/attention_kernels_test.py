"""Kernels of accelerators: what they compute (interpreted), and that they are what is compiled."""

import collections
import dataclasses
import functools
import importlib.util
import os
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import random_views

from efficient_lvsm_jax.aot.hlo import read_program
from efficient_lvsm_jax.aot.topologies import topology_devices
from efficient_lvsm_jax.cost.chips import read_topology
from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.models.efficient_lvsm import EfficientLVSMConfig
from efficient_lvsm_jax.models.model import abstract_params, bind
from efficient_lvsm_jax.nn import attention, chosen_kernels
from efficient_lvsm_jax.nn import kernels as attention_kernels
from efficient_lvsm_jax.nn.attention import attend
from efficient_lvsm_jax.nn.paged import Pages
from efficient_lvsm_jax.nn.sparse_linear import Digest, SparseLinear, attend_by, branches
from efficient_lvsm_jax.nn.sparsity import Sparsity
from efficient_lvsm_jax.parallel import sharding

FAMILY = "efficient_lvsm"
BLOCKS = Sparsity(0.4, "block", 16, 128)
SMALL_BUT_OF_THE_PUBLISHED_HEAD_DIM = EfficientLVSMConfig(
    width=128, layers=2, compute_dtype="bfloat16", remat="attention"
)


def qkv(queries, keys, *, head_dim=64, dtype=jnp.float32):
    shapes = [(1, 2, queries, head_dim)] + [(1, 2, keys, head_dim)] * 2
    randoms = jax.random.split(jax.random.key(queries), 3)
    return [jax.random.normal(r, s, dtype) for r, s in zip(randoms, shapes, strict=True)]


@jax.jit
def reference(q, k, v):
    scores = jnp.einsum("BHQK,BHMK->BHQM", q, k) / np.sqrt(q.shape[-1])
    mixed = jnp.einsum("BHQM,BHMK->BHQK", jax.nn.softmax(scores, axis=-1), v)
    return mixed, jax.nn.logsumexp(scores, axis=-1)


@pytest.fixture
def interpreted(monkeypatch):
    """Splash attention that runs here, and an `attend` that believes this is a TPU."""
    kernel = attention_kernels._splash_kernel
    monkeypatch.setattr(
        attention_kernels,
        "_splash_kernel",
        lambda *args, **options: kernel(*args, **options | {"interpret": True}),
    )
    to_blocks = functools.partial(attention_kernels.splash_to_blocks, interpret=True)
    monkeypatch.setattr(attention_kernels, "splash_to_blocks", to_blocks)
    monkeypatch.setattr(sharding, "platform", lambda: "tpu")


# Whole tiles; sequences to be padded to them.
@pytest.mark.parametrize("sizes", [(128, 256), (70, 200)])
def test_splash_equals_softmax_attention_and_its_gradients(interpreted, sizes):
    args = qkv(*sizes)

    def loss(function, *args):
        return jnp.sum(jnp.sin(3 * function(*args)))

    np.testing.assert_allclose(attention_kernels.splash(*args), reference(*args)[0], atol=2e-6)

    def gradients(function):
        return jax.jit(jax.grad(functools.partial(loss, function), (0, 1, 2)))(*args)

    got, expected = map(gradients, (attention_kernels.splash, lambda *a: reference(*a)[0]))
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)


def test_splash_has_gradients_of_the_log_sum_exp_too(interpreted):
    args = qkv(70, 200)

    def loss(function, *args):
        mixed, log_sum_exp = function(*args)
        return jnp.sum(jnp.sin(3 * mixed)) + jnp.sum(log_sum_exp**2)

    kernel = functools.partial(
        attention_kernels.differentiable_log_sum_exp, attention_kernels.splash
    )
    for a, b in zip(kernel(*args), reference(*args), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-6)
    got, expected = (
        jax.jit(jax.grad(functools.partial(loss, function), (0, 1, 2)))(*args)
        for function in (kernel, reference)
    )
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=5e-5)


def test_splash_reads_only_the_used_pages_of_a_stack(interpreted):
    q, k, v = qkv(70, 3 * 40)
    pages = [x.reshape(1, 2, 3, 40, 64).at[:, :, 0].set(jnp.nan) for x in (k, v)]
    stack = [jnp.stack([jnp.full_like(x, jnp.nan), x]) for x in pages]
    mixed = attend(q, Pages(*stack, jnp.array([False, True, True]), layer=jnp.int32(1)))
    expected, _ = reference(q, k[:, :, 40:], v[:, :, 40:])
    np.testing.assert_allclose(mixed, expected, atol=2e-6)


def test_splash_reads_the_pages_of_each_group_of_queries(interpreted):
    q, k, v = qkv(2 * 70, 3 * 40)
    pages = [x.reshape(1, 2, 3, 40, 64).at[:, :, 0].set(jnp.nan) for x in (k, v)]
    used = jnp.array([[[False, True, True], [False, False, True]]])
    mixed = attend(q, Pages(*pages, used))
    for group, first in ((slice(0, 70), 40), (slice(70, 140), 80)):
        expected, _ = reference(q[:, :, group], k[:, :, first:], v[:, :, first:])
        np.testing.assert_allclose(mixed[:, :, group], expected, atol=2e-6)


# Blocks of keys and queries that are whole; that are not, on several calls of the kernel.
@pytest.mark.parametrize(("sizes", "bytes_"), [((32, 512), 2**19), ((40, 600), 2 * 2 * 2 * 5)])
def test_splash_reads_the_blocks_that_were_chosen(interpreted, monkeypatch, sizes, bytes_):
    monkeypatch.setattr(chosen_kernels, "LIST_BYTES", bytes_)
    q, k, v = qkv(*sizes)

    def both(name):
        def total(*qkv):
            sparse, linear = branches(*qkv, BLOCKS, implementation=name)
            return jnp.sum(jnp.sin(3 * sparse + linear)), sparse

        return jax.jit(jax.grad(total, (0, 1, 2), has_aux=True))(q, k, v)

    for got, expected in zip(*(jax.tree.leaves(both(n)) for n in ("auto", "mask")), strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-5)


def test_splash_reads_the_chosen_blocks_of_pages_in_use(interpreted):
    q, k, v = qkv(40, 4 * 200)
    k, v = (x.reshape(1, 1, 2, 4, 200, 64) for x in (k, v))
    projection = q[0, 0, :1] * jnp.eye(64)
    digest = Digest.of(k, v, BLOCKS)
    free = jnp.array([True, False, False, True])[:, None, None]
    pages = Pages(*(jnp.where(free, jnp.nan, x) for x in (k, v)), ~free[:, 0, 0], digest=digest)
    pages = dataclasses.replace(pages, layer=jnp.int32(0))

    @functools.partial(jax.jit, static_argnums=0)
    def mixed(implementation, used, projection):
        sparse = SparseLinear(64, BLOCKS)
        sparse.kernel[...] = projection
        read = dataclasses.replace(pages, used=used)
        return attend_by(sparse, q, read, implementation=implementation)

    for used in (pages.used, jnp.array([False, True, False, False])):
        got, expected = (mixed(name, used, projection) for name in ("auto", "xla"))
        np.testing.assert_allclose(got, expected, atol=1e-5)
    assert mixed._cache_size() == 2
    assert np.isnan(mixed("auto", jnp.zeros(4, bool), projection)).all()


def test_splash_tiles_are_the_largest_that_divide_the_sequence():
    sizes = {36: 128, 128: 128, 768: 768, 1024: 1024, 1100: 384, 6144: 1024, 24576: 1024}
    for length, tile in sizes.items():
        assert attention_kernels._block(attention_kernels._padded(length)) == tile


@pytest.fixture
def cuda(monkeypatch):
    """An `attend` that believes this is an NVIDIA GPU, whose programs can be lowered here."""
    fused = pytest.importorskip("jax._src.cudnn.fused_attention_stablehlo")
    monkeypatch.setattr(fused, "check_cudnn_version", lambda: 91500)
    monkeypatch.setattr(sharding, "platform", lambda: "cuda")


def lowered_for_cuda(function, *args):
    return jax.jit(function).trace(*args).lower(lowering_platforms=("cuda",)).as_text()


def cudnn_calls(text):
    return sorted(re.findall(r"__cudnn\$[A-Za-z]*", text))


def test_cudnn_kernels_are_lowered_for_attention_and_its_gradient(cuda):
    q, k, v = qkv(64, 128, dtype=jnp.bfloat16)
    pages = [x.reshape(1, 2, 2, 64, 64) for x in (k, v)]

    def loss(q, k, v):
        return jnp.sum(attend(q, Pages(k, v)).astype(jnp.float32))

    text = lowered_for_cuda(jax.grad(loss, (0, 1, 2)), q, *pages)
    assert cudnn_calls(text) == ["__cudnn$fmhaSoftmax", "__cudnn$fmhaSoftmaxBackward"]
    assert "PADDING" not in text


def test_cudnn_gets_the_number_of_keys_in_use_as_a_length(cuda):
    q, k, v = qkv(64, 128, dtype=jnp.bfloat16)
    stack = [x.reshape(1, 1, 2, 2, 64, 64) for x in (k, v)]

    def decode(q, k, v, used):
        return attend(q, Pages(k, v, used, layer=jnp.int32(0)))

    text = lowered_for_cuda(decode, q, *stack, jnp.array([False, True]))
    assert cudnn_calls(text) == ["__cudnn$fmhaSoftmax"]
    assert '"mask_type": "PADDING"' in text.replace("\\22", '"')


# Attention within input views, within targets and across, one call each in the scanned layers: none
# is computed twice. Log-sum-exps across have a gradient of their own, see attention_kernels.
@pytest.mark.parametrize(
    ("mesh", "forward", "backward"),
    [("data:1", 3, 3), ("data:4", 3, 3), ("data:2,context:2", 3 + 2, 3 + 1)],
)
def test_training_with_attention_outputs_kept_calls_no_cudnn_kernel_twice(
    cuda, mesh, forward, backward
):
    config = SMALL_BUT_OF_THE_PUBLISHED_HEAD_DIM
    views = random_views(2, batch=4, size=(32, 32))

    def loss(params):
        module = bind(FAMILY, config, params)
        return jnp.mean(module.decode(module.encode(views), views.cameras))

    devices = jax.devices()[: 1 if mesh == "data:1" else 4]
    with jax.set_mesh(sharding.make_mesh(mesh, devices)):
        text = lowered_for_cuda(jax.grad(loss), abstract_params(FAMILY, config))
    expected = ["__cudnn$fmhaSoftmax"] * forward + ["__cudnn$fmhaSoftmaxBackward"] * backward
    assert cudnn_calls(text) == expected


@pytest.mark.parametrize("loop", [True, False])
def test_layers_that_are_written_out_leave_no_loop(cuda, loop):
    config = dataclasses.replace(SMALL_BUT_OF_THE_PUBLISHED_HEAD_DIM, scan_layers=loop)
    views = random_views(2, size=(32, 32))

    def loss(params):
        module = bind(FAMILY, config, params)
        return jnp.mean(module.decode(module.encode(views), views.cameras))

    text = lowered_for_cuda(jax.grad(loss), abstract_params(FAMILY, config))
    assert ("stablehlo.while" in text) == loop


@pytest.mark.parametrize(
    ("platform", "dtype", "head_dim", "expected"),
    [
        ("cpu", "float32", 64, "cpu"),
        ("cuda", "bfloat16", 64, "cudnn"),
        ("cuda", "float32", 64, "xla"),
        ("cuda", "bfloat16", 20, "xla"),
        ("tpu", "float32", 64, "splash"),
        ("rocm", "bfloat16", 64, "xla"),
    ],
)
def test_auto_takes_the_best_that_can_run(platform, dtype, head_dim, expected):
    assert attention.choose("auto", jnp.dtype(dtype), head_dim, platform) == expected


def test_auto_says_what_it_took_and_why_not_the_best(caplog):
    attention.choose.cache_clear()
    with caplog.at_level("INFO"):
        attention.choose("auto", jnp.dtype("float32"), 64, "cuda")
        attention.choose("auto", jnp.dtype("float32"), 64, "cuda")
    (message,) = [record.getMessage() for record in caplog.records]
    assert re.search("xla.*cudnn.*float32.*compute_dtype=bfloat16", message)


@pytest.mark.parametrize(
    ("name", "platform", "dtype", "message"),
    [
        ("cudnn", "cpu", "bfloat16", "NVIDIA GPUs only and this is cpu"),
        ("cudnn", "cuda", "float32", "float32; set model.compute_dtype=bfloat16"),
        ("splash", "cuda", "bfloat16", "TPUs only and this is cuda"),
        ("flash", "cpu", "float32", "expected auto or one of cpu, xla"),
    ],
)
def test_a_choice_that_cannot_run_is_refused_with_the_reason(name, platform, dtype, message):
    with pytest.raises(InputError, match=f"model.attention='{name}'.*{message}"):
        attention.choose(name, jnp.dtype(dtype), 64, platform)


@pytest.mark.parametrize(("platform", "kernel"), [("cuda", "cudnn"), ("tpu", "splash")])
def test_sizes_of_keys_are_for_no_kernel_and_that_is_said(platform, kernel, caplog):
    attention.choose.cache_clear()
    half = jnp.dtype("bfloat16")
    assert attention.choose("auto", half, 64, platform, sized=True) == "xla"
    assert re.search(f"xla, slower than {kernel}.*no sizes of keys", caplog.text)
    with pytest.raises(InputError, match=f"'{kernel}': .*no sizes of keys.*attention=auto"):
        attention.choose(kernel, half, 64, platform, sized=True)


def test_plain_attention_equals_that_of_a_cpu():
    q, k, v = qkv(90, 2 * 600)
    pages = Pages(*(x.reshape(1, 2, 2, 600, 64) for x in (k, v)))
    np.testing.assert_allclose(attend(q, pages, implementation="xla"), attend(q, pages), atol=2e-6)


@pytest.fixture(scope="module")
def tpus():
    """Four TPU chips that are not there, but for which programs can be compiled."""
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("compiling for a TPU needs libtpu")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # nothing is run on a TPU
    return topology_devices(read_topology("v5e:2x2"))


def placed(tree, mesh, partition):
    place = jax.NamedSharding(mesh, partition)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), tree)


def compiled_kernels(mesh, function, *args):
    """Calls of splash kernels for "fwd" and "dkv", the fused backward pass."""
    with jax.set_mesh(mesh):
        text = jax.jit(function).lower(*args).compile().as_text()
    kernels = collections.Counter()
    for kernel in read_program(text).kernels:
        kernels[kernel.name.split("_")[2]] += kernel.times  # splash_mha_fwd_…
    return kernels


@pytest.mark.parametrize(
    ("spec", "forward", "backward"),
    [("data:4", 3, 3), ("data:2,context:2", 3 + 2, 3 + 1)],  # as with cuDNN
)
def test_splash_is_compiled_into_training_on_tpus(tpus, spec, forward, backward):
    config, mesh = SMALL_BUT_OF_THE_PUBLISHED_HEAD_DIM, sharding.make_mesh(spec, tpus)
    views = jax.eval_shape(lambda: random_views(2, batch=4, size=(32, 32)))

    def loss(params, views):
        module = bind(FAMILY, config, params)
        return jnp.mean(module.decode(module.encode(views), views.cameras))

    params = placed(abstract_params(FAMILY, config), mesh, jax.P())
    views = placed(views, mesh, sharding.BATCH)
    kernels = compiled_kernels(mesh, jax.grad(loss), params, views)
    assert kernels == {"fwd": forward * config.layers, "dkv": backward * config.layers}


def test_splash_is_compiled_into_the_loop_over_the_pages_of_a_partly_filled_cache(tpus):
    config, mesh = SMALL_BUT_OF_THE_PUBLISHED_HEAD_DIM, sharding.make_mesh("data:4", tpus)
    views = jax.eval_shape(lambda: random_views(1, batch=4, size=(32, 32)))
    pages = jax.ShapeDtypeStruct((config.layers, 4, 2, 8, 16, 64), config.dtype)
    cache = Pages(pages, pages, jax.ShapeDtypeStruct((8,), bool))

    def render(params, cache, cameras):
        return bind(FAMILY, config, params).decode(cache, cameras)

    args = abstract_params(FAMILY, config), cache, views.cameras
    assert compiled_kernels(mesh, render, *(placed(x, mesh, jax.P()) for x in args))["fwd"] >= 2


def test_splash_to_chosen_blocks_is_compiled_for_tpus_and_no_scores_of_all_keys(tpus):
    sparse = "cross=0.3:block64x128:from0,encoder=0.5:block64x128:from0"
    config = dataclasses.replace(SMALL_BUT_OF_THE_PUBLISHED_HEAD_DIM, attention_sparsity=sparse)
    mesh = sharding.make_mesh("data:4", tpus)
    views = jax.eval_shape(lambda: random_views(4, batch=4, size=(256, 160)))
    tokens = 32 * 20

    def render(params, views):
        module = bind(FAMILY, config, params)
        cache = module.encode(views)
        cache = dataclasses.replace(cache, used=views.image[0, :, 0, 0, 0] > 0)
        return module.decode(cache, jax.tree.map(lambda x: x[:, :1], views).cameras)

    params = placed(abstract_params(FAMILY, config), mesh, jax.P())
    with jax.set_mesh(mesh):
        lowered = jax.jit(render).lower(params, placed(views, mesh, sharding.BATCH))
        program = read_program(lowered.compile().as_text(), largest=10**6)
    kernels = collections.Counter(kernel.name for kernel in program.kernels)
    assert kernels["splash_mha_fwd_no_residuals"] == 3  # in views, within the target, to pages
    for array, _ in program.arrays:
        dims = [int(n) for n in re.findall(r"\d+", array.text.split("[")[1].split("]")[0])]
        assert not {tokens, 4 * tokens} <= set(dims) and dims.count(tokens) < 2, array.text
