"""What came of a compilation or an estimate: figures for JSON, lines for people."""

from __future__ import annotations

import collections
import dataclasses
from typing import Any

from efficient_lvsm_jax.aot import TRAIN
from efficient_lvsm_jax.aot.hlo import Program
from efficient_lvsm_jax.aot.observing import ObserveQuestion
from efficient_lvsm_jax.aot.rendering import RenderQuestion
from efficient_lvsm_jax.aot.training_step import Compiled, Question
from efficient_lvsm_jax.cost.chips import GIB, Topology, read_topology
from efficient_lvsm_jax.cost.memory import Estimate
from efficient_lvsm_jax.cost.roofline import Roofline, roofline
from efficient_lvsm_jax.nn.flops import Flops
from efficient_lvsm_jax.parallel.sharding import mesh_sizes

MIB = 2**20


def report(
    asked: Question,
    topology: Topology | None,
    memory: float,
    expected: Estimate,
    compiled: Compiled | None,
) -> dict[str, Any]:
    """All figures of a training step as JSON has them; without a compiled step, from formulas.

    Args:
      asked: what is trained on what.
      topology: its devices; None if only their number is known.
      memory: bytes of one device.
      expected: what formulas say.
      compiled: what the compiler said, if it was asked.
    """
    flops = asked.flops()
    answer = {
        "program": TRAIN,
        "topology": topology.name if topology else "",
        "devices": asked.devices,
        "mesh": mesh_sizes(asked.mesh, asked.devices),
        "size": asked.data.size,
        "inputs": asked.views[0],
        "targets": asked.views[1],
        "batch_size": asked.data.batch_size,
        "scenes_at_once": expected.scenes,
        "remat": asked.recipe.model.remat,
        **_found(compiled, memory, expected.bytes),
        "estimated_bytes": expected.total,
        "flops": {part: getattr(flops, part).total for part in ("model", "recompute")}
        | {"losses": asked.loss_flops()},
    }
    if compiled:
        answer["gathered_outside_of_loops_bytes"] = compiled.gathered_outside_of_loops
    if topology:
        state = sum(expected.bytes[kind] for kind in ("parameters", "average", "optimizer state"))
        bound = roofline(
            topology,
            _share(flops.executed, asked.devices),
            model_flops=flops.model.total // asked.devices,
            loss_flops=asked.loss_flops() // asked.devices,
            head_dim=asked.recipe.model.head_dim,
            # State is read and written; gradients are written and read twice.
            moved_bytes=2 * state + 3 * expected.bytes["gradients"],
            sent_bytes=_sent(answer),
        )
        answer["roofline"] = dataclasses.asdict(bound)
    return answer


def render_report(
    asked: RenderQuestion | ObserveQuestion,
    topology: Topology,
    memory: float,
    compiled: Compiled,
    moved_bytes: int,
) -> dict[str, Any]:
    """All figures of a forward pass; arguments as in `report`, and of what compiles it."""
    work = asked.flops()
    answer = {
        "program": asked.program,
        "topology": topology.name,
        "devices": asked.devices,
        "mesh": mesh_sizes(asked.mesh, asked.devices),
        **asked.told,
        **_found(compiled, memory, {}),
        "flops": {"model": work.total, "recompute": 0, "losses": 0},
    }
    bound = roofline(
        topology,
        _share(work, asked.devices),
        model_flops=work.total // asked.devices,
        loss_flops=0,
        head_dim=asked.model.head_dim,
        moved_bytes=moved_bytes,
        sent_bytes=_sent(answer),
    )
    return answer | {"roofline": dataclasses.asdict(bound)}


def _found(compiled: Compiled | None, memory: float, expected: dict[str, int]) -> dict[str, Any]:
    """What all reports have: memory, collectives, kernels."""
    found = compiled.program if compiled else Program([], [], [], 0)
    sizes = compiled.bytes if compiled else expected
    by_kind: dict[str, dict[str, float]] = {}
    for collective in found.collectives:
        row = by_kind.setdefault(collective.kind, {"count": 0, "bytes": 0, "sent_bytes": 0.0})
        row["count"] += collective.times
        row["bytes"] += collective.times * collective.bytes
        row["sent_bytes"] += collective.sent_bytes
    kernels = collections.Counter()
    for kernel in found.kernels:
        kernels[kernel.name] += kernel.times
    return {
        "compiled": compiled is not None,
        "bytes": sizes,
        "total_bytes": sum(sizes.values()),
        "memory_bytes": memory,
        "fits": sum(sizes.values()) <= memory,
        "collectives": by_kind,
        "kernels": dict(kernels),
        "unknown_loops": found.unknown_loops,
        "largest_arrays": [
            {"array": array.text, "bytes": array.padded_bytes, "origin": origin}
            for array, origin in found.arrays
        ],
    }


