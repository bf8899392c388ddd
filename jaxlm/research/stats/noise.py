# SPDX-License-Identifier: Apache-2.0
"""The spread between seeds: pooled over all that was replicated, and what follows for a plan.

    sigma^2 = sum_j (n_j - 1) s_j^2 / sum_j (n_j - 1),   df = sum_j (n_j - 1)
over configurations j of one scale and horizon.  A horizon at which the loss still moves fast is
refused: there the seeds differ by *when* they fall, and every effect is one of timing.
"""

import dataclasses
import math
from collections.abc import Iterable, Sequence

import numpy as np
from scipy.special import chdtri, ndtri, stdtrit

MAX_FALL = 0.25  # of the whole fall so far, per e-fold of training: above, the loss is in free fall
MAX_TIMING = 100.0  # sigmas per e-fold: above, a run 1 % longer would differ by a sigma


@dataclasses.dataclass(frozen=True)
class Noise:
    """sigma of one run's loss, known from `df` degrees of freedom."""

    sigma: float
    df: float

    def interval(self, alpha: float = 0.05) -> tuple[float, float]:
        """Of sigma, by the chi-square distribution."""
        total = self.df * self.sigma**2
        low, high = chdtri(self.df, alpha / 2), chdtri(self.df, 1 - alpha / 2)
        return math.sqrt(total / low), math.sqrt(total / high) if high > 0 else math.inf


def pool(groups: Iterable[Sequence[float]]) -> Noise | None:
    """Noise of replicated configurations; None where nothing was replicated."""
    squares, df = 0.0, 0
    for losses in groups:
        if len(losses) > 1:
            squares += float(np.var(losses, ddof=1)) * (len(losses) - 1)
            df += len(losses) - 1
    return Noise(math.sqrt(squares / df), df) if df else None


def combine(parts: Iterable[Noise | None]) -> Noise | None:
    """One estimate from several of the same sigma."""
    known = [p for p in parts if p is not None]
    df = sum(p.df for p in known)
    return Noise(math.sqrt(sum(p.df * p.sigma**2 for p in known) / df), df) if df else None


def sample_size(
    sd: float, smallest_effect: float, *, alpha: float = 0.05, power: float = 0.8
) -> int:
    """Paired seeds needed to find `smallest_effect`, where differences spread by `sd`; at least 2.

    The smallest n with n >= (t_{1-alpha/2, n-1} + z_power)^2 sd^2 / effect^2 (two-sided).
    Raises ValueError for an effect or sd that is not positive.
    """
    if not (smallest_effect > 0 and sd > 0):
        raise ValueError(f"sd and smallest_effect must be > 0, got {sd!r} and {smallest_effect!r}")
    ratio = (sd / smallest_effect) ** 2
    n = max(2, math.ceil((ndtri(1 - alpha / 2) + ndtri(power)) ** 2 * ratio))  # as if df = inf
    while n < (stdtrit(n - 1, 1 - alpha / 2) + ndtri(power)) ** 2 * ratio:
        n += 1
    return n


@dataclasses.dataclass(frozen=True)
class Horizon:
    """Whether a length of training is fit for comparisons."""

    slope: float  # |dL / d ln t| at the end, nats
    fall: float  # share of the loss's fall so far that one more e-fold would add at this slope
    timing: float  # slope / sigma
    problem: str | None  # None: fit

    @property
    def is_fit(self) -> bool:
        return self.problem is None


def check_horizon(steps: Sequence[float], losses: Sequence[float], sigma: float) -> Horizon:
    """Judges the end of a baseline's loss curve (validation, or smoothed training loss).

    The slope is a least-squares line through the last tenth of training.  Raises ValueError with
    fewer than 3 points there.
    """
    t, loss = np.asarray(steps, float), np.asarray(losses, float)
    late = t >= 0.9 * t[-1]
    if late.sum() < 3:
        raise ValueError(f"needs at least 3 points in the last tenth of training, got {late.sum()}")
    x = np.log(t[late]) - np.log(t[late]).mean()
    slope = abs(float(x @ loss[late] / (x @ x)))
    fallen = float(loss[0] - loss[late].mean())
    fall = slope / fallen if fallen > 0 else math.inf
    timing = slope / sigma if sigma > 0 else math.inf
    problem = None
    if fall > MAX_FALL:
        problem = (
            f"the loss still falls by {fall:.0%} of its whole fall per e-fold of training "
            f"(at most {MAX_FALL:.0%}): train longer"
        )
    elif timing > MAX_TIMING:
        problem = (
            f"the loss still falls by {timing:.0f} sigmas per e-fold of training "
            f"(at most {MAX_TIMING:.0f}): 1 % more steps would look like an effect; train longer"
        )
    return Horizon(slope, fall, timing, problem)
