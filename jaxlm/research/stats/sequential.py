# SPDX-License-Identifier: Apache-2.0
"""'One more seed, or stop?': intervals that hold at every n at once, so that looking costs nothing.

Mixture confidence sequence of the mean mu of differences d_1, d_2, ... with known sigma (Robbins
1970; Howard et al. 2021), with g = (2 ln 1/alpha + ln(1 + 2 ln 1/alpha)) / n* tightest near n*:
    mean_n -+ sigma sqrt( (1 + n g) / (n^2 g) . ln((1 + n g) / alpha^2) ).
With sigma unknown it is the same mixture over mu / sigma, with sigma's right Haar prior: the t-test
Bayes factor, a martingale under mu = 0 whatever sigma is (Lai 1976; Wang & Ramdas 2024).  With
nu = n - 1 + df degrees of freedom in s^2, of which df come from pooled noise of before,
    BF = (1 + n g)^(-1/2) [ (1 + t^2 / nu) / (1 + t^2 / (nu (1 + n g))) ]^((nu + 1) / 2);
the interval has the mu for which BF < 1 / alpha.  df = inf is the formula above; df = 0 starts at
n = 2, and is wide: with few seeds and no pooled noise, that is the truth.
"""

import math
from collections.abc import Sequence

import numpy as np

from jaxlm.research.stats.noise import Noise
from jaxlm.research.stats.shrink import Floats

EXPECTED_N = 6  # where the sequence is tightest


def confidence_sequence(
    d: Sequence[float] | Floats,
    *,
    alpha: float = 0.05,
    noise: Noise | None = None,
    expected_n: float = EXPECTED_N,
) -> tuple[float, float]:
    """Interval of the mean after the differences so far; P(ever wrong, over all n) <= alpha.

    noise: of such differences, from before the first of them; df may be inf.
    """
    d = np.asarray(d, float)
    n = d.size
    half = half_width(n, float(np.var(d, ddof=1)) if n > 1 else 0.0, alpha, noise, expected_n)
    return float(d.mean()) - half, float(d.mean()) + half


def half_width(
    n: int, variance: float, alpha: float, noise: Noise | None, expected_n: float = EXPECTED_N
) -> float:
    """Of the sequence at n differences with this sample variance."""
    if not 0 < alpha < 1:
        raise ValueError(f"alpha must be between 0 and 1, got {alpha!r}")
    g = _mixing(alpha, expected_n)
    spread = 1 + n * g
    if noise is not None and math.isinf(noise.df):
        return noise.sigma * math.sqrt(spread / (n * n * g) * math.log(spread / alpha**2))
    squares, df = (n - 1) * variance, n - 1.0
    if noise is not None:
        squares, df = squares + noise.df * noise.sigma**2, df + noise.df
    growth = math.exp(math.log(spread / alpha**2) / (df + 1))
    if df <= 0 or growth >= spread:
        return math.inf  # no mean, however far, has a Bayes factor of 1 / alpha yet
    t_square = df * (growth - 1) / (1 - growth / spread)
    return math.sqrt(t_square * squares / df / n)


def e_value(
    d: Sequence[float] | Floats, *, alpha: float = 0.05, noise: Noise | None = None
) -> float:
    """Evidence against a mean of 0, valid whenever one stops: 1 / e is a p-value at every n.

    Above 1 / alpha exactly when 0 is outside of `confidence_sequence`.
    """
    d = np.asarray(d, float)
    n, mean = d.size, float(d.mean())
    spread = 1 + n * _mixing(alpha, EXPECTED_N)
    if noise is not None and math.isinf(noise.df):
        exponent = n * (mean / noise.sigma) ** 2 * (1 - 1 / spread) / 2
        return math.exp(min(700.0, exponent)) / math.sqrt(spread)
    squares, df = float(((d - mean) ** 2).sum()), n - 1.0
    if noise is not None:
        squares, df = squares + noise.df * noise.sigma**2, df + noise.df
    if df <= 0:
        return 1.0
    ratio = n * mean**2 / squares if squares > 0 else math.inf  # t^2 / df
    growth = (1 + ratio) / (1 + ratio / spread) if math.isfinite(ratio) else spread
    return math.exp(min(700.0, (df + 1) / 2 * math.log(growth))) / math.sqrt(spread)


def _mixing(alpha: float, expected_n: float) -> float:
    evidence = -2 * math.log(alpha)
    return (evidence + math.log1p(evidence)) / expected_n
