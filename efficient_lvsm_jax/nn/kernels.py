"""Fused attention of accelerators: cuDNN on NVIDIA GPUs, splash attention on TPUs.

Both are softmax(q kᵀ / √K) v without a mask; neither ever holds the scores. `nn.attention.attend`
chooses between them and owns pages, sharding and checks.

Axes: B batch, H head, Q query, M key, K head dim.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.extend import core

# Under this name outputs (and log-sum-exps) are kept by the remat policy "attention".
SAVED_NAME = "attention"
SPLASH_LANES = 128  # sequences come in multiples of it
SPLASH_BLOCK = 1024  # the largest tile; the kernel's own default of 128 is many times slower


def saves(*names: str) -> Callable[..., bool]:
    """A remat policy: keep what attention returns, its backward pass needs of it, and `names`.

    The kernel of cuDNN gives its results no name, so it is known by its own.
    """
    named = jax.checkpoint_policies.save_only_these_names(SAVED_NAME, *names)

    def policy(primitive: core.Primitive, *_: object, **params: object) -> bool:
        return primitive.name == "dot_product_attention_fwd_wrapper" or named(primitive, **params)

    return policy


def cudnn(
    q: jax.Array, k: jax.Array, v: jax.Array, *, length: jax.Array | None = None
) -> jax.Array:
    """Attention by cuDNN, differentiable.

    Args:
      q: [B, H, Q, K], bfloat16 or float16.
      k, v: [B, H, M, K].
      length: int32 of at least 1, [] or [B]: only so many leading keys are read.
    """
    q, k, v = (jnp.swapaxes(x, 1, 2) for x in (q, k, v))
    if length is not None:
        length = jnp.broadcast_to(length.astype(jnp.int32), q.shape[:1])
    mixed = jax.nn.dot_product_attention(
        q, k, v, key_value_seq_lengths=length, implementation="cudnn"
    )
    return jnp.swapaxes(mixed, 1, 2)


def cudnn_with_log_sum_exp(
    q: jax.Array, k: jax.Array, v: jax.Array, *, length: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """`cudnn`, and the log-sum-exp of the scores, [B, H, Q] float32."""
    # jax.nn.dot_product_attention(return_residual=True) rounds the log-sum-exp to bfloat16, errors
    # of percents in the weights it stands for; this is what it calls before it does so.
    from jax._src.cudnn import fused_attention_stablehlo as fused

    lengths, mask = {}, fused.MaskType.NO_MASK
    if length is not None:
        mask = fused.MaskType.PADDING
        lengths["q_seqlen"] = jnp.full(q.shape[:1], q.shape[2], jnp.int32)
        lengths["kv_seqlen"] = jnp.full(q.shape[:1], length, jnp.int32)
    q, k, v = (jnp.swapaxes(x, 1, 2) for x in (q, k, v))
    scale = q.shape[-1] ** -0.5
    mixed, log_sum_exp = fused.dot_product_attention(
        q, k, v, scale=scale, mask_type=mask, return_residual=True, **lengths
    )
    return jnp.swapaxes(mixed, 1, 2), log_sum_exp


def splash(q: jax.Array, k: jax.Array, v: jax.Array, *, interpret: bool = False) -> jax.Array:
    """Attention by the TPU's splash kernel, differentiable.

    Sequences that are not a multiple of 128 are padded, and the padding masked.

    Args:
      q: [B, H, Q, K], any float dtype.
      k, v: [B, H, M, K].
      interpret: compute what the kernel computes on any platform, slowly, for tests.
    """
    kernel = _splash_kernel(q.shape[1:], k.shape[2], residuals=False, interpret=interpret)
    return kernel(q, k, v)[:, :, : q.shape[2]]


def splash_with_log_sum_exp(
    q: jax.Array, k: jax.Array, v: jax.Array, *, interpret: bool = False
) -> tuple[jax.Array, jax.Array]:
    """`splash`, and the log-sum-exp of the scores, [B, H, Q] float32; not differentiable."""
    kernel = _splash_kernel(q.shape[1:], k.shape[2], residuals=True, interpret=interpret)
    mixed, (log_sum_exp,) = kernel(q, k, v)
    return mixed[:, :, : q.shape[2]], log_sum_exp[:, :, : q.shape[2]]


def splash_to_blocks(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    index: jax.Array,
    reads: jax.Array,
    counts: jax.Array | None,
    *,
    interpret: bool = False,
) -> jax.Array:
    """Attention of blocks of queries to blocks of keys by the splash kernel; not differentiable.

    What was chosen is the kernel's list of blocks, so nothing else is fetched or computed. The
    lists lie in a chip's small memory for scalars.

    Args:
      q: [R, I, Q, K], of each row I blocks of Q queries.
      k, v: [R, J, M, K], J blocks of M keys, M a multiple of SPLASH_LANES.
      index: [R, I, C] of integers, the blocks of keys that a block of queries reads.
      reads: [C] bool, which of them it does. With none: NaN.
      counts: [J, M] bool, which keys there are; None: all. A block that is read has one.
      interpret: as of `splash`.

    Returns:
      As q.
    """
    from jax.experimental.pallas.ops.tpu.splash_attention import (
        splash_attention_kernel as library,
    )
    from jax.experimental.pallas.ops.tpu.splash_attention.splash_attention_mask_info import MaskInfo

    rows, blocks, queries, head_dim = q.shape
    segments = None
    if counts is not None:  # as in `_splash_kernel`
        segments = library.SegmentIds(
            jnp.ones(blocks * queries, jnp.int32), counts.reshape(-1).astype(jnp.int32)
        )
    whole = jnp.where(reads, 2, 0).astype(jnp.int8)  # no block has a mask of its own
    kernel = library.SplashAttentionKernel(
        MaskInfo(index, None, jnp.broadcast_to(whole, index.shape), None, None),
        None,
        None,
        block_sizes=library.BlockSizes(queries, k.shape[2]),
        is_mqa=False,
        save_residuals=False,
        mask_value=library.DEFAULT_MASK_VALUE,
        attn_logits_soft_cap=None,
        residual_checkpoint_name=None,
        mask_function=None,
        interpret=interpret,
    )
    q, k, v = (x.reshape(rows, -1, head_dim) for x in (q * head_dim**-0.5, k, v))
    return kernel(q, k, v, segments).reshape(rows, blocks, queries, head_dim)


def _splash_kernel(
    rows: tuple[int, int, int], keys: int, *, residuals: bool, interpret: bool
) -> Callable:
    """The kernel for queries of [H, Q, K] = `rows` and so many keys, on padded sequences."""
    from jax.experimental.pallas.ops.tpu import splash_attention as library

    heads, queries, head_dim = rows
    queries, padded_keys = _padded(queries), _padded(keys)
    query_block, key_block = _block(queries), _block(padded_keys)
    kernel = library.make_splash_mha(
        library.MultiHeadMask([library.FullMask((queries, padded_keys))] * heads),
        block_sizes=library.BlockSizes(
            block_q=query_block,
            block_kv=key_block,
            block_q_dkv=query_block,
            block_kv_dkv=key_block,
            use_fused_bwd_kernel=True,
        ),
        head_shards=1,
        q_seq_shards=1,
        save_residuals=residuals,
        residual_checkpoint_name=SAVED_NAME,
        interpret=interpret,
    )
    segments = None
    if padded_keys > keys:
        # Padding of keys is of segment 0, and no query is; what queries of padding see is cut off.
        of_keys = (jnp.arange(padded_keys) < keys).astype(jnp.int32)
        segments = library.SegmentIds(jnp.ones(queries, jnp.int32), of_keys)

    def call(q: jax.Array, k: jax.Array, v: jax.Array):
        def pad(x: jax.Array, length: int) -> jax.Array:
            return jnp.pad(x, ((0, 0), (0, 0), (0, length - x.shape[2]), (0, 0)))

        q, k, v = pad(q * head_dim**-0.5, queries), pad(k, padded_keys), pad(v, padded_keys)
        return jax.vmap(lambda q, k, v: kernel(q, k, v, segments))(q, k, v)

    return call


def _padded(length: int) -> int:
    return -(-length // SPLASH_LANES) * SPLASH_LANES


def _block(length: int) -> int:
    """The largest tile that divides a padded sequence."""
    return max(
        size for size in range(SPLASH_LANES, SPLASH_BLOCK + 1, SPLASH_LANES) if length % size == 0
    )


LOG_SUM_EXP = {cudnn: cudnn_with_log_sum_exp, splash: splash_with_log_sum_exp}


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def differentiable_log_sum_exp(
    kernel: Callable, q: jax.Array, k: jax.Array, v: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Result and log-sum-exp of `kernel` (`cudnn` or `splash`), with gradients of both.

    The kernels give gradients of the result alone. That of the log-sum-exp is the weights' mean of
    the keys for q, and for k what the kernel calls the gradient of v: one forward and one backward
    pass more.
    """
    return LOG_SUM_EXP[kernel](q, k, v)


def _forward(kernel: Callable, *qkv: jax.Array) -> tuple:
    outputs = LOG_SUM_EXP[kernel](*qkv)
    # What the kernels name, if anything, cannot be seen from outside of this function.
    return jax.tree.map(lambda x: checkpoint_name(x, SAVED_NAME), outputs), qkv


def _backward(kernel: Callable, qkv: tuple, upstream: tuple) -> tuple:
    of_mixed, of_log_sum_exp = upstream
    q, k, v = qkv
    of_scores = of_log_sum_exp[..., None] * q.shape[-1] ** -0.5
    _, pull = jax.vjp(kernel, q, k, v)
    dq, dk, dv = pull(of_mixed)
    dq = dq + (of_scores * kernel(q, k, k)).astype(q.dtype)
    dk = dk + pull((of_scores * q).astype(q.dtype))[2]
    return dq, dk, dv


differentiable_log_sum_exp.defvjp(_forward, _backward)
