# SPDX-License-Identifier: Apache-2.0
"""What to try next: the gain that one may expect from finding out, per unit of compute.

An effect has a prior N(m, s^2), and n paired seeds measure it with variance v = sigma^2 / n.  After
that its mean is distributed as N(m, t^2), t^2 = s^4 / (s^2 + v), and one keeps it only when it is
below zero: the expected gain is  t pdf(m / t) - m cdf(-m / t)  (the knowledge gradient: Frazier,
Powell and Dayanik 2008).  An effect that the ledger already knows for the same fields narrows the
prior (normal with normal); a finding that the idea answers doubles what it may do.
"""

import dataclasses
import math
from collections.abc import Sequence

FOR_SAME_FIELDS = 2.0  # another value of a tried field: its effect says half as much


@dataclasses.dataclass(frozen=True)
class Belief:
    """Of an effect, in the metric's unit; negative is better."""

    mean: float
    sd: float

    @property
    def interval(self) -> tuple[float, float, float]:
        """Mean, and what holds it 9 times in 10."""
        half = 1.6449 * self.sd
        return self.mean, self.mean - half, self.mean + half


def updated(prior: Belief, known: Sequence[Belief]) -> Belief:
    """After effects of the same fields at other values, each believed with twice its width."""
    precision, mean = prior.sd**-2, prior.mean * prior.sd**-2
    for seen in known:
        weight = (FOR_SAME_FIELDS**2 * (seen.sd**2 + prior.sd**2)) ** -1
        precision, mean = precision + weight, mean + weight * seen.mean
    return Belief(mean / precision, precision**-0.5)


def expected_gain(belief: Belief, noise: float, seeds: int) -> float:
    """Of measuring an effect with `seeds` pairs of noise `noise` each, and keeping it if it helps.

    >= 0, in the metric's unit; 0 where nothing can be learnt.
    """
    t = belief.sd**2 / math.sqrt(belief.sd**2 + noise**2 / seeds)
    if t == 0:
        return max(0.0, -belief.mean)
    u = belief.mean / t
    pdf = math.exp(-u * u / 2) / math.sqrt(2 * math.pi)
    return t * pdf - belief.mean * 0.5 * math.erfc(u / math.sqrt(2))


def score(belief: Belief, noise: float, seeds: int, flops: float) -> float:
    """Expected gain per 1e15 FLOPs; `flops` of one run."""
    return expected_gain(belief, noise, seeds) / (2 * seeds * flops) * 1e15
