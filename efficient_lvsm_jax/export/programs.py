"""A model as programs that run without this package: StableHLO by `jax.export`.

A program is traced for the platform it will run on, wherever this runs: attention is the CPU's
loops on cpu, splash on tpu, and whole scores on cuda, because JAX makes no promise that a cuDNN
call in a file runs with later versions. --cudnn takes it nevertheless.
"""

from __future__ import annotations

import dataclasses
import functools
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import AbstractDevice, AbstractMesh, AxisType

from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.export import load_exported
from efficient_lvsm_jax.export.load_exported import described
from efficient_lvsm_jax.files.manifest import write_manifest
from efficient_lvsm_jax.files.writing import folder_written_whole
from efficient_lvsm_jax.geometry.cameras import Cameras, Views
from efficient_lvsm_jax.models.model import Model, bind
from efficient_lvsm_jax.models.view_synthesis import ModelConfig
from efficient_lvsm_jax.nn import cache as pages
from efficient_lvsm_jax.version import __version__

# Platforms as jax.export names them: how attention is computed there, and the device to trace for.
PLATFORMS = {
    "cpu": ("cpu", AbstractDevice("cpu", None, "cpu")),
    "cuda": ("xla", AbstractDevice("NVIDIA", None, "gpu")),
    "tpu": ("splash", AbstractDevice("TPU", None, "tpu")),
}
CUDNN_CALL = "__cudnn$fmhaSoftmax"
LOADER_FILE, WEIGHTS_FILE, PROGRAM_SUFFIX = "load.py", "weights.npz", ".jaxexport"
CONVENTIONS = {
    "axes": "B scene, always 1; V input view; T target; Y X pixel; L layer; H head; S page slot; "
    "N patch token; K head dim; D width",
    "image": "[B, V, Y, X, 3] RGB in [0, 1], float32",
    "c2w": "[B, V or T, 4, 4] camera-to-world in the scene frame, float32; OpenCV axes: x right, y "
    "down, z forward",
    "fxfycxcy": "[B, V or T, 4] in pixels of the picture; the centre of the top left pixel is at "
    "(0.5, 0.5)",
    "scene frame": "origin: mean centre of the input cameras; z: their mean viewing direction; y: "
    "close to their mean image down direction; centres are scaled so that the largest |coordinate| "
    "of an input's is 1 / 1.35. Fixed once for a cache or memory, which embeds it",
    "cache": "k, v [L, B, H, S, N, K] and used [S] bool: which slots hold a view; what lies in the "
    "others is never read, so a view is removed by a false there. uint16 holds the bits of "
    "bfloat16, uint8 those of float8_e4m3fn, and k_scale, v_scale [L, B, H, S], if there, multiply "
    "what is stored; digest/…, if there, is what sparse attention needs of each page, slots on the "
    "fourth axis. append takes the first free slot. Which view lies where means nothing. "
    "Programs do not check used: one at least to decode, one free to append",
    "memory": "what decode takes: a cache, or of LVSM models what encode gives for all views",
    "weights": f"{WEIGHTS_FILE} by name; bfloat16 is stored there as uint16, bit by bit",
}


@dataclasses.dataclass(frozen=True)
class Shapes:
    """For which shapes programs are made.

    Attributes:
      sizes: (height, width) in pixels; inputs and targets of a scene have the same.
      targets: numbers of pictures that one call of `decode` renders.
      capacity: page slots of the cache; of models that have one.
      inputs: numbers of input views; of models without a cache, whose memory is of all views.
    """

    sizes: tuple[tuple[int, int], ...]
    targets: tuple[int, ...]
    capacity: int | None = None
    inputs: tuple[int, ...] = ()

    def check(self, model: Model) -> None:
        """Raises InputError unless these are the shapes that `model` needs."""
        if model.paged and (self.capacity is None or self.inputs):
            raise InputError(
                f"--capacity is needed for {model.family}, and --count is not: its cache takes "
                "views one by one, up to so many"
            )
        if not model.paged and (self.capacity is not None or not self.inputs):
            raise InputError(
                f"--count is needed for {model.family}, and --capacity is not: it encodes all "
                "input views at once and has no cache"
            )


class Names:
    """The leaves of a tree by name, for programs whose arguments are plain dicts."""

    def __init__(self, tree: Any):
        leaves, self._structure = jax.tree_util.tree_flatten_with_path(tree)
        self._names = [
            jax.tree_util.keystr(path, simple=True, separator="/") or "tokens" for path, _ in leaves
        ]

    def flat(self, tree: Any) -> dict[str, Any]:
        """A tree of this structure as one dict."""
        return dict(zip(self._names, self._structure.flatten_up_to(tree), strict=True))

    def tree(self, flat: dict[str, Any]) -> Any:
        """The tree again."""
        return self._structure.unflatten([flat[name] for name in self._names])