def _sent(answer: dict[str, Any]) -> float:
    return sum(row["sent_bytes"] for row in answer["collectives"].values())


def _share(work: Flops, devices: int) -> Flops:
    return Flops(work.linear // devices, work.attention // devices)


def lines(answer: dict[str, Any]) -> list[str]:
    """`report` or `render_report` for people."""
    trains = answer["program"] == TRAIN
    what = "compiled" if answer["compiled"] else "estimated, not compiled"
    mesh = ", ".join(f"{axis}:{size}" for axis, size in answer["mesh"].items())
    verdict = "fits" if answer["fits"] else "DOES NOT FIT"
    out = [f"{answer['topology'] or 'devices'}: {answer['devices']} devices, mesh {mesh}; {what}"]
    if trains:
        out += [
            f"{answer['batch_size']} scenes of {answer['inputs']} inputs and {answer['targets']} "
            f"targets at {answer['size']} px, {answer['scenes_at_once']} at once a device, remat "
            f"{answer['remat']}",
        ]
    else:
        names = ("views", "targets", "frames", "slots")
        counts = ", ".join(f"{answer[name]} {name}" for name in names if name in answer)
        out += [f"{answer['program']}: {answer['scenes']} scene(s), {counts}, {answer['size']} px"]
    out += [
        "",
        "memory of each device",
        *(f"  {kind:<28}{size / GIB:8.2f} GiB" for kind, size in answer["bytes"].items() if size),
        f"  {'total':<28}{answer['total_bytes'] / GIB:8.2f} GiB of "
        f"{answer['memory_bytes'] / GIB:.2f}: {verdict}",
    ]
    if answer["compiled"]:
        out += _compiled_lines(answer)
    flops = answer["flops"]
    parts = "forward and backward" if trains else "forward"
    out += [
        "",
        f"{flops['model'] / 1e12:.1f} TFLOP a step ({parts}), "
        f"{flops['recompute'] / 1e12:.1f} computed again, {flops['losses'] / 1e12:.1f} in the "
        "networks of losses",
    ]
    if bound := answer.get("roofline"):
        out += _roofline_lines(answer, bound)
    return out


def _compiled_lines(answer: dict[str, Any]) -> list[str]:
    out = []
    if "estimated_bytes" in answer:
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
    if "gathered_outside_of_loops_bytes" in answer:
        gathered = answer["gathered_outside_of_loops_bytes"]
        out += [f"  gathered outside of loops over layers: {gathered / MIB:.1f} MiB"]
    if answer["unknown_loops"]:
        out += [f"  {answer['unknown_loops']} loops of unknown length count once"]
    out += ["", "kernels (calls in a step)"]
    out += [f"  {name} x {times}" for name, times in answer["kernels"].items()] or ["  NONE"]
    return out


def _roofline_lines(answer: dict[str, Any], bound: dict[str, float]) -> list[str]:
    topology = read_topology(answer["topology"])
    chip, parts = topology.chip, Roofline(**bound)
    scenes = answer["batch_size"] if answer["program"] == TRAIN else answer["scenes"]
    attention = f"{1e3 * parts.attention_s:.1f} in attention"
    if chip.platform == "tpu":
        attention += f", where the head dim fills part of a matrix unit of {chip.matrix_unit}"
    else:
        attention += ", whose exponentials take as long again unless they are computed beside"
    moved = (
        "parameters, moments and gradients"
        if answer["program"] == TRAIN
        else "parameters, memory in use and pictures"
    )
    return [
        f"a step takes at least {_duration(parts.step_s)} ({scenes / parts.step_s:.0f} scenes/s, "
        f"MFU {parts.mfu:.0%}): the longest of",
        f"  {1e3 * parts.products_s:8.1f} ms products: "
        f"{1e3 * parts.matrix_s:.1f} with parameters and {1e3 * parts.losses_s:.1f} in losses at "
        f"{chip.peak / 1e12:.0f} TFLOP/s, {attention}",
        f"  {1e3 * parts.memory_s:8.1f} ms memory: {moved} at {chip.memory_rate / 1e9:.0f} GB/s, "
        "activations not counted",
        f"  {1e3 * parts.links_s:8.1f} ms links: collectives at {topology.link_rate / 1e9:.0f} "
        "GB/s one way, all links busy"
        if answer["compiled"]
        else "  and links: what collectives send is known once the step is compiled",
    ]


def _duration(seconds: float) -> str:
    return f"{1e3 * seconds:.0f} ms" if seconds >= 0.01 else f"{1e3 * seconds:.3g} ms"


def _short(origin: str) -> str:
    """The end of a JAX name, where the operation stands."""
    return "/".join(origin.split("/")[-3:])
