# SPDX-License-Identifier: Apache-2.0
"""Many ideas: how many of the keeps are false?

A batch: Benjamini & Hochberg 1995, FDR <= q for independent or positively dependent p-values.
A stream: LOND (Javanmard & Montanari 2015), alpha_t = alpha gamma_t (discoveries before t + 1) with
gamma_t = 6 / (pi^2 t^2); each decision is final when made, FDR <= alpha for independent p-values.
"""

import math
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from jaxlm.research.stats.shrink import Floats


def adjusted(p_values: Sequence[float] | Floats) -> Floats:
    """The smallest q at which each would be a discovery."""
    p = np.asarray(p_values, float)
    if np.any(~((p >= 0) & (p <= 1))):
        raise ValueError("p-values must lie between 0 and 1")
    order = np.argsort(p, kind="stable")
    scaled = p[order] * p.size / np.arange(1, p.size + 1)
    result = np.empty_like(p)
    result[order] = np.minimum(np.minimum.accumulate(scaled[::-1])[::-1], 1.0)
    return result


def benjamini_hochberg(p_values: Sequence[float] | Floats, q: float = 0.05) -> NDArray[np.bool_]:
    """Which of a batch are discoveries."""
    return adjusted(p_values) <= q


def lond(p_values: Iterable[float], alpha: float = 0.05) -> Iterator[bool]:
    """Which of a stream are discoveries, one at a time."""
    found = 0
    for t, p in enumerate(p_values, 1):
        is_found = p <= alpha * 6 / (math.pi * t) ** 2 * (found + 1)
        found += is_found
        yield is_found
