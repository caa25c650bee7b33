"""Tells what a compiled program does to memory and interconnect, from XLA's own text.

The text is `compiled.as_text()`. A loop's body counts as often as it runs. XLA's own cost analysis
counts it once on TPUs, and does not see a collective that is fused with something else. All sizes
are those of one device.
"""

import math
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

_ARRAY = re.compile(r"(\w+)\[([\d,]*)\](?:\{([^}]*)\})?")
# A TPU's memory spaces other than its HBM.
_ON_CHIP = re.compile(r"S\([1-9]\)")
_HEADER = re.compile(r"(ENTRY )?%?([\w.-]+) \(.*\) -> .*\{$")
_ROLE = re.compile(r"(body|condition|calls|to_apply)=%?([\w.-]+)")
_BRANCHES = re.compile(r"(?:branch_computations|called_computations)=\{([^}]*)\}")
_COLLECTIVE = re.compile(
    r"(all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)(-start)?$"
)
_SLICES = ("dynamic-slice", "slice", "gather")
# Operations inside a fusion that only pass an array on. Custom calls there begin and end
# collectives.
_HANDED_ON = ("parameter", "tuple", "custom-call")
# Operations that touch no memory by themselves: names for what is there, and loops, whose bodies
# count.
_FREE = frozenset(
    "parameter constant tuple get-tuple-element bitcast while conditional call after-all"
    " partition-id replica-id iota opt-barrier".split()
)


class Instruction(NamedTuple):
    """Holds a line `NAME = SHAPE OPCODE(ARGUMENTS)ATTRIBUTES` of a computation."""

    name: str
    shape: str
    opcode: str
    arguments: str
    attributes: str
    is_root: bool

    @property
    def operands(self) -> list[str]:
        return re.findall(r"%([\w.-]+)", self.arguments)


# Instructions by name, in their order.
Computation = Mapping[str, Instruction]


class Program(NamedTuple):
    """Holds a program's computations by name, and the name of the one that is its entry."""

    entry: str
    computations: Mapping[str, Computation]
    devices: int


class Collective(NamedTuple):
    """Describes one collective operation.

    XLA may cut a matrix product into steps that pass parts around a ring. Each passing is then a
    collective of its own.
    """

    kind: str  # as in HLO, or "ring all-gather" or "ring reduce-scatter"
    bytes: int  # the size of an all-gather's result, or of any other's operands
    group: int  # the number of devices that take part together
    times: int  # how often it runs in one call of the program
    shape: str  # the shapes of the operands

    @property
    def sent(self) -> float:
        """Returns the bytes that one device sends in one call, in a ring.

        In a ring of n devices each sends (n - 1) / n of the array, and in an all-reduce twice that:
        an all-reduce is a reduce-scatter followed by an all-gather.
        """
        rounds = {"all-reduce": 2.0, "all-gather": 1.0, "reduce-scatter": 1.0, "all-to-all": 1.0}
        share = rounds[self.kind] * (self.group - 1) / self.group if self.kind in rounds else 1.0
        return self.bytes * share * self.times


def parse(text: str) -> Program:
    """Reads a program from XLA's text.

    HloModule jit_step, ..., num_partitions=8
    %body (p: f32[8]) -> f32[8] {                the header of a computation
      %p = f32[8]{0} parameter(0)                its instructions
      ROOT %r = f32[8]{0} add(%p, %p)
    }
    ENTRY %main (...) -> ... {
    """
    computations: dict[str, dict[str, Instruction]] = {}
    entry, current = "", {}
    for line in text.splitlines():
        if line.startswith("  ") and " = " in line:
            instruction = _instruction(line)
            current[instruction.name] = instruction
        elif header := _HEADER.match(line):
            current = computations[header[2]] = {}
            entry = header[2] if header[1] else entry
    partitions = re.search(r"num_partitions=(\d+)", text[: text.index("\n")])
    return Program(entry, computations, int(partitions[1]) if partitions else 1)


def _instruction(line: str) -> Instruction:
    name, _, rest = line.strip().partition(" = ")
    # The shape of a tuple is in parentheses and holds spaces.
    end = _closing(rest, 0) if rest.startswith("(") else rest.index(" ")
    shape, rest = rest[:end], rest[end:].lstrip()
    start = rest.index("(")
    end = _closing(rest, start)
    return Instruction(
        name.removeprefix("ROOT ").lstrip("%"),
        shape,
        rest[:start],
        rest[start + 1 : end - 1],
        rest[end:],
        name.startswith("ROOT "),
    )


def _closing(text: str, start: int) -> int:
    """Returns the place just past the parenthesis that closes the one at `start`."""
    depth = 0
    for match in re.compile(r"[()]").finditer(text, start):
        depth += 1 if match[0] == "(" else -1
        if not depth:
            return match.end()
    raise ValueError(f"no closing parenthesis in {text[:80]!r}")


