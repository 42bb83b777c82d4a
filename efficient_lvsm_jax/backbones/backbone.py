"""Frozen vision transformers whose features training can align with (REPA; published program, §3).

    teacher = load_teacher("dinov3_vitb16_pretrain_lvd1689m-73cec8be.pth")    # weights.backbones
    teacher = teacher.frozen(layers=8, dtype="bfloat16")

A `Teacher` is a tree of arrays with its configuration as static data: pass it to jitted functions
as an argument, so that its weights do not become constants of the compiled program.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
from flax import nnx

from efficient_lvsm_jax.backbones.dinov2 import DINOv2
from efficient_lvsm_jax.backbones.dinov3 import DINOv3
from efficient_lvsm_jax.backbones.vit import TeacherConfig, VisionTransformer
from efficient_lvsm_jax.errors import InputError

FAMILIES: dict[str, type[VisionTransformer]] = {"dinov3": DINOv3, "dinov2": DINOv2}
PUBLISHED = {
    "dinov3": TeacherConfig("dinov3", patch=16, storage_tokens=4),
    "dinov2": TeacherConfig("dinov2", patch=14, position_side=37),
}


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=("params",), meta_fields=("config",)
)
@dataclasses.dataclass(frozen=True, eq=False)
class Teacher:
    """A teacher: what it is, and its weights.

    Attributes:
      config: static.
      params: nested dict of arrays, as `abstract_params` describes them.
    """

    config: TeacherConfig
    params: dict

    def module(self) -> VisionTransformer:
        """The network over these weights, for use inside a jitted function."""
        return nnx.merge(_graph(self.config), self.params)

    def frozen(self, layers: int, dtype: str) -> Teacher:
        """The teacher as training keeps it: its first `layers` layers, matrices in `dtype`.

        Args:
          layers: those up to the highest one that labels are taken from.
          dtype: "float32" or "bfloat16"; norms, biases, scales and positions stay float32.

        Raises:
          InputError: the teacher has fewer layers, or another dtype.
        """
        if not 1 <= layers <= self.config.layers:
            raise InputError(
                f"{layers} layers of {self.config.family}, which has {self.config.layers}: expected"
                f" 1 to {self.config.layers}"
            )
        if dtype not in ("float32", "bfloat16"):
            raise InputError(f"teacher dtype {dtype!r}: expected float32 or bfloat16")

        def keep(path: tuple, x: jax.Array) -> jax.Array:
            x = x[:layers] if path[0].key == "blocks" else x
            return x.astype(dtype if path[-1].key == "kernel" else jnp.float32)

        params = jax.tree_util.tree_map_with_path(keep, self.params)
        return Teacher(dataclasses.replace(self.config, layers=layers), params)


def abstract_params(config: TeacherConfig) -> dict:
    """Shapes and dtypes of the parameters, without making them."""
    return jax.eval_shape(lambda: nnx.to_pure_dict(nnx.split(FAMILIES[config.family](config))[1]))


@functools.lru_cache
def _graph(config: TeacherConfig) -> nnx.GraphDef:
    return nnx.split(jax.eval_shape(lambda: FAMILIES[config.family](config)))[0]
