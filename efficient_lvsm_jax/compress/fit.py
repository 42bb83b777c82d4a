"""P of sparse-linear attention in closed form, and how far attention is from a dense one with it.

The dense model is what runs: its attention gives O*, and beside it are computed, of the same
queries, keys and values, what chosen keys and what sums give, O_s and O_l (`nn.sparse_linear`).
Products of these three, added up over tokens and pictures, are all that is kept. The P that brings
O_s + O_l P nearest to O*, and the distance that any P leaves, follow from them without another pass
and without a gradient.

Axes: L layer, B scene, H head, Q query, K head dim, M 2·K: what sums give, then what keys give.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from efficient_lvsm_jax.models.model import abstract_params, bind
from efficient_lvsm_jax.nn.attention import attend
from efficient_lvsm_jax.nn.chosen import attend_to_chosen
from efficient_lvsm_jax.nn.paged import Pages
from efficient_lvsm_jax.nn.sparse_linear import SparseLinear
from efficient_lvsm_jax.nn.watching import show, watched

RIDGE = 1e-3  # of the mean diagonal of O_lᵀ O_l

# What a bound network does with a batch; `fit` is for any.
Pass = Callable[[nnx.Module, Any], Any]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Products:
    """Of the attention of all layers of a place, over tokens; those of others are added.

    Attributes:
      both: (O_l, O_s)ᵀ (O_l, O_s), [L, H, M, M].
      wanted: (O_l, O_s)ᵀ O*, [L, H, M, K].
      total: of O*, the sum of squares, [L, H, 1, 1].
    """

    both: np.ndarray | jax.Array
    wanted: np.ndarray | jax.Array
    total: np.ndarray | jax.Array

    def fitted(self, *, per_head: bool = False) -> np.ndarray:
        """P of every layer, [L, K, K]; `per_head` one of every head, [L, H, K, K]. float64."""
        size = self.wanted.shape[-1]
        sums = self.both[..., :size, :size]
        rest = self.wanted[..., :size, :] - self.both[..., :size, size:]
        if not per_head:
            sums, rest = sums.sum(axis=1), rest.sum(axis=1)
        mean = np.trace(sums, axis1=-2, axis2=-1) / size
        # Where nothing is in the sums P changes nothing, and is 0.
        ridge = np.where(mean > 0, RIDGE * mean, 1.0)
        return np.linalg.solve(sums + ridge[..., None, None] * np.eye(size), rest)

    def errors(self, projection: np.ndarray) -> np.ndarray:
        """|O_s + O_l P − O*| / |O*| of every layer, [L], for P as of `fitted`."""
        size, total = self.wanted.shape[-1], self.total.sum((-3, -2, -1))
        if projection.ndim == 3:
            projection = projection[:, None]
        keys = np.broadcast_to(np.eye(size), self.wanted[..., :size, :].shape)
        how = np.concatenate([np.broadcast_to(projection, keys.shape), keys], axis=-2)
        left = (how * (self.both @ how - 2 * self.wanted)).sum((-3, -2, -1)) + total
        return np.sqrt(np.maximum(left, 0) / total)


class Taught(SparseLinear):
    """Sparse-linear attention that gives what dense attention gives, and shows its `Products`."""

    def __call__(
        self, q: jax.Array, pages: Pages, *, targets: int = 1, implementation: str = "auto"
    ) -> jax.Array:
        """As of `SparseLinear`."""
        dense = attend(q, dataclasses.replace(pages, digest=None))
        wanted = dense.astype(jnp.float32)
        total = jnp.square(wanted).sum((0, 2, 3))[:, None, None]

        def of(chosen: type[SparseLinear]) -> Products:
            sparse, linear = chosen.branches(self, q, pages, targets=targets)
            both = jnp.concatenate([linear, sparse], axis=-1)
            sums = (
                jnp.einsum("BHQM,BHQC->HMC", both, x, precision="highest") for x in (both, wanted)
            )
            return Products(*sums, total)

        show(self.place, tuple(map(of, CHOSEN)))
        return dense


class AtRandom(SparseLinear):
    """A control: every query attends to as many blocks of keys as it would, but to any."""

    def branches(
        self, q: jax.Array, pages: Pages, *, targets: int = 1, implementation: str = "auto"
    ) -> tuple[jax.Array, jax.Array]:
        """As of `SparseLinear`."""
        _, linear = SparseLinear.branches(self, q, pages, targets=targets)
        size = 1 if self.sparsity.by == "token" else self.sparsity.key_block
        blocks = pages.capacity * -(-pages.page_tokens // size)
        order = jnp.argsort(jax.random.uniform(jax.random.key(0), (*q.shape[:3], blocks)))
        pages = dataclasses.replace(pages, digest=None)
        count = self.sparsity.kept(blocks)
        mixed = attend_to_chosen(q[..., None, :], pages, order[..., :count], count, size)
        return mixed[..., 0, :], linear


CHOSEN = (SparseLinear, AtRandom)


def changed(network: nnx.Module, to: type[SparseLinear]) -> nnx.Module:
    """The network, whose modules are changed, with another kind of sparse attention."""
    for path, module in list(nnx.iter_modules(network)):
        if isinstance(module, SparseLinear):
            module.place = "/".join(map(str, path[:-1]))
            module.__class__ = to
    return network


def places(family: str, config: Any) -> dict[str, tuple[int, ...]]:
    """Where in a model's parameters there is a P, and the shapes [L, K, K]."""
    end = "/sparse/kernel"
    shapes = jax.tree_util.tree_leaves_with_path(abstract_params(family, config))
    named = ((jax.tree_util.keystr(path, simple=True, separator="/"), x) for path, x in shapes)
    return {path.removesuffix(end): x.shape for path, x in named if path.endswith(end)}


def replaced(params: dict, projections: Mapping[str, Any]) -> dict:
    """Parameters with other P, by place; everything else is the very same."""
    params = jax.tree.map(lambda x: x, params)  # its dicts, to add to
    for place, kernel in projections.items():
        here = params
        for folder in place.split("/"):
            here = here[folder]
        here["sparse"] = {"kernel": kernel}
    return params


def products(
    family: str, config: Any, params: dict, through: Pass, batches: Iterable[Any]
) -> dict[str, tuple[Products, Products]]:
    """Of every place where a model is sparse, with keys as CHOSEN, over all batches, float64.

    Not of places that have too few keys for it and are dense therefore.

    Args:
      family, config: of the sparse model.
      params: of it; its P is not looked at.
      through: what the network does with a batch.
      batches: at least one; of other shapes they compile anew.
    """
    each = (
        jax.tree.map(np.float64, _products(family, config, through, params, batch))
        for batch in batches
    )
    return functools.reduce(lambda a, b: jax.tree.map(np.add, a, b), each)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _products(family: str, config: Any, through: Pass, params: dict, batch: Any) -> dict:
    network = changed(bind(family, config, params), Taught)
    with watched() as shown:
        through(network, batch)
    layers = {place: shape[0] for place, shape in places(family, config).items()}
    return {place: _of_layers(shown[place], layers[place]) for place in layers if place in shown}


def _of_layers(shown: list[tuple], layers: int) -> tuple:
    """The sum over calls of a layer, which are several where a stack is gone through again."""

    def summed(*calls: jax.Array) -> jax.Array:
        return sum(x.reshape(-1, layers, *x.shape[-3:]).sum(0) for x in calls)

    return jax.tree.map(summed, *shown)
