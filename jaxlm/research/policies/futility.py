# SPDX-License-Identifier: Apache-2.0
"""Will this run still win?  From its difference to the incumbent's curve at the same fraction.

Over runs that were seen at both, the final difference is regressed on the early one,
    final | early ~ a + b early + t_{n-2} s sqrt(1 + 1/n + (early - mean)^2 / S),
and a run is stopped when the probability of a win is small.  Stopping depends on `early` only, so the
regression stays unbiased though the losers are missing.  How often a stopped run would have won after
all can only be known by running some on: a random share of would-be kills, the audit.
"""

import dataclasses
import math

import numpy as np
from scipy.special import betaincinv, stdtr

MIN_HISTORY = 8  # completed runs before the first may be stopped


@dataclasses.dataclass
class Futility:
    """History of (early, final) differences at one fraction of training."""

    early: list[float] = dataclasses.field(default_factory=list)
    final: list[float] = dataclasses.field(default_factory=list)

    def add(self, early: float, final: float) -> None:
        self.early.append(early)
        self.final.append(final)

    def p_win(self, early: float, threshold: float) -> float:
        """P(final difference < threshold); 1 while the history is too short."""
        n = len(self.early)
        if n < MIN_HISTORY:
            return 1.0
        x, y = np.array(self.early), np.array(self.final)
        dx = x - x.mean()
        squares = float(dx @ dx)
        slope = float(dx @ y) / squares if squares else 0.0
        rest = y - y.mean() - slope * dx
        variance = float(rest @ rest) / (n - 2)
        spread = math.sqrt(
            variance * (1 + 1 / n + ((early - x.mean()) ** 2 / squares if squares else 0))
        )
        centre = float(y.mean()) + slope * (early - float(x.mean()))
        return (
            float(stdtr(n - 2, (threshold - centre) / spread))
            if spread
            else float(centre < threshold)
        )


def share_interval(count: int, n: int, alpha: float = 0.05) -> tuple[float, float]:
    """Clopper-Pearson interval of a share; (0, 1) for n = 0."""
    low = float(betaincinv(count, n - count + 1, alpha / 2)) if count else 0.0
    high = float(betaincinv(count + 1, n - count, 1 - alpha / 2)) if count < n else 1.0
    return low, high
