"""A dense model made sparse: fitted on some scenes, and what that costs shown on others.

Axes: B scene, V view, L layer, K head dim.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from data_pipeline.evaluation.scenes import EvaluationScenes
from efficient_lvsm_jax.compress.distill import distilled
from efficient_lvsm_jax.compress.fit import (
    AtRandom,
    Fit,
    Taught,
    changed,
    fitted,
    products,
    replaced,
    unfitted,
)
from efficient_lvsm_jax.compress.passes import Batch, batch_of, kind_of, score_lines, scored
from efficient_lvsm_jax.compress.scenes import Split
from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.files.writing import json_safe, reporting_writes, write_json
from efficient_lvsm_jax.models.geometry_model import GeometryModel
from efficient_lvsm_jax.models.model import Model, bind
from efficient_lvsm_jax.weights.folder import SIZES, save_weights
from efficient_lvsm_jax.weights.published import unshown

REPORT = "compress.json"  # in the folder of the weights
# What a fit may be; the last is fitted as well, but any blocks are chosen.
NOTHING, FITTED, BY_HEAD, DISTILLED = "P = 0", "fitted", "fitted, by head", "distilled"
RANDOM = "random blocks"
PARTS = 4  # of the scenes that are fitted on; on each a fit to the others is looked at


def sparsity_of(model: Model | GeometryModel, text: str | None, density: float | None) -> str:
    """The setting `model.attention_sparsity`: as told, or of one density in every place.

    Raises:
      InputError: a model that cannot be sparse, or is.
    """
    if getattr(model.config, "attention_sparsity", None) != "":
        raise InputError(
            f"{model!r}: expected one of a family that can have sparse attention, and still dense"
        )
    return text or ",".join(f"{place}={density:g}" for place in model.config.places)


@dataclasses.dataclass(frozen=True)
class Fitted:
    """A sparse model and what is known of it.

    Attributes:
      model: the sparse one.
      report: JSON values: `attention`, relative errors by place, of every layer, and `ridge` and
        `share` of the fit; `scores` of held-out scenes by what was done; what it was made of.
    """

    model: Model | GeometryModel
    report: dict[str, Any]

    def __str__(self) -> str:
        report = self.report
        lines = [
            f"{report['sparsity']}: {report['trained values']} values fitted on "
            f"{len(report['fitted on'])} scenes, the other {report['other values']} as they were",
            f"attention, |error| / |dense| on {len(report['held out'])} held-out scenes",
        ]
        for place, errors in report["attention"].items():
            lines.append(f"  {place}")
            for what, values in errors.items():
                lines.append(f"    {what:<20}" + " ".join(f"{value:6.3f}" for value in values))
            for what in ("share", "ridge"):
                values = report[what][place]
                lines.append(f"    {what:<20}" + " ".join(f"{value:6.4g}" for value in values))
        few = "; fitted on more scenes it would be better" if report["lowered"] < 0.5 else ""
        lines.append(f"  the fit lowers it in {report['lowered']:.0%} of layers{few}")
        return "\n".join(lines + score_lines(report["scores"]))


def made_sparse(model: Model | GeometryModel, text: str, split: Split, *, steps: int = 0) -> Fitted:
    """A dense model with sparse attention that is fitted, and then perhaps distilled.

    Args:
      model: the dense one.
      text: of `model.attention_sparsity`.
      split: the scenes.
      steps: of distillation.

    Raises:
      InputError: another text, fewer than no steps, too few scenes, or pictures too small for it.
    """
    if steps < 0:
        raise InputError(f"--steps {steps}: expected 0, for none, or more")
    count, kept = len(split.fitted), len(split.held_out)
    if count < 2:
        raise InputError(
            f"scenes: {count} to fit on and {kept} held out; expected two or more to fit on, as on "
            "each is seen whether a fit to the others helps"
        )
    sparse = dataclasses.replace(model.config, attention_sparsity=text)
    kind = kind_of(model)
    nothing = unfitted(model.family, sparse)
    blank = replaced(model.params, nothing)

    def seen(scenes: EvaluationScenes, which: range) -> dict:
        batches = (batch_of(scenes[index]) for index in which)
        return products(model.family, sparse, blank, kind.through, batches)

    elsewhere = seen(split.held_out, range(kept))
    if not elsewhere:
        size = split.fitted[0].inputs.image.shape[1]
        raise InputError(
            f"model.attention_sparsity={text!r}: pictures of {size} pixels have too few keys for "
            "any place to be sparse; take larger ones, smaller blocks, or :from0"
        )
    each = [seen(split.fitted, range(part, count, PARTS)) for part in range(min(PARTS, count))]
    fits, by_head, ridges = {FITTED: dict(nothing), RANDOM: dict(nothing)}, {}, {}
    for place in elsewhere:
        chosen, at_random = zip(*(part[place] for part in each), strict=True)
        fits[FITTED][place], ridges[place] = fitted(chosen)
        fits[RANDOM][place], _ = fitted(at_random)
        by_head[place], _ = fitted(chosen, per_head=True)
    fits = jax.tree.map(np.float32, fits)
    made = {NOTHING: nothing, FITTED: fits[FITTED]}
    if steps:

        def student(params: dict, fit: Mapping[str, Fit]) -> nnx.Module:
            return bind(model.family, sparse, replaced(params, fit))

        def teacher(params: dict) -> nnx.Module:
            # The sparse network with dense attention: its tokens are in the same order.
            return changed(student(params, nothing), Taught)

        start = made[FITTED]
        made[DISTILLED] = distilled(
            kind, teacher, student, model.params, start, split.fitted, steps
        )
    last = list(made)[-1]
    errors = {
        place: {
            what: chosen.errors(fit[place]) for what, fit in (made | {BY_HEAD: by_head}).items()
        }
        | {RANDOM: at_random.errors(fits[RANDOM][place])}
        for place, (chosen, at_random) in elsewhere.items()
    }
    lowered = np.concatenate([of[FITTED] < of[NOTHING] for of in errors.values()])
    report = {
        "sparsity": text,
        "trained values": sum(x.size for place in elsewhere for x in nothing[place].values()),
        "other values": sum(x.size for x in jax.tree.leaves(model.params)),
        "distillation steps": steps,
        "fitted on": list(split.fitted.names),
        "held out": list(split.held_out.names),
        "attention": {
            place: {what: values.tolist() for what, values in of.items()}
            for place, of in errors.items()
        },
        "share": {place: made[last][place]["share"].tolist() for place in elsewhere},
        "ridge": {place: ridge.tolist() for place, ridge in ridges.items()},
        "lowered": float(lowered.mean()),
        "scores": scored(
            kind, _models(model, sparse, made | {RANDOM: fits[RANDOM]}), split.held_out
        ),
    }
    config = {"config": sparse, "params": replaced(model.params, made[last])}
    return Fitted(dataclasses.replace(model, **config), report)


def _models(
    model: Model | GeometryModel, sparse: Any, fits: Mapping[str, Mapping[str, Fit]]
) -> dict[str, Callable[[Batch], Any]]:
    """The dense model, and it with each fit, as functions of a batch."""

    @functools.partial(jax.jit, static_argnums=(0, 1))
    def through(config: Any, at_random: bool, params: dict, batch: Batch) -> Any:
        network = bind(model.family, config, params)
        network = changed(network, AtRandom) if at_random else network
        return kind_of(model).through(network, batch)

    models = {"dense": functools.partial(through, model.config, False, model.params)}
    for what, fit in fits.items():
        params = replaced(model.params, fit)
        models[what] = functools.partial(through, sparse, what == RANDOM, params)
    return models


def check_new(destination: str | Path) -> None:
    """Before anything is computed.

    Raises:
      InputError: it exists.
    """
    if os.path.lexists(destination):
        raise InputError(f"{destination} already exists; name another, or remove it first")


def write(destination: str | Path, fitted: Fitted) -> None:
    """A weights folder with the report in it.

    Raises:
      InputError: it exists, or cannot be written.
    """
    model, folder = fitted.model, Path(destination)
    config = {**model.config.architecture, **unshown(model.config)}
    info = {"family": model.family, "config": config, SIZES: model.trained_sizes}
    save_weights(folder, model.params, info)
    with reporting_writes(folder):
        write_json(folder / REPORT, json_safe(fitted.report))
