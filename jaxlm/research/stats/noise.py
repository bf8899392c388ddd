# SPDX-License-Identifier: Apache-2.0
"""The spread between seeds: pooled over all that was replicated, and what follows for a plan.

    sigma^2 = sum_j (n_j - 1) s_j^2 / sum_j (n_j - 1),   df = sum_j (n_j - 1)
over configurations j of one scale and horizon.  A horizon at which the loss still moves fast is
refused: there the seeds differ by *when* they fall (one pilot had 15 times the noise of a longer one).
"""

import dataclasses
import math
from collections.abc import Iterable, Sequence

import numpy as np
from scipy.optimize import brentq
from scipy.special import ndtri, polygamma, psi, stdtrit

MOST_NOISE = 1e7  # in smallest effects: beyond, 1e15 seeds are too few, and counts overflow
MAX_FALL = 0.25  # of the whole fall so far, per e-fold of training: above, the loss is in free fall


@dataclasses.dataclass(frozen=True)
class Noise:
    """sigma of one run's loss, known from `df` degrees of freedom."""

    sigma: float
    df: float


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


def moderate(groups: Iterable[Sequence[float]]) -> Noise | None:
    """What other groups of differences say of a new one's noise, as far as they agree among themselves.

    Paired differences spread by what was changed, so one pooled sigma would be too sure.  Variances are
    taken as sigma0^2 d0 / chi^2(d0); d0, their agreement, comes from the spread of ln s^2 (Smyth 2004,
    limma), and counts as degrees of freedom beside a group's own.  None for fewer than 3 groups.
    """
    known = [(float(np.var(g, ddof=1)), len(g) - 1) for g in groups if len(g) > 1]
    known = [(variance, df) for variance, df in known if variance > 0]
    if len(known) < 3:
        return None
    variances, half = np.array([v for v, _ in known]), np.array([df / 2 for _, df in known])
    logs = np.log(variances) - psi(half) + np.log(half)
    spread, alike = float(np.var(logs, ddof=1)), float(polygamma(1, half).mean())
    excess = spread - alike
    # with few groups an excess of none may be luck: add its standard error
    doubt = math.sqrt(2 / (len(known) - 1)) * max(spread, alike)
    half_d0 = _trigamma_inverse(max(excess, 0.0) + doubt)
    sigma2 = math.exp(float(logs.mean()) + float(psi(half_d0)) - math.log(half_d0))
    return Noise(math.sqrt(sigma2), 2 * half_d0)


def _trigamma_inverse(y: float) -> float:
    """x > 0 with trigamma(x) = y > 0; trigamma falls from inf to 0."""
    return float(brentq(lambda x: float(polygamma(1, x)) - y, 1e-6, 1 / y + 1))


def sample_size(
    sd: float, smallest_effect: float, *, alpha: float = 0.05, power: float = 0.8
) -> int:
    """Paired seeds needed to find `smallest_effect`, where differences spread by `sd`; at least 2.

    The smallest n with n >= (t_{1-alpha/2, n-1} + z_power)^2 sd^2 / effect^2 (two-sided); with an sd of
    more than MOST_NOISE effects, that of so many.
    Raises ValueError for an effect or sd that is not positive.
    """
    if not (smallest_effect > 0 and sd > 0):
        raise ValueError(f"sd and smallest_effect must be > 0, got {sd!r} and {smallest_effect!r}")
    ratio = min(sd / smallest_effect, MOST_NOISE) ** 2
    n = max(2, math.ceil((ndtri(1 - alpha / 2) + ndtri(power)) ** 2 * ratio))  # as if df = inf
    while n < (stdtrit(n - 1, 1 - alpha / 2) + ndtri(power)) ** 2 * ratio:
        n += 1
    return n


@dataclasses.dataclass(frozen=True)
class Horizon:
    """Whether a length of training is fit for comparisons."""

    slope: float  # nats per token that one more e-fold of training takes off
    fall: float  # the same as a share of the fall from the first loss
    problem: str | None  # None: fit


def check_horizon(steps: Sequence[float], losses: Sequence[float], start: float) -> Horizon:
    """Judges the longest of runs of two lengths or more, each with its whole schedule.

    losses: final ones, in nats; several runs may have one length.  start: of the first update.
    The slope lies between the two longest: inside one run with a decaying learning rate the loss falls
    for the schedule's sake.  Raises ValueError for fewer than two lengths.
    """
    lengths = sorted(set(steps))
    if len(lengths) < 2:
        raise ValueError(f"needs runs of at least 2 lengths, got {len(lengths)}")
    mean = {
        n: float(np.mean([x for m, x in zip(steps, losses, strict=True) if m == n]))
        for n in lengths[-2:]
    }
    (short, before), (long, after) = sorted(mean.items())
    slope = (before - after) / math.log(long / short)
    fall = slope / (start - after) if start > after else math.inf
    problem = None
    if fall > MAX_FALL:
        problem = (
            f"at this length one e-fold more of training would still take {slope:.2g} nats off, "
            f"{min(fall, 9.99):.0%} of all it has fallen (at most {MAX_FALL:.0%}): seeds differ by when "
            "they fall, and every effect is one of timing"
        )
    return Horizon(slope, fall, problem)
