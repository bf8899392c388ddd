# SPDX-License-Identifier: Apache-2.0
"""How often each region of a kernel's schedule runs: a rule per kernel, checked against the code.

A schedule says what runs, not how often: the bounds of a loop over keys and the branch to a
staircase come from the mask, at run time.  The rule of a kernel states both: how many loops and
guarded products it has, and how often each runs.  A kernel whose compiled regions are others than
its rule says has changed, and its cost is refused.

    for step in grid:             steps
        if first: clear           before: guarded, no product, ahead of the last product
        for tile in row: a b      loops, in the order of the program
        if diagonal: a b          products, in the order of the program
        if last: write            after: guarded, no product, behind the last product
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax

from jaxlm.bench.schedule import Region, Schedule


class ChangedError(ValueError):
    """A compiled kernel no longer has the regions that its rule counts."""


class Runs(NamedTuple):
    """How often the regions of a kernel run, over all cores, in the order of the program."""

    steps: float  # of the grid
    loops: Sequence[float] = ()  # turns of each loop inside of a step
    products: Sequence[float] = ()  # of each guarded region that holds matrix products
    before: float = 0  # of guarded regions without products, ahead of the last product
    after: float = 0  # of those behind it

    def of(self, schedule: Schedule, cores: int) -> Callable[[Region], float]:
        """Runs of a region on one core.  Raises ChangedError if the regions are others."""
        inner, guarded = schedule.inner_loops, schedule.guarded_products
        for what, found, expected in (
            ("loops inside of its grid", inner, self.loops),
            ("guarded regions with matrix products", guarded, self.products),
        ):
            if len(found) != len(expected):
                raise ChangedError(
                    f"the compiled kernel has {len(found)} {what}, its rule counts {len(expected)}: "
                    "the kernel or the compiler has changed; write its rule anew"
                )
        last = guarded[-1].start if guarded else -1

        def runs(region: Region) -> float:
            if not region.loops:
                return 1.0
            if len(region.loops) > 1:
                return self.loops[inner.index(region.loops[-1])] / cores
            if region in guarded:
                return self.products[guarded.index(region)] / cores
            if schedule.depth(region) > 1:
                return (self.before if region.start < last else self.after) / cores
            return self.steps / cores

        return runs


Rule = Callable[[Schedule, int], Callable[[Region], float]]  # of a schedule and a number of cores


class Part(NamedTuple):
    """A compiled kernel to be read; several of one name: the shortest program first."""

    name: str  # part of its name in the dump
    rule: Rule
    calls: float = 1
    hbm_bytes: float = 0  # that a call moves, if it is known by part


class Work(NamedTuple):
    """A function to compile, and how to count it."""

    function: Callable[..., Any]
    arguments: tuple[jax.ShapeDtypeStruct, ...]
    parts: tuple[Part, ...] = ()  # none: XLA's own program, counted whole
    hbm_bytes: int = 0  # that the kernels' blocks move
    whole: tuple[str, int] | None = None  # what it may avoid to store: a name, bytes
    # parts and hbm_bytes that are known once the program is compiled
    parts_of: Callable[[str], tuple[tuple[Part, ...], int]] | None = None


def nbytes(*arrays: jax.ShapeDtypeStruct) -> int:
    return sum(x.size * x.dtype.itemsize for x in arrays)
