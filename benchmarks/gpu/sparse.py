"""Section "sparse": attention to chosen blocks of a view cache, beside attention to all of it.

Large pictures and many views, density 0.3, bfloat16: where dense attention (cuDNN's on a GPU) costs
most. Blocks of 64 keys are chosen by as many queries, by 256 and by 512; the more queries share
what is fetched for them, the less there is to fetch. Programs of a row take turns; a ratio above 1
is time saved. Numbers are random and decide no time; what is computed is checked in the first row.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp

from benchmarks.gpu.context import Context, Rows, all_finite, columns, turns
from benchmarks.gpu.right import relative
from benchmarks.sparse import Row, filled, model_row
from efficient_lvsm_jax.models.families import configure
from efficient_lvsm_jax.nn.paged import Pages
from efficient_lvsm_jax.nn.sparse_linear import Digest, SparseLinear, attend_by, branches
from efficient_lvsm_jax.nn.sparsity import Sparsity

DENSITY, HEADS, HEAD_DIM = 0.3, 12, 64
# Of chosen keys and of sums, by dtype; both ways round bfloat16, in another order.
ALIKE = {"float32": 1e-5, "bfloat16": 1e-2}
DENSE = "dense"


def rows(context: Context) -> Rows:
    """Whether it is right; attention by itself and whole renders, few views first."""
    size, key_block = context.pick((512, 64), (32, 4))
    model = configure("efficient_lvsm", context.sizes | {"compute_dtype": context.dtype})
    query_blocks = context.pick((64, 256, 512), (4, 8))
    for dtype, missing in (("float32", 1), ("bfloat16", 0), ("bfloat16", 1)):
        title = f"chosen blocks against masked scores, {dtype}, {missing} key short"
        yield title, functools.partial(_right, key_block, dtype, missing)
    for views in context.pick((16, 64, 32), (2,)):
        title = f"{size} px, cross-attention to {views} views"
        tokens = size**2 // 64
        row = functools.partial(_attention, context, tokens, views, query_blocks, key_block)
        yield title, functools.partial(_measured, context, row)
        for queries in query_blocks[1:]:
            text = f"cross={DENSITY}:block{queries}x{key_block}:from0"
            row = functools.partial(model_row, "decode", size, views, model, text)
            title = f"{size} px, cached {views} → 1, blocks of {queries} queries"
            yield title, functools.partial(_measured, context, row)


def _right(key_block: int, dtype: str, missing: int) -> dict:
    """Both parts, with so many keys fewer than blocks have; chosen from the same numbers."""
    shapes = (
        (2, 2, 20 * key_block - 3, HEAD_DIM),
        *((2, 2, 33 * key_block - missing, HEAD_DIM),) * 2,
    )
    draws = jax.random.split(jax.random.key(0), 3)
    qkv = [jax.random.normal(key, shape, dtype) for key, shape in zip(draws, shapes, strict=True)]
    sparsity = Sparsity(DENSITY, "block", 2 * key_block, key_block)
    with jax.default_matmul_precision("highest"):
        by = {
            name: jax.jit(functools.partial(branches, sparsity=sparsity, implementation=name))(*qkv)
            for name in ("auto", "mask")
        }
    pairs = zip(("chosen keys", "sums"), by["auto"], by["mask"], strict=True)
    errors = {name: relative(got, right) for name, got, right in pairs}
    return errors | {"limit": ALIKE[dtype], "ok": max(errors.values()) <= ALIKE[dtype]}


def _attention(
    context: Context, tokens: int, views: int, query_blocks: tuple[int, ...], key_block: int
) -> Row:
    """A decoder layer's attention to pages, whose digests were made with them."""
    kinds = {f"block{n}": Sparsity(DENSITY, "block", n, key_block) for n in query_blocks}
    dtype = jnp.dtype(context.dtype)
    q = jax.ShapeDtypeStruct((1, HEADS, tokens, HEAD_DIM), dtype)
    k = jax.ShapeDtypeStruct((1, HEADS, views, tokens, HEAD_DIM), dtype)
    q, k, v, projection = filled((q, k, k, jax.ShapeDtypeStruct((HEAD_DIM,) * 2, jnp.float32)))
    digest = jax.jit(Digest.of, static_argnums=2)(k, v, next(iter(kinds.values())))
    arguments = q, Pages(k, v, digest=digest), projection

    def attend(kind: str, q: jax.Array, pages: Pages, projection: jax.Array) -> jax.Array:
        if kind == DENSE:
            return attend_by(None, q, pages)
        sparse = SparseLinear(HEAD_DIM, kinds[kind])
        sparse.kernel[...] = projection
        return attend_by(sparse, q, pages)

    programs = {
        kind: jax.jit(functools.partial(attend, kind)).lower(*arguments) for kind in (DENSE, *kinds)
    }
    scores = 4 * HEADS * tokens**2 * views
    return Row("", programs, dict.fromkeys(programs, arguments), scores)


def _measured(context: Context, make: Callable[[], Row]) -> dict:
    row, figures, runs, finite = make(), {}, {}, True
    for name, program in row.programs.items():
        began = time.perf_counter()
        compiled = program.compile()
        figures[f"{name}, compile s"] = time.perf_counter() - began
        temporaries = compiled.memory_analysis().temp_size_in_bytes
        figures[f"{name}, temporaries, GiB"] = temporaries / 2**30
        runs[name] = functools.partial(_run, compiled, row.arguments[name])
        finite &= all_finite(runs[name]())
    most, seconds = context.pick((50, 4.0), (2, 1.0))
    timed = turns(runs, runs=most, most_seconds=seconds)
    dense = timed[DENSE]["median_ms"]
    ratios = {f"{DENSE} / {name}": dense / timed[name]["median_ms"] for name in timed}
    del ratios[f"{DENSE} / {DENSE}"]
    return ratios | columns(timed) | figures | {"ok": finite}


def _run(program: Callable, arguments: tuple) -> object:
    return jax.block_until_ready(program(*arguments))
