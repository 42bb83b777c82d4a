"""Attention to chosen blocks by kernels: by which, and by a stand-in for cuDNN's."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.nn import cache as pages
from efficient_lvsm_jax.nn import chosen, chosen_kernels
from efficient_lvsm_jax.nn.paged import Pages
from efficient_lvsm_jax.nn.sparse_linear import Digest, SparseLinear, attend_by, branches
from efficient_lvsm_jax.nn.sparsity import Sparsity
from efficient_lvsm_jax.parallel import sharding

SPLASH = Sparsity(0.4, "block", 16, 128)
CUDNN = Sparsity(0.4, "block", 6, 4)
HALF = (jnp.dtype(jnp.float16), 64)
WIDTH, SLOTS = 8, 4
ATOL = 4e-3  # of what float16 rounds at the end


@pytest.mark.parametrize(
    ("name", "platform", "sparsity", "words"),
    [
        ("splash", "tpu", Sparsity(0.3, "block", 64, 64), "not of 64 and 64; set block64x128"),
        ("splash", "tpu", Sparsity(0.3, "block", 8, 128), "multiple of 16 queries"),
        ("splash", "tpu", Sparsity(0.3, "token", 64, 128), "not single tokens; set block64x128"),
        ("cudnn", "cuda", Sparsity(0.3, "token", 64, 128), "not single tokens; set block256x64"),
    ],
)
def test_what_a_kernel_cannot_read_is_gathered_and_that_is_said(
    name, platform, sparsity, words, caplog
):
    chosen.choose.cache_clear()
    assert chosen.choose("auto", sparsity, platform, *HALF) == "gather"
    assert words in caplog.text
    with pytest.raises(InputError, match=f"'{name}': sparse attention: .*{words}"):
        chosen.choose(name, sparsity, platform, *HALF)


def test_kernels_run_where_they_can_and_nothing_else_does():
    choose = functools.partial(chosen.choose, sparsity=SPLASH)
    kinds = {"tpu": "splash", "cuda": "cudnn", "cpu": "gather"}
    for platform, kind in kinds.items():
        assert choose("auto", platform=platform, dtype=HALF[0], head_dim=64) == kind
        assert choose("xla", platform=platform, dtype=HALF[0], head_dim=64) == "gather"
    float32 = {"dtype": jnp.dtype(jnp.float32), "head_dim": 64}
    assert choose("auto", platform="cuda", **float32) == "gather"
    assert choose("auto", platform="cuda", dtype=HALF[0], head_dim=64, sized=True) == "gather"
    with pytest.raises(InputError, match="does not compute in float32"):
        choose("cudnn", platform="cuda", **float32)
    for name, platform, words in (
        ("splash", "cuda", "TPUs only and this is cuda"),
        ("cudnn", "cpu", "NVIDIA GPUs only and this is cpu"),
    ):
        with pytest.raises(InputError, match=words):
            choose(name, platform=platform, dtype=HALF[0], head_dim=64)


def drawn(queries, *of_keys):
    draw = np.random.default_rng(0)
    shapes = (2, 2, queries, WIDTH), *((2, 2, *of_keys, WIDTH),) * 2
    return [jnp.asarray(draw.normal(size=shape), jnp.float16) for shape in shapes]


# Blocks that divide the keys and that do not, in one call of cuDNN and in several.
@pytest.mark.parametrize("keys", [40, 38])
@pytest.mark.parametrize("bytes_", [2**31, 3000])
def test_cudnn_reads_the_blocks_that_were_chosen_and_has_their_gradients(
    keys_read, monkeypatch, keys, bytes_
):
    monkeypatch.setattr(chosen_kernels, "FETCHED_BYTES", bytes_)
    qkv = drawn(27, keys)

    def both(name):
        def total(*qkv):
            sparse, linear = branches(*qkv, CUDNN, implementation=name)
            return jnp.sum(jnp.sin(sparse + linear)), sparse

        return jax.jit(jax.grad(total, (0, 1, 2), has_aux=True))(*qkv)

    for got, expected in zip(*(jax.tree.leaves(both(n)) for n in ("auto", "mask")), strict=True):
        np.testing.assert_allclose(got, expected, atol=ATOL)
    assert set(keys_read) == {16 if keys == 40 else 128}  # four blocks


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("tokens", [12, 10])
def test_cudnn_reads_chosen_blocks_of_pages_in_use_wherever_they_lie(keys_read, precision, tokens):
    q, k, v = drawn(2 * tokens, SLOTS, tokens)
    cache = pages.store(Pages(k[None], v[None]), precision)
    numbers = pages.store(cache, "fp32")
    digest = Digest.of(numbers.k, numbers.v, CUDNN)
    cache = dataclasses.replace(cache, layer=jnp.int32(0), digest=digest)

    @functools.partial(jax.jit, static_argnames="implementation")
    def mixed(cache, implementation):
        sparse = SparseLinear(WIDTH, CUDNN)
        sparse.kernel[...] = jnp.eye(WIDTH)
        return attend_by(sparse, q, cache, targets=2, implementation=implementation)

    for slots in ([0, 1, 2, 3], [0, 1, 3], [1, 3], [2]):
        used = np.isin(np.arange(SLOTS), slots)
        free = ~used.reshape(-1, *(1,) * 2)
        spoilt = cache
        if precision == "fp32":
            spoilt = dataclasses.replace(
                cache, k=jnp.where(free, jnp.nan, cache.k), v=jnp.where(free, jnp.nan, cache.v)
            )
        spoilt = pages.bounded(dataclasses.replace(spoilt, used=used))
        keys_read.clear()
        mixed.clear_cache()
        got = mixed(spoilt, "auto")
        np.testing.assert_allclose(got, mixed(spoilt, "xla"), atol=ATOL)
        # What is fetched follows the views in use, up to a power of two, not the room for them.
        assert spoilt.most < 2 * len(slots)
        most = 4 * CUDNN.kept(spoilt.most * 3)
        assert keys_read == [most if tokens == 12 else 128 * -(-most // 128)]
    unbounded = dataclasses.replace(spoilt, most=None)  # more are fetched than there are
    np.testing.assert_allclose(mixed(unbounded, "auto"), got, atol=ATOL)
    nothing = dataclasses.replace(spoilt, used=np.zeros(SLOTS, bool))
    assert np.isnan(mixed(nothing, "auto")).all()


def test_every_device_reads_the_chosen_blocks_of_its_scenes(keys_read):
    qkv = drawn(24, 40)
    alone = jax.jit(lambda *qkv: branches(*qkv, CUDNN)[0])(*qkv)
    with jax.set_mesh(sharding.make_mesh("data:2", jax.devices()[:2])):
        spread = jax.jit(lambda *qkv: branches(*qkv, CUDNN)[0])(*qkv)
    np.testing.assert_allclose(spread, alone, atol=ATOL)


@pytest.mark.parametrize("keys", [1024, 1000])
def test_a_step_calls_cudnn_and_has_no_scores_of_all_keys(monkeypatch, keys):
    fused = pytest.importorskip("jax._src.cudnn.fused_attention_stablehlo")
    monkeypatch.setattr(fused, "check_cudnn_version", lambda: 91500)
    monkeypatch.setattr(sharding, "platform", lambda: "cuda")
    qkv = [jax.ShapeDtypeStruct((1, 2, n, 64), jnp.bfloat16) for n in (512, keys, keys)]
    sparsity = Sparsity(0.3, "block", 256, 64)

    def total(*qkv):
        return jnp.sum(jnp.sin(branches(*qkv, sparsity)[0]))

    lowered = jax.jit(jax.grad(total, (0, 1, 2))).trace(*qkv).lower(lowering_platforms=("cuda",))
    text = lowered.as_text()
    assert "__cudnn$fmhaSoftmax(" in text and "__cudnn$fmhaSoftmaxBackward(" in text
    assert f"512x{keys}x" not in text
