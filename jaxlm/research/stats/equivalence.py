# SPDX-License-Identifier: Apache-2.0
"""Simplifications: shown to cost less than a margin, not merely not shown to cost anything.

Two one-sided t tests (Schuirmann 1987): equivalent when mean d is significantly above -margin and
significantly below +margin; non-inferior, enough for a deletion, when below +margin.  The margin is
the smallest effect worth keeping.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from scipy.special import stdtr, stdtrit

from jaxlm.research.stats.shrink import Floats


@dataclasses.dataclass(frozen=True)
class Equivalence:
    """Of paired differences arm - baseline; p-values are nan for fewer than 2."""

    n: int
    effect: float
    upper: float  # one-sided bound at 1 - alpha
    p_non_inferior: float
    p_equivalent: float
    is_non_inferior: bool
    is_equivalent: bool


def tost(d: Sequence[float] | Floats, margin: float, *, alpha: float = 0.05) -> Equivalence:
    """Raises ValueError for a margin that is not positive."""
    if not margin > 0:
        raise ValueError(f"margin must be > 0, got {margin!r}")
    d = np.asarray(d, float)
    n, effect = d.size, float(d.mean())
    if n < 2:
        return Equivalence(n, effect, math.inf, math.nan, math.nan, False, False)
    se = float(d.std(ddof=1)) / math.sqrt(n)
    upper = effect + float(stdtrit(n - 1, 1 - alpha)) * se
    p_below, p_above = _p_less(effect - margin, se, n - 1), _p_less(-effect - margin, se, n - 1)
    p_both = max(p_below, p_above)
    return Equivalence(n, effect, upper, p_below, p_both, p_below < alpha, p_both < alpha)


def _p_less(distance: float, se: float, df: int) -> float:
    """p against a mean below: of t = distance / se or less."""
    return float(stdtr(df, distance / se)) if se > 0 else float(distance >= 0)
