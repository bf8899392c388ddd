# SPDX-License-Identifier: Apache-2.0
"""A program's predicted time: its operations one after another, transfers beside them.

Every operation takes the longer of its work and its way to memory.  An asynchronous collective or
copy runs from its start beside what follows, each kind one at a time, and what is not over at its
end is waited for.  A loop's body is run twice: the second turn, which finds what the first left in
flight, stands for all further ones.
"""

import dataclasses
from collections.abc import Callable

from jaxlm.plan.collectives import carries_on, ends
from jaxlm.plan.hlo import Module, Op

PASSES_ON = ("get-tuple-element", "bitcast", "async-update", "tuple", "copy")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cost:
    """Of one operation, one turn; seconds."""

    work: float = 0.0
    memory: float = 0.0
    network: float = 0.0
    is_far: bool = False  # of the network: it goes from slice to slice
    host: float = 0.0  # of a copy that goes over the host's link
    is_async: bool = False

    @property
    def busy(self) -> float:
        return max(self.work, self.memory)


@dataclasses.dataclass
class Clock:
    """When each resource is free, and when what was started will be over."""

    now: float = 0.0
    network: float = 0.0
    far: float = 0.0
    memory: float = 0.0
    host: float = 0.0
    waited: float = 0.0  # for the network, exposed
    stalled: float = 0.0  # for copies
    due: dict[str, tuple[float, bool]] = dataclasses.field(
        default_factory=dict
    )  # (end, is network)

    def wait(self, op: Op) -> None:
        """Until what an operation needs is over."""
        for name in op.operands:
            end, is_network = self.due.pop(name, (0.0, False))
            late = max(0.0, end - self.now)
            self.now += late
            if is_network:
                self.waited += late
            else:
                self.stalled += late


def step_time(module: Module, cost: Callable[[str, Op], Cost]) -> Clock:
    """The clock at the end of the program; `cost` is asked by computation and operation."""
    clock = Clock()
    _run(module, module.entry, cost, clock)
    return clock


def _run(module: Module, name: str, cost: Callable[[str, Op], Cost], clock: Clock) -> None:
    for op in module.computations[name].ops:
        inner = module.called_in_turn(op)
        for called, turns in inner:
            _repeat(module, called, turns, cost, clock)
        if not inner:
            _advance(module, op, cost(name, op), clock)


def _repeat(
    module: Module, name: str, turns: int, cost: Callable[[str, Op], Cost], clock: Clock
) -> None:
    if turns < 1:
        return
    _run(module, name, cost, clock)
    if turns < 2:
        return
    before = dataclasses.replace(clock)
    _run(module, name, cost, clock)
    for field in ("now", "network", "far", "memory", "host", "waited", "stalled"):
        one = getattr(clock, field) - getattr(before, field)
        setattr(clock, field, getattr(clock, field) + (turns - 2) * one)


def _advance(module: Module, op: Op, cost: Cost, clock: Clock) -> None:
    if ends(module, op):
        clock.wait(op)
    elif op.kind in PASSES_ON or carries_on(op):
        found = [clock.due[o] for o in op.operands if o in clock.due]
        if found:
            clock.due[op.name] = max(found)
    if cost.network and cost.is_far:
        clock.far = max(clock.now, clock.far) + cost.network
        clock.due[op.name] = clock.far, True
    elif cost.network and cost.is_async:
        clock.network = max(clock.now, clock.network) + cost.network
        clock.due[op.name] = clock.network, True
        clock.now += cost.busy
    elif cost.network:
        start = max(clock.now, clock.network)
        clock.waited += start - clock.now + max(0.0, cost.network - cost.busy)
        clock.now = start + max(cost.network, cost.busy)
        clock.network = clock.now
    elif cost.host:
        clock.host = max(clock.now, clock.host) + cost.host
        clock.due[op.name] = clock.host, False
    elif cost.is_async:
        clock.memory = max(clock.now, clock.memory) + cost.memory
        clock.due[op.name] = clock.memory, False
    else:
        clock.now += cost.busy
