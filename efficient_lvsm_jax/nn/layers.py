"""The parts every transformer here is built of: projections, norms, attention blocks, MLP.

Axes: B scene, V view (input or target), N patch token, D width, H head, K head dim, F hidden.
Blocks take a residual stream [B, V, N, D] and return it with their contribution added.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from efficient_lvsm_jax.nn.eight_bits import Kernel, multiply
from efficient_lvsm_jax.nn.paged import Pages
from efficient_lvsm_jax.nn.positions import Positions
from efficient_lvsm_jax.nn.sparse_linear import Digest, SparseLinear, attend_by
from efficient_lvsm_jax.nn.sparsity import Sparsity
from efficient_lvsm_jax.nn.watching import show
from efficient_lvsm_jax.parallel.sharding import views_are_spread

PRODUCT = "product"  # name of what projections return, for remat policies
NORM_EPSILON = 1e-5  # the published value; Flax's own default of 1e-6 is a different model

Initializer = Callable[[jax.Array, tuple[int, ...], int], jax.Array]


def normal(std: jax.Array | float) -> Initializer:
    """Kernels drawn from N(0, std²)."""
    return lambda key, shape, fan_in: std * jax.random.normal(key, shape, jnp.float32)


def uniform() -> Initializer:
    """Kernels drawn from U(±1/√fan_in), what PyTorch gives a linear layer left alone."""

    def draw(key: jax.Array, shape: tuple[int, ...], fan_in: int) -> jax.Array:
        bound = fan_in**-0.5
        return jax.random.uniform(key, shape, jnp.float32, -bound, bound)

    return draw


class Projection(nnx.Module):
    """A bias-free linear map from axes of sizes `inputs` to axes of sizes `outputs`."""

    def __init__(
        self,
        inputs: tuple[int, ...],
        outputs: tuple[int, ...],
        init: Initializer,
        *,
        rngs: nnx.Rngs,
    ):
        self.outputs = outputs
        self.kernel = nnx.Param(init(rngs.params(), (*inputs, *outputs), math.prod(inputs)))

    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, V, N, *inputs] to [B, V, N, *outputs]."""
        kernel = self.kernel[...]
        rows = x.reshape(*x.shape[:3], -1)
        if not views_are_spread():  # else rows of different devices would have to mix
            rows = rows.reshape(-1, rows.shape[-1])
        if isinstance(kernel, Kernel):
            product = multiply(rows, kernel)
        else:
            if kernel.dtype == jnp.uint16:  # bits of bfloat16, see Model
                kernel = jax.lax.bitcast_convert_type(kernel, jnp.bfloat16)
            product = _product(rows, kernel.reshape(-1, math.prod(self.outputs)))
        product = checkpoint_name(product, PRODUCT)
        return product.reshape(*x.shape[:3], *self.outputs)


@jax.custom_vjp
def _product(rows: jax.Array, matrix: jax.Array) -> jax.Array:
    """rows [..., I] times matrix [I, O].

    Autodiff would compute the transpose of the matrix's gradient, and transpose that. On a CPU what
    produces its operands is then fused into strided copies: the gradient of an MLP of width 768
    took 397 ms for 1,536 tokens, and takes 253. Elsewhere both compile to the same.
    """
    return _dot(rows, matrix, ((rows.ndim - 1,), (0,)))


def _product_forward(rows: jax.Array, matrix: jax.Array) -> tuple:
    return _product(rows, matrix), (rows, matrix)


def _product_backward(operands: tuple, upstream: jax.Array) -> tuple[jax.Array, jax.Array]:
    rows, matrix = operands
    lead = tuple(range(rows.ndim - 1))
    of_rows = _dot(upstream, matrix, ((rows.ndim - 1,), (1,)))
    return of_rows, _dot(rows, upstream, (lead, lead))


def _dot(a: jax.Array, b: jax.Array, contracted: tuple) -> jax.Array:
    """The product summed in float32, in the dtype of a.

    Said in so many words, a CPU with AVX-512 BF16 multiplies bfloat16 at 400 GFLOP/s on two cores;
    left to itself at 170 (1024 x 768 x 3072, jax 0.10.2, 2026-11-21).
    """
    product = jax.lax.dot_general(a, b, (contracted, ((), ())), preferred_element_type=jnp.float32)
    return product.astype(a.dtype)


_product.defvjp(_product_forward, _product_backward)


class LayerNorm(nnx.Module):
    """LayerNorm over the last axis without bias, with or without a learned scale [D]."""

    def __init__(self, width: int, *, scaled: bool):
        self.scale = nnx.Param(jnp.ones((width,), jnp.float32)) if scaled else None

    def __call__(self, x: jax.Array) -> jax.Array:
        """Computed in float32, returned in the dtype of x."""
        wide = x.astype(jnp.float32)
        centred = wide - wide.mean(axis=-1, keepdims=True)
        variance = jnp.square(centred).mean(axis=-1, keepdims=True)
        normed = centred * jax.lax.rsqrt(variance + NORM_EPSILON)
        return (normed if self.scale is None else normed * self.scale[...]).astype(x.dtype)


class RMSNorm(nnx.Module):
    """RMS norm over the head channels, one learned scale [K] shared by all heads."""

    def __init__(self, size: int):
        self.scale = nnx.Param(jnp.ones((size,), jnp.float32))

    def __call__(self, x: jax.Array) -> jax.Array:
        wide = x.astype(jnp.float32)
        mean_square = jnp.square(wide).mean(axis=-1, keepdims=True)
        normed = (wide * jax.lax.rsqrt(mean_square + NORM_EPSILON)).astype(x.dtype)
        return (normed * self.scale[...]).astype(x.dtype)


