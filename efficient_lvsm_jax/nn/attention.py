"""Attention: one entry, `attend`, for every place in the model where tokens look at tokens.

Axes: B scene, V view, H head, Q query, S page, M token of a page, K head dim, L layer, R target
that reads.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.nn import kernels as kernels
from efficient_lvsm_jax.nn.paged import Chunks, Pages, loops, whole_scores
from efficient_lvsm_jax.parallel import sharding

# How attention is computed: loops for a CPU; whole scores; a kernel of NVIDIA's; one of Google's.
IMPLEMENTATIONS = ("cpu", "xla", "cudnn", "splash")


def attend(
    q: jax.Array,
    pages: Pages,
    *,
    implementation: str = "auto",
    spread: str | None = None,
    with_log_sum_exp: bool = False,
) -> jax.Array | tuple[jax.Array, jax.Array]:
    """Softmax attention over pages of keys: softmax(q kᵀ / √K) v, no mask, no dropout.

    Args:
      q: queries, [B, H, Q, K] or, each view by itself, [B, V, H, Q, K].
      pages: keys and values [B, H, S, M, K], or [B, V, H, S, M, K]; a cache with its `layer`. With
        no page in use the result is NaN: callers own that check. With `used` [B, R, S] the queries
        of a scene are R equal groups [B, H, R * N, K], each of which reads pages of its own.
      implementation: one of IMPLEMENTATIONS, or "auto", see `choose`.
      spread: what a mesh in use spreads over its context axis: "views", the V of all arrays, or
        "pages", the S of keys and values; every device then attends to its pages and the results
        are combined. None: nothing.
      with_log_sum_exp: also return the log-sum-exp of the scores, which is what `combine` needs.

    Returns:
      The shape and dtype of `q`. Scores, softmax and sums are float32. With `with_log_sum_exp`
      also [B, H, Q] or [B, V, H, Q], float32.

    Raises:
      InputError: the shapes do not belong together, the mesh does not divide them, or the chosen
        implementation cannot run here.
    """
    k, v, stacked = pages.k, pages.v, pages.layer is not None
    axes = (4,) if stacked else (4, 5)
    if k.shape != v.shape or q.ndim not in axes or k.ndim != q.ndim + 1 + stacked:
        raise InputError(
            f"attend: q {q.shape}, k {k.shape}, v {v.shape}: expected [B,H,Q,K] queries and equal "
            "[B,H,S,M,K] keys and values, [L,B,H,S,M,K] with layer; without, V may follow B"
        )
    of_layer = k.shape[stacked:]
    if of_layer[:-3] != q.shape[:-2] or of_layer[-1] != q.shape[-1]:
        raise InputError(f"attend: q {q.shape} and k {k.shape} differ in batch, heads or head dim")
    if pages.used is not None:
        _check_used(pages.used.shape, q.shape, k.shape[-3])
    sized = pages.log_size is not None
    if sized and pages.log_size.shape != k.shape[:-1]:
        raise InputError(f"attend: log_size {pages.log_size.shape} and k {k.shape} differ in keys")
    name = choose(implementation, q.dtype, q.shape[-1], sharding.platform(), sized=sized)
    mesh = sharding.mesh_in_use()
    if mesh is None:
        mixed, log_sum_exp = _attend_here(name, with_log_sum_exp, q, pages)
    else:
        mixed, log_sum_exp = _attend_spread(mesh, name, with_log_sum_exp, spread, q, pages)
    return (mixed, log_sum_exp) if with_log_sum_exp else mixed


def _check_used(used: tuple[int, ...], q: tuple[int, ...], slots: int) -> None:
    if used[-1:] != (slots,):
        raise InputError(f"attend: used {used} and k differ in pages, of which k has {slots}")
    groups = used[1] if len(used) == 3 else 0
    if len(used) != 1 and (len(q) != 4 or used[0] != q[0] or not groups or q[2] % groups):
        raise InputError(
            f"attend: used {used}, q {q}: expected [S], or [B,R,S] with queries [B,H,R*N,K]"
        )


@functools.lru_cache
def choose(
    name: str, dtype: jnp.dtype, head_dim: int, platform: str, *, sized: bool = False
) -> str:
    """The implementation that `name` stands for; logged, once for equal arguments.

    "auto" is "cpu" on CPUs, "splash" on TPUs, "cudnn" on NVIDIA GPUs if it can, otherwise "xla".

    Args:
      name: "auto" or one of IMPLEMENTATIONS.
      dtype: of queries, keys and values.
      head_dim: K.
      platform: as `parallel.sharding.platform` names it.
      sized: whether keys stand for more than one token, see `Pages.log_size`.

    Raises:
      InputError: the implementation named cannot run; says why.
    """
    if name != "auto":
        if reason := problem(name, dtype, head_dim, platform, sized):
            raise InputError(f"model.attention={name!r}: {reason}; or choose model.attention=auto")
        logging.info("attention: %s, as asked for", name)
        return name
    best = {"cpu": "cpu", "cuda": "cudnn", "tpu": "splash"}.get(platform, "xla")
    if reason := problem(best, dtype, head_dim, platform, sized):
        logging.warning("attention: xla, slower than %s, for this: %s", best, reason)
        return "xla"
    logging.info("attention: %s on %s", best, platform)
    return best


def problem(name: str, dtype: jnp.dtype, head_dim: int, platform: str, sized: bool) -> str | None:
    """Why an implementation cannot run, and what to do about it."""
    if name not in IMPLEMENTATIONS:
        return f"expected auto or one of {', '.join(IMPLEMENTATIONS)}"
    if name == "splash" and platform != "tpu":
        return f"it runs on TPUs only and this is {platform}"
    if sized and name in ("cudnn", "splash"):
        return "its kernel has no sizes of keys, as a cache with condensed views needs them"
    if name != "cudnn":
        return None
    if platform != "cuda":
        return f"cuDNN runs on NVIDIA GPUs only and this is {platform}"
    if dtype not in (jnp.bfloat16, jnp.float16):
        return f"cuDNN attention does not compute in {dtype}; set model.compute_dtype=bfloat16"
    if head_dim > 128 or head_dim % 8:
        return f"cuDNN wants a head_dim that is a multiple of 8 up to 128, not {head_dim}"
    return None


def combine(
    mixed: jax.Array, log_sum_exp: jax.Array, other: jax.Array, other_log_sum_exp: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Attention to two sets of keys from that to each: results [..., Q, K], log-sum-exps [..., Q].

    A set may be empty: its log-sum-exp is then -inf and its result not looked at.
    """
    peak = jax.lax.stop_gradient(jnp.maximum(log_sum_exp, other_log_sum_exp))
    share, total = _share(mixed, log_sum_exp, peak)
    other_share, other_total = _share(other, other_log_sum_exp, peak)
    return _whole(share + other_share, total + other_total, peak, mixed.dtype)


