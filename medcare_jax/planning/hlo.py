"""Reads a compiled TPU program: cycles, FLOPs and collectives, with every loop counted in full.

The compiler's own cost analysis counts loop bodies once and Pallas kernels as nothing. Its text
has what is needed: an `estimated_cycles` per operation, shapes, loop conditions, groups.
"""

import dataclasses
import math
import re
from collections.abc import Iterator, Sequence

import numpy as np

_SIZES = {"f32": 4, "s32": 4, "u32": 4, "bf16": 2, "f16": 2, "s8": 1, "u8": 1, "pred": 1}
_COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_HEADER = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\{$")
_OP = re.compile(r"^\s+(?:ROOT )?%([\w.\-]+) = (.*?) ([a-z][\w\-]*)\((.*)$")
_SHAPE = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\]")
_CALLED = re.compile(r"(?:calls|to_apply|body|true_computation|false_computation)=%([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")


@dataclasses.dataclass(frozen=True)
class Op:
    """One line of a computation; `rest` is all behind the opening bracket."""

    name: str
    type: str
    opcode: str
    rest: str

    @property
    def called(self) -> list[str]:
        """Names of the computations that it calls."""
        names = _CALLED.findall(self.rest)
        for branches in _BRANCHES.findall(self.rest):
            names += [name.strip().lstrip("%") for name in branches.split(",")]
        return names


@dataclasses.dataclass(frozen=True)
class Collective:
    """A collective, all its repetitions together.

    Attributes:
      kind: `all-gather` and so on.
      bytes: Of the results on one device, times repetitions.
      count: Repetitions.
      group: The devices of the first group.
      sent: Bytes that a device sends for it, its group taken as a ring; what the network's time
        comes from.
    """

    kind: str
    bytes: int
    count: int
    group: tuple[int, ...]
    sent: float


@dataclasses.dataclass(frozen=True)
class Counts:
    """What one device does in a step.

    Attributes:
      matmul_cycles: Estimated cycles of operations that hold a matmul.
      other_cycles: Of all others that have an estimate.
      matmul_flops: FLOP of matmuls, kernels not included.
      kernel_flops: FLOP of attention kernels.
      collectives: All of them.
    """

    matmul_cycles: float
    other_cycles: float
    matmul_flops: float
    kernel_flops: float
    collectives: tuple[Collective, ...]


