"""Parts of vision transformers as others publish them: biased maps and norms, LayerScale, blocks.

Parameters are made as zeros for their shapes alone; values come from files. Matrices (every
`kernel`) may be bfloat16, then products with them are; norms, softmax and the residual stream are
float32.

Axes: I image, T token, D width, H head, K head dim, F hidden channels of an MLP.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from efficient_lvsm_jax.nn.layers import gelu
from efficient_lvsm_jax.nn.paged import Pages
from efficient_lvsm_jax.nn.rotary import Rotation, rotate
from efficient_lvsm_jax.nn.sparse_linear import SparseLinear, attend_by
from efficient_lvsm_jax.nn.sparsity import Sparsity
from efficient_lvsm_jax.nn.watching import show

QK_EPSILON = 1e-5  # of norms of queries and keys, whatever that of the others is


class Linear(nnx.Module):
    """A linear map with bias; the caller names the axes. Computed in the dtype of its kernel.

    `product` may be another einsum, of rounded operands for instance.
    """

    product = staticmethod(jnp.einsum)

    def __init__(self, kernel: tuple[int, ...], bias: tuple[int, ...]):
        self.kernel = nnx.Param(jnp.zeros(kernel))
        self.bias = nnx.Param(jnp.zeros(bias))

    def __call__(self, axes: str, x: jax.Array) -> jax.Array:
        kernel = self.kernel[...]
        bias = self.bias[...].astype(kernel.dtype)
        return self.product(axes, x.astype(kernel.dtype), kernel) + bias


class LayerNorm(nnx.Module):
    """LayerNorm over the last axis with scale and bias, in float32."""

    def __init__(self, width: int, epsilon: float):
        self.epsilon = epsilon
        self.scale = nnx.Param(jnp.zeros((width,)))
        self.bias = nnx.Param(jnp.zeros((width,)))

    def __call__(self, x: jax.Array) -> jax.Array:
        x = x.astype(jnp.float32)
        centred = x - x.mean(axis=-1, keepdims=True)
        variance = jnp.square(centred).mean(axis=-1, keepdims=True)
        return centred * jax.lax.rsqrt(variance + self.epsilon) * self.scale[...] + self.bias[...]


class Block(nnx.Module):
    """Attention among the tokens of an image, then an MLP; each with LayerNorm and LayerScale.

    With `qk_norm` queries and keys pass a LayerNorm over the channels of a head, before they are
    turned. With `sparsity` attention is sparse, see `nn.sparse_linear`. `heads` and `add` are what
    is before and after attention, for who attends otherwise.
    """

    def __init__(
        self,
        width: int,
        head_dim: int,
        hidden: int,
        epsilon: float,
        *,
        qk_norm: bool = False,
        attention: str = "auto",
        sparsity: Sparsity | None = None,
    ):
        self.attention = attention
        self.sparse = None if sparsity is None else SparseLinear(head_dim, sparsity)
        heads = (width // head_dim, head_dim)
        self.norm1 = LayerNorm(width, epsilon)
        self.qkv = Linear((width, 3, *heads), (3, *heads))
        self.q_norm = LayerNorm(head_dim, QK_EPSILON) if qk_norm else None
        self.k_norm = LayerNorm(head_dim, QK_EPSILON) if qk_norm else None
        self.out = Linear((*heads, width), (width,))
        self.scale1 = nnx.Param(jnp.zeros((width,)))
        self.norm2 = LayerNorm(width, epsilon)
        self.up = Linear((width, hidden), (hidden,))
        self.down = Linear((hidden, width), (width,))
        self.scale2 = nnx.Param(jnp.zeros((width,)))

    def __call__(self, x: jax.Array, rotation: Rotation | None, *, groups: int = 1) -> jax.Array:
        """x [I, T, D] to the same; `rotation` turns queries and keys, see `nn.rotary.rotate`."""
        q, k, v = self.heads(x, rotation, groups=groups)
        pages = Pages(k[:, :, None], v[:, :, None])
        return self.add(x, attend_by(self.sparse, q, pages, implementation=self.attention))

    def heads(
        self, x: jax.Array, rotation: Rotation | None, *, groups: int = 1
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Finished queries, keys and values, each [I, H, T, K], of tokens x [I, T, D]."""
        qkv = self.qkv("ITD,DCHK->ITCHK", self.norm1(x))
        q, k, v = jnp.einsum("ITCHK->CIHTK", qkv)
        if self.q_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        if rotation is not None:
            q, k = rotate(q, rotation, groups), rotate(k, rotation, groups)
        return q.astype(v.dtype), k.astype(v.dtype), v

    def add(self, x: jax.Array, mixed: jax.Array) -> jax.Array:
        """x [I, T, D] with what attention gathered, [I, H, T, K], and then an MLP added."""
        attended = self.out("IHTK,HKD->ITD", mixed)
        show("attention", attended)
        x = x + self.scale1[...] * attended
        hidden = gelu(self.up("ITD,DF->ITF", self.norm2(x)))
        return x + self.scale2[...] * self.down("ITF,FD->ITD", hidden)
