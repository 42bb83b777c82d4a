"""A cache of many views spread over many devices; for the test that needs more than it has.

    python tests/cache_worker.py --devices 8 --views 256 OUT
    python tests/cache_worker.py --devices 8 --views 256 --full

OUT gets numpy's .npz: "difference", the largest between pictures from the spread cache and from one
device after views were removed and added, and what a device sends in a render, "sent_bytes", beside
the bytes of its pages, "page_bytes". --full compiles the published model instead and prints both.
"""

from __future__ import annotations

import argparse

import conftest
import jax
import jax.numpy as jnp
import numpy as np

from efficient_lvsm_jax.aot.hlo import read_program
from efficient_lvsm_jax.geometry.cameras import Cameras
from efficient_lvsm_jax.models.efficient_lvsm import EfficientLVSMConfig
from efficient_lvsm_jax.models.model import Model, _call, init_params
from efficient_lvsm_jax.nn import cache as pages
from efficient_lvsm_jax.nn.paged import Pages
from efficient_lvsm_jax.parallel.sharding import make_mesh, put_cache

FAMILY = "efficient_lvsm"


def sent_bytes(compiled: jax.stages.Compiled) -> float:
    """What a device sends in a run of a program."""
    return sum(each.sent_bytes for each in read_program(compiled.as_text()).collectives)


def spread_and_alone(model: Model, mesh: jax.sharding.Mesh, views: int) -> dict[str, float]:
    """Pictures through a cache on all devices and through one on a single device, compared."""
    cameras = conftest.random_views(2, seed=1).cameras
    some = min(views, 32)
    parts = [model.encode(conftest.random_views(some, seed=i)) for i in range(views // some)]
    k, v = (jnp.concatenate([getattr(part, name) for part in parts], axis=3) for name in "kv")
    alone, spread = (Pages(k, v, jnp.ones(views, bool)) for _ in range(2))
    page = model.encode(conftest.random_views(1, seed=99))
    with jax.set_mesh(mesh):
        spread = put_cache(mesh, spread)
        compiled = _call.lower(FAMILY, model.config, "decode", model._ready, spread, cameras)
        sent = sent_bytes(compiled.compile())
        for index in (3, views // 2):
            spread = pages.remove(spread, index)
        spread = pages.append(spread, page)
        got = np.asarray(model.decode(spread, cameras))
    for index in (3, views // 2):
        alone = pages.remove(alone, index)
    expected = np.asarray(model.decode(pages.append(alone, page), cameras))
    on_a_device = 2 * k.nbytes / mesh.size
    return {
        "difference": np.abs(got - expected).max(),
        "sent_bytes": sent,
        "page_bytes": on_a_device,
    }


def published(mesh: jax.sharding.Mesh, views: int, targets: int, size: int) -> tuple[float, float]:
    """Bytes sent by a device in a render of the published model, and bytes of its pages."""
    config = EfficientLVSMConfig()
    params = jax.eval_shape(lambda: init_params(FAMILY, config, jax.random.key(0)))
    tokens = (size // config.patch) ** 2
    heads = config.width // config.head_dim
    shape = (config.layers, 1, heads, views, tokens, config.head_dim)
    spread = jax.NamedSharding(mesh, jax.P(None, None, None, "context"))
    pool = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=spread)
    cache = Pages(pool, pool, jax.ShapeDtypeStruct((views,), bool))
    poses = jax.ShapeDtypeStruct((1, targets, 4, 4), jnp.float32)
    cameras = Cameras(poses, jax.ShapeDtypeStruct((1, targets, 4), jnp.float32), size, size)
    with jax.set_mesh(mesh):
        compiled = _call.lower(FAMILY, config, "decode", params, cache, cameras).compile()
    return sent_bytes(compiled), 2 * np.prod(shape) * 4 / mesh.size


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("out", nargs="?")
    parser.add_argument("--devices", type=int, required=True)
    parser.add_argument("--views", type=int, required=True)
    parser.add_argument("--full", action="store_true")
    asked = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", asked.devices)
    mesh = make_mesh(f"context:{asked.devices}")
    if asked.full:
        for targets in (1, 8):
            sent, held = published(mesh, asked.views, targets, 256)
            print(f"{targets} targets: sends {sent / 2**20:.0f} MiB, holds {held / 2**20:.0f} MiB")
        return
    params = init_params(FAMILY, conftest.SMALL, jax.random.key(0))
    model = Model(FAMILY, conftest.SMALL, params)
    np.savez(asked.out, **spread_and_alone(model, mesh, asked.views))


if __name__ == "__main__":
    main()