def _combine_over(axis: str, mixed: jax.Array, log_sum_exp: jax.Array) -> tuple:
    """`combine` of the results of all devices along a mesh axis."""
    peak = jax.lax.pmax(jax.lax.stop_gradient(log_sum_exp), axis)
    share, total = jax.lax.psum(_share(mixed, log_sum_exp, peak), axis)
    return _whole(share, total, peak, mixed.dtype)


def _share(mixed: jax.Array, log_sum_exp: jax.Array, peak: jax.Array) -> tuple:
    weight = jnp.exp(log_sum_exp - jnp.where(jnp.isfinite(peak), peak, 0))
    per_row = weight[..., None]
    return jnp.where(per_row > 0, per_row * mixed.astype(jnp.float32), 0), weight


def _whole(share: jax.Array, total: jax.Array, peak: jax.Array, dtype: jnp.dtype) -> tuple:
    return (share / total[..., None]).astype(dtype), peak + jnp.log(total)


def _attend_spread(
    mesh: jax.sharding.AbstractMesh,
    name: str,
    with_log_sum_exp: bool,
    spread: str | None,
    q: jax.Array,
    pages: Pages,
) -> tuple[jax.Array, jax.Array | None]:
    """`_attend_here` on every device of a mesh, each with its scenes and its views or pages."""
    devices = mesh.shape.get(sharding.CONTEXT, 1) if spread else 1
    by_views = by_pages = None
    if devices > 1 and spread == "views":
        by_views = sharding.CONTEXT
    elif devices > 1:
        by_pages = sharding.CONTEXT
    rows = (sharding.AXES, *(by_views,) * (q.ndim == 5), None)  # B, V if there is one, H
    sharding.check_divides(mesh, "scenes", q.shape[0], sharding.AXES)
    if devices > 1:
        held = q.shape[1] if spread == "views" else pages.capacity
        what = "input views" if spread == "views" else "pages of the cache"
        sharding.check_divides(mesh, what, held, (sharding.CONTEXT,))

    def here(q: jax.Array, pages: Pages) -> tuple:
        partial = _attend_here(name, with_log_sum_exp or bool(by_pages), q, pages)
        return _combine_over(by_pages, *partial) if by_pages else partial

    each = pages.used is not None and pages.used.ndim == 3
    used = P(sharding.AXES, None, by_pages) if each else P(by_pages)
    return jax.shard_map(
        here,
        mesh=mesh,
        in_specs=(P(*rows), pages.specs(*rows, by_pages, used=used)),
        out_specs=P(*rows),
        check_vma=False,  # kernels do not say over which axes their results vary
    )(q, pages)


