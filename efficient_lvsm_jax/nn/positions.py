"""Where tokens are, told to attention by turning channels: rotary patches and relative cameras.

Queries, keys and values are multiplied by a matrix of their own token, and what a query gathers by
the inverse of its own, so scores and results depend on where tokens are relative to each other.
"rotary" turns pairs of channels by the patch's column and row (RoPE, arXiv:2104.09864). "prope"
leaves half of the channels, in groups of four, to the projection P of the token's camera (PRoPE,
arXiv:2507.10496): a score then holds P_query P_key⁻¹ alone, so moving the world changes nothing;
and a key depends on its own camera alone, so views still come to a cache and leave it.

Axes: B scene, V view, N patch token, H head, K head dim, F frequency, G group of four channels.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from efficient_lvsm_jax.geometry.cameras import Cameras, projections

# What positions there are, and of how many channels each a head must consist of multiples.
KINDS = {"none": 1, "rotary": 4, "prope": 8}
BASE = 100.0  # of the frequencies


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Positions:
    """Of the tokens of views, or of sequences made of views.

    The last 4 F channels of a head are turned, half of them by the patch's column, half by its row;
    those before are projected, or as they are.

    Attributes:
      cosine, sine: [B, V, N, 2, F] float32, of the angles of column and row.
      projection, inverse: of the camera, see `geometry.cameras.projections`: [B, V, 4, 4] float32,
        or [B, V, N, 4, 4] where the tokens of a sequence have several cameras. None: of none.
    """

    cosine: jax.Array
    sine: jax.Array
    projection: jax.Array | None = None
    inverse: jax.Array | None = None

    @classmethod
    def of(cls, kind: str, cameras: Cameras, patch: int, head_dim: int) -> Positions | None:
        """Of the patches of pictures.

        Args:
          kind: one of KINDS; of "none" there are no positions.
          cameras: of the views, [B, V].
          patch: side of one in pixels.
          head_dim: K, a multiple of what KINDS says.
        """
        if kind == "none":
            return None
        rows, columns = cameras.height // patch, cameras.width // patch
        frequencies = head_dim // KINDS[kind]
        at = jnp.stack([jnp.tile(jnp.arange(columns), rows), jnp.repeat(jnp.arange(rows), columns)])
        angles = at.T[..., None] * BASE ** -(jnp.arange(frequencies) / frequencies)  # [N, 2, F]
        views = cameras.c2w.shape[:2]
        turns = (jnp.broadcast_to(f(angles), (*views, *angles.shape)) for f in (jnp.cos, jnp.sin))
        return cls(*turns, *(projections(cameras) if kind == "prope" else (None, None)))

    def within_views(self) -> Positions:
        """For tokens that see those of their own view alone: P P⁻¹ is 1, whatever the camera."""
        return Positions(self.cosine, self.sine)

    def in_one_sequence(self) -> Positions:
        """For the tokens of all views as one sequence, [B, 1, V·N, …]."""

        def merged(x: jax.Array | None) -> jax.Array | None:
            if x is None:
                return None
            if x.ndim == 4:  # a camera for each token
                x = jnp.broadcast_to(x[:, :, None], (*self.sine.shape[:3], 4, 4))
            return x.reshape(x.shape[0], 1, -1, *x.shape[3:])

        return jax.tree.map(merged, self, is_leaf=lambda x: x is None)

    def queries(self, q: jax.Array, views: int) -> jax.Array:
        """Pᵀ q for q [B, V, H, N, K] or [B, H, V, N, K]; `views` is the axis of V."""
        return self._moved(q, views, _transposed(self.projection), self.sine)

    def keys(self, k: jax.Array, views: int) -> jax.Array:
        """P⁻¹ k; values alike."""
        return self._moved(k, views, self.inverse, self.sine)

    def results(self, mixed: jax.Array, views: int) -> jax.Array:
        """P applied to what queries gathered of values, which turns it back as well."""
        return self._moved(mixed, views, self.projection, -self.sine)

    def _moved(
        self, x: jax.Array, views: int, matrix: jax.Array | None, sine: jax.Array
    ) -> jax.Array:
        """x with its channels projected and turned, in float32, returned in its dtype."""
        frequencies, shape, heads = self.sine.shape[-1], x.shape, 3 - views
        still, turned = jnp.split(x.astype(jnp.float32), [shape[-1] - 4 * frequencies], axis=-1)
        if matrix is not None:
            matrix = matrix if matrix.ndim == 5 else matrix[:, :, None]  # one for all tokens
            matrix = jnp.expand_dims(matrix, heads)[..., None, :, :]
            still = _product(matrix, still.reshape(*shape[:-1], -1, 4)).reshape(still.shape)
        # By column, then by row: of F pairs all first coordinates of a turn, then all second ones.
        pairs = turned.reshape(*shape[:-1], 2, 2, frequencies)
        cosine, sine = (jnp.expand_dims(turn, heads) for turn in (self.cosine, sine))
        first, second = pairs[..., 0, :], pairs[..., 1, :]
        turned = jnp.stack(
            [first * cosine - second * sine, first * sine + second * cosine], axis=-2
        )
        return jnp.concatenate([still, turned.reshape(*shape[:-1], -1)], axis=-1).astype(x.dtype)


def _transposed(matrix: jax.Array | None) -> jax.Array | None:
    return None if matrix is None else jnp.swapaxes(matrix, -1, -2)


@jax.custom_vjp
def _product(matrix: jax.Array, groups: jax.Array) -> jax.Array:
    """Matrices [..., 1, 4, 4] times vectors [..., G, 4]; axes of the matrices may be 1.

    Multiply and add, not a matmul: accelerators would drop bits, and a CPU takes twice as long. Of
    autodiff's gradient a CPU makes ten times the work.
    """
    columns = jnp.swapaxes(matrix, -1, -2)
    return sum(groups[..., i : i + 1] * columns[..., i, :] for i in range(4))


def _product_backward(operands: tuple, upstream: jax.Array) -> tuple[jax.Array, jax.Array]:
    matrix, groups = operands
    of_matrix = upstream[..., :, None] * groups[..., None, :]
    shared = [axis for axis, size in enumerate(matrix.shape) if size == 1]
    return of_matrix.sum(shared, keepdims=True), _product(jnp.swapaxes(matrix, -1, -2), upstream)


_product.defvjp(lambda *operands: (_product(*operands), operands), _product_backward)