@dataclasses.dataclass(frozen=True)
class Program:
    """A function with the shapes of its arguments, before it is lowered for any platform.

    Attributes:
      function: what the loader calls it.
      name: of its files.
      size: (height, width), of programs that compute with the model.
      arguments: abstract arrays by name, besides the weights.
      call: the function of `arguments` and, with a size, of a configuration and the weights.
    """

    function: str
    name: str
    size: tuple[int, int] | None
    arguments: dict[str, Any]
    call: Callable[..., Any]


def export(
    model: Model,
    folder: str | Path,
    shapes: Shapes,
    *,
    platforms: Sequence[str] = tuple(PLATFORMS),
    cudnn: bool = False,
) -> dict[str, Any]:
    """Writes `model` as programs: all of them by one rename, or nothing.

    Args:
      model: its `compute_dtype` is that of the programs; its `attention` is not looked at.
      folder: must not exist.
      shapes: to make programs for.
      platforms: of PLATFORMS; all unless told.
      cudnn: compute attention with cuDNN on cuda. Needs bfloat16, cuDNN on this machine, and gives
        up JAX's promise that a file runs with later versions.

    Returns:
      What manifest.json holds besides digests.

    Raises:
      InputError: `folder` exists or cannot be written, an unknown platform, sizes that are not
        multiples of the patch, shapes that are not this model's, cuDNN that cannot be used, or
        flatbuffers is missing.
    """
    folder = Path(folder).absolute()
    if folder.exists():
        raise InputError(f"{folder} already exists; name a new folder or remove it first")
    try:
        import flatbuffers  # noqa: F401  jax.export writes and reads with it
    except ImportError as error:
        raise InputError(
            "exporting needs flatbuffers: pip install 'efficient-lvsm-jax[export]'"
        ) from error
    shapes.check(model)
    if unknown := [name for name in platforms if name not in PLATFORMS]:
        raise InputError(f"platform {unknown[0]!r}: expected some of {', '.join(PLATFORMS)}")
    if cudnn and ("cuda" not in platforms or model.config.dtype != jnp.bfloat16):
        raise InputError(
            "--cudnn: cuDNN attention runs on cuda, in bfloat16; add --compute-dtype bfloat16 and "
            "cuda to --platforms, or leave --cudnn out"
        )
    # Kernels as the programs read them: cast once, here.
    params = nnx.to_pure_dict(nnx.split(bind(model.family, model.config, model.params))[1])
    names = Names(params)
    weights = names.flat(params)
    entries, contents = [], {}
    for program in programs(model, shapes, names):
        # What computes with the model differs between platforms; the rest is one program for all.
        for lowered_for in [[name] for name in platforms] if program.size else [list(platforms)]:
            exported, entry = _lower(program, model, weights, lowered_for, cudnn)
            entries.append(entry)
            contents[entry["file"]] = exported.serialize()
    about = {
        "format": load_exported.FORMAT,
        "version": __version__,
        "family": model.family,
        "config": dataclasses.asdict(model.config),
        "jax": jax.__version__,
        "calling_convention_version": exported.calling_convention_version,
        "platforms": list(platforms),
        "conventions": CONVENTIONS,
        "weights": {name: described(x) for name, x in weights.items()},
        "programs": entries,
    }
    del about["config"]["attention"]  # each program says its own
    _write(folder, about, weights, contents)
    return about


def programs(model: Model, shapes: Shapes, names: Names) -> list[Program]:
    """All programs of a model, none twice; `names` are those of its weights."""
    found: dict[tuple, Program] = {}
    for size in shapes.sizes:
        for inputs in shapes.inputs or (1,):
            for program in _programs_of(model, shapes, names, size, inputs):
                arguments = str(jax.tree.map(described, program.arguments))
                found.setdefault((program.function, program.size, arguments), program)
    return list(found.values())