def _attend_here(
    name: str, with_log_sum_exp: bool, q: jax.Array, pages: Pages
) -> tuple[jax.Array, jax.Array | None]:
    """Attention on one device by a named implementation: the result and its log-sum-exp."""
    if pages.used is not None and pages.used.ndim == 3:
        return in_groups(functools.partial(_attend_here, name, with_log_sum_exp), q, pages)
    shape = q.shape
    if q.ndim == 5:  # B and V as one
        stored = q, dataclasses.replace(pages, used=None)
        q, stored = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), stored)
        pages = dataclasses.replace(stored, used=pages.used)
    if name == "cudnn":
        mixed, log_sum_exp = _one_call(kernels.cudnn, with_log_sum_exp, q, pages)
    elif name == "splash" and pages.is_plain:
        mixed, log_sum_exp = _one_call(kernels.splash, with_log_sum_exp, q, pages)
    elif name == "splash":
        mixed, log_sum_exp = _splash_page_by_page(q, pages)
    else:
        compute = {"cpu": loops, "xla": whole_scores}[name]
        mixed, log_sum_exp = compute(q, pages, with_log_sum_exp=with_log_sum_exp)
    if log_sum_exp is not None:
        log_sum_exp = log_sum_exp.reshape(shape[:-1])
    return mixed.reshape(shape), log_sum_exp


def in_groups(attention: Callable[[jax.Array, Pages], Any], q: jax.Array, pages: Pages) -> Any:
    """`attention` scene by scene and group by group of queries, each with its own pages.

    Args:
      attention: of queries [1, H, N, K] to pages of one scene; returns arrays [1, H, N, …].
      q: [B, H, R * N, K].
      pages: with `used` [B, R, S].

    Returns:
      Arrays [B, H, R * N, …].
    """
    batch, groups, _ = pages.used.shape
    q = q.reshape(batch, q.shape[1], groups, -1, q.shape[-1])

    def one_scene(scene: tuple) -> tuple:
        index, of_scene, used = scene
        own = pages.of_scene(index)

        def one_group(group: tuple) -> tuple:
            queries, read = group
            return attention(queries[None], dataclasses.replace(own, used=read))

        return jax.lax.map(one_group, (jnp.moveaxis(of_scene, 1, 0), used))

    outputs = jax.lax.map(one_scene, (jnp.arange(batch), q, pages.used))  # [B, R, 1, H, N, …]

    def merged(x: jax.Array) -> jax.Array:
        x = jnp.moveaxis(x[:, :, 0], 1, 2)  # [B, H, R, N, …]
        return x.reshape(*x.shape[:2], -1, *x.shape[4:])

    return jax.tree.map(merged, outputs)


def _one_call(
    kernel: Callable, with_log_sum_exp: bool, q: jax.Array, pages: Pages
) -> tuple[jax.Array, jax.Array | None]:
    """A kernel on all pages merged, or on those in use."""
    k, v = pages.whole_layer(q.dtype)
    k, v = (x.reshape(*x.shape[:2], -1, x.shape[-1]) for x in (k, v))
    if pages.used is None:
        if with_log_sum_exp:
            return kernels.differentiable_log_sum_exp(kernel, q, k, v)
        return kernel(q, k, v), None
    # A kernel that is told to read nothing may do anything, so it reads a page that counts nothing.
    count = pages.used.sum()
    length = jnp.maximum(count, 1) * pages.page_tokens
    if not with_log_sum_exp:
        return jnp.where(count > 0, kernel(q, k, v, length=length), jnp.nan), None
    mixed, log_sum_exp = kernels.LOG_SUM_EXP[kernel](q, k, v, length=length)
    return jnp.where(count > 0, mixed, jnp.nan), jnp.where(count > 0, log_sum_exp, -jnp.inf)


def _splash_page_by_page(q: jax.Array, pages: Pages) -> tuple[jax.Array, jax.Array]:
    """Attention by a call of the splash kernel for each page; not differentiable."""
    chunks = Chunks.of(pages)

    def fold(page: jax.Array, carry: tuple) -> tuple:
        k, v, *_ = chunks.read(page, q.dtype)
        return combine(*carry, *kernels.splash_with_log_sum_exp(q, k, v))

    start = (
        jnp.full(q.shape, jnp.nan, jnp.float32),
        jnp.full(q.shape[:-1], -jnp.inf, jnp.float32),
    )  # nothing read yet
    mixed, log_sum_exp = jax.lax.fori_loop(0, chunks.steps, fold, start)
    return mixed.astype(q.dtype), log_sum_exp
