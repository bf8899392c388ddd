# SPDX-License-Identifier: Apache-2.0
"""The static cost of a whole program that XLA made: every operation's schedule, in order.

The compiler dumps a schedule for each operation of the optimised program.  An operation is a loop
over blocks; the program states their number (`iteration_bounds`) and the loop its own turns, a few
more.  Guarded regions without products at the ends of a contraction run once for each of its sums.
Operations follow one another: each takes the longer of its schedule and its way to memory.  Bodies
of `while` count as often as they turn.  What cannot be counted so raises UncountableError.

A copy without a schedule is the memory engines' alone.

Bytes: operands and results in HBM (memory space 0), slices as what they take of an array.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from jaxlm.bench.kernel_runs import Part
from jaxlm.bench.schedule import Region, Schedule, read_exactly

ITEM_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4}
NO_CODE = {  # their bytes, if any, are those of the operations that use them
    "parameter", "constant", "get-tuple-element", "tuple", "bitcast", "copy-done", "after-all",
    "slice-done", "opt-barrier", "partition-id",
}  # fmt: skip
MOVES = {"copy-start"}  # by the memory engines alone
ALLOCATION = 'custom_call_target="AllocateBuffer"'
SMALL_BYTES = 4096
PIPELINE = 8  # turns of a loop beyond its blocks, at most

_OP = re.compile(r"^\s*(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)$")
_ARRAY = re.compile(r"(\w+)\[([\d,]*)\](?:\{[^}]*?(S\(\d\))?[^}S]*\})?")
_BOUNDS = re.compile(r'"iteration_bounds":\[([^\]]*)\]')


class UncountableError(ValueError):
    """What an operation costs cannot be read from its schedule."""


@dataclasses.dataclass(frozen=True)
class Operation:
    name: str
    shape: str
    kind: str
    rest: str  # operands and attributes

    @property
    def operands(self) -> list[str]:
        return re.findall(r"%([\w.\-]+)", self.rest.split("), ")[0])

    def called(self, attribute: str) -> str | None:
        match = re.search(rf"\b{attribute}=%?([\w.\-]+)", self.rest)
        return match[1] if match else None

    @property
    def blocks(self) -> list[int]:
        match = _BOUNDS.search(self.rest)
        return [int(n.strip('"')) for n in match[1].split(",")] if match and match[1] else []

    @property
    def twin(self) -> tuple[str, ...]:
        """Operations of equal cost; the compiler dumps one of them."""
        window = re.search(r'"window_config":\{.*?\}', self.rest)
        return self.kind, self.shape, window[0] if window else self.name


@dataclasses.dataclass
class Cost:
    """Sums over operations."""

    schedule_s: float = 0.0
    hbm_s: float = 0.0
    longer_s: float = 0.0  # of the two, operation by operation
    cycles: float = 0.0
    hbm_bytes: float = 0.0
    spills: int = 0
    bundles: int = 0
    issued: dict[str, float] = dataclasses.field(default_factory=dict)  # share times cycles

    def add(
        self, schedule: Schedule | None, runs: Callable[[Region], float] | None, calls: float,
        hbm_bytes: float, clock: float, bandwidth: float,
    ) -> None:  # fmt: skip
        cycles = 0.0
        if schedule is not None and runs is not None:
            cycles, busy = schedule.cost(runs)
            self.spills += schedule.num_spills
            self.bundles += schedule.num_bundles
            for unit, share in busy.items():
                self.issued[unit] = self.issued.get(unit, 0.0) + share * cycles * calls
        self.cycles += cycles * calls
        self.hbm_bytes += hbm_bytes * calls
        self.schedule_s += cycles / clock * calls
        self.hbm_s += hbm_bytes / bandwidth * calls
        self.longer_s += max(cycles / clock, hbm_bytes / bandwidth) * calls


class Program:
    """An optimised program's text, as computations of operations."""

    def __init__(self, text: str) -> None:
        self.computations: dict[str, list[Operation]] = {}
        current: list[Operation] = []
        self.entry = ""
        for line in text.splitlines():
            if match := re.match(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$", line):
                current = self.computations[match[2]] = []
                self.entry = match[2] if match[1] else self.entry
            elif match := _OP.match(line):
                current.append(Operation(*match.groups()))

    def operations(self) -> Iterator[tuple[Operation, dict[str, str], float]]:
        """Operations, the shapes of all names in their computation, how often they run."""
        yield from self._of(self.entry, 1.0)

    def _of(self, name: str, times: float) -> Iterator[tuple[Operation, dict[str, str], float]]:
        shapes = {op.name: op.shape for op in self.computations[name]}
        for op in self.computations[name]:
            if op.kind == "while":
                yield from self._of(op.called("body") or "", times * self._turns(op))
            elif op.kind == "call":
                yield from self._of(op.called("to_apply") or "", times)
            elif op.kind == "conditional":
                raise UncountableError(f"{op.name}: which branch is taken is not known")
            elif op.kind not in NO_CODE and ALLOCATION not in op.rest:
                yield op, shapes, times

    def _turns(self, loop: Operation) -> int:
        if match := re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.rest):
            return int(match[1])
        condition = self.computations[loop.called("condition") or ""]
        found = [
            op.rest for op in condition if op.kind == "constant" and op.shape.startswith("s32")
        ]
        if len(found) != 1:
            raise UncountableError(f"{loop.name}: how often it turns is not stated")
        return int(found[0].split(")")[0])

    def hbm_bytes(self, op: Operation, shapes: dict[str, str]) -> float:
        """What an operation reads and writes in HBM."""
        if op.kind in MOVES:
            return array_bytes(shapes[op.operands[0]]) / (
                1 if op.kind == "copy-start" else math.inf
            )
        inside = self.computations.get(op.called("calls") or "", [])
        parameters = {o.rest.split(")")[0]: o.name for o in inside if o.kind == "parameter"}
        result = array_bytes(op.shape)
        total = 0.0
        for i, operand in enumerate(op.operands):
            whole = array_bytes(shapes.get(operand, ""))
            users = [o for o in inside if parameters.get(str(i)) in o.operands]
            taken = whole
            if users and all(o.kind in ("dynamic-slice", "slice") for o in users) and whole:
                taken = sum(array_bytes(o.shape) for o in users)
            for update in users:  # in place: what is written is the update alone
                is_target = update.operands and update.operands[0] == parameters.get(str(i))
                if update.kind == "dynamic-update-slice" and is_target and len(users) == 1:
                    names = {o.name: o.shape for o in inside}
                    taken = 0.0
                    result += array_bytes(names.get(update.operands[1], "")) - whole
            total += min(taken, whole)
        return total + max(result, 0.0)


