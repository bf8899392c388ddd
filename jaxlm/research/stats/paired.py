# SPDX-License-Identifier: Apache-2.0
"""Two arms on the same seeds: the differences, an interval, and a test without assumptions.

The unit is a run's final loss on a fixed validation set.  With the same initial weights and data order
in both arms, d_s = arm_s - baseline_s has Var(mean d) = 2 sigma^2 (1 - rho) / n; rho depends on the
change and is never assumed: the spread is that of the differences themselves.  Lower loss is better: a
good effect is negative.

t = mean / (sd / sqrt n), n - 1 degrees of freedom.  The sign-flip test asks how often the sum of d
with random signs is as far from 0; exact under symmetry alone (Fisher 1935).  With n seeds its
two-sided p cannot be below 2 / 2^n: 6 seeds for 0.05.
"""

import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np
from scipy.special import stdtrit

from jaxlm.research.stats.shrink import Floats

MAX_EXACT = 12  # seeds; 4096 sign patterns
NUM_FLIPS = 20_000  # Monte Carlo above that


def differences(arm: Mapping[int, float | None], baseline: Mapping[int, float | None]) -> Floats:
    """arm - baseline on the seeds that completed in both, by rising seed."""
    pairs = [(arm[s], baseline[s]) for s in sorted(arm.keys() & baseline.keys())]
    return np.array([a - b for a, b in pairs if a is not None and b is not None], float)


def t_interval(d: Sequence[float] | Floats, alpha: float = 0.05) -> tuple[float, float]:
    """Of the mean of differences; infinite for one."""
    d = np.asarray(d, float)
    if d.size < 2:
        return -math.inf, math.inf
    half = float(stdtrit(d.size - 1, 1 - alpha / 2) * d.std(ddof=1)) / math.sqrt(d.size)
    return float(d.mean()) - half, float(d.mean()) + half


def sign_flip(d: Sequence[float] | Floats, *, side: int = 0, seed: int = 0) -> float:
    """p that differences are symmetric about 0: exact to 12 seeds, above by seeded Monte Carlo.

    side: 0 two-sided; -1 against a mean below 0; +1 above.  Monte Carlo counts the observed pattern
    as one of the draws, so that p is valid, not just close (Phipson & Smyth 2010).
    """
    d = np.asarray(d, float)
    weight = {0: np.abs, -1: np.negative, 1: np.positive}[side]
    tie = 1e-12 * float(np.abs(d).sum())  # sums in another order differ by rounding
    observed = weight(d.sum()) - tie
    if d.size <= MAX_EXACT:
        signs = np.array(list(itertools.product((1, -1), repeat=d.size)))
        return float(np.mean(weight(signs @ d) >= observed))
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], (NUM_FLIPS, d.size))
    return float((1 + np.sum(weight(signs @ d) >= observed)) / (1 + NUM_FLIPS))
