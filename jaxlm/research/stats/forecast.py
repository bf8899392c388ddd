# SPDX-License-Identifier: Apache-2.0
"""What a larger run will give, from smaller ones: an interval that is written down before it runs.

The model: over compute C, in units u = ln C, a quantity of runs of one recipe is

    y = a + b z_k(u) + N(0, sigma^2),   z_k(u) = (1 - exp(-k u)) / k,   z_0(u) = u,

a straight line in ln C (k = 0) or one that levels off (k > 0): the power law floor + scale C^-k that
losses follow (Hestness et al. 2017, arXiv:1712.00409; Kaplan et al. 2020, arXiv:2001.08361).
Errors are independent and alike at all sizes, so every run has seeds of its own.

The interval: with k known this is linear regression, and the mean of m new runs at C has the
Student-t predictive distribution of textbooks, n - 2 degrees of freedom.  k is not known, and is not
guessed either: it has a flat prior over RATES, a and b have flat ones at the sizes that were run,
and ln sigma too; the predictive is then the mixture of the t's with weights RSS_k^(-(n - 2) / 2)
(Gelman et al., Bayesian Data Analysis, ch. 14).  So the interval widens with the distance for both
reasons: the line's slope is known so well, and whether it is a line.

What it cannot know: that a recipe stops working at some size.  Where the sizes that were run already
contradict every k, `problem` says so.  At most MAX_REACH times the largest compute is answered.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from scipy.optimize import brentq
from scipy.special import fdtrc, stdtr

from jaxlm.research.stats.shrink import Floats

RATES = tuple(np.linspace(0.0, 1.0, 41))  # k: exponents of compute; published ones are 0.05 to 0.5
MAX_REACH = 30.0
MISFIT = 0.01  # p of the lack-of-fit test below which `problem` says so


@dataclasses.dataclass(frozen=True)
class Forecast:
    """Of the mean of some new runs: it lies between low and high with the probability asked for."""

    median: float
    low: float
    high: float
    reach: float  # compute of the new runs over the largest of those it rests on
    problem: str | None  # None: the model fits what was run


def predict(
    compute: Sequence[float], values: Sequence[float], at: float, num_runs: int, *,
    alpha: float = 0.05, rates: Sequence[float] = RATES,
) -> Forecast:  # fmt: skip
    """The mean of `num_runs` runs at compute `at`, from runs of at least 3 sizes, one twice.

    Raises ValueError for fewer, for numbers that are not finite, and beyond MAX_REACH.
    """
    c, y = np.asarray(compute, float), np.asarray(values, float)
    sizes = np.unique(c)
    if sizes.size < 3 or c.size <= sizes.size:
        raise ValueError(
            f"a forecast needs runs of at least 3 sizes, and several seeds; got {c.size} runs of "
            f"{sizes.size} sizes"
        )
    if not (np.isfinite(y).all() and (c > 0).all()):
        raise ValueError("a forecast needs finite values, and compute above 0")
    reach = at / float(sizes[-1])
    if not 0 < reach <= MAX_REACH:
        raise ValueError(
            f"{reach:.3g} times the largest compute that was run is too far (at most {MAX_REACH:g})"
        )
    fits = [_fit(c, y, at, k, num_runs) for k in rates]
    df = c.size - 2
    rss = np.array([fit.rss for fit in fits])
    least = max(float(rss.min()), np.finfo(float).tiny)
    weights = (np.maximum(rss, least) / least) ** (-df / 2)
    weights /= weights.sum()
    means, scales = (np.array([getattr(fit, name) for fit in fits]) for name in ("mean", "scale"))
    quantile = lambda p: _quantile(p, weights, means, scales, df)
    low, median, high = map(quantile, (alpha / 2, 0.5, 1 - alpha / 2))
    return Forecast(median, low, high, reach, _misfit(c, y, least, len(rates)))


@dataclasses.dataclass(frozen=True)
class _Fit:
    rss: float
    mean: float  # predicted
    scale: float  # of the t distribution around it


def _fit(c: Floats, y: Floats, at: float, k: float, num_runs: int) -> _Fit:
    """z in standard units of the runs, so that a flat prior of the slope means the same for every k."""
    unit = float(np.log(c).mean())
    shape = lambda x: np.log(x) - unit if k == 0 else -np.expm1(-k * (np.log(x) - unit)) / k
    z = shape(c)
    centre, spread = z.mean(), z.std()
    z, new = (z - centre) / spread, float((shape(np.array(at)) - centre) / spread)
    slope = float(z @ (y - y.mean())) / c.size
    rss = float(((y - y.mean() - slope * z) ** 2).sum())
    variance = rss / (c.size - 2) * (1 / num_runs + (1 + new**2) / c.size)
    return _Fit(rss, float(y.mean()) + slope * new, max(math.sqrt(variance), 1e-300))


def _quantile(p: float, weights: Floats, means: Floats, scales: Floats, df: int) -> float:
    """Of a mixture of t distributions."""
    below = lambda x: float(weights @ stdtr(df, (x - means) / scales)) - p
    width = float(scales.max())
    low, high = float(means.min()) - width, float(means.max()) + width
    while below(low) > 0:
        low -= (width := 2 * width)
    while below(high) < 0:
        high += (width := 2 * width)
    return float(brentq(below, low, high, xtol=1e-12 + 1e-9 * abs(high - low)))


def _misfit(c: Floats, y: Floats, rss: float, num_rates: int) -> str | None:
    """The lack-of-fit F test: means of sizes around the best curve, against seeds around their mean."""
    groups = [y[c == size] for size in np.unique(c)]
    pure = sum(float(((g - g.mean()) ** 2).sum()) for g in groups)
    df_pure = c.size - len(groups)
    df_lack = len(groups) - (3 if num_rates > 1 else 2)
    if df_lack < 1 or pure <= 0:
        return None
    p = float(fdtrc(df_lack, df_pure, max(rss - pure, 0.0) / df_lack / (pure / df_pure)))
    if p >= MISFIT:
        return None
    return f"the sizes that were run lie on no curve of this form (lack of fit, p = {p:.2g})"
