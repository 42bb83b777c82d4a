"""Sparse-linear attention fitted in closed form, and how far it then is from dense attention.

The dense model is what runs: its attention gives O*, and beside it are computed, of the same
queries, keys and values, what chosen keys and what sums give, O_s and O_l (`nn.sparse_linear`).
Products of these three, added up over tokens and pictures, are all that is kept. The share α and
the P that bring α O_s + O_l P nearest to O*, and the distance that any leave, follow from them
without another pass and without a gradient.

Axes: L layer, B scene, H head, Q query, K head dim, M 2·K: what sums give, then what keys give.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
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

# How much a fit is held to a share of 1 and P = 0, see `Products.fitted`; 1 is altogether.
RIDGES = np.array([1, 0.5, 0.1, 1e-2, 1e-3, 1e-4])

# The parameters of a `SparseLinear` of all layers: share [L] and kernel, P, [L, K, K]; or of every
# head its own, [L, H] and [L, H, K, K].
Fit = dict[str, np.ndarray | jax.Array]
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

    def fitted(self, ridge: np.ndarray | float, *, per_head: bool = False) -> Fit:
        """The fit that is least of (1 − r) |α O_s + O_l P − O*|² + r (d |P|² + s (α − 1)²).

        d is the mean diagonal of O_lᵀ O_l and s is |O_s|², so r has no unit.

        Args:
          ridge: r, above 0 and at most 1, of all layers or of each, [L].
          per_head: whether every head has a fit of its own.
        """
        both, wanted = self.both, self.wanted
        if not per_head:
            both, wanted = (x.sum(axis=1, keepdims=True) for x in (both, wanted))
        size = wanted.shape[-1]
        sums, across, keys = (
            both[..., :size, :size],
            both[..., :size, size:],
            both[..., size:, size:],
        )
        ridge = np.reshape(ridge, (-1, 1, 1, 1))

        def energy(x: np.ndarray) -> np.ndarray:  # of nothing 1: the fit is then α = 1 or P = 0
            total = np.trace(x, axis1=-2, axis2=-1)[..., None, None]
            return np.where(total > 0, total, 1)

        held = (1 - ridge) * sums + ridge * energy(sums) / size * np.eye(size)
        targets = np.concatenate([wanted[..., :size, :], across], axis=-1)
        # P is of_wanted − α of_keys; α is what is left to find.
        of_wanted, of_keys = np.split(np.linalg.solve(held, (1 - ridge) * targets), 2, axis=-1)

        def left(x: np.ndarray, explained: np.ndarray) -> np.ndarray:
            trace = np.trace(x, axis1=-2, axis2=-1)[..., None, None]
            trace = trace - (across * explained).sum((-2, -1), keepdims=True)
            return (1 - ridge) * trace + ridge * energy(keys)

        share = left(wanted[..., size:, :], of_wanted) / left(keys, of_keys)
        fit = {"kernel": of_wanted - share * of_keys, "share": share[..., 0, 0]}
        return fit if per_head else {name: x[:, 0] for name, x in fit.items()}

    def left(self, fit: Fit) -> np.ndarray:
        """|α O_s + O_l P − O*|² of every layer, [L]."""
        kernel, share = fit["kernel"], fit["share"]
        if kernel.ndim == 3:
            kernel, share = kernel[:, None], share[:, None]
        keys = share[..., None, None] * np.eye(kernel.shape[-1])
        how = np.concatenate([kernel, keys], axis=-2)
        return (how * (self.both @ how - 2 * self.wanted)).sum((-3, -2, -1)) + self._total

    def errors(self, fit: Fit) -> np.ndarray:
        """|α O_s + O_l P − O*| / |O*| of every layer, [L]."""
        return np.sqrt(np.maximum(self.left(fit), 0) / self._total)

    @property
    def _total(self) -> np.ndarray:
        return self.total.sum((-3, -2, -1))


def fitted(parts: Sequence[Products], *, per_head: bool = False) -> tuple[Fit, np.ndarray]:
    """The fit to all parts, and the ridge of every layer, [L]: of `RIDGES` the one that does best.

    What it does is seen on each part by a fit to the others. Where none helps, P is 0.

    Args:
      parts: products of different scenes, two or more.
      per_head: as of `Products.fitted`.
    """
    every = functools.reduce(functools.partial(jax.tree.map, np.add), parts)
    others = [jax.tree.map(np.subtract, every, part) for part in parts]
    left = [
        sum(
            part.left(other.fitted(ridge, per_head=per_head))
            for part, other in zip(parts, others, strict=True)
        )
        for ridge in RIDGES
    ]
    ridge = RIDGES[np.argmin(left, axis=0)]
    return every.fitted(ridge, per_head=per_head), ridge


class Instead(SparseLinear):
    """Another kind of sparse attention with the parameters of one, which knows its place."""

    def __init__(self, of: SparseLinear, place: str):
        self.sparsity, self.kernel, self.share = of.sparsity, of.kernel, of.share
        self.place = place


class Taught(Instead):
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


class AtRandom(Instead):
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
        return mixed[..., 0, :].astype(jnp.float32), linear


CHOSEN = (SparseLinear, AtRandom)


def changed(network: nnx.Module, to: type[Instead]) -> nnx.Module:
    """The network, whose modules are changed, with another kind of sparse attention."""
    for path, module in list(nnx.iter_modules(network)):
        if isinstance(getattr(module, "sparse", None), SparseLinear):
            module.sparse = to(module.sparse, "/".join(map(str, path)))
    return network


def places(family: str, config: Any) -> dict[str, tuple[int, ...]]:
    """Where in a model's parameters attention is sparse, and the shapes [L, K, K] of P."""
    end = "/sparse/kernel"
    shapes = jax.tree_util.tree_leaves_with_path(abstract_params(family, config))
    named = ((jax.tree_util.keystr(path, simple=True, separator="/"), x) for path, x in shapes)
    return {path.removesuffix(end): x.shape for path, x in named if path.endswith(end)}


def unfitted(family: str, config: Any) -> dict[str, Fit]:
    """A share of 1 and P = 0 in all places."""
    return {
        place: {"kernel": np.zeros(shape, np.float32), "share": np.ones(shape[:1], np.float32)}
        for place, shape in places(family, config).items()
    }


def replaced(params: dict, fits: Mapping[str, Fit]) -> dict:
    """Parameters with other fits, by place; everything else is the very same."""
    params = jax.tree.map(lambda x: x, params)  # its dicts, to add to
    for place, fit in fits.items():
        here = params
        for folder in place.split("/"):
            here = here[folder]
        here["sparse"] = {**here.get("sparse", {}), **fit}
    return params


def products(
    family: str, config: Any, params: dict, through: Pass, batches: Iterable[Any]
) -> dict[str, tuple[Products, Products]]:
    """Of every place where a model is sparse, with keys as CHOSEN, over all batches, float64.

    Not of places that have too few keys for it and are dense therefore.

    Args:
      family, config: of the sparse model.
      params: of it; its fit is not looked at.
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
