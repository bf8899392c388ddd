# SPDX-License-Identifier: Apache-2.0
"""Fresh seeds after all decisions: the only source of a claimed gain.

What was selected looks better than it is; a measurement that no decision depended on does not.
"""

from collections.abc import Generator, Mapping

import numpy as np

from jaxlm.research.policies.base import BASELINE, Losses, Outcome, Purse, Trial
from jaxlm.research.stats.paired import t_interval


def confirm(
    purse: Purse, kept: frozenset[str], first_seed: int, pairs: int,
    effects: Mapping[str, float], notes: Mapping[str, float], scale: int = 0,
) -> Generator[list[Trial], Losses, Outcome]:  # fmt: skip
    """Baseline and the final arm on `pairs` seeds that nothing has used.

    The interval is that of these pairs alone, so one pair has none: the noise of earlier blocks, whose
    arms share ideas and a seed, does not tell how far this arm and the baseline lie apart by luck.
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
    interval = t_interval(gains) if len(gains) > 1 else None
    return Outcome(kept, float(np.mean(gains)), interval, effects, notes)
