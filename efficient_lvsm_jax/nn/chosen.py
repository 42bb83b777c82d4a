"""Attention to chosen blocks of keys: what is not chosen costs nothing.

`nn.sparse_linear` says what is chosen. It is a loop over them, `nn.chosen_loops`, on CPUs and where
nothing else can be, and a kernel of TPUs or of NVIDIA GPUs, `nn.chosen_kernels`.

Axes: B scene, H head, I block of queries, Q query of a block, S page, M token of a page, J block of
keys of a page, C chosen, K head dim.
"""

from __future__ import annotations

import functools
import logging

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.nn import attention, kernels
from efficient_lvsm_jax.nn.chosen_kernels import by_cudnn, by_splash
from efficient_lvsm_jax.nn.chosen_loops import gathered
from efficient_lvsm_jax.nn.kernels import SAVED_NAME
from efficient_lvsm_jax.nn.paged import Pages
from efficient_lvsm_jax.nn.sparsity import Sparsity

# Blocks of queries come in multiples of it, as bfloat16 lies in a TPU's memory.
SUBLANES = 16
FUSED = {"tpu": "splash", "cuda": "cudnn"}


@functools.lru_cache
def choose(
    name: str,
    sparsity: Sparsity,
    platform: str,
    dtype: jnp.dtype,
    head_dim: int,
    *,
    sized: bool = False,
) -> str:
    """How chosen blocks are attended to: "gather", "splash" or "cudnn"; logged, once for equal
    arguments.

    Args:
      name: "gather", or of `model.attention`: "auto" is "splash" on TPUs and "cudnn" on NVIDIA GPUs
        if it can; whatever else there is for dense attention is "gather".
      sparsity: of the place.
      platform: as `parallel.sharding.platform` names it.
      dtype, head_dim: of queries, keys and values.
      sized: whether keys stand for more than one token or for none, see `Pages.log_size`.

    Raises:
      InputError: no such name, or "splash" or "cudnn" cannot run; says why.
    """
    known = ("gather", *attention.IMPLEMENTATIONS)
    if name not in ("auto", *known):
        expected = ", ".join(known)
        raise InputError(f"sparse attention: {name!r}: expected auto or one of {expected}")
    best = FUSED.get(platform, "gather") if name == "auto" else name
    if best not in FUSED.values():
        return "gather"
    if problem := _problem(best, sparsity, platform, dtype, head_dim, sized):
        if name != "auto":
            raise InputError(
                f"model.attention={name!r}: sparse attention: {problem}; or choose "
                "model.attention=auto"
            )
        logging.warning("sparse attention: gather, slower than %s, for this: %s", best, problem)
        return "gather"
    logging.info("sparse attention: %s on %s", best, platform)
    return best


def _problem(
    name: str, sparsity: Sparsity, platform: str, dtype: jnp.dtype, head_dim: int, sized: bool
) -> str | None:
    """Why a kernel cannot read chosen blocks, and what to do about it."""
    problem = attention.problem(name, dtype, head_dim, platform, sized)
    if problem or (name == "cudnn" and sparsity.by != "token"):
        return problem
    if sparsity.by == "token":
        block = "block64x128" if name == "splash" else "block256x64"
        return f"{name} reads blocks, not single tokens; set {block} in their place"
    if sparsity.query_block % SUBLANES or sparsity.key_block % kernels.SPLASH_LANES:
        return (
            f"its kernel reads blocks of a multiple of {SUBLANES} queries and of "
            f"{kernels.SPLASH_LANES} keys, not of {sparsity.query_block} and "
            f"{sparsity.key_block}; set block64x128 or larger in model.attention_sparsity"
        )
    return None


def attend_to_chosen(
    q: jax.Array,
    pages: Pages,
    index: jax.Array,
    count: jax.Array | int,
    size: int,
    *,
    implementation: str = "gather",
) -> jax.Array:
    """Softmax attention of blocks of queries to the keys of chosen blocks.

    Args:
      q: [B, H, I, Q, K].
      pages: [B, H, S, M, K], or of all layers with its `layer`. Those that are not used must not be
        among the chosen.
      index: [B, H, I, C] int32, blocks among the S * J of all pages.
      count: how many of them, from the first, are attended to; with an integer gradients flow.
      size: keys of a block; of a page of fewer it is all of them.
      implementation: as `choose` gives it. "splash" and "cudnn" know no `log_size`.

    Returns:
      As q. With nothing to attend to: NaN.
    """
    attention_by = {"gather": gathered, "splash": by_splash, "cudnn": by_cudnn}[implementation]
    mixed = attention_by(q, pages, index, count, size).astype(q.dtype)
    # What cuDNN gives is kept as it is, see `kernels.saves`.
    return mixed if implementation == "cudnn" else checkpoint_name(mixed, SAVED_NAME)