def size(shape: str, *, hbm_only: bool = False) -> int:
    """Returns the bytes of an array such as "bf16[8,128]{1,0}", or of all arrays of a tuple.

    With `hbm_only` what lies in a TPU's on-chip memory is left out.
    """
    return sum(_sizes(shape, hbm_only=hbm_only))


def _sizes(shape: str, *, hbm_only: bool = False) -> list[int]:
    """Returns the bytes of each array of a tuple; see `size`."""
    result = []
    for dtype, dims, layout in _ARRAY.findall(shape):
        # A type's name has its bits, but for pred. A token has none.
        bits = 8 if dtype == "pred" else int((re.findall(r"\d+", dtype) or [0])[0])
        elsewhere = hbm_only and _ON_CHIP.search(layout)
        result.append(
            0 if elsewhere else bits * math.prod(map(int, filter(None, dims.split(",")))) // 8
        )
    return result


def runs(program: Program) -> dict[str, int]:
    """Returns how often each computation runs in one call of the program.

    A loop's condition, and a computation that a reduction applies to elements, are not listed.
    """
    result: dict[str, int] = {}

    def visit(name: str, times: int) -> None:
        result[name] = result.get(name, 0) + times
        for instruction in program.computations[name].values():
            loops = trip_count(program, instruction) if instruction.opcode == "while" else 1
            for called in _called(instruction):
                visit(called, times * loops)

    visit(program.entry, 1)
    return result


def _called(instruction: Instruction) -> Iterator[str]:
    """Yields the names of the computations that an instruction runs.

    A loop's condition, and what a reduction applies to elements, are left out.
    """
    for role, name in _ROLE.findall(instruction.attributes):
        if role in ("body", "calls") or (role == "to_apply" and instruction.opcode == "call"):
            yield name
    for names in _BRANCHES.findall(instruction.attributes):
        yield from re.findall(r"[\w.-]+", names)


def trip_count(program: Program, loop: Instruction) -> int:
    """Returns how often a while loop's body runs.

    XLA's own word counts. Without it, the loop's counter begins at 0, and the count is the limit
    of the counter over its step.
    """
    if known := re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes):
        return int(known[1])
    roles = dict(_ROLE.findall(loop.attributes))
    condition, body = (program.computations[roles[role]] for role in ("condition", "body"))
    # The condition is `counter < limit`, and the counter is one part of the loop's tuple.
    compare = _root(condition)
    if compare.opcode != "compare" or "direction=LT" not in compare.attributes:
        raise ValueError(f"cannot read how often {loop.name} runs: {compare}")
    counter, limit = (condition[name] for name in compare.operands)
    if (index := re.search(r"index=(\d+)", counter.attributes)) is None:
        raise ValueError(f"cannot read how often {loop.name} runs: {counter}")
    # The body's result is a tuple in the same order; the same place in it holds counter + step.
    place = int(index[1])
    step = body[_root(body).operands[place]]
    (increment,) = (
        int(body[name].arguments) for name in step.operands if body[name].opcode == "constant"
    )
    return math.ceil(int(limit.arguments) / increment)


def _root(computation: Computation) -> Instruction:
    return next(instruction for instruction in computation.values() if instruction.is_root)


def collectives(program: Program) -> list[Collective]:
    """Returns every collective once.

    An asynchronous fusion may spread a collective over several computations. Its channel's number
    tells that these are one.
    """
    seen: dict[tuple[str, str], Collective] = {}
    for name, times in runs(program).items():
        computation = program.computations[name]
        for instruction in computation.values():
            if match := _COLLECTIVE.match(instruction.opcode):
                channel = re.search(r"channel_id=\d+", instruction.attributes)
                key = match[1], channel[0] if channel else f"{name} {instruction.name}"
                if key not in seen:
                    operands = [computation[operand].shape for operand in instruction.operands]
                    group = _group_size(instruction.attributes, program.devices)
                    total = sum(map(size, operands)) * (group if match[1] == "all-gather" else 1)
                    shapes = ", ".join(re.sub(r"\{.*?\}", "", shape) for shape in operands)
                    seen[key] = Collective(_kind(match[1], name), total, group, times, shapes)
    return list(seen.values())


def _kind(opcode: str, computation: str) -> str:
    """Returns what a collective is, by its opcode and the name of the computation that it is in."""
    # XLA for TPUs writes a reduce-scatter as an all-reduce, of which each device computes its part.
    if computation.startswith("all-reduce-scatter"):
        return "reduce-scatter"
    ring = re.search(r"windowed_dot_general_body_(ag|rs)", computation)
    if opcode == "collective-permute" and ring:
        return {"ag": "ring all-gather", "rs": "ring reduce-scatter"}[ring[1]]
    return opcode


