# SPDX-License-Identifier: Apache-2.0
"""Will this run still win?  From its differences to the incumbent's curve at the same fractions.

Over runs that were seen to their end, the final difference y is regressed on the last readings x of the
difference, the newest and the one before: where a run stands, and where it is heading,
    y | x ~ a + b'x + t_{n-k} s sqrt(1 + z' (Z'Z)^-1 z),    z = (1, x), k its length,
and a run is stopped when the probability of a win is small.  All differences are taken as
arcsinh(d / median |y|), which is d near 0 and ln d far from it: else the few ideas that are far worse
than the others would set b and s for those that are near a win.  Stopping depends on x only, so the
regression stays unbiased though the losers are missing.  How often a stopped run would have won after
all can only be known by running some on: a random share of would-be kills, the audit.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from scipy.special import betaincinv, stdtr

MIN_HISTORY = 16  # completed runs before the first may be stopped


@dataclasses.dataclass
class Futility:
    """History of readings and final differences at one fraction of training."""

    readings: list[tuple[float, ...]] = dataclasses.field(default_factory=list)
    final: list[float] = dataclasses.field(default_factory=list)

    def add(self, readings: Sequence[float], final: float) -> None:
        self.readings.append(tuple(readings))
        self.final.append(final)

    def p_win(self, readings: Sequence[float], threshold: float) -> float:
        """P(final difference < threshold); 1 while the history is too short."""
        n, k = len(self.final), 1 + len(readings)
        if n < MIN_HISTORY:
            return 1.0
        size = float(np.median(np.abs(self.final))) or 1.0
        z = np.array([(1.0, *np.arcsinh(np.array(seen) / size)) for seen in self.readings])
        y = np.arcsinh(np.array(self.final) / size)
        inverse = np.linalg.pinv(z.T @ z)
        slopes = inverse @ z.T @ y
        rest = y - z @ slopes
        now = np.array([1.0, *np.arcsinh(np.array(readings) / size)])
        spread = math.sqrt(float(rest @ rest) / (n - k) * (1 + float(now @ inverse @ now)))
        beyond = math.asinh(threshold / size) - float(now @ slopes)  # what is expected
        return float(stdtr(n - k, beyond / spread)) if spread else float(beyond > 0)


def share_interval(count: int, n: int, alpha: float = 0.05) -> tuple[float, float]:
    """Clopper-Pearson interval of a share; (0, 1) for n = 0."""
    low = float(betaincinv(count, n - count + 1, alpha / 2)) if count else 0.0
    high = float(betaincinv(count + 1, n - count, 1 - alpha / 2)) if count < n else 1.0
    return low, high
