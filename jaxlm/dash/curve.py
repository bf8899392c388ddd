# SPDX-License-Identifier: Apache-2.0
"""A curve of any length in bounded memory, as its points arrive.  Standard library only."""

import dataclasses
import math
from typing import NamedTuple

STRETCHES = 512  # so at most 1,024 points, whatever the length of the run


class At(NamedTuple):
    """Where a point stands on each axis that a reader may choose."""

    step: int
    tokens: float  # counted targets since the run began
    seconds: float  # of training, the updates that count


Point = tuple[At, float]


@dataclasses.dataclass(slots=True)
class Stretch:
    """Consecutive points: how many, the lowest and the highest, and what their mean needs."""

    first: At
    last: At
    count: int = 0
    low: Point | None = None  # None while no value is finite
    high: Point | None = None
    total: float = 0.0
    num_finite: int = 0

    def add(self, at: At, value: float) -> None:
        self.last = at
        self.count += 1
        if math.isfinite(value):
            self.total += value
            self.num_finite += 1
            if self.low is None or value < self.low[1]:
                self.low = (at, value)
            if self.high is None or value > self.high[1]:
                self.high = (at, value)

    def joined(self, after: "Stretch") -> "Stretch":
        lows = [s.low for s in (self, after) if s.low is not None]
        highs = [s.high for s in (self, after) if s.high is not None]
        return Stretch(
            first=self.first,
            last=after.last,
            count=self.count + after.count,
            low=min(lows, key=lambda p: p[1], default=None),
            high=max(highs, key=lambda p: p[1], default=None),
            total=self.total + after.total,
            num_finite=self.num_finite + after.num_finite,
        )

    @property
    def points(self) -> list[Point]:
        """The lowest and the highest in the order of the run: no peak is ever lost."""
        if self.low is None or self.high is None:
            return [(self.last, math.nan)]
        return sorted({self.low, self.high})

    @property
    def mean(self) -> Point:
        """Of the finite values, in the middle of the stretch."""
        pairs = zip(self.first, self.last, strict=True)
        step, tokens, seconds = ((a + b) / 2 for a, b in pairs)
        value = self.total / self.num_finite if self.num_finite else math.nan
        return At(round(step), tokens, seconds), value


class Curve:
    """Stretches of equally many points; when they become too many, each two become one."""

    def __init__(self) -> None:
        self.stretches: list[Stretch] = []
        self._size = 1  # points of a full stretch

    def add(self, at: At, value: float) -> None:
        """In constant time on average."""
        if not self.stretches or self.stretches[-1].count >= self._size:
            if len(self.stretches) == STRETCHES:
                pairs = zip(self.stretches[::2], self.stretches[1::2], strict=True)
                self.stretches = [a.joined(b) for a, b in pairs]
                self._size *= 2
            self.stretches.append(Stretch(at, at))
        self.stretches[-1].add(at, value)

    def cut(self, step: int) -> None:
        """Forgets the points from `step` on: a resumed run makes these updates again."""
        while self.stretches and self.stretches[-1].first.step >= step:
            self.stretches.pop()
        if self.stretches and self.stretches[-1].last.step >= step:
            old = self.stretches.pop()
            kept = [p for p in old.points if p[0].step < step] or [(old.first, old.mean[1])]
            self.stretches.append(Stretch(old.first, old.first))
            for at, value in kept:
                self.stretches[-1].add(at, value)

    @property
    def points(self) -> list[Point]:
        return [point for stretch in self.stretches for point in stretch.points]

    @property
    def means(self) -> list[Point]:
        return [stretch.mean for stretch in self.stretches]