def array_bytes(shape: str) -> float:
    """Of all arrays of a shape that lie in HBM."""
    total = 0
    for dtype, sizes, space in _ARRAY.findall(shape):
        if dtype in ITEM_BYTES and not space:
            total += ITEM_BYTES[dtype] * math.prod(int(n) for n in sizes.split(",") if n)
    return float(total)


def runs_of(op: Operation, schedule: Schedule, cores: int) -> Callable[[Region], float]:
    """How often the regions of an operation run on one core.  Raises UncountableError."""
    blocks = math.prod(op.blocks)
    outer = {region.loops[0] for region in schedule.regions if region.loops}
    unknown = {loop for r in schedule.regions for loop in r.loops} - set(schedule.bounds)
    if unknown:
        raise UncountableError(f"{op.name}: a loop does not state its turns")

    def runs(region: Region) -> float:
        times = math.prod(schedule.bounds[loop] for loop in region.loops)
        if not region.loops or len(outer) > 1 or schedule.depth(region) == 0:
            return float(times)
        turns = schedule.bounds[region.loops[0]]
        here = next((n for n in (blocks, -(-blocks // cores)) if 0 <= turns - n <= PIPELINE), turns)
        is_end = schedule.depth(region) > 1 and not region.units.get("MXU", 0)
        return times / turns * here / (op.blocks[-1] if is_end and op.blocks else 1)

    return runs


def count(
    text: str, folder: Path, parts: tuple[Part, ...], part_bytes: float, cores: int,
    clock: float, bandwidth: float,
) -> Cost:  # fmt: skip
    """The cost of all operations of a program; `parts` says how its custom kernels are counted."""
    program, total = Program(text), Cost()
    known: dict[tuple[str, ...], Schedule] = {}
    todo = list(program.operations())
    for op, _, _ in todo:
        if (schedule := read_exactly(folder, op.name)) is not None:
            known[op.twin] = schedule
    for op, shapes, times in todo:
        hbm = program.hbm_bytes(op, shapes)
        if op.kind in MOVES:
            total.add(None, None, times, hbm, clock, bandwidth)
            continue
        schedule = read_exactly(folder, op.name) or known.get(op.twin)
        if schedule is None and (op.kind == "copy" or _is_small(op)):
            total.add(None, None, times, hbm, clock, bandwidth)
            continue
        if schedule is None:
            raise UncountableError(f"{op.name} ({op.kind}): the compiler shows no schedule of it")
        if op.kind == "custom-call":
            part = next((p for p in parts if p.name in op.name), None)
            if part is None and not _is_straight(schedule):
                raise UncountableError(f"{op.name}: a kernel of the compiler without a rule")
            rule = part.rule(schedule, cores) if part else runs_of(op, schedule, cores)
            total.add(
                schedule,
                rule,
                times,
                part_bytes if part and part is parts[0] else hbm,
                clock,
                bandwidth,
            )
        else:
            total.add(schedule, runs_of(op, schedule, cores), times, hbm, clock, bandwidth)
    return total


def _is_small(op: Operation) -> bool:
    """A few numbers, which the program around its operations computes itself."""
    return 0 < array_bytes(op.shape.replace("S(", "(")) <= SMALL_BYTES


def _is_straight(schedule: Schedule) -> bool:
    return all(loop in schedule.bounds for region in schedule.regions for loop in region.loops)
