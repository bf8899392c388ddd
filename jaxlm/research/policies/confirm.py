# SPDX-License-Identifier: Apache-2.0
"""Fresh seeds after all decisions: the only source of a claimed gain.

What was selected looks better than it is; a measurement that no decision depended on does not.
"""

import math
from collections.abc import Generator, Mapping

import numpy as np
from scipy.special import stdtrit

from jaxlm.research.policies.base import BASELINE, Losses, Outcome, Purse, Trial
from jaxlm.research.stats.noise import Noise, combine, pool


def confirm(
    purse: Purse, kept: frozenset[str], first_seed: int, pairs: int, noise: Noise | None,
    effects: Mapping[str, float], notes: Mapping[str, float], scale: int = 0,
) -> Generator[list[Trial], Losses, Outcome]:  # fmt: skip
    """Baseline and the final arm on `pairs` seeds that nothing has used.

    noise: of one run, within a seed, pooled from before; with it two pairs suffice for an interval.
    """
    if not kept:
        return Outcome(BASELINE, 0.0, (0.0, 0.0), effects, notes)
    seeds = range(first_seed, first_seed + pairs)
    trials = [Trial(arm, seed, 1.0, scale) for seed in seeds for arm in (BASELINE, kept)]
    purse.pay(trials)
    losses = yield trials
    gains = [
        b - a
        for b, a in zip(losses[::2], losses[1::2], strict=True)
        if a is not None and b is not None
    ]
    if not gains:
        return Outcome(BASELINE, 0.0, None, effects, notes)
    before = Noise(math.sqrt(2) * noise.sigma, noise.df) if noise else None
    spread = combine([before, pool([gains])])
    mean, interval = float(np.mean(gains)), None
    if spread:
        half = stdtrit(spread.df, 0.975) * spread.sigma / math.sqrt(len(gains))
        interval = (mean - half, mean + half)
    return Outcome(kept, mean, interval, effects, notes)
