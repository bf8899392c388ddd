# SPDX-License-Identifier: Apache-2.0
"""An optimised program's text, as computations of operations, and how often each runs.

The text is what `compiled.as_text()` gives: HLO, scheduled, so operations stand in the order in
which they are issued.  Operations inside of a fusion are part of it and are not scheduled.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator

ITEM_BYTES = {
    "pred": 1, "s2": 0.25, "u2": 0.25, "s4": 0.5, "u4": 0.5, "s8": 1, "u8": 1, "s16": 2, "u16": 2,
    "s32": 4, "u32": 4, "s64": 8, "u64": 8, "bf16": 2, "f16": 2, "f32": 4, "f64": 8, "c64": 8,
    "c128": 16, "f4e2m1fn": 0.5, "f8e4m3": 1, "f8e4m3fn": 1, "f8e5m2": 1, "f8e4m3b11fnuz": 1,
    "f8e4m3fnuz": 1, "f8e5m2fnuz": 1, "f8e8m0fnu": 1,
}  # fmt: skip
HBM, HOST = 0, 5  # memory spaces; the others lie on the chip

_ARRAY = re.compile(r"(\w+)\[([\d,<=]*)\](?:\{([^}]*)\})?")
_SPACE = re.compile(r"S\((\d+)\)")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
_END = re.compile(
    r'\}(, execution_thread="\w+")?\s*$'
)  # a kernel's metadata may end with a line of }}
_OP = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*)$")
_NAME = re.compile(r"%([\w.\-]+)")


@dataclasses.dataclass(frozen=True)
class Array:
    """One array of a shape."""

    dtype: str
    sizes: tuple[int, ...]
    space: int  # of memory

    @property
    def num_items(self) -> int:
        return math.prod(self.sizes)

    @property
    def num_bytes(self) -> float:
        return ITEM_BYTES[self.dtype] * self.num_items


@dataclasses.dataclass(frozen=True)
class Op:
    """One operation: `name = shape kind(arguments), attributes`."""

    name: str
    shape: str
    kind: str
    arguments: str
    attributes: str
    is_root: bool

    @functools.cached_property
    def arrays(self) -> tuple[Array, ...]:
        """All arrays of the result, a tuple's in order."""
        return arrays_of(self.shape)

    @functools.cached_property
    def operands(self) -> tuple[str, ...]:
        return tuple(_NAME.findall(self.arguments))

    def called(self, attribute: str) -> str | None:
        match = re.search(rf"\b{attribute}=%?([\w.\-]+)", self.attributes)
        return match[1] if match else None

    def text(self, key: str) -> str | None:
        """A string of the attributes: custom_call_target="..." or "emitter":"..." """
        match = re.search(rf'\b{key}"?[=:]\s*"([^"]*)"', self.attributes)
        return match[1] if match else None


def arrays_of(shape: str) -> tuple[Array, ...]:
    """The arrays named in a shape's text; tokens and opaque values are none."""
    found = []
    for dtype, sizes, layout in _ARRAY.findall(shape):
        if dtype in ITEM_BYTES:
            space = _SPACE.search(layout)
            numbers = tuple(int(n.lstrip("<=")) for n in sizes.split(",") if n)
            found.append(Array(dtype, numbers, int(space[1]) if space else HBM))
    return tuple(found)


@dataclasses.dataclass(frozen=True)
class Computation:
    """Operations in order, and by name."""

    ops: tuple[Op, ...]

    @functools.cached_property
    def by_name(self) -> dict[str, Op]:
        return {op.name: op for op in self.ops}

    @functools.cached_property
    def users(self) -> dict[str, list[Op]]:
        found: dict[str, list[Op]] = {}
        for op in self.ops:
            for operand in dict.fromkeys(op.operands):
                found.setdefault(operand, []).append(op)
        return found

    @functools.cached_property
    def parameters(self) -> dict[int, Op]:
        return {int(op.arguments): op for op in self.ops if op.kind == "parameter"}

    @property
    def root(self) -> Op:
        return next(op for op in self.ops if op.is_root)

    def arrays(self, name: str) -> tuple[Array, ...]:
        op = self.by_name.get(name)
        return op.arrays if op else ()