def _group_size(attributes: str, devices: int) -> int:
    """Returns how many devices take part together, from any of the three forms in XLA's text.

    replica_groups={{0,1},{2,3}}                                      2, listed
    replica_groups=[2,4]<=[8]                                         4, in 2 groups
    replica_groups=mesh['data'=2,'fsdp'=4] {'fsdp'}                   4, the named axes
    """
    if listed := re.search(r"replica_groups=\{\{([\d,]+)\}", attributes):
        return len(listed[1].split(","))
    if tiled := re.search(r"replica_groups=\[\d+,(\d+)\]<=", attributes):
        return int(tiled[1])
    if named := re.search(r"replica_groups=mesh\[([^\]]*)\].*?\{('[^}]*)\}", attributes):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", named[1]))
        parts = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", named[2])
        return math.prod(int(part or sizes[axis]) for axis, part in parts)
    return devices


def hbm_traffic(program: Program) -> int:
    """Returns the bytes read from and written to a TPU's HBM in one call.

    It counts the operands and results of every operation outside of fusions. Where a fusion only
    slices an array, or updates it in one place, only that part counts. Where a fusion only hands an
    array on, nothing counts. A collective counts its array once.
    """
    fused = {
        called
        for computation in program.computations.values()
        for instruction in computation.values()
        if instruction.opcode in ("fusion", "custom-call")
        for called in _called(instruction)
    }
    total = sum(c.times * c.bytes for c in collectives(program))
    for name, times in runs(program).items():
        if name not in fused:
            inside = program.computations[name]
            total += times * sum(_traffic(program, one, inside) for one in inside.values())
    return total


def _traffic(program: Program, instruction: Instruction, computation: Computation) -> int:
    """Returns the bytes of HBM that one operation outside of fusions reads and writes."""
    opcode, result = instruction.opcode, size(instruction.shape, hbm_only=True)
    if opcode in _FREE or opcode.endswith("-done") or _COLLECTIVE.match(opcode):
        return 0
    whole = [size(computation[name].shape, hbm_only=True) for name in instruction.operands]
    # A part of an array goes from HBM to the chip.
    if opcode == "slice-start":
        _, part, *_ = _ARRAY.finditer(instruction.shape)
        return size(part[0])
    # The result of a -start is a tuple of what goes in and what comes out.
    if opcode.endswith("-start"):
        return result
    if opcode in _SLICES:
        return 2 * result
    if opcode == "dynamic-update-slice":
        return 2 * whole[1]
    if opcode != "fusion":
        return sum(whole) + result
    (called,) = _called(instruction)
    inside = program.computations[called]
    results = _sizes(instruction.shape, hbm_only=True)
    return sum(map(min, whole, _parameter_reads(program, inside))) + sum(
        map(min, results, _written(inside))
    )


def _parameter_reads(program: Program, fusion: Computation) -> list[int]:
    """Returns the bytes that a fusion reads of each of its parameters."""
    parameters = {int(i.arguments): i.name for i in fusion.values() if i.opcode == "parameter"}
    return [_reads(program, fusion, parameters[number]) for number in sorted(parameters)]


def _reads(program: Program, fusion: Computation, name: str) -> int:
    """Returns the bytes that a fusion reads of an array in it."""
    users = [user for user in fusion.values() if name in user.operands]
    return sum(_read(program, fusion, name, user) for user in users)


def _read(program: Program, fusion: Computation, name: str, user: Instruction) -> int:
    if user.opcode in _SLICES:
        return size(user.shape)
    if user.opcode == "bitcast":
        return _reads(program, fusion, user.name)
    # A fusion may be inside another: a slice just before a matrix product.
    if user.opcode == "fusion":
        (called,) = _called(user)
        inside = program.computations[called]
        # Or one that only gives the array another shape: who reads that reads the array.
        if all(i.opcode in ("parameter", "bitcast") for i in inside.values()):
            return _reads(program, fusion, user.name)
        inner = zip(user.operands, _parameter_reads(program, inside), strict=True)
        return sum(read for operand, read in inner if operand == name)
    updated = user.opcode == "dynamic-update-slice" and user.operands[0] == name
    if updated or user.opcode in _HANDED_ON or _COLLECTIVE.match(user.opcode):
        return 0
    return size(fusion[name].shape)


def _written(fusion: Computation) -> list[int]:
    """Returns the bytes that a fusion writes of each of its results.

    Of an array updated in one place, only that part counts.
    """

    def written(name: str) -> list[int]:
        instruction = fusion[name]
        if instruction.opcode == "tuple":
            return [sum(written(operand)) for operand in instruction.operands]
        if instruction.opcode in ("bitcast", "get-tuple-element"):
            return [sum(written(instruction.operands[0]))]
        sizes = _sizes(instruction.shape)
        if instruction.opcode in _HANDED_ON or _COLLECTIVE.match(instruction.opcode):
            return [0] * len(sizes)
        if instruction.opcode == "dynamic-update-slice":
            return [size(fusion[instruction.operands[1]].shape)]
        return sizes

    return written(_root(fusion).name)
