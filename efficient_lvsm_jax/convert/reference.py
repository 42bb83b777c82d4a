"""Compares a model with outputs recorded from the published program.

A reference file (.npz) has, channel-first as the published program keeps them: `image`
[B, V, 3, Y, X], `c2w` [B, V, 4, 4], `fxfycxcy` [B, V, 4], `num_input` (the first views are inputs,
the rest targets) and at least `render` [B, T, 3, Y, X]. It may have

- `render_incremental` [inputs, B, T, 3, Y, X]: the render after each added input;
- `cache_first_layer_k`, `cache_first_layer_v`, `cache_last_layer_k`, `_v` [B, inputs·N, H, K];
- `input_tokens_after_tokenizer` [B·inputs, N, D], `target_tokens_after_tokenizer` [B·T, N, D];
- `ray_o`, `ray_d` [B, V, 3, …, …]; origins are the same at every pixel, so any number of pixels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import jax
import numpy as np

from efficient_lvsm_jax.convert import geometry_reference
from efficient_lvsm_jax.convert.geometry_reference import GeometryReference
from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.files.recorded import Difference, array_names, read_arrays
from efficient_lvsm_jax.files.stored import printable
from efficient_lvsm_jax.geometry.cameras import Cameras, Views, check_cameras, rays
from efficient_lvsm_jax.models.geometry_model import GeometryModel
from efficient_lvsm_jax.models.model import Model
from efficient_lvsm_jax.nn import cache as pages

LAST = "cache_last_layer_k", "cache_last_layer_v"
# Quantities, the arrays they are compared by, and the largest absolute difference allowed; of the
# encoder-decoder LVSM correct programs differ more, as un-normalised tokens enter its encoder.
QUANTITIES = {
    "render": (("render",), 2e-5),
    "render_incremental": (("render_incremental",), 2e-5),
    "cache": (("cache_first_layer_k", "cache_first_layer_v", *LAST), 1e-4),
    "tokens": (("input_tokens_after_tokenizer", "target_tokens_after_tokenizer"), 1e-5),
    "rays": (("ray_o", "ray_d"), 1e-5),
}
RENDER_LIMITS = {"lvsm_encoder_decoder": 5e-4}
INPUTS = ("image", "c2w", "fxfycxcy", "num_input")


@dataclasses.dataclass(frozen=True)
class Reference:
    """A reference file: posed input pictures, target cameras, and the recorded arrays by name.

    `not_compared` are names of arrays that nothing here gives.
    """

    path: Path
    views: Views
    cameras: Cameras
    recorded: dict[str, np.ndarray]
    not_compared: tuple[str, ...]
    told: ClassVar[dict] = {}  # it says no settings
    family: ClassVar[None] = None  # of several


def read_reference(path: str | Path) -> Reference | GeometryReference:
    """Reads a reference file, of whatever family it was recorded from.

    Raises:
      InputError: not such a file, an array is missing, of a wrong dtype or shape, or not finite.
    """
    path = Path(path)
    present = array_names(path)
    if kind := geometry_reference.kind_of(present):
        return geometry_reference.read(path, kind)
    names = [*INPUTS, *(name for arrays, _ in QUANTITIES.values() for name in arrays)]
    arrays = read_arrays(path, [name for name in names if name in present])
    missing = [name for name in (*INPUTS, "render") if name not in arrays]
    if missing:
        raise InputError(f"{path}: has no array {', '.join(missing)}")
    for name, array in arrays.items():
        kind = np.integer if name == "num_input" else np.floating
        if not np.issubdtype(array.dtype, kind) or not np.isfinite(array).all():
            raise InputError(
                f"{path}: {name} ({array.dtype}) is not an array of finite "
                f"{'integers' if name == 'num_input' else 'floats'}"
            )
    return _posed(path, arrays, tuple(sorted(present - arrays.keys())))


def _posed(path: Path, arrays: dict[str, np.ndarray], others: tuple[str, ...]) -> Reference:
    image, c2w, fxfycxcy, inputs = (arrays.pop(name) for name in INPUTS)
    if image.ndim != 5 or image.shape[2] != 3:
        raise InputError(f"{path}: image is {image.shape}, expected [B, V, 3, Y, X]")
    for name, array, shape in (("c2w", c2w, (4, 4)), ("fxfycxcy", fxfycxcy, (4,))):
        if array.shape != (*image.shape[:2], *shape):
            raise InputError(
                f"{path}: {name} is {array.shape}, expected {(*image.shape[:2], *shape)}"
            )
    if inputs.shape != () or not 1 <= inputs < image.shape[1]:
        raise InputError(
            f"{path}: num_input is {printable(str(inputs))}, expected a number from 1 to "
            f"{image.shape[1] - 1}, so that at least one of {image.shape[1]} views is a target"
        )
    check_cameras(c2w, fxfycxcy, f"{path}: camera")
    count = int(inputs)
    image = np.moveaxis(image, 2, -1).astype(np.float32)
    c2w, fxfycxcy = c2w.astype(np.float32), fxfycxcy.astype(np.float32)
    views = Views(image[:, :count], c2w[:, :count], fxfycxcy[:, :count])
    cameras = Cameras(c2w[:, count:], fxfycxcy[:, count:], *image.shape[2:4])
    return Reference(path, views, cameras, arrays, others)


def compare(
    model: Model | GeometryModel, reference: Reference | GeometryReference
) -> Iterator[Difference]:
    """Runs `model` on the reference's input, quantity by quantity.

    Raises:
      InputError: a recorded array has another shape than the model's, or is of a cache, which only
        Efficient-LVSM has; or the model is of another kind.
    """
    if isinstance(model, GeometryModel) != isinstance(reference, GeometryReference):
        raise InputError(f"{reference.path}: was not recorded from a model like {model!r}")
    if isinstance(reference, GeometryReference):
        yield from geometry_reference.compare(model, reference)
        return
    of_caches = (*QUANTITIES["cache"][0], *QUANTITIES["render_incremental"][0])
    cached = [name for name in of_caches if name in reference.recorded]
    if cached and not model.paged:
        raise InputError(
            f"{reference.path}: has {', '.join(cached)}, but a model of the family {model.family} "
            "has no cache"
        )
    # Accelerators would otherwise multiply float32 matrices with fewer bits.
    with jax.default_matmul_precision("highest"):
        for quantity, (names, limit) in QUANTITIES.items():
            errors = [
                _error(reference, name, _computed(model, reference, name))
                for name in names
                if name in reference.recorded
            ]
            if quantity == "render":
                limit = RENDER_LIMITS.get(model.family, limit)
            if errors:
                yield Difference(quantity, float(np.max(errors)), limit)


def _error(reference: Reference, name: str, computed: np.ndarray) -> float:
    recorded = reference.recorded[name]
    if recorded.shape != computed.shape:
        raise InputError(
            f"{reference.path}: {name} is {recorded.shape}, but this model gives {computed.shape}"
        )
    return np.max(np.abs(computed.astype(np.float64) - recorded), initial=0.0)


def _computed(model: Model, reference: Reference, name: str) -> np.ndarray:
    """What the model gives for a recorded array, in its layout."""
    views, cameras = reference.views, reference.cameras
    match name:
        case "render":
            return _channels_first(model.decode(model.encode(views), cameras))
        case "render_incremental":
            return _incremental(model, views, cameras)
        case "input_tokens_after_tokenizer":
            return _merge_views(model.input_tokens(views))
        case "target_tokens_after_tokenizer":
            return _merge_views(model.target_tokens(cameras))
        case "ray_o" | "ray_d":
            return _rays(model, reference)[name]
    _, where, _, part = name.split("_")  # cache_first_layer_k
    array = getattr(model.encode(views), part)[0 if where == "first" else -1]
    batch, heads, _, _, head_dim = array.shape
    rows = np.einsum("BHSNK->BSNHK", array)
    return rows.reshape(batch, -1, heads, head_dim)


def _incremental(model: Model, views: Views, cameras: Cameras) -> np.ndarray:
    """The render after each input was added to the cache, [inputs, B, T, 3, Y, X]."""
    count = views.image.shape[1]
    cache, renders = None, []
    for index in range(count):
        page = model.encode(jax.tree.map(lambda x, i=index: x[:, i : i + 1], views))
        cache = pages.append(pages.empty(count, page) if cache is None else cache, page)
        renders.append(_channels_first(model.decode(cache, cameras)))
    return np.stack(renders)


def _rays(model: Model, reference: Reference) -> dict[str, np.ndarray]:
    """Origins, repeated at as many pixels as recorded, and directions, [B, V, 3, …, …]."""
    views, targets = reference.views, reference.cameras
    c2w = np.concatenate([views.c2w, targets.c2w], axis=1)
    fxfycxcy = np.concatenate([views.fxfycxcy, targets.fxfycxcy], axis=1)
    cameras = Cameras(c2w, fxfycxcy, targets.height, targets.width)
    origins, directions = rays(cameras, model.config.ray_dtype)
    pixels = reference.recorded["ray_o"].shape[3:] if "ray_o" in reference.recorded else ()
    origins = np.asarray(origins).reshape(*origins.shape, *(1 for _ in pixels))
    return {
        "ray_o": np.broadcast_to(origins, (*origins.shape[:3], *pixels)),
        "ray_d": _channels_first(directions),
    }


def _channels_first(image: jax.Array) -> np.ndarray:
    return np.moveaxis(np.asarray(image), -1, -3)


def _merge_views(tokens: jax.Array) -> np.ndarray:
    """[B, V, N, D] to [B·V, N, D]."""
    tokens = np.asarray(tokens)
    return tokens.reshape(-1, *tokens.shape[2:])
