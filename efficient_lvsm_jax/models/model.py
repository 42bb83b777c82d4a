"""`Model`: family, configuration and parameters as one value, and what it runs as programs."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import logging
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from efficient_lvsm_jax.configuration import Settings
from efficient_lvsm_jax.geometry.cameras import Cameras, Views
from efficient_lvsm_jax.models.families import family_named
from efficient_lvsm_jax.models.view_synthesis import ModelConfig
from efficient_lvsm_jax.nn.attention import choose
from efficient_lvsm_jax.nn.cache import bounded
from efficient_lvsm_jax.parallel.sharding import platform

USUAL_SIZE = (256, 256)  # pixels, where nothing says what a model was trained on
FAR = 2.0  # times as many pixels as in training, or as few


def init_params(family: str, config: Settings, key: jax.Array) -> dict:
    """Fresh float32 parameters, a plain nested dict. Jit it with out_shardings to place them."""
    module = family_named(family).module(config, rngs=nnx.Rngs(key))
    return nnx.to_pure_dict(nnx.split(module)[1])


def abstract_params(family: str, config: Settings) -> dict:
    """Shapes and dtypes of the parameters, without making them."""
    return jax.eval_shape(lambda: init_params(family, config, jax.random.key(0)))


def digest(params: dict) -> str:
    """SHA-256 over the paths, shapes, dtypes and values of a nested dict of arrays."""
    total = hashlib.sha256()
    for path, value in sorted(
        (jax.tree_util.keystr(path), np.asarray(value))
        for path, value in jax.tree_util.tree_leaves_with_path(params)
    ):
        total.update(f"{path} {value.dtype} {value.shape}\n".encode())
        total.update(np.ascontiguousarray(value).tobytes())
    return total.hexdigest()


@functools.lru_cache
def _graph(family: str, config: Settings) -> nnx.GraphDef:
    module = family_named(family).module
    return nnx.split(jax.eval_shape(lambda: module(config, rngs=nnx.Rngs(0))))[0]


def bind(family: str, config: ModelConfig, params: dict) -> nnx.Module:
    """The module over `params`, for use inside a jitted function.

    Kernels are cast to the compute dtype here, once; norm scales stay float32.
    """
    return bind_as_is(family, config, prepared(family, config, params))


def bind_as_is(family: str, config: Settings, params: dict) -> nnx.Module:
    """`bind`, the kernels being of the dtype that they shall have."""
    return nnx.merge(_graph(family, config), params)


def prepared(family: str, config: Settings, params: dict) -> dict:
    """`params` with kernels in the compute dtype, but of the parts that stay float32."""
    kept = {name: params[name] for name in family_named(family).module.float32}
    return cast_kernels(params, config.dtype) | kept


def cast_kernels(params: dict, dtype: jnp.dtype) -> dict:
    """Parameters with every `kernel` in another dtype."""

    def cast(path: tuple, x: jax.Array) -> jax.Array:
        # What is in a `nn.eight_bits.Kernel` has attributes for keys, and stays.
        is_kernel = getattr(path[-1], "key", "") == "kernel"
        is_kernel = is_kernel and jnp.issubdtype(x.dtype, jnp.floating)
        return x.astype(dtype) if is_kernel else x

    return jax.tree_util.tree_map_with_path(cast, params)


def with_projections(params: dict, family: str, config: Settings) -> dict:
    """Parameters with those of sparse attention where they lack them, see `nn.sparse_linear`.

    P is then 0, so what a query does not attend to exactly is forgotten, which is said. The share
    of chosen keys is 1, as it was before there was one.
    """
    if not getattr(config, "attention_sparsity", ""):
        return params
    lacking = []
    params = jax.tree.map(lambda x: x, params)  # its dicts, to add to
    for path, leaf in jax.tree_util.tree_leaves_with_path(abstract_params(family, config)):
        *folders, name = (key.key for key in path)
        if folders[-1:] == ["sparse"]:
            here = params
            for folder in folders:
                here = here.setdefault(folder, {})
            if name not in here:
                here[name] = np.full(leaf.shape, name == "share", leaf.dtype)
                lacking += ["/".join(folders[:-1])] * (name == "kernel")
    if lacking:
        logging.warning(
            "model.attention_sparsity: no projection was fitted in %s: it is 0, so what is not "
            "attended to exactly is forgotten",
            ", ".join(lacking),
        )
    return params


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Model:
    """A ready model: arrays in, arrays out, jitted once per shape.

    Attributes:
      family: its name, see `families`.
      config: what it is and how it computes.
      params: nested dict of float32 arrays, kernels maybe `nn.eight_bits.Kernel`.
      trained_sizes: (height, width) of the pictures it was trained on; empty: not known.
    """

    family: str
    config: ModelConfig
    params: dict
    trained_sizes: tuple[tuple[int, int], ...] = ()

    def __repr__(self) -> str:
        count = sum(x.size for x in jax.tree.leaves(self.params))
        return (
            f"Model({self.family}, {count:,} parameters, computes in {self.config.compute_dtype})"
        )

    @property
    def trained_tokens(self) -> int:
        """Patches of a picture it was trained on, the largest; of 256x256 where that is unknown."""
        pixels = max(height * width for height, width in self.trained_sizes or [USUAL_SIZE])
        return max(1, pixels // self.config.patch**2)

    def unlike_training(self, size: tuple[int, int]) -> str:
        """That `size` (height, width) is far from those it was trained at, or an empty text."""
        ratios = [size[0] * size[1] / (height * width) for height, width in self.trained_sizes]
        if any(1 / FAR <= ratio <= FAR for ratio in ratios) or not ratios:
            return ""
        shown = ", ".join(f"{height}x{width}" for height, width in self.trained_sizes)
        return (
            f"pictures of {size[0]}x{size[1]} (height x width) of a model trained at {shown}: "
            "expect artefacts; render at about as many pixels"
        )

    @functools.cached_property
    def _ready(self) -> dict:
        """`params` with kernels in the compute dtype, as casting them takes as long as small jobs.

        A CPU slices stacks of bfloat16 by making them float32 as a whole, so it gets their bits.
        """

        def as_bits(x: jax.Array) -> jax.Array:
            is_half = x.dtype == jnp.bfloat16
            return jax.lax.bitcast_convert_type(x, jnp.uint16) if is_half else x

        if any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(self.params)):
            return self.params  # while tracing; `bind` casts them
        with jax.ensure_compile_time_eval():
            ready = cast_kernels(self.params, self.config.dtype)
            return jax.tree.map(as_bits, ready) if platform() == "cpu" else ready

    @property
    def paged(self) -> bool:
        """Whether memory is a cache, `nn.paged.Pages`, to which views are added one by one."""
        return self.config.paged

    @property
    def reads_in_one_piece(self) -> bool:
        """Whether rendering compiles for powers of two of views, see `nn.cache.bounded`."""
        config = self.config
        return choose(config.attention, config.dtype, config.head_dim, platform()) == "cudnn"

    def encode(self, views: Views) -> Any:
        """Views [B, V, Y, X, 3] to a memory: of Efficient-LVSM a cache with one page per view.

        The cache is stored as `config.cache` says.
        """
        return _call(self.family, self.config, "encode", self._ready, views)

    def decode(self, memory: Any, cameras: Cameras) -> jax.Array:
        """Cameras [B, T] seen through the memory: images [B, T, Y, X, 3] in [0, 1]."""
        if self.paged and self.reads_in_one_piece and memory.log_size is None:
            memory = bounded(memory)
        return _call(self.family, self.config, "decode", self._ready, memory, cameras)

    def input_tokens(self, views: Views) -> jax.Array:
        """Tokens [B, V, N, D] before the first encoder layer."""
        return _call(self.family, self.config, "input_tokens", self._ready, views)

    def target_tokens(self, cameras: Cameras) -> jax.Array:
        """Tokens [B, T, N, D] before the first decoder layer."""
        return _call(self.family, self.config, "target_tokens", self._ready, cameras)


def abstract_ready(family: str, config: ModelConfig) -> dict:
    """Shapes and dtypes of the parameters as a `Model` holds them for rendering on accelerators."""
    cast = functools.partial(cast_kernels, dtype=config.dtype)
    return jax.eval_shape(cast, abstract_params(family, config))


def lower(family: str, config: ModelConfig, method: str, params: dict, *args: Any) -> Any:
    """The program that a `Model` runs for a method, to be compiled.

    Args:
      family, config, method: of the model.
      params: as `abstract_ready`, placed.
      args: of the method, placed; abstract ones will do.
    """
    return _call.lower(family, config, method, params, *args)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _call(family: str, config: ModelConfig, method: str, params: dict, *args: Any) -> Any:
    return getattr(bind(family, config, params), method)(*args)
