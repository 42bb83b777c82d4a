"""What stands in a compiled program: collectives, kernels and large arrays, read from its HLO text.

Compilers print what they made of a step, `compiled.as_text()`. Loops are followed with their trip
counts, so a collective in the body of a scan over 12 layers counts 12 times.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
# Instructions that make no array of their own.
_NO_ARRAY = {
    "parameter", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call", "constant"
}  # fmt: skip

_COMPUTATION = re.compile(r"^(ENTRY )?%([\w.\-]+) \(")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%([\w.\-]+) = (.*)$")
_ARRAY = re.compile(r"(pred|token|[a-z]\w*?(\d+)\w*)\[([\d,]*)\](?:\{([^}]*)\})?")
_CALLED = re.compile(
    r"\b(?:calls|to_apply|body|condition|true_computation|false_computation)=%([\w.\-]+)"
    r"|branch_computations=\{([^}]*)\}"
)


@dataclasses.dataclass(frozen=True)
class Array:
    """One array of a type: its logical bytes, its bytes as laid out, and whether it is in HBM."""

    text: str
    bytes: int
    padded_bytes: int
    in_hbm: bool


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective of a step.

    Attributes:
      kind: of COLLECTIVES.
      bytes: of the whole array: what is gathered, reduced or, before it is scattered, summed.
      times: a step; 12 in a loop over 12 layers.
      devices: that take part; 0 if the text does not say.
      origin: where in the program it comes from, as JAX names it.
    """

    kind: str
    bytes: int
    times: int
    devices: int
    origin: str

    @property
    def sent_bytes(self) -> float:
        """Bytes each device sends in one step, over a ring."""
        share = 1 - 1 / self.devices if self.devices else 1.0
        return self.times * self.bytes * share * (2 if self.kind == "all-reduce" else 1)


@dataclasses.dataclass(frozen=True)
class Kernel:
    """One call of a kernel that the compiler did not write, `times` a step.

    On a TPU it has the name of its call; on GPUs it is "cudnn fmhaSoftmax" (attention), another of
    cuDNN's, "cublas gemm", "cublas lt matmul" or, as XLA has Triton compile its products,
    "triton gemm".
    """

    name: str
    times: int


@dataclasses.dataclass(frozen=True)
class Program:
    """What was found.

    Attributes:
      collectives, kernels: in the order of the text.
      arrays: (array, origin) of the largest shapes written to HBM, largest first, by padded bytes.
      unknown_loops: loops whose trip count the text does not tell; their bodies count once.
    """

    collectives: list[Collective]
    kernels: list[Kernel]
    arrays: list[tuple[Array, str]]
    unknown_loops: int


@dataclasses.dataclass(frozen=True)
class _Instruction:
    name: str
    type: str
    opcode: str
    rest: str  # operands and attributes

    @functools.cached_property
    def arrays(self) -> list[Array]:
        return arrays_of(self.type)

    def attribute(self, pattern: str) -> str:
        found = re.search(pattern, self.rest)
        return found[1] if found else ""

    @property
    def origin(self) -> str:
        return self.attribute(r'op_name="([^"]*)"')


def read_program(text: str, *, largest: int = 8) -> Program:
    """Collectives, kernels and the `largest` arrays of a compiled program's HLO text."""
    computations, entry = _parse(text)
    times: dict[str, int] = {}
    unknown = _count(computations, entry, 1, times)
    inner = {
        name
        for instructions in computations.values()
        for instruction in instructions
        if instruction.opcode not in ("while", "conditional", "call")
        for name in _called(instruction)
    }
    collectives: dict[tuple[str, str, int], Collective] = {}
    kernels: list[Kernel] = []
    arrays: dict[str, tuple[Array, str]] = {}
    for name, instructions in computations.items():
        if name not in times:
            continue
        for instruction in instructions:
            if collective := _collective(instruction, name, times[name]):
                # One collective that runs beside other work is printed once for each part of it;
                # on CPUs all have the same channel.
                channel = instruction.attribute(r"channel_id=(\d+)") or instruction.name
                key = channel, instruction.origin, collective.bytes
                first = collectives.setdefault(key, collective)
                if collective.times < first.times:
                    collectives[key] = collective
            if kernel := _kernel(instruction):
                kernels.append(Kernel(kernel, times[name]))
            # What begins something returns its operands as well; what ends it, the result.
            begins = instruction.opcode.endswith("-start")
            if name not in inner and instruction.opcode not in _NO_ARRAY and not begins:
                for array in instruction.arrays:
                    if array.in_hbm:
                        # Of equal arrays, most are one that is updated in place.
                        arrays.setdefault(array.text, (array, instruction.origin))
    by_size = sorted(arrays.values(), key=lambda found: -found[0].padded_bytes)
    return Program(
        collectives=list(collectives.values()),
        kernels=kernels,
        arrays=by_size[:largest],
        unknown_loops=unknown,
    )


