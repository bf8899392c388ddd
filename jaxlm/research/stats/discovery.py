# SPDX-License-Identifier: Apache-2.0
"""Many ideas: how many of the keeps are false?

Benjamini & Hochberg 1995: FDR <= q for independent or positively dependent p-values.
"""

from collections.abc import Sequence

import numpy as np

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
