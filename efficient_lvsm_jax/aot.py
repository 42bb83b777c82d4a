"""A pod without a pod: compiles the training step for TPUs that are not there, and says what it is.

    python -m efficient_lvsm_jax.aot --config configs/re10k_256.py --topology v5e:4x4
        [--estimate] [--memory GIB] [--json FILE] [--config.data.batch_size=64]

Prints memory per chip, collectives, attention kernels, FLOPs and the least time of a step. Needs
the extra tpu-aot (libtpu, no TPU) and a minute or two. --estimate needs neither: it answers from
formulas; with --devices N --memory GIB for other accelerators than TPUs, too.

Exit status: 0 it fits, 3 it does not, 2 the question cannot be answered.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import jax
from absl import flags

from efficient_lvsm_jax.commands import command_line
from efficient_lvsm_jax.compiled_step import (
    Compiled,
    Question,
    compile_step,
    question,
    topology_devices,
)
from efficient_lvsm_jax.errors import InputError, main_exit
from efficient_lvsm_jax.estimate import Estimate, estimate
from efficient_lvsm_jax.flops import Flops, TrainFlops
from efficient_lvsm_jax.hlo import Program
from efficient_lvsm_jax.roofline import GIB, Roofline, read_topology, roofline
from efficient_lvsm_jax.sharding import mesh_sizes

MIB = 2**20
DOES_NOT_FIT = 3


def report(
    asked: Question, topology: str, memory: float, expected: Estimate, compiled: Compiled | None
) -> dict[str, Any]:
    """All figures as JSON has them; without a compiled step, those that formulas give."""
    found = compiled.program if compiled else Program([], [], [], 0)
    sizes = compiled.bytes if compiled else expected.bytes
    by_kind: dict[str, dict[str, float]] = {}
    for collective in found.collectives:
        row = by_kind.setdefault(collective.kind, {"count": 0, "bytes": 0, "sent_bytes": 0.0})
        row["count"] += collective.times
        row["bytes"] += collective.times * collective.bytes
        row["sent_bytes"] += collective.sent_bytes
    kernels = collections.Counter()
    for kernel in found.kernels:
        kernels[kernel.name] += kernel.times
    flops = asked.flops()
    answer = {
        "topology": topology,
        "devices": asked.devices,
        "mesh": mesh_sizes(asked.mesh, asked.devices),
        "size": asked.data.size,
        "inputs": asked.views[0],
        "targets": asked.views[1],
        "batch_size": asked.data.batch_size,
        "scenes_at_once": expected.scenes,
        "remat": asked.recipe.model.remat,
        "compiled": compiled is not None,
        "bytes": sizes,
        "total_bytes": sum(sizes.values()),
        "memory_bytes": memory,
        "fits": sum(sizes.values()) <= memory,
        "estimated_bytes": expected.total,
        "flops": {part: getattr(flops, part).total for part in ("model", "recompute")}
        | {"losses": asked.loss_flops()},
        "collectives": by_kind,
        "kernels": dict(kernels),
        "unknown_loops": found.unknown_loops,
        "largest_arrays": [
            {"array": array.text, "bytes": array.padded_bytes, "origin": origin}
            for array, origin in found.arrays
        ],
    }
    if compiled:
        answer["gathered_outside_of_loops_bytes"] = compiled.gathered_outside_of_loops
    if topology:
        sent = sum(row["sent_bytes"] for row in by_kind.values())
        answer["roofline"] = dataclasses.asdict(_bound(asked, topology, expected, sent))
    return answer


def _bound(asked: Question, topology: str, expected: Estimate, sent_bytes: float) -> Roofline:
    state = ("parameters", "average", "optimizer state")
    flops = asked.flops()
    share = TrainFlops(
        *(
            Flops(part.linear // asked.devices, part.attention // asked.devices)
            for part in (flops.forward, flops.backward, flops.recompute)
        )
    )
    return roofline(
        read_topology(topology)[0],
        share,
        loss_flops=asked.loss_flops() // asked.devices,
        head_dim=asked.recipe.model.head_dim,
        state_bytes=sum(expected.bytes[kind] for kind in state),
        gradient_bytes=expected.bytes["gradients"],
        sent_bytes=sent_bytes,
    )


def lines(answer: dict[str, Any]) -> list[str]:
    """`report` for people."""
    what = "compiled" if answer["compiled"] else "estimated, not compiled"
    mesh = ", ".join(f"{axis}:{size}" for axis, size in answer["mesh"].items())
    verdict = "fits" if answer["fits"] else "DOES NOT FIT"
    out = [
        f"{answer['topology'] or 'devices'}: {answer['devices']} devices, mesh {mesh}; {what}",
        f"{answer['batch_size']} scenes of {answer['inputs']} inputs and {answer['targets']} "
        f"targets at {answer['size']} px, {answer['scenes_at_once']} at once a device, remat "
        f"{answer['remat']}",
        "",
        "memory of each device",
        *(f"  {kind:<28}{size / GIB:8.2f} GiB" for kind, size in answer["bytes"].items() if size),
        f"  {'total':<28}{answer['total_bytes'] / GIB:8.2f} GiB of "
        f"{answer['memory_bytes'] / GIB:.2f}: {verdict}",
    ]
    if answer["compiled"]:
        out += [f"  (estimated without compiling {answer['estimated_bytes'] / GIB:8.2f} GiB)"]
        out += ["", "largest arrays written to memory"]
        out += [
            f"  {row['bytes'] / MIB:8.0f} MiB  {row['array']}  {_short(row['origin'])}"
            for row in answer["largest_arrays"]
        ]
        out += ["", "collectives in a step"]
        out += [
            f"  {kind:<20}{row['count']:6} x, {row['bytes'] / MIB:9.1f} MiB, each device sends "
            f"{row['sent_bytes'] / MIB:.1f} MiB"
            for kind, row in answer["collectives"].items()
        ] or ["  none"]
        gathered = answer["gathered_outside_of_loops_bytes"]
        out += [f"  gathered outside of loops over layers: {gathered / MIB:.1f} MiB"]
        if answer["unknown_loops"]:
            out += [f"  {answer['unknown_loops']} loops of unknown length count once"]
        out += ["", "attention kernels (calls in a step)"]
        out += [f"  {name} x {times}" for name, times in answer["kernels"].items()] or ["  NONE"]
    flops = answer["flops"]
    out += [
        "",
        f"{flops['model'] / 1e12:.1f} TFLOP a step (forward and backward), "
        f"{flops['recompute'] / 1e12:.1f} computed again, {flops['losses'] / 1e12:.1f} in the "
        "networks of losses",
    ]
    if bound := answer.get("roofline"):
        out += _roofline_lines(answer, bound)
    return out


def _roofline_lines(answer: dict[str, Any], bound: dict[str, float]) -> list[str]:
    chip, _ = read_topology(answer["topology"])
    parts = Roofline(**bound)
    rate = answer["batch_size"] / parts.step_s
    return [
        f"a step takes at least {1e3 * parts.step_s:.0f} ms ({rate:.0f} scenes/s, MFU "
        f"{parts.mfu:.0%}): the longest of",
        f"  {1e3 * parts.products_s:8.1f} ms products: "
        f"{1e3 * parts.matrix_s:.1f} with parameters and {1e3 * parts.losses_s:.1f} in losses at "
        f"{chip.peak / 1e12:.0f} TFLOP/s, "
        f"{1e3 * parts.attention_s:.1f} in attention, where the head dim fills part of a matrix "
        f"unit of {chip.matrix_unit}",
        f"  {1e3 * parts.memory_s:8.1f} ms memory: parameters, moments and gradients at "
        f"{chip.memory_rate / 1e9:.0f} GB/s, activations not counted",
        f"  {1e3 * parts.links_s:8.1f} ms links: collectives at {chip.link_rate / 1e9:.0f} GB/s "
        "one way, all links busy"
        if answer["compiled"]
        else "  and links: what collectives send is known once the step is compiled",
    ]


def _short(origin: str) -> str:
    """The end of a JAX name, where the operation stands."""
    return "/".join(origin.split("/")[-3:])


def _define_flags(values: flags.FlagValues) -> None:
    flags.DEFINE_string("topology", "", "TPU slice, such as v5e:4x4", flag_values=values)
    flags.DEFINE_bool("estimate", False, "answer from formulas", flag_values=values)
    flags.DEFINE_integer("devices", None, "with --estimate: devices", flag_values=values)
    flags.DEFINE_float("memory", None, "GiB of a device", flag_values=values)
    flags.DEFINE_string("platform", "tpu", "with --devices: tpu, gpu or cpu", flag_values=values)
    flags.DEFINE_string("json", "", "file for all figures", flag_values=values)


def main() -> int:
    """The command line."""
    config, values = command_line(sys.argv, _define_flags, usage=__doc__, workdir=False)
    jax.config.update("jax_platforms", "cpu")  # nothing is computed, so no device is looked for
    if values.topology:
        chip, devices = read_topology(values.topology)
        memory, platform = chip.memory, "tpu"
    elif values.estimate and values.devices and values.memory:
        devices, platform, memory = values.devices, values.platform, 0.0
    else:
        raise InputError("say --topology v5e:4x4, or --estimate with --devices N --memory GIB")
    if values.memory:
        memory = values.memory * GIB
    asked = question(config, devices)
    expected = estimate(
        asked.recipe, asked.data, mesh_sizes(asked.mesh, devices), platform=platform
    )
    compiled = None
    if not values.estimate:
        try:
            compiled = compile_step(asked, topology_devices(values.topology))
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            print(f"DOES NOT FIT: {str(error).splitlines()[0]}")
            return DOES_NOT_FIT
    answer = report(asked, values.topology, memory, expected, compiled)
    print("\n".join(lines(answer)))
    if values.json:
        Path(values.json).write_text(json.dumps(answer, indent=1) + "\n")
    return 0 if answer["fits"] else DOES_NOT_FIT


if __name__ == "__main__":
    main_exit(main)
