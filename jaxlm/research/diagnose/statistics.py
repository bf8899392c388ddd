# SPDX-License-Identifier: Apache-2.0
"""The numbers that evidence may cite: each a function of a metric's values, in order of step.

verify.py computes every one a second time in its own way.
"""

import warnings
from collections.abc import Callable, Mapping

import numpy as np

SPIKE_WINDOW, SPIKE_LEAST = 32, 12  # values before a point that say what to expect there
SPIKE_Z = 6.0
LAGS = 8  # of the mean autocorrelation
TAIL = 4  # "early" and "late" are the first and the last quarter


def z_scores(values: np.ndarray) -> np.ndarray:
    """How far each value lies above the median of those before it, in robust standard deviations.

    The deviation is 1.4826 times the median absolute deviation, and at least 0.1 % of the median.
    0 where fewer than 12 values came before; infinite for what is not finite.
    """
    z = np.zeros(len(values))
    if len(values) <= SPIKE_LEAST:
        return z
    known = np.where(np.isfinite(values), values, np.nan)
    padded = np.concatenate([np.full(SPIKE_WINDOW, np.nan), known[:-1]])
    before = np.lib.stride_tricks.sliding_window_view(padded, SPIKE_WINDOW)[SPIKE_LEAST:]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # windows of nothing finite give NaN
        middle = np.nanmedian(before, axis=1)
        spread = 1.4826 * np.nanmedian(np.abs(before - middle[:, None]), axis=1)
    floor = np.maximum(1e-3 * np.abs(middle), 1e-12)
    late = values[SPIKE_LEAST:]
    with np.errstate(invalid="ignore"):
        found = (late - middle) / np.maximum(spread, floor)
    z[SPIKE_LEAST:] = np.where(np.isfinite(late), np.nan_to_num(found), np.inf)
    return z


def onsets(values: np.ndarray) -> np.ndarray:
    """Indices where z rises above 6 after 4 values that did not."""
    high = z_scores(values) > SPIKE_Z
    return np.array([i for i in np.flatnonzero(high) if not high[max(0, i - 4) : i].any()], int)


def _finite(values: np.ndarray) -> np.ndarray:
    return values[np.isfinite(values)]


def _early(values: np.ndarray) -> float:
    return float(np.median(values[: max(1, len(values) // TAIL)]))


def _late(values: np.ndarray) -> float:
    return float(np.median(values[-max(1, len(values) // TAIL) :]))


def _growth(values: np.ndarray) -> float:
    early = _early(values)
    return _late(values) / early if early else float("inf")


def _autocorrelation(values: np.ndarray) -> float:
    x = values - values.mean()
    square, lags = float(x @ x), range(1, min(LAGS + 1, len(x)))
    if not square or not lags:
        return 0.0
    return sum(float(x[lag:] @ x[:-lag]) for lag in lags) / (len(lags) * square)


def _slope(values: np.ndarray) -> float:
    return float(np.polyfit(np.arange(len(values)), values, 1)[0]) if len(values) > 1 else 0.0


STATISTICS: Mapping[str, Callable[[np.ndarray], float]] = {
    "first": lambda x: float(x[0]),
    "last": lambda x: float(x[-1]),
    "min": lambda x: float(x.min()),
    "max": lambda x: float(x.max()),
    "mean": lambda x: float(x.mean()),
    "median": lambda x: float(np.median(x)),
    "early": _early,
    "late": _late,
    "growth": _growth,  # late / early
    "rise": lambda x: _late(x) - _early(x),
    "spread": lambda x: float(np.quantile(x, 0.9) / np.quantile(x, 0.1)),
    "slope": _slope,  # per row, by least squares
    "autocorrelation": _autocorrelation,  # mean over the lags 1..8
    "count": lambda x: float(len(x)),
    "spikes": lambda x: float(len(onsets(x))),
    "share_above_double": lambda x: float(np.mean(x > 2 * np.median(x))),
    "largest_spike": lambda x: float(z_scores(x).max()),
}  # all of the finite values but for these, which see every value
OF_ALL = {
    "not_finite": lambda x: float(np.sum(~np.isfinite(x))),
}


def compute(statistic: str, values: np.ndarray) -> float | None:
    """The statistic of (n,) values; None where there is nothing to compute it from."""
    if statistic in OF_ALL:
        return OF_ALL[statistic](values)
    finite = _finite(values)
    return STATISTICS[statistic](finite) if len(finite) else None
