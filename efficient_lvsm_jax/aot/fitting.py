"""Whether a training step has room, asked before anything is compiled, and what would have."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Iterator
from typing import Any

import jax

from efficient_lvsm_jax.aot.training_step import Question
from efficient_lvsm_jax.cost.memory import GIB, USABLE, memory_of
from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.files.writing import first_line

REMAT = ("none", "products", "attention", "full")  # what is kept, most first
SURE = 1.5
LESS = 0.7  # of the estimate of what did not fit, for what may

log = logging.getLogger(__name__)


def room_of_a_device() -> int:
    """Bytes of a device of this process, 0 if unknown; devices made of one CPU share its memory."""
    sharing = jax.local_device_count() if jax.default_backend() == "cpu" else 1
    return memory_of(jax.local_devices()[0]) // sharing


def check_memory(asked: Question, platform: str, memory: int) -> None:
    """Refuses a step that cannot fit, and warns of one that may not.

    The estimate was within a quarter of what compilers said on TPUs and CPUs, and was not compared
    on GPUs. So one above the memory is a reason to warn; one SURE times as large refuses.

    Args:
      asked: what is to be trained.
      platform: as in `cost.memory.estimate`.
      memory: bytes of a device; 0 if that is not known, and then nothing is said.

    Raises:
      InputError: the step cannot fit; names settings that do.
    """
    guess = asked.estimate(platform)
    if not memory or guess.total <= memory:
        return
    found = (
        f"a training step takes {guess}, and a device has {memory / GIB:.1f} GiB; "
        f"{what_fits(asked, platform, int(USABLE * memory))}"
    )
    if guess.total > SURE * memory:
        raise InputError(found)
    log.warning("by an estimate %s", found)


@contextlib.contextmanager
def explaining_out_of_memory(asked: Question, platform: str) -> Iterator[None]:
    """In the block, running out of memory is an InputError that names settings which take less."""
    try:
        yield
    except (jax.errors.JaxRuntimeError, MemoryError) as error:
        if isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" not in str(error):
            raise
        most = int(LESS * asked.estimate(platform).total)
        raise InputError(
            f"out of memory ({first_line(error)}); {what_fits(asked, platform, most)}"
        ) from error


def what_fits(asked: Question, platform: str, most: int) -> str:
    """Settings whose estimate is at most so many bytes, as flags: each alone, or else together."""
    recipe, scenes = asked.recipe, asked.data.batch_size
    values = {
        "model.remat": REMAT[REMAT.index(recipe.model.remat) + 1 :],
        "micro_batches": [recipe.micro_batches << n for n in range(1, scenes.bit_length())],
        "data.batch_size": [scenes >> n for n in range(1, scenes.bit_length())],
    }
    alone = [[{flag: value} for value in those] for flag, those in values.items()]
    least = {"model.remat": REMAT[-1]}
    together = [
        [least | {flag: value} for value in values[flag]]
        for flag in ("micro_batches", "data.batch_size")
    ]
    for choices in (alone, together):
        found = []
        for candidates in choices:
            totals = ((_total(asked, each, platform), each) for each in candidates)
            if fits := next(((n, each) for n, each in totals if n is not None and n <= most), None):
                flags = " ".join(f"--config.{flag}={value}" for flag, value in fits[1].items())
                found.append(f"{flags} ({fits[0] / GIB:.2g} GiB)")
        if found:
            return f"by the estimate {' or '.join(found)} would fit"
    return (
        "no batch size, model.remat or micro_batches would fit; take a smaller model, or split it "
        "over more devices (--config.mesh=fsdp:-1)"
    )


def _total(asked: Question, changes: dict[str, Any], platform: str) -> int | None:
    """Bytes with some settings changed; None if they do not divide among the devices."""
    recipe, data = asked.recipe, asked.data
    model = dataclasses.replace(recipe.model, remat=changes.get("model.remat", recipe.model.remat))
    parts = changes.get("micro_batches", recipe.micro_batches)
    scenes = changes.get("data.batch_size", data.batch_size)
    try:
        return (
            dataclasses.replace(
                asked,
                recipe=dataclasses.replace(recipe, model=model, micro_batches=parts),
                data=dataclasses.replace(data, batch_size=scenes),
            )
            .estimate(platform)
            .total
        )
    except InputError:
        return None
