"""Sparse attention beside dense: cached renders, encoding, the attention of VGGT among its frames.

    python benchmarks/sparse.py [--density 0.3] [--rounds 3] [--only 256] [--quick]

Both programs of a row are compiled in one process and run in turns; times are medians, beside that
of time of all cores together, which a machine with other work blurs less. Temporary
memory is what the compiler reserves (`memory_analysis`), beside the scores of one layer in float32,
which no program holds as a whole. Width 768, random weights: numbers decide no time. Rows of few
layers say what a layer costs where all would take long. Prints the table of docs/lite3r.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from efficient_lvsm_jax.geometry.cameras import Cameras, Views
from efficient_lvsm_jax.models.efficient_lvsm import EfficientLVSMConfig
from efficient_lvsm_jax.models.model import abstract_ready, bind, lower
from efficient_lvsm_jax.nn.paged import Pages
from efficient_lvsm_jax.nn.sparse_linear import SparseLinear, attend_by
from efficient_lvsm_jax.nn.sparsity import placed

FAMILY = "efficient_lvsm"
HEADS, HEAD_DIM, FRAME_TOKENS = 4, 64, 1374  # of VGGT, a quarter of its heads
# Sides in pixels, views, layers.
RENDERS = (
    *((256, views, 12) for views in (2, 4, 8)),
    *((256, views, 1) for views in (16, 32, 64)),
    *((512, views, 1) for views in (2, 4, 8)),
)
ENCODES = ((256, 1, 1), (512, 1, 1))
FRAMES, ASKING = (8, 64), 8
MIB = 2**20


@dataclasses.dataclass(frozen=True)
class Row:
    """What is compared: programs by name, their arguments, and bytes of dense scores."""

    name: str
    programs: dict[str, jax.stages.Lowered]
    arguments: dict[str, tuple]
    scores: int


def filled(shapes: object) -> object:
    """Noise of these shapes and dtypes, over and over where they are large; slots are in use."""
    noise = np.random.default_rng(0).standard_normal(1_000_003, np.float32) * 0.05

    def fill(leaf: jax.ShapeDtypeStruct) -> jax.Array:
        if leaf.dtype == bool:
            return jnp.ones(leaf.shape, bool)
        return jnp.asarray(np.resize(noise.astype(leaf.dtype), leaf.shape))

    return jax.tree.map(fill, shapes)


def cameras_of(size: int) -> Cameras:
    """One of the scene."""
    c2w, fxfycxcy = np.eye(4, dtype=np.float32), np.float32([size, size, size / 2, size / 2])
    return Cameras(c2w[None, None], fxfycxcy[None, None], size, size)


def views_of(size: int, count: int) -> Views:
    """Shapes of posed pictures."""
    shapes = (size, size, 3), (4, 4), (4,)
    return Views(*(jax.ShapeDtypeStruct((1, count, *shape), np.float32) for shape in shapes))


def model_row(method: str, size: int, views: int, dense: EfficientLVSMConfig, text: str) -> Row:
    """`decode` of a full cache, or `encode`, of a dense model and the same with sparse places."""
    configs = {"dense": dense, "sparse": dataclasses.replace(dense, attention_sparsity=text)}
    programs, arguments = {}, {}
    for name, config in configs.items():
        params = abstract_ready(FAMILY, config)
        given = [views_of(size, views)]
        if method == "decode":
            pages = jax.eval_shape(functools.partial(_encode, config), params, *given)
            used = jax.ShapeDtypeStruct((views,), bool)
            given = [dataclasses.replace(pages, used=used), cameras_of(size)]
        programs[name] = lower(FAMILY, config, method, params, *given)
        arguments[name] = filled((params, *given[:1])) + tuple(given[1:])
    tokens = size * size // dense.patch**2
    keys = tokens * (views if method == "decode" else 1)
    heads = dense.width // dense.head_dim
    layers = f"{dense.layers} + {dense.layers} layers"
    what = f"{method}, {size} px, {views} view{'s' * (views > 1)}, {layers}"
    return Row(what, programs, arguments, 4 * heads * tokens * keys)


def _encode(config: EfficientLVSMConfig, params: dict, views: Views) -> Pages:
    return bind(FAMILY, config, params).encode(views)


def attention_row(frames: int, text: str) -> Row:
    """Queries of some frames among the keys of all, as one layer of VGGT attends."""
    sparsity = placed(text, ("global",))["global"]
    q = jax.ShapeDtypeStruct((1, HEADS, ASKING * FRAME_TOKENS, HEAD_DIM), np.float32)
    k = jax.ShapeDtypeStruct((1, HEADS, frames, FRAME_TOKENS, HEAD_DIM), np.float32)

    def attend(name: str, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        sparse = None if name == "dense" else SparseLinear(HEAD_DIM, sparsity)
        return attend_by(sparse, q, Pages(k, v))

    programs = {
        name: jax.jit(functools.partial(attend, name)).lower(q, k, k)
        for name in ("dense", "sparse")
    }
    arguments = dict.fromkeys(programs, filled((q, k, k)))
    scores = 4 * HEADS * ASKING * FRAME_TOKENS**2 * frames
    return Row(f"VGGT, {ASKING} frames among {frames}, {HEADS} heads", programs, arguments, scores)


def rows(density: float, blocks: str) -> Iterator[tuple[str, Callable[[], Row]]]:
    """Names of all rows and what makes them."""
    text = "{place}=" + f"{density}:{blocks}"
    for size, views, layers in RENDERS:
        row = functools.partial(
            model_row, "decode", size, views, EfficientLVSMConfig(layers=layers)
        )
        places = text.format(place="cross")
        if size == 512:
            places += "," + text.format(place="decoder")
        yield f"decode {size} {views}", functools.partial(row, places)
    for size, views, layers in ENCODES:
        places = text.format(place="encoder")
        dense = EfficientLVSMConfig(layers=layers)
        row = functools.partial(model_row, "encode", size, views, dense, places)
        yield f"encode {size}", row
    for frames in FRAMES:
        row = functools.partial(attention_row, frames, text.format(place="global"))
        yield f"frames {frames}", row


def measure(row: Row, rounds: int) -> str:
    """A line of the table."""
    compiled, seconds = {}, {}
    for name, program in row.programs.items():
        start = time.perf_counter()
        compiled[name] = program.compile()
        seconds[name] = time.perf_counter() - start
    runs, busy = ({name: [] for name in compiled} for _ in range(2))
    for index in range(rounds + 1):  # the first is not counted
        for name, program in compiled.items():
            start, used = time.perf_counter(), time.process_time()
            jax.block_until_ready(program(*row.arguments[name]))
            if index:
                runs[name].append(time.perf_counter() - start)
                busy[name].append(time.process_time() - used)
    dense, sparse = (statistics.median(runs[name]) for name in ("dense", "sparse"))
    ratio = statistics.median(busy["dense"]) / statistics.median(busy["sparse"])
    of_dense, of_sparse = (
        compiled[name].memory_analysis().temp_size_in_bytes / MIB for name in ("dense", "sparse")
    )
    return (
        f"| {row.name} | {dense:.3f} s | {sparse:.3f} s | {dense / sparse:.2f} | {ratio:.2f} | "
        f"{of_dense:.0f} | {of_sparse:.0f} | {row.scores / MIB:.0f} | "
        f"{seconds['dense']:.1f} s, {seconds['sparse']:.1f} s |"
    )


def main(argv: list[str] | None = None) -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--density", type=float, default=0.3)
    parser.add_argument("--blocks", default="block64", help="of queries and keys: block128x64")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="*", default=[""], help="rows whose name has one of these")
    parser.add_argument("--quick", action="store_true", help="two rows, one round")
    arguments = parser.parse_args(argv)
    if arguments.quick:
        arguments.only, arguments.rounds = ["decode 256 16", "frames 8"], 1
    print(
        "| what | dense | sparse | ratio | by CPU time | MiB: dense | sparse | scores | compiled |"
        "\n|---|---|---|---|---|---|---|---|---|"
    )
    for name, make in rows(arguments.density, arguments.blocks):
        if any(word in name for word in arguments.only):
            print(measure(make(), arguments.rounds), flush=True)


if __name__ == "__main__":
    main()