def arrays_of(type_text: str) -> list[Array]:
    """The arrays of a printed type, a single one or a tuple.

    A layout such as {2,3,1,0:T(8,128)(2,1)S(1)} lists axes from the fastest, pads the fastest ones
    to multiples of the first tile, and names the memory, of which HBM is 0 and left out.
    """
    found = []
    for match in _ARRAY.finditer(type_text):
        dtype, bits, dims, layout = match.groups()
        shape = [int(size) for size in dims.split(",") if size]
        width = 1 if dtype == "pred" else int(bits or 0) / 8
        padded = list(shape)
        order, _, rest = (layout or "").partition(":")
        tile = re.search(r"T\(([\d,]+)\)", rest)
        if tile and shape:
            sizes = [int(size) for size in tile[1].split(",")]
            axes = [int(axis) for axis in order.split(",")]
            for axis, size in zip(axes, reversed(sizes), strict=False):
                padded[axis] = math.ceil(padded[axis] / size) * size
        found.append(
            Array(
                text=f"{dtype}[{dims}]",
                bytes=math.ceil(math.prod(shape) * width),
                padded_bytes=math.ceil(math.prod(padded) * width),
                in_hbm=not re.search(r"S\([1-9]", rest),
            )
        )
    return found


def _parse(text: str) -> tuple[dict[str, list[_Instruction]], str]:
    computations: dict[str, list[_Instruction]] = {}
    entry, current = "", None
    for line in text.splitlines():
        if start := _COMPUTATION.match(line):
            current = computations.setdefault(start[2], [])
            entry = start[2] if start[1] else entry
        elif current is not None and (found := _INSTRUCTION.match(line)):
            name, rest = found.groups()
            type_text, rest = _split_type(rest)
            opcode, _, rest = rest.partition("(")
            current.append(_Instruction(name, type_text, opcode, rest))
    return computations, entry


def _split_type(text: str) -> tuple[str, str]:
    """A printed type, which may be a tuple with parentheses in its layouts, and what follows."""
    if not text.startswith("("):
        return tuple(text.split(" ", 1))
    depth = 0
    for end, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if depth == 0:
            return text[: end + 1], text[end + 2 :]
    return text, ""


def _called(instruction: _Instruction) -> list[str]:
    names = []
    for single, several in _CALLED.findall(instruction.rest):
        names += [single] if single else re.findall(r"%([\w.\-]+)", several)
    return names


def _count(
    computations: dict[str, list[_Instruction]], name: str, factor: int, times: dict[str, int]
) -> int:
    """Adds how often `name` and what it calls run to `times`; returns the unknown loops met."""
    times[name] = times.get(name, 0) + factor
    unknown = 0
    for instruction in computations.get(name, []):
        inner = factor
        if instruction.opcode == "while":
            trips = _trip_count(computations, instruction)
            unknown += trips is None
            inner *= trips or 1
        for called in _called(instruction):
            unknown += _count(computations, called, inner, times)
    return unknown


def _trip_count(computations: dict[str, list[_Instruction]], loop: _Instruction) -> int | None:
    """Of a loop that says so, or that counts up from 0 to below a constant, as scans do."""
    if said := loop.attribute(r'known_trip_count":\{"n":"(\d+)"'):
        return int(said)
    condition = computations.get(loop.attribute(r"condition=%([\w.\-]+)"), [])
    constants = {
        i.name: int(i.rest.partition(")")[0])
        for i in condition
        if i.opcode == "constant" and re.match(r"s(32|64)\[\]", i.type)
    }
    if condition and condition[-1].opcode == "compare" and "direction=LT" in condition[-1].rest:
        limits = [n for n in re.findall(r"%([\w.\-]+)", condition[-1].rest) if n in constants]
        if len(limits) == 1:
            return constants[limits[0]]
    return None


def _kernel(instruction: _Instruction) -> str:
    """The name of the kernel that is called, or ""."""
    target = instruction.attribute(r'custom_call_target="([^"]*)"')
    if target == "tpu_custom_call":
        return re.sub(r"\.\d+$", "", instruction.name)
    if target.startswith("__cu"):
        return target.removeprefix("__").replace("$", " ")
    triton = instruction.attribute(r'"kind":\s*"__(triton\w*)"')
    return "triton gemm" if "gemm" in triton else ""


def _collective(instruction: _Instruction, computation: str, times: int) -> Collective | None:
    kind = instruction.opcode.removesuffix("-start")
    if kind not in COLLECTIVES:
        return None
    arrays = instruction.arrays
    size = sum(array.bytes for array in arrays)
    devices = _group_size(instruction)
    if instruction.opcode.endswith("-start") and len(arrays) > 1:
        size = max(array.bytes for array in arrays)  # the operand stands in the result, too
    elif kind == "reduce-scatter":
        size *= devices or 1
    if kind == "all-reduce" and computation.startswith("all-reduce-scatter"):
        kind = "reduce-scatter"  # the compiler's name for the two in one
    return Collective(kind, size, times, devices, instruction.origin)


def _group_size(instruction: _Instruction) -> int:
    """Devices of one replica group, in any of the notations; 0 if there is none."""
    rest = instruction.rest
    if listed := re.search(r"replica_groups=\{\{([\d,]+)\}", rest):
        return listed[1].count(",") + 1
    if iota := re.search(r"replica_groups=\[(?:\d+,)*(\d+)\]<=", rest):
        return int(iota[1])
    if named := re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}", rest):
        sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", named[1])}
        return math.prod(sizes[name] for name in re.findall(r"'([^']+)'", named[2]))
    return 0
