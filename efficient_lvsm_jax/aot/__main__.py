"""A pod without a pod: compiles for accelerators that are not there, and says what came of it.

    python -m efficient_lvsm_jax.aot --config configs/re10k_256.py --topology v5e:4x4
        [--estimate] [--memory GIB] [--out FILE.json] [--config.data.batch_size=64]
    python -m efficient_lvsm_jax.aot --config configs/re10k_256.py --topology h100:8
    python -m efficient_lvsm_jax.aot --config configs/re10k_256.py --topology h100:1
        --program decode --count 2 --targets 8 --capacity 64 [--cache int8]
    python -m efficient_lvsm_jax.aot --config configs/stream_vggt_distill.py --topology v5p:2x2x1
        --program observe [--count 10 | --capacity 50]

Programs are the training step (the default), encode, decode, and append, which writes a view into a
cache; of models of geometry observe: a clip of --count frames, or with --capacity so many new ones
(one, if not told) of a stream that has room for so many. Prints memory per device, collectives,
kernels, FLOPs and the least time. TPUs need the extra tpu-aot (libtpu, no TPU), GPUs gpu-aot
(CUDA's libraries, no GPU), and a minute or two. --estimate, as elvsm estimate, needs neither: it
answers for training, from formulas; with --devices N --memory GIB for other accelerators, too.

Exit status: 0 it fits, 3 it does not, 2 the question cannot be answered.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from efficient_lvsm_jax.aot import OBSERVE, PROGRAMS, TRAIN
from efficient_lvsm_jax.commands import command_line, main_exit
from efficient_lvsm_jax.cost.chips import GIB, Topology, read_topology
from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.files.writing import reporting_writes, write_json

DOES_NOT_FIT = 3
RENAMED = {
    "--views": "--count",
    "--slots": "--capacity",
    "--precision": "--cache",
    "--json": "--out",
}


def _define_flags(values: flags.FlagValues) -> None:
    flags.DEFINE_string("topology", "", "such as v5e:4x4, h100:8 or h100:2x8", flag_values=values)
    flags.DEFINE_enum(
        "program", TRAIN, (TRAIN, *PROGRAMS, OBSERVE), "what is compiled", flag_values=values
    )
    flags.DEFINE_integer(
        "count", None, "views, encoded or in the memory; frames", flag_values=values
    )
    flags.DEFINE_integer("targets", None, "that are rendered", flag_values=values)
    flags.DEFINE_integer(
        "capacity", None, "views or frames that there is room for", flag_values=values
    )
    flags.DEFINE_integer("scenes", None, "of all devices; not of train", flag_values=values)
    flags.DEFINE_string("cache", "", "how its numbers are stored, e.g. int8", flag_values=values)
    flags.DEFINE_bool("estimate", False, "answer from formulas", flag_values=values)
    flags.DEFINE_integer("devices", None, "with --estimate: devices", flag_values=values)
    flags.DEFINE_float("memory", None, "GiB of a device", flag_values=values)
    flags.DEFINE_string("platform", "tpu", "with --devices: tpu, gpu or cpu", flag_values=values)
    flags.DEFINE_string("out", "", "JSON file for all figures", flag_values=values)


def _settings(config: ConfigDict) -> dict[str, type]:
    from efficient_lvsm_jax.aot.training_step import settings

    return settings(config)


def main() -> int:
    """The command line."""
    config, values = command_line(
        sys.argv, _define_flags, usage=__doc__, workdir=False, settings=_settings, renamed=RENAMED
    )
    # Here, so that --help need not wait for it.
    import jax

    from efficient_lvsm_jax.aot.report import lines

    jax.config.update("jax_platforms", "cpu")  # nothing is computed, so no device is looked for
    topology = read_topology(values.topology) if values.topology else None
    if topology:
        memory = topology.chip.memory
    elif not (values.estimate and values.devices and values.memory):
        raise InputError("say --topology v5e:4x4, or, of elvsm estimate, --devices N --memory GIB")
    if values.memory:
        memory = values.memory * GIB
    if values.program != TRAIN and (values.estimate or topology is None):
        raise InputError(f"--program {values.program} is compiled, not estimated: say --topology")
    try:
        if values.program == TRAIN:
            answer = _train(config, values, topology, memory)
        else:
            answer = _forward(config, values, topology, memory)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        print(f"DOES NOT FIT: {str(error).splitlines()[0]}")
        return DOES_NOT_FIT
    print("\n".join(lines(answer)))
    if values.out:
        path = Path(values.out)
        with reporting_writes(path.parent):
            write_json(path, answer)
    return 0 if answer["fits"] else DOES_NOT_FIT


def _train(
    config: ConfigDict, values: flags.FlagValues, topology: Topology | None, memory: float
) -> dict[str, Any]:
    for name in ("count", "targets", "capacity", "scenes", "cache"):
        if values[name].value:
            raise InputError(
                f"--{name} is for --program {', '.join(PROGRAMS)}, observe; training takes its "
                "views and scenes from --config.data"
            )
    devices = topology.devices if topology else values.devices
    platform = topology.chip.platform if topology else values.platform
    from efficient_lvsm_jax.aot.report import report
    from efficient_lvsm_jax.aot.topologies import topology_devices
    from efficient_lvsm_jax.aot.training_step import compile_step, question

    asked = question(config, devices)
    expected = asked.estimate(platform)
    compiled = None if values.estimate else compile_step(asked, topology_devices(topology))
    return report(asked, topology, memory, expected, compiled)


def _forward(
    config: ConfigDict, values: flags.FlagValues, topology: Topology, memory: float
) -> dict[str, Any]:
    from efficient_lvsm_jax.aot.observing import ObserveQuestion, compile_observe
    from efficient_lvsm_jax.aot.rendering import RenderQuestion, compile_render
    from efficient_lvsm_jax.aot.report import render_report
    from efficient_lvsm_jax.aot.topologies import topology_devices
    from efficient_lvsm_jax.aot.training_step import question
    from efficient_lvsm_jax.models.families import configure
    from efficient_lvsm_jax.models.scene_geometry import GeometryConfig

    asked = question(config, topology.devices)
    model = asked.recipe.model
    if values.cache:
        model = configure(config.family, {**dataclasses.asdict(model), "cache": values.cache})
    sees = isinstance(model, GeometryConfig)
    if sees != (values.program == OBSERVE):
        expected = OBSERVE if sees else ", ".join(PROGRAMS)
        raise InputError(f"program {values.program}: of {config.family} expected {expected}")
    views = values.count or asked.views[0]
    shared = {
        "size": asked.data.size,
        "scenes": values.scenes or topology.devices,
        "mesh": asked.mesh,
        "devices": topology.devices,
    }
    if sees:
        frames = values.count or (1 if values.capacity else views)
        seen = ObserveQuestion(
            config.family, model, frames=frames, slots=values.capacity or 0, **shared
        )
        compiled, moved = compile_observe(seen, topology_devices(topology))
        return render_report(seen, topology, memory, compiled, moved)
    asked = RenderQuestion(
        values.program,
        config.family,
        model,
        views=views,
        targets=values.targets or asked.views[1],
        slots=values.capacity or views,
        **shared,
    )
    compiled, moved = compile_render(asked, topology_devices(topology))
    return render_report(asked, topology, memory, compiled, moved)


if __name__ == "__main__":
    main_exit(main)