class Program:
    """A parsed program."""

    def __init__(self, text: str) -> None:
        """Parses the text of an optimised HLO module."""
        self.computations: dict[str, list[Op]] = {}
        self.entry = ""
        current: list[Op] | None = None
        for line in text.splitlines():
            if current is None:
                if header := _HEADER.match(line):
                    current = self.computations.setdefault(header[1], [])
                    self.entry = header[1] if line.startswith("ENTRY") else self.entry
            elif line.rstrip() == "}":
                current = None
            elif found := _OP.match(line):
                current.append(Op(*found.groups()))

    def visit(self) -> Iterator[tuple[Op, str, int, bool]]:
        """Every operation with its computation, how often it runs, and if it is top level.

        Operations inside a fusion are not top level: their cycles are the fusion's.
        """
        yield from self._visit(self.entry, 1, is_top=True)

    def _visit(self, name: str, times: int, *, is_top: bool) -> Iterator[tuple[Op, str, int, bool]]:
        for op in self.computations.get(name, ()):
            yield op, name, times, is_top
            inner = times * self.trips(op) if op.opcode == "while" else times
            stays = is_top and op.opcode in ("while", "conditional", "call", "async-start")
            for called in op.called:
                yield from self._visit(called, inner, is_top=stays)

    def trips(self, loop: Op) -> int:
        """How often a loop runs: the bound that its condition compares with."""
        condition = re.search(r"condition=%([\w.\-]+)", loop.rest)
        pending, bounds = [condition[1]] if condition else [], [1]
        while pending:
            for op in self.computations.get(pending.pop(), ()):
                if op.opcode == "constant" and (value := re.match(r"(\d+)\)", op.rest)):
                    bounds.append(int(value[1]))
                pending += op.called
        return max(bounds)

    def holds_matmul(self, op: Op) -> bool:
        """Whether an operation or anything that it calls is a matmul."""
        return op.opcode in ("convolution", "dot") or any(
            self.holds_matmul(inner)
            for name in op.called
            for inner in self.computations.get(name, ())
        )

    def buffers(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Dtype and shape of every array that any operation makes, fused ones left out."""
        for op, _, _, is_top in self.visit():
            if is_top:
                yield from shapes(op.type)


def count(program: Program) -> Counts:
    """Adds up a program."""
    matmul = other = flops = kernel = 0.0
    collectives: dict[str, Collective] = {}
    tables = {name: {op.name: op.type for op in ops} for name, ops in program.computations.items()}
    for op, where, times, is_top in program.visit():
        if is_top and (cycles := re.search(r'"estimated_cycles":"(\d+)"', op.rest)):
            if program.holds_matmul(op):
                matmul += times * int(cycles[1])
            else:
                other += times * int(cycles[1])
        if op.opcode in ("convolution", "dot"):
            flops += times * matmul_flops(op, tables[where])
        if op.opcode == "custom-call" and "splash" in op.name:
            kernel += times * _splash_flops(op)
        if found := _collective(op, where, times):
            channel = re.search(r"channel_id=(\d+)", op.rest)
            # One collective may be spread over several fusions, each with the same channel.
            collectives.setdefault(channel[1] if channel else op.name, found)
    return Counts(matmul, other, flops, kernel, tuple(collectives.values()))


def shapes(type_text: str) -> list[tuple[str, tuple[int, ...]]]:
    """The arrays of a type, tuples flattened.

    >>> shapes("(bf16[2,3]{1,0:T(8,128)}, f32[])")
    [('bf16', (2, 3)), ('f32', ())]
    """
    return [
        (kind, tuple(int(size) for size in sizes.split(",") if size))
        for kind, sizes in _SHAPE.findall(type_text)
        if kind in _SIZES
    ]


def matmul_flops(op: Op, types: dict[str, str]) -> float:
    """2 · result elements · contracted elements; TPU matmuls are written as convolutions."""
    (_, out), operands = shapes(op.type)[0], re.findall(r"%([\w.\-]+)", op.rest.split(")")[0])
    if op.opcode == "dot":
        left = shapes(types[operands[0]])[0][1]
        axes = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", op.rest)
        contracted = [left[int(axis)] for axis in axes[1].split(",")] if axes else []
        return 2.0 * math.prod(out) * math.prod(contracted)
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", op.rest)
    right = shapes(types[operands[1]])[0][1]
    if labels is None:
        return 0.0
    contracted = [right[labels[2].index("i")]]
    window = re.search(r"window=\{size=([\dx]+)([^}]*)\}", op.rest)
    # A window over all of a padded input is a batch axis in disguise: nothing is contracted.
    if window and "pad" not in window[2] and "dilate" not in window[2]:
        contracted += [int(size) for size in window[1].split("x")]
    return 2.0 * math.prod(out) * math.prod(contracted)


def _splash_flops(op: Op) -> float:
    """Causal attention: two matmuls forward, five backward, over half of the pairs."""
    # The first operand that is no integer is the queries. Results would mislead: the fused
    # backward kernel gives their gradient once for each block of keys.
    operands = op.rest.split("operand_layout_constraints=", 1)[1]
    queries = next(shape for kind, shape in shapes(operands) if kind in ("bf16", "f32", "f16"))
    matmuls = 2 if "fwd" in op.name else 5
    return matmuls * math.prod(queries) * queries[-2]


def _collective(op: Op, where: str, times: int) -> Collective | None:
    """The collective that an operation of a computation starts, if it does."""
    kind = op.opcode.removesuffix("-start")
    if kind not in _COLLECTIVES:
        return None
    arrays = [math.prod(shape) * _SIZES[dtype] for dtype, shape in shapes(op.type)]
    # Started gathers and permutes have operand and result in their type; the result is largest.
    size = max(arrays) if op.opcode.endswith("-start") and kind != "all-reduce" else sum(arrays)
    group = _first_group(op.rest)
    # So the compiler names a sum of which each device keeps its part: no second half of the ring.
    is_scattered = where.startswith("all-reduce-scatter")
    sent = sent_bytes(kind, size, len(group), is_scattered=is_scattered)
    return Collective(kind, size * times, times, group, sent * times)


def sent_bytes(kind: str, size: int, ways: int, *, is_scattered: bool = False) -> float:
    """What a device of a ring of so many sends for a result of `size` bytes.

    >>> sent_bytes("all-gather", 100, 4), sent_bytes("all-reduce", 100, 4)
    (75.0, 150.0)
    """
    if kind == "collective-permute":
        return float(size)
    if kind == "reduce-scatter":  # its result is one part of what goes round
        return float(size * (ways - 1 if ways else 1))
    passes = 2 if kind == "all-reduce" and not is_scattered else 1
    return passes * size * (ways - 1) / ways if ways else float(passes * size)


def _first_group(rest: str) -> tuple[int, ...]:
    """The devices of the first replica group, or of the first pair of a permute."""
    iota = re.search(r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", rest)
    if iota:
        dims = [int(size) for size in iota[3].split(",")]
        devices = np.arange(math.prod(dims)).reshape(dims)
        if iota[4]:
            devices = devices.transpose([int(axis) for axis in iota[4].split(",")])
        return tuple(devices.reshape(int(iota[1]), int(iota[2]))[0].tolist())
    named = re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", rest)
    if named:
        sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", named[1])}
        devices = np.arange(math.prod(sizes.values())).reshape(tuple(sizes.values()))
        group = devices[tuple(slice(None) if name in named[2] else 0 for name in sizes)]
        return tuple(group.reshape(-1).tolist())
    listed = re.search(r"(?:replica_groups|source_target_pairs)=\{\{([\d,]+)\}", rest)
    return tuple(int(device) for device in listed[1].split(",")) if listed else ()


def axes_of(group: Sequence[int], mesh: dict[str, int]) -> str:
    """The mesh axes along which the devices of a group differ, joined by `+`.

    >>> axes_of((0, 2), {"data": 2, "fsdp": 2, "tensor": 2})
    'fsdp'
    """
    if len(group) < 2:
        return "all" if not group else "none"
    places = np.array(np.unravel_index(list(group), tuple(mesh.values())))
    return "+".join(name for name, row in zip(mesh, places, strict=True) if len(set(row)) > 1)
