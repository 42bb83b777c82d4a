"""Sparse-linear attention: a query attends to few keys exactly and reads the others from sums.

The few are the keys with the highest scores, token by token or in whole blocks. The sums are those
of linear attention, φ(q) Σ φ(k) vᵀ / φ(q) Σ φ(k), and what they give passes a small matrix P that
all heads share (arXiv:2509.24006, arXiv:2605.11354). Which keys are chosen has no gradient; scores,
softmax and sums are float32.

Axes: B scene, H head, Q query, N key, K head dim, I block of queries, J block of keys, M token of a
block, C chosen.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.nn.attention import attend, in_groups
from efficient_lvsm_jax.nn.chosen import attend_to_chosen, choose
from efficient_lvsm_jax.nn.kernels import SAVED_NAME
from efficient_lvsm_jax.nn.paged import Pages, from_bits
from efficient_lvsm_jax.nn.sparsity import FEATURES, Sparsity
from efficient_lvsm_jax.parallel import sharding

CRITICAL, MARGINAL, NEGLIGIBLE = 1, 0, -1


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class KeySums:
    """All that linear attention and choosing need of a set of keys; sets add up and are taken away.

    Attributes:
      values: Σ φ(k) vᵀ, [..., K, K] float32.
      features: Σ φ(k), [..., K] float32.
      keys: Σ k, [..., K] float32.
      count: of keys, [...] float32.
    """

    values: jax.Array
    features: jax.Array
    keys: jax.Array
    count: jax.Array

    @classmethod
    def of(cls, k: jax.Array, v: jax.Array, sparsity: Sparsity, counts: jax.Array) -> KeySums:
        """Of keys and values [..., N, K]; those that do not count, [..., N] bool, are in none."""
        counts = jnp.broadcast_to(counts, k.shape[:-1])
        features = jnp.where(counts[..., None], phi(k, sparsity), 0)
        return cls(
            jnp.einsum("...NK,...NC->...KC", features, v.astype(jnp.float32)),
            features.sum(axis=-2),
            *_sum_and_count(k, counts),
        )

    def __add__(self, other: KeySums) -> KeySums:
        return jax.tree.map(jnp.add, self, other)

    def __sub__(self, other: KeySums) -> KeySums:
        return jax.tree.map(jnp.subtract, self, other)

    @property
    def mean_key(self) -> jax.Array:
        """The mean key, [..., K]; 0 of none."""
        return self.keys / jnp.maximum(self.count, 1)[..., None]

    def read(self, q: jax.Array, sparsity: Sparsity) -> jax.Array:
        """Linear attention of queries [..., Q, K] to these keys, [..., Q, K] float32."""
        q = phi(q, sparsity)
        total = jnp.einsum("...QK,...K->...Q", q, self.features) + sparsity.epsilon
        return jnp.einsum("...QK,...KC->...QC", q, self.values) / total[..., None]


def phi(x: jax.Array, sparsity: Sparsity) -> jax.Array:
    """The features φ of queries or keys [..., K], float32."""
    return FEATURES[sparsity.features](x.astype(jnp.float32))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Digest:
    """What sparse attention needs of each page: it is made with the page, and leaves with it.

    Attributes:
      sums: of all keys of a page, [..., S].
      means: of the keys of each of its blocks, [..., S, J, K] float32.
    """

    sums: KeySums
    means: jax.Array

    @classmethod
    def of(cls, k: jax.Array, v: jax.Array, sparsity: Sparsity) -> Digest:
        """Of pages of keys and values, [..., S, M, K]."""
        means, _ = _means(k, jnp.ones(k.shape[:-1], bool), sparsity.key_block)
        return cls(KeySums.of(k, v, sparsity, jnp.ones(k.shape[:-1], bool)), means)

    def layer(self, layer: jax.Array | None) -> Digest:
        """That of a layer, where there are several."""
        if layer is None:
            return self
        at = functools.partial(jax.lax.dynamic_index_in_dim, index=layer, keepdims=False)
        return jax.tree.map(at, self)

    def total(self, used: jax.Array | None) -> KeySums:
        """Sums of the pages in use, [B, H, …]."""

        def total(x: jax.Array) -> jax.Array:
            if used is not None:  # a free slot may hold anything
                x = jnp.where(used.reshape(-1, *(1,) * (x.ndim - 3)), x, 0)
            return x.sum(axis=2)

        return jax.tree.map(total, self.sums)


class SparseLinear(nnx.Module):
    """The sparse-linear attention of a place in a model, with what of both parts is added up.

    Of the chosen keys that is a share, a number, since their softmax knows of no others; of the
    sums what P, [K, K], makes of it. They are made as 1 and zeros: what is beyond the chosen keys
    is then as good as forgotten. `product` is that of P, as of `blocks.Linear`.
    """

    product = staticmethod(jnp.einsum)

    def __init__(self, head_dim: int, sparsity: Sparsity):
        self.sparsity = sparsity
        self.kernel = nnx.Param(jnp.zeros((head_dim, head_dim)))
        self.share = nnx.Param(jnp.ones(()))

    def __call__(
        self, q: jax.Array, pages: Pages, *, targets: int = 1, implementation: str = "auto"
    ) -> jax.Array:
        """As `attend_by`, however few the keys are; in the dtype of q."""
        sparse, linear = self.branches(q, pages, targets=targets, implementation=implementation)
        kernel = from_bits(self.kernel[...]).astype(jnp.float32)
        mapped = self.product("BHQK,KC->BHQC", linear, kernel)
        return (self.share[...] * sparse + mapped).astype(q.dtype)

    def branches(
        self, q: jax.Array, pages: Pages, *, targets: int = 1, implementation: str = "auto"
    ) -> tuple[jax.Array, jax.Array]:
        """Both parts of it as they are, of chosen keys and of sums, [B, H, Q, K] float32."""
        if pages.digest is not None:
            return _of_pages(q, pages, self.sparsity, targets, implementation)
        if not pages.is_plain:
            raise InputError(
                "model.attention_sparsity: sparse attention reads whole pages of one set of keys, "
                "not a memory with free slots, unless blocks of its frames are chosen, as by "
                "global=0.3:block64; otherwise leave it out for streams"
            )
        k, v = pages.whole_layer(q.dtype)
        k, v = (x.reshape(*x.shape[:2], -1, x.shape[-1]) for x in (k, v))
        return branches(q, k, v, self.sparsity, implementation=implementation)


def attend_by(
    sparse: SparseLinear | None, q: jax.Array, pages: Pages, *, targets: int = 1, **how: Any
) -> jax.Array:
    """Attention at a place in a model: sparse if it is so, or `attend`.

    Args:
      sparse: of the place. None, or fewer keys in use than its `from_keys`: `attend`.
      q, pages: as of `attend`. With a `digest` blocks are chosen among those of pages in use, and
        sums are of these; otherwise pages are read whole, as one set of keys.
      targets: how many of them the queries are of, one after the other; no block has queries of
        two.
      how: as of `attend`; its `implementation` also says how blocks are, see `nn.chosen.choose`.

    Raises:
      InputError: as `attend`; pages with free slots, or sizes of keys, and no digest; or a mesh
        that spreads views or pages over devices.
    """

    def dense(q: jax.Array, pages: Pages) -> jax.Array:
        return attend(q, dataclasses.replace(pages, digest=None), **how)

    if sparse is None:
        return dense(q, pages)
    if sharding.views_are_spread():
        raise InputError(
            "mesh: the context axis spreads views over devices, and sparse attention chooses among "
            "all of them; use context:1, or leave out model.attention_sparsity"
        )
    if pages.used is not None and pages.used.ndim == 3:
        return in_groups(lambda q, pages: attend_by(sparse, q, pages, **how), q, pages)
    if q.ndim == 5:  # B and V as one
        merged = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), (q, pages))
        return attend_by(sparse, *merged, **how).reshape(q.shape)

    fewest = sparse.sparsity.from_keys
    if pages.capacity * pages.page_tokens < fewest:
        return dense(q, pages)
    of_blocks = functools.partial(
        sparse, targets=targets, implementation=how.get("implementation", "auto")
    )
    if pages.used is None or pages.page_tokens >= fewest:
        return of_blocks(q, pages)
    few = pages.used.sum() * pages.page_tokens < fewest
    return jax.lax.cond(few, dense, of_blocks, q, pages)


def sparse_linear(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    projection: jax.Array,
    sparsity: Sparsity,
    *,
    valid: jax.Array | None = None,
    implementation: str = "auto",
) -> jax.Array:
    """Softmax attention to chosen keys plus linear attention through P.

    Args:
      q: queries, [B, H, Q, K].
      k, v: keys and values, [B, H, N, K].
      projection: P, [K, K] from sums to outputs; published programs store its transpose.
      sparsity: which keys.
      valid: which keys there are, [B, N] bool; None is all. The others are in no softmax, sum or
        mean, but are counted where a density is made a number. With no valid key: NaN.
      implementation: "mask", whole scores, a reference; "gather", which computes the scores of
        chosen blocks alone, a block of queries at a time; "splash", which does so in a kernel of
        TPUs; or what else `nn.chosen.choose` takes.

    Returns:
      The shape and dtype of `q`.

    Raises:
      InputError: the shapes do not belong together, or as `nn.chosen.choose`.
    """
    sparse, linear = branches(q, k, v, sparsity, valid=valid, implementation=implementation)
    return (sparse + linear @ projection.astype(jnp.float32)).astype(q.dtype)


def branches(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    sparsity: Sparsity,
    *,
    valid: jax.Array | None = None,
    implementation: str = "auto",
) -> tuple[jax.Array, jax.Array]:
    """Both parts of `sparse_linear` before P: of chosen keys and of sums, [B, H, Q, K] float32."""
    batch, heads, _, head_dim = q.shape
    keys = (batch, heads, k.shape[2], head_dim)
    if k.shape != keys or v.shape != keys or (valid is not None and valid.shape != keys[::2]):
        raise InputError(
            f"sparse_linear: q {q.shape}, k {k.shape}, v {v.shape}, valid "
            f"{None if valid is None else valid.shape}: expected [B,H,Q,K] queries, equal "
            "[B,H,N,K] keys and values, and [B,N]"
        )
    if implementation == "mask":
        return _by_mask(q, k, v, sparsity, valid)
    name = choose(
        implementation,
        sparsity,
        sharding.platform(),
        q.dtype,
        head_dim,
        sized=valid is not None,
    )
    return _by_blocks(q, k, v, sparsity, valid, name)


def chosen(
    q: jax.Array, k: jax.Array, sparsity: Sparsity, *, valid: jax.Array | None = None
) -> jax.Array:
    """Which keys, or blocks of keys, are attended to exactly, [B, H, Q or I, C] int32, ascending.

    Arguments as of `sparse_linear`. Of equal scores that of the lower index counts as higher.
    """
    counts = _counts(k, valid)
    if sparsity.by == "token":
        scores = _token_scores(q, k, counts)
    else:
        scores = _block_scores(q, k, sparsity, counts)
    return _highest(scores, sparsity.kept(scores.shape[-1]))


def classes(
    q: jax.Array, k: jax.Array, sparsity: Sparsity, *, valid: jax.Array | None = None
) -> jax.Array:
    """What every block of keys is for every block of queries by "class", [B, H, I, J] int32:
    CRITICAL, attended to exactly; MARGINAL, in the sums; or NEGLIGIBLE. Arguments as above."""
    return _classes(_block_scores(q, k, sparsity, _counts(k, valid)), sparsity)


def _counts(k: jax.Array, valid: jax.Array | None) -> jax.Array:
    """Which keys there are, [B, 1, N]."""
    return jnp.ones((k.shape[0], 1, k.shape[2]), bool) if valid is None else valid[:, None]


def _classes(scores: jax.Array, sparsity: Sparsity) -> jax.Array:
    blocks = scores.shape[-1]
    lowest = _highest(-scores, max(1, int(sparsity.negligible * blocks)))
    left_out = jnp.where(_marked(lowest, blocks), NEGLIGIBLE, MARGINAL)
    return jnp.where(_marked(_highest(scores, sparsity.kept(blocks)), blocks), CRITICAL, left_out)


def _block_scores(q: jax.Array, k: jax.Array, sparsity: Sparsity, counts: jax.Array) -> jax.Array:
    """Of means of blocks, [B, H, I, J]; -inf of a block of keys of which none counts."""
    q, _ = _means(q, jnp.ones((1, 1, q.shape[2]), bool), sparsity.query_block)
    k, count = _means(k, counts, sparsity.key_block)
    return jnp.where(count[..., None, :] > 0, _scores(q, k), -jnp.inf)


def _means(x: jax.Array, counts: jax.Array, size: int) -> tuple[jax.Array, jax.Array]:
    """Means over blocks of tokens [..., N, K] that count, [..., J, K], and how many these are."""
    total, count = _sum_and_count(_in_blocks(x, size), _in_blocks(counts[..., None], size))
    return total / jnp.maximum(count, 1)[..., None], count


def _of_pages(
    q: jax.Array, pages: Pages, sparsity: Sparsity, targets: int, implementation: str
) -> tuple[jax.Array, jax.Array]:
    """Both parts of attention of q [B, H, targets * N, K] to the blocks of pages in use."""
    digest, used = pages.digest.layer(pages.layer), pages.used
    by_target = q.reshape(*q.shape[:2], targets, -1, q.shape[-1])
    every = jnp.ones((1, 1, 1, by_target.shape[3]), bool)
    means, _ = _means(by_target, every, sparsity.query_block)  # [B, H, R, I, K]
    *_, slots, in_page, head_dim = digest.means.shape
    scores = jnp.einsum("BHRIK,BHSJK->BHRISJ", means, digest.means) * head_dim**-0.5
    if used is not None:
        scores = jnp.where(used[:, None], scores, -jnp.inf)
    scores = scores.reshape(*q.shape[:2], -1, slots * in_page)
    most = min(pages.most or slots, slots)
    counts = [0, *(sparsity.kept(count * in_page) for count in range(1, most + 1))]
    # By falling score: of fewer pages in use fewer are read, from the first.
    _, index = jax.lax.top_k(jax.lax.stop_gradient(scores), counts[-1])
    blocks = _in_blocks(by_target, sparsity.query_block)  # [B, H, R, I, M, K]
    mixed = attend_to_chosen(
        blocks.reshape(*q.shape[:2], -1, *blocks.shape[-2:]),
        pages,
        index,
        counts[-1] if used is None else jnp.asarray(counts, jnp.int32)[used.sum()],
        sparsity.key_block,
        implementation=choose(
            implementation,
            sparsity,
            sharding.platform(),
            q.dtype,
            head_dim,
            sized=pages.log_size is not None,
        ),
    )
    mixed = mixed.reshape(*by_target.shape[:3], -1, head_dim)[:, :, :, : by_target.shape[3]]
    linear = digest.total(used).read(q, sparsity)
    return mixed.reshape(q.shape).astype(jnp.float32), linear


def _by_mask(
    q: jax.Array, k: jax.Array, v: jax.Array, sparsity: Sparsity, valid: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
    counts = _counts(k, valid)
    summed = counts[..., None, :]
    if sparsity.by == "token":
        sparse = _of_chosen_tokens(q, k, v, sparsity, counts)
    else:
        block_scores = _block_scores(q, k, sparsity, counts)
        blocks = block_scores.shape[-1]
        found = _marked(_highest(block_scores, sparsity.kept(blocks)), blocks)
        keep = _of_tokens(found, sparsity, q.shape[2], k.shape[2]) & summed
        sparse = _mixed(jnp.where(keep, _scores(q, k), -jnp.inf), v)
    if sparsity.by == "class":
        marginal = _classes(block_scores, sparsity) == MARGINAL
        summed = summed & _of_tokens(marginal, sparsity, q.shape[2], k.shape[2])
    weights = jnp.einsum("BHQK,BHNK->BHQN", phi(q, sparsity), phi(k, sparsity))
    weights = jnp.where(summed, weights, 0)
    total = weights.sum(axis=-1, keepdims=True) + sparsity.epsilon
    return sparse, jnp.einsum("BHQN,BHNK->BHQK", weights / total, v.astype(jnp.float32))


def _by_blocks(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    sparsity: Sparsity,
    valid: jax.Array | None,
    implementation: str,
) -> tuple[jax.Array, jax.Array]:
    counts = _counts(k, valid)
    q_blocks = _in_blocks(q, sparsity.query_block)  # [B, H, I, M, K]

    def whole(blocks: jax.Array) -> jax.Array:
        return blocks.reshape(*blocks.shape[:2], -1, blocks.shape[-1])[:, :, : q.shape[2]]

    def each(function: Callable, *blocks: jax.Array) -> jax.Array:
        """One block of queries at a time, also when gradients come back."""
        blocks = tuple(jnp.moveaxis(x, 2, 0) for x in blocks)
        found = jax.lax.map(jax.checkpoint(lambda x: function(*x)), blocks)
        return whole(jnp.moveaxis(found, 0, 2))

    if sparsity.by == "token":
        sparse = each(lambda x: _of_chosen_tokens(x, k, v, sparsity, counts), q_blocks)
        sparse = checkpoint_name(sparse.astype(q.dtype), SAVED_NAME).astype(jnp.float32)
        return sparse, KeySums.of(k, v, sparsity, counts).read(q, sparsity)

    block_scores = _block_scores(q, k, sparsity, counts)
    count = sparsity.kept(block_scores.shape[-1])
    index = _highest(block_scores, count)
    pages = Pages(k[:, :, None], v[:, :, None])
    if valid is not None:
        sizes = jnp.broadcast_to(jnp.where(counts, 0.0, -jnp.inf), k.shape[:-1])
        pages = dataclasses.replace(pages, log_size=sizes[:, :, None])
    sparse = attend_to_chosen(
        q_blocks, pages, index, count, sparsity.key_block, implementation=implementation
    )
    sparse = whole(sparse).astype(jnp.float32)
    if sparsity.by == "block":
        return sparse, KeySums.of(k, v, sparsity, counts).read(q, sparsity)
    marginal = (_classes(block_scores, sparsity) == MARGINAL).astype(jnp.float32)
    k, v, counts = (_in_blocks(x, sparsity.key_block) for x in (k, v, counts[..., None]))
    sums = KeySums.of(k, v, sparsity, counts[..., 0])
    sums = jax.tree.map(lambda x: jnp.einsum("BHIJ,BHJ...->BHI...", marginal, x), sums)
    return sparse, whole(sums.read(q_blocks, sparsity))


def _of_chosen_tokens(
    q: jax.Array, k: jax.Array, v: jax.Array, sparsity: Sparsity, counts: jax.Array
) -> jax.Array:
    scores = _token_scores(q, k, counts)
    keep = _marked(_highest(scores, sparsity.kept(k.shape[2])), k.shape[2])
    return _mixed(jnp.where(keep, scores, -jnp.inf), v)


def _token_scores(q: jax.Array, k: jax.Array, counts: jax.Array) -> jax.Array:
    return jnp.where(counts[..., None, :], _scores(q, k), -jnp.inf)


def _scores(q: jax.Array, k: jax.Array) -> jax.Array:
    scores = jnp.matmul(q, jnp.swapaxes(k, -1, -2), preferred_element_type=jnp.float32)
    return scores * q.shape[-1] ** -0.5


def _mixed(scores: jax.Array, v: jax.Array) -> jax.Array:
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    return jnp.matmul(weights, v, preferred_element_type=jnp.float32)


def _highest(scores: jax.Array, count: int) -> jax.Array:
    """Indices of the highest along the last axis, ascending; of equal ones the first."""
    _, index = jax.lax.top_k(jax.lax.stop_gradient(scores), min(count, scores.shape[-1]))
    return jnp.sort(index, axis=-1)


def _marked(index: jax.Array, count: int) -> jax.Array:
    """Indices [..., C] as a mask [..., count]."""
    mask = jnp.zeros((*index.shape[:-1], count), bool)
    return jnp.put_along_axis(mask, index, True, axis=-1, inplace=False)


def _of_tokens(blocks: jax.Array, sparsity: Sparsity, queries: int, keys: int) -> jax.Array:
    """What holds for blocks [..., I, J] for their tokens [..., Q, N]."""
    rows = jnp.repeat(blocks, sparsity.query_block, axis=-2)[..., :queries, :]
    return jnp.repeat(rows, sparsity.key_block, axis=-1)[..., :keys]


def _in_blocks(x: jax.Array, size: int) -> jax.Array:
    """x [..., N, K] in blocks [..., J, M, K]; zeros fill the last."""
    missing = -x.shape[-2] % size
    x = jnp.pad(x, (*((0, 0),) * (x.ndim - 2), (0, missing), (0, 0))) if missing else x
    return x.reshape(*x.shape[:-2], -1, size, x.shape[-1])


def _sum_and_count(x: jax.Array, counts: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Over the tokens of x [..., N, K] that count, [..., N] or [..., N, 1]: [..., K], [...]."""
    counts = counts.reshape(*counts.shape[: x.ndim - 1], 1)
    total = jnp.where(counts, x.astype(jnp.float32), 0).sum(axis=-2)
    return total, counts.sum(axis=(-2, -1), dtype=jnp.float32)
