# SPDX-License-Identifier: Apache-2.0
"""How many rows of each corpus make up batch `step`, and how many were used before; pure integers.

Systematic sampling: the corpora's shares are laid end to end on [0, B), and row b of a batch
belongs to the corpus that b + o(s) falls into, for s the steps since the weights last changed and
o(s) in [0, 1) the van der Corput sequence (its bits are those of s, mirrored at the point).  That
sequence is evenly spread over every stretch of steps, so the rows used up to any step stay within
log2(steps) / 3 + 1 of each end of a share; and its values in 2^j aligned steps are known in closed
form, so the rows used up to any step take O(log steps) to count.  Source: Kuipers and Niederreiter,
"Uniform distribution of sequences" (1974), section 2.3.

C corpora.
"""

import dataclasses
import itertools
from collections.abc import Sequence

from jaxlm.data.config import DataConfig

_BITS = 40  # shares and offsets are integers in units of 2^-40 row: exact for 2^40 steps


@dataclasses.dataclass(frozen=True)
class Mixture:
    """Rows of each corpus by step, as a pure function."""

    starts: tuple[int, ...]  # steps at which the weights change, from 0
    ends: tuple[tuple[int, ...], ...]  # for each: where the corpora's shares of [0, B) end

    def used(self, step: int) -> tuple[int, ...]:
        """(C,) rows of each corpus in the batches 0 .. step - 1."""
        stops = (*self.starts[1:], step)
        below = [0] * len(self.ends[0])
        for start, stop, ends in zip(self.starts, stops, self.ends, strict=True):
            num_steps = min(stop, step) - start
            if num_steps > 0:
                below = [n + _sum_below(num_steps, end) for n, end in zip(below, ends, strict=True)]
        return tuple(b - a for a, b in itertools.pairwise([0, *below]))

    def counts(self, step: int) -> tuple[int, ...]:
        """(C,) rows of each corpus in batch `step`; their sum is B."""
        pairs = zip(self.used(step), self.used(step + 1), strict=True)
        return tuple(after - before for before, after in pairs)

    def shares(self) -> list[tuple[float, ...]]:
        """For each stretch of constant weights: (C,) mean rows of each corpus in a batch."""
        return [
            tuple((b - a) / 2**_BITS for a, b in itertools.pairwise((0, *ends)))
            for ends in self.ends
        ]


def make_mixture(config: DataConfig) -> Mixture:
    """The mixture that `config` asks for."""
    schedule = config.weight_schedule or ((0, tuple(c.weight for c in config.corpora)),)
    return Mixture(
        starts=tuple(step for step, _ in schedule),
        ends=tuple(_ends(weights, config.batch_size) for _, weights in schedule),
    )


def _ends(weights: Sequence[float], batch_size: int) -> tuple[int, ...]:
    cumulative = list(itertools.accumulate(weights))
    return tuple(round(batch_size * (c / cumulative[-1]) * 2**_BITS) for c in cumulative)


def _sum_below(num_steps: int, end: int) -> int:
    """Sum over s < num_steps of the number of integers b >= 0 with b + o(s) < end."""
    whole, part = divmod(end, 1 << _BITS)
    return num_steps * whole + _count_below(num_steps, part)


def _count_below(n: int, x: int) -> int:
    """Number of s < n with o(s) < x, in units of 2^-40.

    The steps below n are one block of 2^j steps for each set bit j of n.  In a block the low j bits
    of s run through all values, so that o(s) runs through v, v + 2^-j, v + 2 * 2^-j, ..
    """
    count = v = 0
    for j in reversed(range(n.bit_length())):
        if n >> j & 1:
            count += min(max(-((v - x) >> (_BITS - j)), 0), 1 << j)
            v += 1 << (_BITS - 1 - j)
    return count