class SelfAttention(nnx.Module):
    """Attention among the tokens of each view by itself, computed as `attend` is told.

    With `sparsity` it is sparse, see `nn.sparse_linear`.
    """

    def __init__(
        self,
        width: int,
        head_dim: int,
        init: Initializer,
        *,
        implementation: str,
        norm_scale: bool = False,
        spread: str | None = None,
        sparsity: Sparsity | None = None,
        rngs: nnx.Rngs,
    ):
        self.implementation, self.spread = implementation, spread
        self.sparse = None if sparsity is None else SparseLinear(head_dim, sparsity)
        heads = width // head_dim
        self.norm = LayerNorm(width, scaled=norm_scale)
        self.qkv = Projection((width,), (3, heads, head_dim), init, rngs=rngs)
        self.out = Projection((heads, head_dim), (width,), init, rngs=rngs)
        self.q_norm = RMSNorm(head_dim)
        self.k_norm = RMSNorm(head_dim)

    def __call__(self, x: jax.Array, positions: Positions | None = None) -> jax.Array:
        """x [B, V, N, D] to x + attention of the same shape; `positions` of the tokens, if any."""
        q, k, v = jnp.einsum("BVNCHK->CBVHNK", self.qkv(self.norm(x)))
        q, k = self.q_norm(q), self.k_norm(k)
        if positions is not None:
            q = positions.queries(q, 1)
            k, v = (positions.keys(x, 1) for x in (k, v))
        page = Pages(k[:, :, :, None], v[:, :, :, None])
        how = {"implementation": self.implementation, "spread": self.spread}
        mixed = attend_by(self.sparse, q, page, **how)
        if positions is not None:
            mixed = positions.results(mixed, 1)
        attended = self.out(jnp.einsum("BVHNK->BVNHK", mixed))
        show("attention", attended)
        return x + attended


class CrossAttention(nnx.Module):
    """Attention of target tokens over the keys and values of all input views.

    With `sparsity` pages have a digest, and whoever attends to them needs `sparse`.
    """

    def __init__(
        self,
        width: int,
        head_dim: int,
        init: Initializer,
        *,
        sparsity: Sparsity | None = None,
        rngs: nnx.Rngs,
    ):
        heads = width // head_dim
        self.sparse = None if sparsity is None else SparseLinear(head_dim, sparsity)
        self.norm = LayerNorm(width, scaled=False)
        self.memory_norm = LayerNorm(width, scaled=False)
        self.q = Projection((width,), (heads, head_dim), init, rngs=rngs)
        self.kv = Projection((width,), (2, heads, head_dim), init, rngs=rngs)
        self.out = Projection((heads, head_dim), (width,), init, rngs=rngs)
        self.q_norm = RMSNorm(head_dim)
        self.k_norm = RMSNorm(head_dim)

    def pages(self, x: jax.Array, positions: Positions | None = None) -> Pages:
        """Input tokens x [B, V, N, D] to keys (normed) and values, each [B, H, V, N, K].

        `positions` of the tokens, if any: both are then moved as their own place says.
        """
        k, v = jnp.einsum("BVNCHK->CBHVNK", self.kv(self.memory_norm(x)))
        k = self.k_norm(k)
        if positions is not None:
            k, v = positions.keys(k, 2), positions.keys(v, 2)
        return Pages(k, v, digest=self.sparse and Digest.of(k, v, self.sparse.sparsity))

    def __call__(
        self,
        x: jax.Array,
        attend_memory: Callable[[jax.Array], jax.Array],
        positions: Positions | None = None,
    ) -> jax.Array:
        """x [B, T, N, D] to x + attention; `attend_memory` maps [B, H, T*N, K] onto the same."""
        batch, views, tokens, _ = x.shape
        q = self.q_norm(jnp.einsum("BTNHK->BHTNK", self.q(self.norm(x))))
        if positions is not None:
            q = positions.queries(q, 2)
        heads, head_dim = q.shape[1], q.shape[-1]
        mixed = attend_memory(q.reshape(batch, heads, views * tokens, head_dim))
        mixed = mixed.reshape(q.shape)
        if positions is not None:
            mixed = positions.results(mixed, 2)
        attended = self.out(jnp.einsum("BHTNK->BTNHK", mixed))
        show("attention", attended)
        return x + attended


@jax.custom_vjp
def gelu(x: jax.Array) -> jax.Array:
    """The exact (erf) GELU, x·Φ(x), in float32, returned in the dtype of x.

    Its gradient keeps only x, where autodiff would keep more.
    """
    wide = x.astype(jnp.float32)
    return (wide * _normal_cdf(wide)).astype(x.dtype)


def _normal_cdf(x: jax.Array) -> jax.Array:
    return 0.5 * (1 + jax.lax.erf(x * 0.5**0.5))


def _gelu_backward(x: jax.Array, upstream: jax.Array) -> tuple[jax.Array]:
    wide = x.astype(jnp.float32)
    density = jnp.exp(-0.5 * wide * wide) * (2 * jnp.pi) ** -0.5
    return ((upstream * (_normal_cdf(wide) + wide * density)).astype(x.dtype),)


gelu.defvjp(lambda x: (gelu(x), x), _gelu_backward)


class MLP(nnx.Module):
    """Two bias-free linear maps around the exact (erf) GELU."""

    def __init__(
        self,
        width: int,
        hidden: int,
        init: Initializer,
        *,
        norm_scale: bool = False,
        rngs: nnx.Rngs,
    ):
        self.norm = LayerNorm(width, scaled=norm_scale)
        self.up = Projection((width,), (hidden,), init, rngs=rngs)
        self.down = Projection((hidden,), (width,), init, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """x [B, V, N, D] to x + MLP of the same shape."""
        return x + self.down(gelu(self.up(self.norm(x))))