def _programs_of(
    model: Model, shapes: Shapes, names: Names, size: tuple[int, int], inputs: int
) -> Iterator[Program]:
    """Programs for pictures of one size and one number of input views."""
    family, label = model.family, "x".join(map(str, size))
    any_attention = dataclasses.replace(model.config, attention="xla")
    abstract = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.float32)

    def cameras(count: int) -> dict[str, jax.ShapeDtypeStruct]:
        return {"c2w": abstract((1, count, 4, 4)), "fxfycxcy": abstract((1, count, 4))}

    def encoded(config: ModelConfig, weights: dict, **views: jax.Array) -> Any:
        return bind(family, config, names.tree(weights)).encode(Views(**views))

    views = {"image": abstract((1, inputs, *size, 3)), **cameras(inputs)}
    page = jax.eval_shape(
        functools.partial(encoded, any_attention), names.flat(model.params), **views
    )
    of_page, memory = Names(page), page
    if model.paged:
        memory = jax.eval_shape(lambda: pages.empty(shapes.capacity, page))
    of_memory = Names(memory)
    page, memory = of_page.flat(page), of_memory.flat(memory)

    def encode(config: ModelConfig, weights: dict, **views: jax.Array) -> dict:
        return of_page.flat(encoded(config, weights, **views))

    def decode(config: ModelConfig, weights: dict, memory: dict, **poses: jax.Array) -> jax.Array:
        cameras = Cameras(**poses, height=size[0], width=size[1])
        return bind(family, config, names.tree(weights)).decode(of_memory.tree(memory), cameras)

    if not model.paged:
        label += f"-{inputs}-inputs"
    yield Program("encode", f"encode-{label}", size, views, encode)
    for targets in shapes.targets:
        arguments = {"memory": memory, **cameras(targets)}
        yield Program("decode", f"decode-{label}-{targets}-targets", size, arguments, decode)
    if not model.paged:
        return

    def append(cache: dict, page: dict) -> dict:
        return of_memory.flat(pages.append(of_memory.tree(cache), of_page.tree(page)))

    def replace(cache: dict, slot: jax.Array, page: dict) -> dict:
        return of_memory.flat(pages.replace(of_memory.tree(cache), slot, of_page.tree(page)))

    slot = jax.ShapeDtypeStruct((), jnp.int32)
    for call, arguments in (
        (append, {"cache": memory, "page": page}),
        (replace, {"cache": memory, "slot": slot, "page": page}),
    ):
        yield Program(call.__name__, f"{call.__name__}-{label}", None, arguments, call)


def _lower(
    program: Program, model: Model, weights: dict, platforms: Sequence[str], cudnn: bool
) -> tuple[jax.export.Exported, dict[str, Any]]:
    """A program as StableHLO for some platforms, and its line in the manifest."""
    call, arguments, without_promise = program.call, program.arguments, []
    attention, device = PLATFORMS[platforms[0]]
    if program.size is None:
        attention = None
    else:
        if cudnn and platforms == ["cuda"]:
            attention, without_promise = "cudnn", [CUDNN_CALL]
        config = dataclasses.replace(model.config, attention=attention)
        call = functools.partial(call, config)
        arguments = {**arguments, "weights": jax.eval_shape(lambda: weights)}
    checks = [jax.export.DisabledSafetyCheck.custom_call(name) for name in without_promise]
    # What is traced asks for the platform by the mesh in use: `parallel.sharding.platform`.
    mesh = AbstractMesh((1,), ("data",), (AxisType.Auto,), abstract_device=device)
    lower = jax.export.export(jax.jit(call), platforms=platforms, disabled_checks=checks)
    try:
        with jax.sharding.use_abstract_mesh(mesh):
            exported = lower(**arguments)
    except RuntimeError as error:
        if attention != "cudnn" or "cuDNN" not in str(error):
            raise
        raise InputError(
            "--cudnn: JAX finds no cuDNN on this machine, and needs it to export; install "
            "efficient-lvsm-jax[cuda] here, export where it is, or leave --cudnn out"
        ) from error
    result = jax.tree.unflatten(exported.out_tree, exported.out_avals)
    return exported, {
        "function": program.function,
        "size": program.size,
        "platforms": list(platforms),
        "file": f"{program.name}-{'-'.join(platforms)}{PROGRAM_SUFFIX}",
        "arguments": jax.tree.map(described, program.arguments),
        "result": jax.tree.map(described, result),
        "takes_weights": program.size is not None,
        "attention": attention,
        "without_promise": without_promise,
    }


def _write(
    folder: Path, about: dict[str, Any], weights: dict[str, Any], contents: dict[str, bytes]
) -> None:
    """Everything beside `folder`, with its digests; then renamed."""
    arrays = {name: np.asarray(x) for name, x in weights.items()}
    # NumPy files know no bfloat16.
    is_bfloat16 = {name: x.dtype == jnp.bfloat16 for name, x in arrays.items()}
    stored = {name: x.view(np.uint16) if is_bfloat16[name] else x for name, x in arrays.items()}
    try:
        with folder_written_whole(folder) as partial:
            np.savez(partial / WEIGHTS_FILE, allow_pickle=False, **stored)
            for name, content in contents.items():
                (partial / name).write_bytes(content)
            shutil.copyfile(load_exported.__file__, partial / LOADER_FILE)
            write_manifest(partial, about)
    except OSError as error:
        raise InputError(
            f"{folder}: cannot be written ({error.strerror or error}); free space or name another "
            "folder"
        ) from error
