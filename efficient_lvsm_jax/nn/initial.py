"""First values for networks made of `blocks` and `dpt`, whose parts are made as zeros.

As DINOv2 has them: norms do nothing, biases are 0, tables and tokens are drawn from a narrow normal
distribution. Kernels keep the variance of what they read, so that small widths train as well.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from efficient_lvsm_jax.nn.blocks import Block, Linear

TOKEN_DEVIATION = 0.02  # of tokens and tables of positions
ENCODER_SCALE = 1.0  # LayerScale of the image encoder
# Of what follows: small where many blocks add up (VGGT). A few of them would learn slower for it.
DEEP, DEEP_SCALE, SHALLOW_SCALE = 12, 0.01, 1.0
NOT_DRAWN = ("bias", "mask_token", "empty")  # zeros: empty has no gradient, mask_token no use
SHARP = 2.0  # of scales of normed queries and keys that begin alike
NEAR = 0.1  # of kernels whose outputs shall begin near a value
CUT = 2.0  # deviations, beyond which nothing is drawn
KEPT_DEVIATION = 0.87962566  # of a normal distribution cut there


def draw(module: nnx.Module, rngs: nnx.Rngs, rounds: int) -> None:
    """Gives all parameters of a module, stacked or not, their first values.

    From DEEP `rounds` of blocks on those behind the encoder begin with a small LayerScale.
    """
    later_scale = DEEP_SCALE if rounds >= DEEP else SHALLOW_SCALE
    params = nnx.to_pure_dict(nnx.state(module, nnx.Param))
    count = sum(x.size for x in jax.tree.leaves(params))
    # At once: a draw for each of some hundred arrays would take a minute to compile.
    values = jax.random.truncated_normal(rngs.params(), -CUT, CUT, (count,)) / KEPT_DEVIATION
    start = 0

    def take(shape: tuple[int, ...]) -> jax.Array:
        nonlocal start
        stop = start + math.prod(shape)
        taken, start = values[start:stop].reshape(shape), stop
        return taken

    nnx.update(module, _drawn(params, take, later_scale))


def begin_alike(blocks: Block) -> None:
    """Lets drawn queries of stacked blocks with normed ones ask for tokens that are like their own.

    Where the same is seen in two frames has to be found before anything is known of cameras; of
    unlike maps a small network would first have to learn what is alike.
    """
    kernel = blocks.qkv.kernel[...]  # [L, D, (q k v), H, K]
    blocks.qkv.kernel[...] = kernel.at[:, :, 1].set(kernel[:, :, 0])
    for norm in (blocks.q_norm, blocks.k_norm):
        norm.scale[...] *= SHARP


def begin_near(part: Linear, value: jax.Array) -> None:
    """Lets what was drawn begin with outputs near a value, of the shape of its bias."""
    part.kernel[...] *= NEAR
    part.bias[...] = jnp.asarray(value, jnp.float32)


def _drawn(
    tree: dict,
    take: Callable[[tuple[int, ...]], jax.Array],
    later_scale: float,
    path: tuple[str, ...] = (),
) -> dict:
    found = {}
    for name, x in tree.items():
        if isinstance(x, dict):
            found[name] = _drawn(x, take, later_scale, (*path, name))
        elif name == "scale":
            found[name] = jnp.ones_like(x)
        elif name in ("scale1", "scale2"):
            scale = ENCODER_SCALE if "encoder" in path else later_scale
            found[name] = jnp.full_like(x, scale)
        elif name in NOT_DRAWN:
            found[name] = jnp.zeros_like(x)
        else:
            deviation = TOKEN_DEVIATION
            if name == "kernel":
                deviation = _inputs(x, tree.get("bias"), enlarges=path[-1] == "map") ** -0.5
            found[name] = deviation * take(x.shape)
    return found


def _inputs(kernel: jax.Array, bias: jax.Array | None, *, enlarges: bool) -> int:
    """How many numbers make one output; of a stack both arrays have the axis of layers."""
    if enlarges:  # each pixel of a result is made of one, see `dpt.Enlarge`
        return kernel.shape[-2]
    return kernel.size // (kernel.shape[-1] if bias is None else bias.size)