@dataclasses.dataclass(frozen=True)
class Module:
    """A program.  `unknown_loops` are counted once: the text does not say how often they turn."""

    computations: dict[str, Computation]
    entry: str

    @functools.cached_property
    def unknown_loops(self) -> tuple[str, ...]:
        loops = (op for _, op in self.scheduled() if op.kind == "while")
        return tuple(op.name for op in loops if self.stated_turns(op) is None)

    def turns(self, loop: Op) -> int:
        """How often a `while` turns."""
        found = self.stated_turns(loop)
        return 1 if found is None else found

    def stated_turns(self, loop: Op) -> int | None:
        """The compiler's count, or the bound of a counter that rises by one, less its start."""
        if match := re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes):
            return int(match[1])
        condition = self.computations[loop.called("condition") or ""]
        bound = self._bound(condition)
        return None if bound is None else max(bound - self._start(condition, loop), 0)

    def _bound(self, condition: Computation) -> int | None:
        """The constant that the counter is compared with, also inside of a fusion."""
        found = [
            int(op.arguments)
            for op in condition.ops
            if op.kind == "constant" and re.fullmatch(r"-?\d+", op.arguments) and op.arrays
            and op.arrays[0].dtype[0] in "su" and not op.arrays[0].sizes
        ]  # fmt: skip
        for op in condition.ops:
            inside = op.called("calls")
            if inside in self.computations:
                deeper = self._bound(self.computations[inside])
                found += [] if deeper is None else [deeper]
        return max(found, default=None)

    def _start(self, condition: Computation, loop: Op) -> int:
        """What the counter begins with, where the program holds it as a constant; else 0."""
        counters = [op for op in condition.ops if op.kind == "get-tuple-element"]
        if len(counters) != 1 or not (match := re.search(r"index=(\d+)", counters[0].attributes)):
            return 0
        for computation in self.computations.values():
            if loop.name in computation.by_name and loop.operands:
                first = computation.by_name.get(loop.operands[0])
                values = first.operands if first and first.kind == "tuple" else ()
                index = int(match[1])
                begin = computation.by_name.get(values[index]) if index < len(values) else None
                while begin is not None and begin.kind in ("copy", "bitcast", "convert"):
                    begin = computation.by_name.get(begin.operands[0])
                if begin is not None and begin.kind == "constant":
                    return int(begin.arguments)
        return 0

    def called_in_turn(self, op: Op) -> list[tuple[str, int]]:
        """Computations that an operation runs op by op, and how often; a fusion runs none.

        Of the branches of a conditional the one with the most operations is taken.
        """
        if op.kind == "while":
            return [(op.called("body") or "", self.turns(op))]
        if op.kind == "call":
            return [(op.called("to_apply") or "", 1)]
        if op.kind == "conditional":
            branches = re.search(r"branch_computations=\{([^}]*)\}", op.attributes)
            names = _NAME.findall(branches[1]) if branches else []
            pair = (op.called("true_computation"), op.called("false_computation"))
            names += [name for name in pair if name]
            return [(max(names, key=lambda name: len(self.computations[name].ops)), 1)]
        return []

    def scheduled(self) -> Iterator[tuple[Computation, Op]]:
        """Every scheduled operation once, with the computation that it stands in."""
        for name in self.times:
            computation = self.computations[name]
            for op in computation.ops:
                yield computation, op

    @functools.cached_property
    def times(self) -> dict[str, float]:
        """How often each computation runs whose operations are scheduled."""
        found: dict[str, float] = {}

        def walk(name: str, times: float) -> None:
            found[name] = found.get(name, 0.0) + times
            for op in self.computations[name].ops:
                for inner, turns in self.called_in_turn(op):
                    walk(inner, times * turns)

        walk(self.entry, 1.0)
        return found

    def inside(self, name: str) -> Iterator[tuple[Computation, Op]]:
        """All operations of a fused or asynchronous computation, those of nested ones too."""
        computation = self.computations[name]
        for op in computation.ops:
            yield computation, op
            for key in ("calls", "to_apply"):
                nested = op.called(key)
                is_reducer = op.kind in ("reduce", "all-reduce", "reduce-scatter", "scatter")
                if nested in self.computations and not is_reducer:
                    yield from self.inside(nested)


def parse(text: str) -> Module:
    """Reads a program's text.  Raises ValueError when it has no entry computation."""
    computations: dict[str, Computation] = {}
    entry, name = "", None
    ops: list[list[str]] = []
    for line in text.splitlines():
        if name is None:
            if match := _COMPUTATION.match(line):
                name, ops = match[2], []
                entry = name if match[1] else entry
        elif _END.match(line):
            computations[name] = Computation(tuple(_operation(*op) for op in ops))
            name = None
        elif match := _OP.match(line):
            ops.append([match[2], match[3], match[1] or ""])
        elif ops:
            ops[-1][1] += " " + line.strip()  # a kernel's metadata may go over several lines
    if not entry:
        raise ValueError("no ENTRY computation: not the text of a compiled program")
    return Module({k: _shortened(c, computations) for k, c in computations.items()}, entry)


def _shortened(computation: Computation, others: dict[str, Computation]) -> Computation:
    """With `async-start` of a computation of one operation written as that operation's own start.

    `as_text` writes `slice-start`, and what the compiler writes down itself `async-start` of a slice.
    """
    alone: dict[str, Op] = {}  # what an asynchronous value is the start, or the end, of
    for op in computation.ops:
        inside = others.get(op.called("calls") or "") if op.kind == "async-start" else None
        if inside and all(o.kind == "parameter" or o.is_root for o in inside.ops):
            alone[op.name] = inside.root
        elif op.kind in ("async-update", "async-done") and op.operands[0] in alone:
            alone[op.name] = alone[op.operands[0]]
    return Computation(tuple(_in_short(op, alone.get(op.name)) for op in computation.ops))


def _in_short(op: Op, alone: Op | None) -> Op:
    if alone is None:
        return op
    attributes = alone.attributes if op.kind == "async-start" else op.attributes
    kind = op.kind.replace("async", alone.kind)
    return dataclasses.replace(op, kind=kind, attributes=attributes)


def _operation(name: str, rest: str, root: str) -> Op:
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    shape, rest = rest[:end], rest[end:].lstrip()
    begin = rest.index("(")
    end = _closing(rest, begin)
    return Op(name, shape, rest[:begin].strip(), rest[begin + 1 : end], rest[end + 1 :], bool(root))


def _closing(text: str, begin: int) -> int:
    """Index of the parenthesis that closes the one at `begin`."""
    depth = 0
    for match in re.finditer(r"[()]", text[begin:]):
        depth += 1 if match[0] == "(" else -1
        if depth == 0:
            return begin + match.start()
    raise ValueError(f"parentheses do not close: {text[:100]!r}")
